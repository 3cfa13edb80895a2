"""Features of audio for distances between sets of songs: one built in, others by their weights.

    embedder = open_embedder("musicnn")                               # ships with the package
    embedder = open_embedder("clap:laion/larger_clap_music")          # a folder or a hub id
    rows_ND = embedder(audio_cS, 44100)

A CLAP row is a window of 10 s, an MS-CLAP row one of 7 s (metrics/ms_clap.py), an EnCodec row a
frame of its encoder, a MERT row a window of 5 s averaged over time (its last layer), a musicnn row
a patch of 3 s. Which features a distance is of belongs to the distance: figures of different
features are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.audio import resample
from mudit_engine.availability import require
from mudit_engine.errors import InputError, ModelError

CLAP_SECONDS = 10.0  # CLAP's window: longer audio would be cut at a random place
MERT_SECONDS = 5.0
KINDS = ("musicnn", "clap", "encodec", "mert", "ms-clap")


@dataclass(frozen=True)
class Embedder:
    """What turns audio [channels, samples] at a rate into rows of features [N, D]. `name` says
    which features they are, `key` which weights: measurements are kept by it.
    """

    name: str
    key: str
    embed: Callable[[Tensor, int], Tensor]

    def __call__(self, audio_cS: Tensor, sample_rate: int) -> Tensor:
        with torch.inference_mode():
            return self.embed(audio_cS, sample_rate)


def open_embedder(spec: str, *, trust_remote_code: bool = False) -> Embedder:
    """An embedder of its kind and, but for musicnn, where its weights are: "clap:FOLDER|HUB-ID".

    Raises InputError for another kind, MissingError without transformers, ModelError when the
    weights cannot be loaded.
    """
    kind, _, source = spec.partition(":")
    if kind not in KINDS or bool(source) == (kind == "musicnn"):
        raise InputError(
            f"features '{spec}' are unknown: use musicnn, clap:SOURCE, encodec:SOURCE, "
            "mert:SOURCE, where SOURCE is a folder or a hub id, or ms-clap:FILE"
        )
    if kind == "musicnn":
        from mudit_engine.metrics.musicnn import Musicnn

        network = Musicnn.load()
        return Embedder(
            "musicnn", "musicnn", lambda audio, rate: network(audio.mean(0), rate).penultimate
        )
    require("transformers", f"features '{kind}'")
    if kind == "ms-clap":
        from mudit_engine.metrics.ms_clap import MsClap

        return Embedder(kind, spec, MsClap.load(Path(source)).windows)
    opener = {"clap": _clap, "encodec": _encodec, "mert": _mert}[kind]
    return Embedder(kind, spec, opener(source, trust_remote_code))


def _clap(source: str, trust: bool) -> Callable[[Tensor, int], Tensor]:
    from transformers import AutoFeatureExtractor, ClapModel

    model = loaded(ClapModel, source).eval()
    extractor = loaded(AutoFeatureExtractor, source)

    def embed(audio: Tensor, rate: int) -> Tensor:
        own = int(extractor.sampling_rate)
        windows = [part.numpy() for part in mono(audio, rate, own).split(round(CLAP_SECONDS * own))]
        heard = extractor(windows, sampling_rate=own, return_tensors="pt")
        inputs = {name: heard[name] for name in ("input_features", "is_longer") if name in heard}
        rows: Tensor = model.get_audio_features(**inputs).pooler_output
        return rows

    return embed


def _encodec(source: str, trust: bool) -> Callable[[Tensor, int], Tensor]:
    from transformers import EncodecModel

    model = loaded(EncodecModel, source).eval()

    def embed(audio: Tensor, rate: int) -> Tensor:
        own, channels = int(model.config.sampling_rate), int(model.config.audio_channels)
        given = mono(audio, rate, own)[None, None].expand(1, channels, -1)
        rows: Tensor = model.encoder(given)[0].T
        return rows

    return embed


def _mert(source: str, trust: bool) -> Callable[[Tensor, int], Tensor]:
    from transformers import AutoFeatureExtractor, AutoModel

    model = loaded(AutoModel, source, trust_remote_code=trust).eval()
    extractor = loaded(AutoFeatureExtractor, source, trust_remote_code=trust)

    def embed(audio: Tensor, rate: int) -> Tensor:
        own = int(extractor.sampling_rate)
        parts = mono(audio, rate, own).split(round(MERT_SECONDS * own))
        # too short a rest for the encoder's strides, and of no weight
        parts = parts[:-1] if len(parts) > 1 and len(parts[-1]) < own else parts
        rows = []
        for part in parts:
            inputs = extractor(part.numpy(), sampling_rate=own, return_tensors="pt")
            rows.append(model(inputs["input_values"]).last_hidden_state[0].mean(0))
        return torch.stack(rows)

    return embed


def mono(audio: Tensor, source: int, target: int) -> Tensor:
    """Audio [channels, samples] or [samples] as fp32 [samples] at another rate."""
    one = audio.mean(0) if audio.dim() == 2 else audio
    return resample(one[None].float(), source, target)[0]


def loaded(kind: Any, source: str, **options: Any) -> Any:
    """kind.from_pretrained(source). Raises ModelError when it cannot be loaded."""
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"'{source}' cannot be loaded as {kind.__name__}: {str(error).splitlines()[0]}. Give a "
            "folder or a hub id that is reachable"
        ) from error
