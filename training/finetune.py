"""From a folder of songs to a model that plays: encode, train, put together, listen.

    plan = Plan(Path("songs"), Path("mine"), model="tiny")
    encode(plan)                                 # mine/work/data, a part of the songs held out
    recipe = make_recipe(plan)                   # mine/work/recipe.json
    Trainer(recipe, plan.run).run(resume="auto")
    assemble(plan)                               # mine: config.json and all parts, mine/lora
    make_samples(plan)                           # mine/samples

Every step goes on where it was stopped, so the same command resumes. On a cluster the training is
`mudit train mine/work/recipe.json --out mine/work/run --launch slurm ...`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.files import write_json
from mudit_engine.models.folder import load_config, model_folder
from mudit_engine.training.dataset.encode import Encoded, OnSong, encode_latents
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.dataset.sources import SourceSong, open_source
from mudit_engine.training.recipe import Recipe, merge, parse_override, parse_recipe
from mudit_engine.training.runlog import read_metrics

FEWEST_FOR_VALIDATION = 5  # songs: of fewer none is held out
MOST_VALIDATION = 64
PACK = 1536  # latent frames of a step, at least
RATES = {"lora": 5e-4, "full": 1e-4}


@dataclass(frozen=True)
class Plan:
    """What is wanted. `overrides` are fields of the recipe (`--set`)."""

    songs: Path
    out: Path
    model: str = "tiny"
    full: bool = False
    steps: int = 400
    rank: int = 16
    seed: int = 0
    device: str = "auto"
    samples: int = 2
    max_seconds: float = 1200.0
    overrides: tuple[str, ...] = ()
    leave_out: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.out / "work" / "data"

    @property
    def run(self) -> Path:
        return self.out / "work" / "run"

    @property
    def recipe(self) -> Path:
        return self.out / "work" / "recipe.json"


def encode(plan: Plan, *, on_song: OnSong = lambda song_id, seconds: None) -> Encoded:
    """Encodes the songs with the model's own codec. Raises InputError when none could be."""
    done = Encoded()
    songs = list(open_source(plan.songs, on_bad=done.refuse))
    device = plan.device if plan.device != "auto" else _device()
    encode_latents(
        _split(songs),
        plan.data,
        model=plan.model,
        device=device,
        max_seconds=plan.max_seconds,
        leave_out=plan.leave_out,
        done=done,
        on_song=on_song,
        index=False,
    )
    if not done.songs + done.skipped:
        reasons = "; ".join(list(done.refused.values())[:3])
        raise InputError(f"no song of '{plan.songs}' could be encoded: {reasons}")
    from mudit_engine.training.dataset.shards import build_index

    build_index(plan.data)
    return done


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _split(songs: list[SourceSong]) -> Iterator[SourceSong]:
    """Holds out a tenth of the songs where nobody said which: those whose ids' hashes come first,
    so that the same songs are held out in every run.
    """
    held: set[str] = set()
    if len(songs) >= FEWEST_FOR_VALIDATION and all(song.split == "train" for song in songs):
        ids = sorted(
            (song.id for song in songs),
            key=lambda one: hashlib.sha256(one.encode("utf-8", "surrogatepass")).digest(),
        )
        held = set(ids[: min(MOST_VALIDATION, max(1, len(ids) // 10))])
    for song in songs:
        yield dataclasses.replace(song, split="validation") if song.id in held else song


def make_recipe(plan: Plan) -> Recipe:
    """The recipe of the training, also written to work/recipe.json. Raises ConfigError for wrong
    overrides.
    """
    base = str(model_folder(plan.model))
    shards = Shards(plan.data)
    longest = int(np.asarray(shards.rows("latents")).max())
    held = len(shards.numbers("validation"))
    small = plan.steps <= 20
    config = load_config(Path(base))
    # noise levels as the recipes of each path draw them
    levels: dict[str, Any] = {"times": "logit-normal"}
    if config.path.kind == "ddpm":
        levels = {"times": "uniform", "min_snr_gamma": 5.0}
    fields: dict[str, Any] = {
        "name": f"{config.name}-finetuned",
        "task": "dit-finetune",
        "model": base,
        "init": base,
        "data": {"folder": str(plan.data), "pack_size": max(PACK, longest)},
        "steps": plan.steps,
        "seed": plan.seed,
        "device": plan.device,
        "optimizer": {"lr": RATES["full" if plan.full else "lora"]},
        "schedule": {"kind": "cosine", "warmup": 0 if small else min(50, plan.steps // 10)},
        # an average over the last fifth or so: short runs would still hold the first steps
        "ema": {"decay": round(max(0.0, 1 - 5 / plan.steps), 4)},
        "checkpoint": {"every": max(5, plan.steps // 10), "keep": 2},
        "log": {
            "validate_every": max(1, plan.steps // 4) if held else 0,
            "validation_split": "validation",
            "every": max(1, plan.steps // 20),
        },
        "dit": {**levels, "whole_description": 0.7, "drop_lyrics": 0.1},
    }
    if not plan.full:
        fields["lora"] = {"rank": plan.rank, "alpha": plan.rank}
    for override in plan.overrides:
        fields = merge(fields, parse_override(override))
    recipe = parse_recipe(fields, source="finetune")
    write_json(plan.recipe, fields)
    return recipe


def assemble(plan: Plan) -> Path:
    """Writes the newest good checkpoint as a whole model folder. Returns it."""
    from mudit_engine.training.checkpoints.export_part import export_part

    export_part(plan.run, plan.out)
    return plan.out


def make_samples(
    plan: Plan, *, on_song: Callable[[Path], None] = lambda path: None, seconds: float = 30.0
) -> list[Path]:
    """Songs of the new model for the descriptions and lyrics of the first songs it learned from."""
    from mudit_engine.pipeline import SongPipeline

    requests = list(_requests(plan, seconds))
    if not requests:
        return []
    pipeline = SongPipeline.from_pretrained(plan.out)
    written = []
    for number, song in enumerate(pipeline.stream(requests)):
        path = plan.out / "samples" / f"{number + 1}.wav"
        song.save(path)
        written.append(path)
        on_song(path)
    return written


def _requests(plan: Plan, seconds: float) -> Iterator[Any]:
    from mudit_engine.request import SongRequest

    longest = load_config(plan.out).max_seconds
    made = 0
    for song in open_source(plan.songs, on_bad=lambda name, reason: None):
        if made == plan.samples:
            return
        described = song.descriptions[0] if song.descriptions else None
        if described is None and not song.lyrics.strip():
            continue
        made += 1
        yield SongRequest(
            description=described.text if described else "",
            user_type=described.user if described else "none",
            lyrics=song.lyrics or None,
            seconds=min(seconds, longest),
            seed=plan.seed,
        )


def summary(plan: Plan, encoded: Encoded, trained: dict[str, Any]) -> dict[str, Any]:
    """What a finetuning did, for --json and OUT/finetune.json."""
    _, validations = read_metrics(plan.run)
    return {
        "model": str(plan.out),
        "base": plan.model,
        "songs": encoded.songs + encoded.skipped,
        "refused": encoded.refused,
        "flagged": encoded.flagged,
        "steps": trained.get("steps"),
        "loss": (trained.get("final") or {}).get("loss"),
        "held_out_losses": [row["loss"] for row in validations],
        "lora": None if plan.full else str(plan.out / "lora"),
    }
