"""Learning from preferences, from requests or listeners' answers to a model that plays.

    plan = AlignPlan(Path("mine"), requests="builtin:64")
    train, held_out = requests_of(plan)
    make_pairs(plan, train, pipeline)          # mine/work/pairs, of songs that are made and ranked
    recipe = make_recipe(plan)                 # mine/work/recipe.json
    Trainer(recipe, plan.run).run(resume="auto")
    assemble(plan)                             # mine: a whole model folder, and mine/lora
    report = judge(plan, held_out, judge_chinmu, ...)                       # report.py

Every step goes on where it was stopped. What is kept belongs to its settings: others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.evaluation.retrieval import Encoder
from mudit_engine.evaluation.rewards import Reward, RewardName
from mudit_engine.evaluation.songs import Track, silent_track
from mudit_engine.evaluation.systems import System, load_requests
from mudit_engine.files import sha256_of, write_json
from mudit_engine.models.folder import load_config, load_part, model_folder
from mudit_engine.models.parts import part_file
from mudit_engine.pipeline import SongPipeline
from mudit_engine.training.align.asked import Requests, read_requests
from mudit_engine.training.align.listeners import preferred_pairs
from mudit_engine.training.align.originals import Originals
from mudit_engine.training.align.pairs import Candidates, ranked_songs, write_pairs
from mudit_engine.training.checkpoints.export_part import export_part
from mudit_engine.training.dataset.encoded_with import check_encoder
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe, merge, parse_override, parse_recipe
from mudit_engine.training.recipe_stages import AlignStage

VALIDATIONS = 10  # of a run, at most
PATIENCE = 3
DRIFT = 0.1  # how much worse the better songs may be denoised
PAIRS_AT_ONCE = 8
# style, voice and drums are decided where there is little but noise (assets/tiny/README.md)
LOGIT_MEAN, LOGIT_STD = 1.5, 1.2
BLIND = 1.0  # of beta: what moving the unconditional branch weighs beside the preference


@dataclass(frozen=True)
class AlignPlan:
    """What is wanted. `overrides` are fields of the recipe (`--set`); with `preferences` the songs
    of `systems` are compared, and none are made to learn from; with `originals`, an encoded data
    set, the `most` shortest of its training songs are preferred to the model's own.
    """

    out: Path
    model: str = "tiny"
    requests: str = "builtin:64"
    held_out: int = 24
    reward: RewardName = "both"
    user_type: str = "all"
    songs: int = 8
    seconds: float = 10.0
    sampler_steps: int | None = None
    guidance: tuple[float, ...] = ()
    mismatched: int = 0
    pairs_each: int = 2
    least_gap: float = 1.0
    held_out_songs: int = 1
    judged_steps: int | None = None
    preferences: Path | None = None
    systems: tuple[Path, ...] = ()
    originals: Path | None = None
    most: int = 96
    steps: int = 100
    rank: int = 16
    seed: int = 0
    device: str = "auto"
    overrides: tuple[str, ...] = field(default_factory=tuple)

    @property
    def work(self) -> Path:
        return self.out / "work"

    @property
    def pairs(self) -> Path:
        return self.work / "pairs"

    @property
    def run(self) -> Path:
        return self.work / "run"

    @property
    def recipe(self) -> Path:
        return self.work / "recipe.json"

    @property
    def sampler(self) -> dict[str, int]:
        return {} if self.sampler_steps is None else {"steps": self.sampler_steps}


def requests_of(plan: AlignPlan) -> tuple[Requests, Requests]:
    """(requests to learn from, held-out ones). Raises InputError where the folder holds the work of
    other settings, by name.
    """
    same = {
        "model": sha256_of(part_file(model_folder(plan.model), "dit")),
        "requests": plan.requests
        if plan.requests.startswith("builtin:")
        else sha256_of(Path(plan.requests)),
        "preferences": sha256_of(plan.preferences) if plan.preferences else None,
        "originals": Shards(plan.originals).digest if plan.originals else None,
        "most": plan.most if plan.originals else None,
        **{
            name: getattr(plan, name)
            for name in ("held_out", "reward", "user_type", "songs", "seconds", "seed")
        },
        "sampler_steps": plan.sampler_steps,
        "guidance": list(plan.guidance),
        "mismatched": plan.mismatched or None,
        "pairs_each": plan.pairs_each,
        "least_gap": plan.least_gap,
    }
    path = plan.work / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in same.items() if before.get(name) != value]
        if changed:
            raise InputError(
                f"'{plan.out}' holds work of other settings ({', '.join(changed)}): give another "
                "--out, or undo the change"
            )
    found = read_requests(
        plan.requests,
        held_out=plan.held_out,
        seed=plan.seed,
        seconds=plan.seconds,
        out=plan.work,
        user_type=plan.user_type,
    )
    write_json(path, same)
    return found


def make_pairs(
    plan: AlignPlan,
    requests: Requests,
    pipeline: SongPipeline,
    *,
    chinmu: Encoder | None = None,
    track: Track = silent_track,
) -> int:
    """Makes and ranks songs, encodes those that listeners ranked, or makes songs beside those of a
    data set. Returns the number of pairs.

    chinmu: that says how near songs are to words; None is the model's own.
    """
    if plan.preferences is not None:
        systems = [System.of(folder) for folder in plan.systems]
        asked = {} if plan.requests.startswith("builtin:") else load_requests(Path(plan.requests))
        pairs: Sequence[Any] = list(
            preferred_pairs(plan.preferences, systems, asked, pipeline, user_type=plan.user_type)
        )
    elif plan.originals is not None:
        shards = Shards(plan.originals)
        check_encoder(plan.originals, plan.model, named=f"'{plan.model}'")
        beside = Originals(
            plan.work / "songs",
            shards,
            pipeline,
            each=plan.pairs_each,
            mismatched=plan.mismatched,
            seed=plan.seed,
            sampler=plan.sampler,
            user_type=plan.user_type,
        )
        numbers = track(beside.numbers(plan.most), "songs to learn from")
        pairs = [pair for number in numbers for pair in beside.of(number)]
    else:
        made = Candidates(
            plan.work / "songs",
            pipeline,
            Reward(plan.reward, chinmu or cast(Encoder, pipeline.chinmu)),
            count=plan.songs,
            seconds=plan.seconds,
            seed=plan.seed,
            sampler=plan.sampler,
            guidance=plan.guidance,
            mismatched=plan.mismatched,
        )
        wishes = list(requests.values())
        songs = [made.of(wish, wishes) for wish in track(wishes, "songs to learn from")]
        pairs = ranked_songs(songs, each=plan.pairs_each, least=plan.least_gap)
    width = pipeline.config.dit.description_width
    return write_pairs(pairs, plan.pairs, model=model_folder(plan.model), width=width)


def make_recipe(plan: AlignPlan) -> Recipe:
    """The recipe of the training, also written to work/recipe.json. Raises ConfigError for wrong
    overrides.
    """
    base = str(model_folder(plan.model))
    longest = 2 * int(np.asarray(Shards(plan.pairs).rows("latents")).max())
    every = max(1, plan.steps // VALIDATIONS)
    dropped = ("descriptions", "lyrics", "both", "user", "tempo", "key", "chords", "melody")
    given = {f"drop_{name}": 0.0 for name in (*dropped, "arrangement", "controls")}
    config = load_config(Path(base))
    levels: dict[str, Any] = {"times": "uniform"}  # the discrete levels of a ddpm path
    if config.path.kind != "ddpm":
        levels = {"times": "logit-normal", "logit_mean": LOGIT_MEAN, "logit_std": LOGIT_STD}
    fields: dict[str, Any] = {
        "name": f"{config.name}-aligned",
        "task": "dit-align",
        "model": base,
        "init": base,
        "data": {"folder": str(plan.pairs), "pack_size": PAIRS_AT_ONCE * longest},
        "steps": plan.steps,
        "seed": plan.seed,
        "device": plan.device,
        "optimizer": {"lr": 2e-4, "weight_decay": 0.0},
        "schedule": {"kind": "constant", "warmup": min(10, plan.steps // 5)},
        "ema": {"decay": round(max(0.0, 1 - 5 / plan.steps), 4)},
        # every validated step can be the one that is taken
        "checkpoint": {"every": every, "keep": 2 * VALIDATIONS + 2},
        "log": {"validate_every": every, "every": max(1, plan.steps // 20)},
        "guard": {"patience": PATIENCE, "limits": {"drift": DRIFT}},
        # the pair's conditions are those of its request, as they were
        "dit": {"whole_description": 1.0, **levels, **given},
        "lora": {"rank": plan.rank, "alpha": plan.rank},
    }
    for override in plan.overrides:
        fields = merge(fields, parse_override(override))
    stage = fields.setdefault("align", {})
    stage.setdefault("blind", BLIND * float(stage.get("beta", AlignStage().beta)))
    recipe = parse_recipe(fields, source="align")
    write_json(plan.recipe, fields)
    return recipe


def assemble(plan: AlignPlan, trained: dict[str, Any]) -> int:
    """Writes the step that the held-out pairs found best as a whole model folder. Returns it; 0 is
    the model as it was.
    """
    held = trained.get("held_out") or {}
    step = int(held.get("best_step", trained["steps"]))
    export_part(plan.run, plan.out, tag=str(step))
    return step


def open_chinmu(source: str) -> Encoder:
    """The ChinMu of a model's name or folder, or of a run's exported part."""
    folder = model_folder(source)
    return cast(Encoder, load_part("chinmu", load_config(folder), folder).eval())


__all__ = ["AlignPlan", "assemble", "make_pairs", "make_recipe", "open_chinmu", "requests_of"]
