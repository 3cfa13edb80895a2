"""The paper's Table 3: retrieval by ChinMus that were trained on texts of other lengths, tested on
short, medium and long texts, beside a CLAP.

    settings = chosen(["short", "long", "mix"])
    rows = retrieval_table(Path("data/audio"), settings, Path("runs/r"), recipe="tiny-chinmu")

Short, medium and long are fragments of a word, a phrase, a sentence. A mix of them is trained in
two regimes, which is how we read the paper's: `minibatch`, where each song of a batch draws its own
length, and `batch`, where a whole batch has one. Every setting trains the same recipe, seed and
number of steps, in a folder of its own, so that a run which was stopped goes on; what is finished
is not done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.evaluation.retrieval import Encoder, Retrieval, judge_retrieval
from mudit_engine.evaluation.songs import Track, silent_track
from mudit_engine.files import write_json
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.similarity import TextSimilarity
from mudit_engine.training.dataset.shards import LEVELS, Shards, SongRecord
from mudit_engine.training.recipe import load_recipe
from mudit_engine.training.tasks.chinmu import ChinMuLoss
from mudit_engine.training.trainer import Trainer

LENGTHS = dict(zip(("short", "medium", "long"), LEVELS, strict=True))
CLAP = "clap"


@dataclass(frozen=True)
class Setting:
    """What a ChinMu is trained on: which lengths, and how they are mixed."""

    name: str
    lengths: tuple[str, ...]
    mixing: str = "minibatch"

    def overrides(self) -> list[str]:
        """As `--set` has it."""
        odds = [float(length in self.lengths) for length in LENGTHS]
        return [f"chinmu.levels={odds}", f"chinmu.mixing={self.mixing}"]


_MIXES = (("short", "medium"), ("medium", "long"), ("short", "long"), tuple(LENGTHS))
SETTINGS = {
    one.name: one
    for one in (
        *(Setting(name, (name,)) for name in LENGTHS),
        *(
            Setting(f"{'+'.join(mix)}/{mixing}", mix, mixing)
            for mix in _MIXES
            for mixing in ("batch", "minibatch")
        ),
    )
}
DEFAULT = ("short", "medium", "long", "short+medium+long/batch", "short+medium+long/minibatch")


@dataclass(frozen=True)
class TableRow:
    """RA@K of one training setting, by direction, level and K (evaluation/retrieval.py)."""

    setting: str
    steps: int
    cells: list[Retrieval]


@dataclass(frozen=True)
class ShardSong:
    """A song of a data set, as retrieval asks for it."""

    record: SongRecord
    fragments: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, record: SongRecord) -> ShardSong:
        described = record.metadata.get("descriptions", [])
        found = {
            level: tuple(dict.fromkeys(text for one in described for text in one[level]))
            for level in LEVELS
        }
        return cls(record, found)

    def load(self) -> tuple[Tensor, int]:
        """Audio [channels, samples] and its rate."""
        audio = torch.from_numpy(self.record["audio"].astype("float32")).T / 32767.0
        return audio, int(self.record.metadata["sample_rate"])


def chosen(names: Sequence[str]) -> list[Setting]:
    """Settings by name; "mix" and "all" are shorthands. Raises InputError for an unknown one."""
    more = {"mix": DEFAULT[3:], "all": tuple(SETTINGS)}
    wanted = [one for name in names for one in more.get(name, (name,))]
    unknown = [name for name in wanted if name not in SETTINGS]
    if unknown:
        raise InputError(
            f"training setting '{unknown[0]}' is unknown: use {', '.join((*SETTINGS, *more))}"
        )
    return [SETTINGS[name] for name in dict.fromkeys(wanted)]


def retrieval_table(
    data: Path,
    settings: Sequence[Setting],
    work: Path,
    *,
    recipe: str,
    overrides: Sequence[str] = (),
    split: str = "test",
    most: int | None = None,
    clap: str | None = None,
    quiet: bool = False,
    track: Track = silent_track,
    on_setting: Callable[[str], None] = lambda name: None,
) -> list[TableRow]:
    """Trains what is not trained yet and tests it, then the CLAP; a row each.

    Raises InputError for a split with too few songs, or songs without fragments of every level.
    """
    shards = Shards(data)
    numbers = shards.numbers(split)[:most]
    songs = [ShardSong.of(shards.read(number)) for number in numbers]
    # a song that lacks a level can be no query of it, and then the columns were of other songs
    songs = [song for song in songs if all(song.fragments[level] for level in LEVELS)]
    tested = hashlib.sha256("\n".join(song.record.id for song in songs).encode()).hexdigest()[:16]
    rows = []
    for setting in settings:
        on_setting(setting.name)
        changes = [f"data.folder={json.dumps(str(data))}", *overrides, *setting.overrides()]
        planned = load_recipe(recipe, overrides=changes)
        folder = work / setting.name.replace("/", "-")
        identity = {"recipe": planned.model_dump(mode="json"), "tested": tested}
        cells = _kept(folder / "retrieval.json", identity)
        if cells is None:
            trainer = Trainer(planned, folder, quiet=quiet)
            trainer.run()
            with trainer.strategy.averaged():
                module = cast(ChinMuLoss, trainer.task.modules["model"])
                cells, _ = judge_retrieval(module.chinmu.eval(), songs, track=track)
            _keep(folder / "retrieval.json", identity, cells)
        rows.append(TableRow(setting.name, planned.steps, cells))
    if clap is not None:
        on_setting(clap)
        identity = {"clap": clap, "tested": tested}
        cells = _kept(work / "clap.json", identity)
        if cells is None:
            encoder: Encoder = TextSimilarity.load(clap)
            cells, _ = judge_retrieval(encoder, songs, track=track)
            _keep(work / "clap.json", identity, cells)
        rows.append(TableRow(CLAP, 0, cells))
    return rows


def _keep(path: Path, identity: Mapping[str, Any], cells: Sequence[Retrieval]) -> None:
    write_json(path, {**identity, "cells": [dataclasses.asdict(cell) for cell in cells]})


def _kept(path: Path, identity: Mapping[str, Any]) -> list[Retrieval] | None:
    """Cells of an earlier run of the same recipe and songs."""
    try:
        held = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if {name: held.get(name) for name in identity} != json.loads(json.dumps(identity)):
        return None
    return [Retrieval(**{**cell, "accuracy": Figure(**cell["accuracy"])}) for cell in held["cells"]]
