"""What a checkpoint and its continuation must agree on, and what is said where they may differ.

check_same_run(tag, identity(recipe, task, songs=8, digest=shards.digest), saved, part="dit")
tell_schedule(tag, recipe, step=1000)
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mudit_engine.errors import ConfigError
from mudit_engine.files import sha256_of
from mudit_engine.models.folder import model_folder
from mudit_engine.models.parts import Part, part_file
from mudit_engine.training.parallel.strategy import learning_rate
from mudit_engine.training.recipe import Recipe, parse_recipe

if TYPE_CHECKING:
    from mudit_engine.training.tasks.task import Task

RECIPE = "recipe.json"

log = logging.getLogger(__name__)


def identity(recipe: Recipe, task: Task, *, songs: int, digest: str) -> dict[str, Any]:
    """What must not change, for the sequence of songs and the network to be the same. `songs` and
    `digest` are of the data set.
    """
    return {
        "task": recipe.task,
        "seed": recipe.seed,
        "pack_size": recipe.data.pack_size,
        "packs_per_step": recipe.data.packs_per_step,
        "songs": songs,
        "data": digest,
        "model": json.loads(getattr(task.config, task.part).model_dump_json()),
        "lora": _lora_identity(recipe, task.part),
        # None, as checkpoints have it that were made before there was a choice
        "optimizer": None if recipe.optimizer.kind == "adamw" else recipe.optimizer.kind,
    }


def _lora_identity(recipe: Recipe, part: Part) -> dict[str, Any] | None:
    """The additions that are trained and the weights they add to, which no checkpoint holds."""
    if recipe.lora is None or recipe.init is None:
        return None
    base = part_file(model_folder(recipe.init), part)
    return {**recipe.lora.model_dump(mode="json"), "base": sha256_of(base)}


def check_same_run(tag: Path, ours: dict[str, Any], theirs: dict[str, Any], *, part: str) -> None:
    """Raises ConfigError that names every difference between two identities."""
    changed = [
        f"{name} ({theirs.get(name)} -> {ours[name]})"
        for name in ours
        if name != "model" and theirs.get(name) != ours[name]
    ]
    changed += [
        f"{part}.{name} ({value} -> {ours['model'].get(name)})"
        for name, value in theirs["model"].items()
        if ours["model"].get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"checkpoint '{tag}' belongs to another run: {', '.join(changed)}. "
            "Undo the change, or start a new run from its weights (export it, then --set "
            "init=FOLDER and another --out)"
        )


def tell_schedule(tag: Path, recipe: Recipe, *, step: int) -> None:
    """Warns where another number of steps, or another schedule, changes the learning rate from
    here on.
    """
    try:
        fields = json.loads((tag / RECIPE).read_text(encoding="utf-8"))
        before = parse_recipe(fields, source=str(tag / RECIPE))
    except ConfigError:  # of another release: there is nothing to compare with
        return
    last = max(recipe.steps - 1, 0)
    rates = [(learning_rate(at, before), learning_rate(at, recipe)) for at in (step, last)]
    if all(math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-15) for old, new in rates):
        return
    log.warning(
        "the learning rate goes another way than in the run that is resumed (steps %d, now %d): at "
        "step %d it would have been %.4g and is %.4g, at step %d %.4g and %.4g. To keep the old "
        "one, --set schedule.steps=%d",
        before.steps,
        recipe.steps,
        step,
        *rates[0],
        last,
        *rates[1],
        before.schedule.steps or before.steps,
    )
