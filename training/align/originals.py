"""Pairs without a judge: a data set's songs, and the model's own for the same words and plan.

    originals = Originals(folder, Shards(data), pipeline, each=1, seed=0)
    pairs = [pair for number in originals.numbers(96) for pair in originals.of(number)]

What people made is preferred to what the model makes of the same description, lyrics, tempo, key,
chords, melody, arrangement and controls. No encoder of words and songs ranks anything, so there is
none whose taste could be learned in place of music: what remains to be learned is in what the
model's songs differ from the data set's. What is made is kept, a file a song, so that a run that
was stopped goes on.

Source: self-play fine-tuning of diffusion models, Yuan et al. 2024 (arXiv 2402.10210), of which
this is one round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.errors import InputError
from mudit_engine.files import atomic_path
from mudit_engine.models.outline import OutlineRows, outline_rows
from mudit_engine.names import USER_TYPES
from mudit_engine.pipeline import SongPipeline
from mudit_engine.runtime.denoiser import SongInputs, denoise
from mudit_engine.text.outline import Outline
from mudit_engine.training.align.pairs import Pair
from mudit_engine.training.dataset.shards import Shards, SongRecord
from mudit_engine.training.dataset.told import outline_of
from mudit_engine.training.seeding import seed64

NEEDS = ("latents", "phonemes", "fragments", "fragment_kinds")


class Originals:
    """Makes the model's own songs beside a data set's.

    Args:
        folder: where they are kept.
        shards: the data set, encoded by the model's codec (`mudit data encode`).
        pipeline: of the model that is to learn.
        each: pairs for each song of the data set.
        mismatched: of these, so many are an own song and one in another song's words; the others
            are the song of the data set and an own one.
        seed: of their noise, and of the descriptions that are drawn.
        sampler: fields of the sampler that differ from the model's.
        user_type: whose descriptions are taken, "all" for both.

    Raises:
        InputError: for a data set that lacks lyrics or descriptions.
    """

    def __init__(
        self,
        folder: Path,
        shards: Shards,
        pipeline: SongPipeline,
        *,
        each: int = 1,
        mismatched: int = 0,
        seed: int = 0,
        sampler: Mapping[str, Any] | None = None,
        user_type: str = "all",
    ) -> None:
        self.folder, self.shards, self.pipeline = folder, shards, pipeline
        self.own, self.mismatched = each - mismatched, mismatched
        self.seed, self.user_type = seed, user_type
        lacks = [name for name in NEEDS if name not in shards.fields]
        if lacks:
            raise InputError(
                f"'{shards.folder}' holds no {', '.join(lacks)}: encode the songs with "
                "`mudit data encode` and without --audio-only"
            )
        config = pipeline.config
        own = config.sampler.model_copy(update=dict(sampler or {}))
        self.table = sampler_table(config.path, own)

    def numbers(self, most: int | None = None) -> list[int]:
        """Songs of the training split that have a description of the user type and that the model
        can make, the shortest first. most: of them at most; None is all.

        Raises InputError where there are none.
        """
        rows = np.asarray(self.shards.rows("latents"))
        longest = self.pipeline.config.max_seconds * self.pipeline.config.vae.frame_rate
        found: list[int] = []
        for number in sorted(map(int, self.shards.numbers("train")), key=lambda one: rows[one]):
            if len(found) == most or rows[number] > longest:
                break
            if len(self._descriptions(self.shards.read(number, ["fragment_kinds"]))):
                found.append(number)
        if not found:
            raise InputError(
                f"'{self.shards.folder}' has no training song with a description of user type "
                f"'{self.user_type}'"
            )
        return found

    def of(self, number: int) -> list[Pair]:
        """The pairs of one song of the data set: it and each of the model's own, and own ones and
        those in other words.
        """
        record = self.shards.read(number)
        inputs, outline = self._inputs(record)
        makings = [inputs] * self.own
        if self.mismatched:
            makings += [self._in_words_of(self._other(record), inputs, outline)] * self.mismatched
        made = self._made(record.id, makings)
        own, other = made[: self.own], made[self.own :]
        songs = [(np.asarray(record["latents"]), lost) for lost in own]
        songs += [(own[place % self.own], lost) for place, lost in enumerate(other)]
        return [
            Pair(
                record.id if len(songs) == 1 else f"{record.id}.{place}",
                inputs.user_type,
                inputs,
                outline,
                won_TC,
                lost_TC,
                record.id,
            )
            for place, (won_TC, lost_TC) in enumerate(songs)
        ]

    def _other(self, record: SongRecord) -> SongRecord:
        """The first song of the training split, in an order drawn for this one, that has a
        description and not this one's style, and like it is sung or is not.
        """
        drawn = np.random.default_rng(seed64(self.seed, "mismatched", record.id))
        style, sung = record.metadata.get("style"), bool(len(record["phonemes"]))
        for number in drawn.permutation(self.shards.numbers("train")):
            other = self.shards.read(int(number), NEEDS[1:])
            if other.id == record.id or bool(len(other["phonemes"])) != sung:
                continue
            if style is not None and other.metadata.get("style") == style:
                continue
            if len(self._descriptions(other)):
                return other
        raise InputError(
            f"'{self.shards.folder}' has no song of another style than '{record.id}': give more "
            "songs, or take --mismatched 0"
        )

    def _in_words_of(self, other: SongRecord, inputs: SongInputs, outline: Outline) -> SongInputs:
        """A song's inputs, but with another's description and style."""
        descriptions, _ = self._described(other)
        controls = replace(outline.controls, style=other.metadata.get("style"))
        rows = self._rows(replace(outline, controls=controls), inputs.frames, inputs.lyric_ids)
        return replace(inputs, descriptions=descriptions, outline=rows)

    def _descriptions(self, record: SongRecord) -> np.ndarray:
        """Numbers of the descriptions that may be taken."""
        kinds_F5 = record["fragment_kinds"]
        whole = kinds_F5[:, 4] == 1
        if self.user_type != "all":
            whole &= kinds_F5[:, 2] == USER_TYPES.index(self.user_type)
        return np.unique(kinds_F5[whole, 3])

    def _described(self, record: SongRecord) -> tuple[torch.Tensor, str]:
        """One of a song's descriptions, drawn by its id: (its vectors, whose words they are)."""
        kinds_F5 = record["fragment_kinds"]
        known = self._descriptions(record)
        chosen = known[seed64(self.seed, "description", record.id) % len(known)]
        rows = np.flatnonzero((kinds_F5[:, 3] == chosen) & (kinds_F5[:, 4] == 1))
        rows = rows[: self.pipeline.config.dit.max_fragments]
        vectors = torch.from_numpy(np.array(record["fragments"][rows])).float()
        return vectors, USER_TYPES[int(kinds_F5[rows[0], 2])]

    def _rows(self, outline: Outline, frames: int, lyric_ids: Sequence[int]) -> OutlineRows:
        config = self.pipeline.config
        return outline_rows(
            outline,
            frames=frames,
            frame_rate=config.vae.frame_rate,
            tokens=len(lyric_ids),
            config=config.dit,
        )

    def _inputs(self, record: SongRecord) -> tuple[SongInputs, Outline]:
        """What the model is told of a song: one of its descriptions, and all of its plan."""
        descriptions, user_type = self._described(record)
        lyric_ids = tuple(map(int, record["phonemes"]))
        outline = outline_of(record.metadata, np.array(record["phoneme_times"]))
        frames = len(record["latents"])
        inputs = SongInputs(
            frames=frames,
            seconds=float(record.metadata["seconds"]),
            table=self.table,
            seed=0,
            descriptions=descriptions,
            negative=torch.zeros(0, self.pipeline.config.dit.description_width),
            lyric_ids=lyric_ids,
            user_type=user_type,
            outline=self._rows(outline, frames, lyric_ids),
        )
        return inputs, outline

    def _made(self, name: str, makings: Sequence[SongInputs]) -> list[np.ndarray]:
        """The model's songs, float16 [frames, C] each."""
        path = self.folder / f"{seed64(name):016x}.safetensors"
        if not path.is_file():
            runtime = self.pipeline.runtime
            with torch.inference_mode():
                states = [
                    runtime.prepare(replace(told, seed=seed64(self.seed, "own", name, place)))
                    for place, told in enumerate(makings)
                ]
                made = [one.half().cpu() for one in denoise(runtime, states)]
            with atomic_path(path) as aside:
                save_file({"latents": torch.stack(made)}, aside)
        return list(load_file(path)["latents"])


__all__ = ["Originals"]
