"""Pairs of songs for one request, of which one is better: how they are made, and how they become a
data set for training (training/tasks/align.py).

    made = Candidates(folder, pipeline, reward, count=4, seconds=10.0, seed=0)
    write_pairs(made.pair(wish) for wish in wishes, out=data, model=folder)

The songs of a request share its plan (tempo, key, chords, times) and differ in their noise. What is
made is kept, a file a request, so that a run that was stopped goes on. Listeners' preferences
(`preferences.jsonl` of `mudit eval survey read`) name songs in folders, which are encoded instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mudit_engine.errors import InputError
from mudit_engine.evaluation.rewards import Reward, extremes
from mudit_engine.evaluation.systems import Asked
from mudit_engine.files import atomic_path
from mudit_engine.names import USER_TYPES
from mudit_engine.pipeline import SongPipeline
from mudit_engine.reading import Understood
from mudit_engine.request import SongRequest
from mudit_engine.runtime.denoiser import SongInputs, denoise
from mudit_engine.text.harmony import key_parts
from mudit_engine.text.outline import Outline
from mudit_engine.training.dataset.encoded_with import note_encoder
from mudit_engine.training.dataset.shard_files import Field
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import LEVELS, song_fields
from mudit_engine.training.seeding import seed64

SENTENCE = LEVELS.index("sentence")
HELD_OUT_SHARE = 8  # one pair of so many validates


@dataclass(frozen=True)
class Pair:
    """Two songs for one request. Latents are normalised, float16 [T, C], of one length."""

    id: str
    user_type: str
    inputs: SongInputs
    outline: Outline
    won_TC: np.ndarray
    lost_TC: np.ndarray


class Candidates:
    """Makes and ranks songs.

    Args:
        folder: where they are kept.
        pipeline: of the model that is to learn.
        reward: what ranks them.
        count: songs a request.
        seconds: of each song.
        seed: of their noise.
        sampler: fields of the sampler that differ from the model's.
    """

    def __init__(
        self,
        folder: Path,
        pipeline: SongPipeline,
        reward: Reward,
        *,
        count: int,
        seconds: float,
        seed: int,
        sampler: Mapping[str, Any],
    ) -> None:
        self.folder, self.pipeline, self.reward = folder, pipeline, reward
        self.count, self.seconds, self.seed, self.sampler = count, seconds, seed, dict(sampler)

    def request(self, wish: Asked) -> SongRequest:
        """The request of a wish; its seed decides on the plan."""
        return SongRequest(
            description=wish.description,
            lyrics=wish.lyrics,
            seconds=self.seconds,
            user_type=wish.user_type,
            seed=seed64(self.seed, "request", wish.id),
            sampler=self.sampler,
        )

    def pair(self, wish: Asked) -> Pair | None:
        """The best and the worst song of a wish; None where the reward tells none apart."""
        understood = self.pipeline.reader.read(self.request(wish))
        inputs = self.pipeline.reader.inputs(understood)
        latents, parts = self._made(wish, understood, inputs)
        found = extremes(parts)
        if found is None:
            return None
        best, worst = found
        return Pair(
            wish.id, wish.user_type, inputs, understood.outline, latents[best], latents[worst]
        )

    def _made(
        self, wish: Asked, understood: Understood, inputs: SongInputs
    ) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Latents float16 [songs, T, C] and the parts of the reward of each song."""
        path = self.folder / f"{seed64(wish.id):016x}.safetensors"
        if path.is_file():
            with safe_open(path, "pt") as kept:
                return kept.get_tensor("latents").numpy(), json.loads(kept.metadata()["parts"])
        with torch.inference_mode():
            runtime = self.pipeline.runtime
            states = [
                runtime.prepare(
                    replace(inputs, seed=seed64(self.seed, "candidate", wish.id, number))
                )
                for number in range(self.count)
            ]
            made = [one.half().cpu() for one in denoise(runtime, states)]
        parts = []
        for one in made:
            audio = self.pipeline.decode(one.float(), understood.seconds)
            parts.append(self.reward.parts(audio, self.pipeline.config.vae.sample_rate, wish))
        with atomic_path(path) as aside:
            save_file({"latents": torch.stack(made)}, aside, {"parts": json.dumps(parts)})
        return torch.stack(made).numpy(), parts


def write_pairs(pairs: Iterable[Pair | None], out: Path, *, model: Path, width: int) -> int:
    """Writes pairs as a data set, every eighth for validation; those that are None are left out.
    Returns how many it holds. Raises InputError for fewer than two.

    width: of a description's vectors.
    """
    known = [one for one in pairs if one is not None]
    if len(known) < 2:
        raise InputError(
            f"{len(known)} requests have a song that is better than another: give more requests, "
            "or more songs of each"
        )
    channels = known[0].won_TC.shape[1]
    fields = song_fields(latent_channels=channels, description_width=width)
    note_encoder(out, model, parts=("vae", "chinmu"))
    with ShardWriter(out, {**fields, "lost": Field("float16", channels)}) as writer:
        for number, pair in enumerate(known):
            if pair.id not in writer:
                arrays, metadata = conditions(pair)
                split = "validation" if number % HELD_OUT_SHARE == 0 else "train"
                writer.add(pair.id, arrays, metadata=metadata, split=split)
    return len(known)


def conditions(pair: Pair) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A pair's arrays and metadata, as training reads a song's (tasks/dit.py)."""
    inputs, outline = pair.inputs, pair.outline
    fragments = inputs.descriptions.numpy().astype(np.float16)
    kind = [SENTENCE, 0, USER_TYPES.index(pair.user_type), 0, 1]
    arrays = {
        "latents": pair.won_TC,
        "lost": pair.lost_TC,
        "phonemes": np.asarray(inputs.lyric_ids, np.int32),
        "fragments": fragments,
        "fragment_kinds": np.array([kind] * len(fragments), np.uint8).reshape(-1, 5),
    }
    if outline.token_times is not None and len(inputs.lyric_ids):
        arrays["phoneme_times"] = outline.token_times
    metadata: dict[str, Any] = {"seconds": inputs.seconds}
    if outline.bpm is not None:
        metadata["bpm"] = outline.bpm
    if outline.key is not None:
        metadata["key"], metadata["mode"] = key_parts(outline.key)
    metadata["chords"] = [[one.start, one.end, one.symbol.name] for one in outline.chords]
    if len(outline.melody):
        metadata["melody"] = [list(note) for note in outline.melody]
    if outline.arrangement:
        metadata["arrangement"] = [asdict(one) for one in outline.arrangement]
    for name in ("drums", "voice", "style"):
        if getattr(outline.controls, name) is not None:
            metadata[name] = getattr(outline.controls, name)
    return arrays, metadata


__all__ = ["Candidates", "Pair", "conditions", "write_pairs"]
