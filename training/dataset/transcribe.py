"""What is heard in songs that come without stems or words: stems by demucs, lyrics by
faster-whisper or FunASR. All are optional.

    transcriber = Transcriber("htdemucs", "faster-whisper:large-v3", device="cuda")
    # found.stems {"vocals": [c, S], ...} at that rate, found.lyrics "one line\\na phrase"
    found = transcriber.transcribe(audio_cS, 44100)

Words are heard in the vocals alone where they were separated. Weights are fetched by those packages
when they are first used. Adapters to demucs 4.1, faster-whisper 1.2 and FunASR 1.4, which are not
installed where this is tested: the tests hold them to stand-ins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mudit_engine.audio import resample, to_channels
from mudit_engine.availability import require
from mudit_engine.errors import InputError

# demucs's name -> ours
STEM_OF = {"vocals": "vocals", "drums": "drums", "bass": "bass", "other": "chords"}
# and the model that is taken without a name
RECOGNISERS = {"faster-whisper": "large-v3", "funasr": "paraformer-zh"}
SPEECH_RATE = 16000
# [Music]: a line in brackets would be a tag of the lyrics
_ANNOTATION = re.compile(r"[\[(（【<《][^\])）】>》]*[\])）】>》]")
_PHRASE = re.compile(r"[^，。？！；、,.?!;\n]+")


@dataclass(frozen=True)
class Transcript:
    stems: dict[str, Tensor] = field(default_factory=dict)
    lyrics: str = ""


class Transcriber:
    """Loads what was asked for once. Raises MissingError with the install command, InputError for
    an unknown recogniser.
    """

    def __init__(
        self, separate: str | None, transcribe: str | None, *, device: str = "cpu"
    ) -> None:
        self.separator = Separator(separate, device=device) if separate else None
        self.recogniser = make_recogniser(transcribe, device=device) if transcribe else None

    def transcribe(
        self, audio_cS: Tensor, rate: int, *, stems: bool = True, lyrics: bool = True
    ) -> Transcript:
        """Stems and lyrics of a song, of those that were asked for."""
        found = (
            self.separator.separate(audio_cS, rate) if self.separator is not None and stems else {}
        )
        text = ""
        if self.recogniser is not None and lyrics:
            mono = to_channels(found.get("vocals", audio_cS), 1)
            text = tidy(
                self.recogniser.lines(resample(mono, rate, SPEECH_RATE)[0].float().cpu().numpy())
            )
        return Transcript(found, text)


class Separator:
    """demucs."""

    def __init__(self, name: str, *, device: str) -> None:
        require("demucs", "--separate")
        from demucs.pretrained import get_model

        try:
            self.model: Any = get_model(name).to(device).eval()
        except Exception as error:
            # its own error type lives in a module that differs between releases
            raise InputError(
                f"--separate {name}: demucs has no such model, or could not fetch it ({error}): "
                f"try htdemucs"
            ) from None
        self.device = device

    @torch.inference_mode()
    def separate(self, audio_cS: Tensor, rate: int) -> dict[str, Tensor]:
        """{our stem: [c, S]} at the rate and with the channels that were given."""
        from demucs.apply import apply_model

        model, (channels, samples) = self.model, audio_cS.shape
        mix = to_channels(resample(audio_cS, rate, model.samplerate), model.audio_channels)
        mean, std = mix.mean(), mix.mean(0).std().clamp_min(1e-8)  # as demucs was trained
        # no random shifts: the same song gives the same stems
        parts = apply_model(
            model,
            ((mix - mean) / std)[None],
            device=self.device,
            shifts=0,
            split=True,
            progress=False,
        )[0].cpu()
        stems = {}
        for name, part in zip(model.sources, parts * std + mean, strict=True):
            if name in STEM_OF:
                back = to_channels(resample(part, model.samplerate, rate), channels)[:, :samples]
                stems[STEM_OF[name]] = torch.nn.functional.pad(back, (0, samples - back.shape[1]))
        return stems


class FasterWhisper:
    """A line a segment."""

    def __init__(self, name: str, *, device: str) -> None:
        require("faster_whisper", "--transcribe faster-whisper")
        from faster_whisper import WhisperModel

        kind, _, index = device.partition(":")
        self.model: Any = WhisperModel(name, device=kind, device_index=int(index or 0))

    def lines(self, audio_S: np.ndarray) -> Iterable[str]:
        # interludes are skipped, and a line that was misheard does not repeat itself to the end
        segments, _ = self.model.transcribe(
            audio_S, beam_size=5, vad_filter=True, condition_on_previous_text=False
        )
        return [segment.text for segment in segments]


class FunAsr:
    """A line a phrase of the punctuated text."""

    def __init__(self, name: str, *, device: str) -> None:
        require("funasr", "--transcribe funasr")
        from funasr import AutoModel

        quiet = {"disable_update": True, "disable_pbar": True, "disable_log": True}
        self.model: Any = AutoModel(
            model=name, vad_model="fsmn-vad", punc_model="ct-punc", device=device, **quiet
        )

    def lines(self, audio_S: np.ndarray) -> Iterable[str]:
        found = self.model.generate(input=audio_S, batch_size_s=300)
        return _PHRASE.findall(found[0]["text"]) if found else []


def make_recogniser(name: str, *, device: str) -> FasterWhisper | FunAsr:
    """'faster-whisper', 'funasr', or either with ':MODEL'. Raises InputError."""
    kind, _, model = name.partition(":")
    if kind not in RECOGNISERS:
        raise InputError(
            f"--transcribe '{name}' is unknown: use {' or '.join(RECOGNISERS)}, with :MODEL for "
            f"another than the usual model"
        )
    return (FasterWhisper if kind == "faster-whisper" else FunAsr)(
        model or RECOGNISERS[kind], device=device
    )


def tidy(lines: Iterable[str]) -> str:
    """Lyrics of lines that were heard, without annotations and empty lines."""
    return "\n".join(
        line for line in (_ANNOTATION.sub(" ", line).strip(" \t♪-") for line in lines) if line
    )
