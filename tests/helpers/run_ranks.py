"""Training runs on the ranks that a launcher started, one after another in the same processes:
run_ranks.py JOBS.json.

A job is {"data": folder, "out": folder, "changes": {...}, "resume": "auto", "wake": 0.05} for
small_recipe, or has "recipe", a recipe's fields. The result of each is left in its folder by the
trainer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from mudit_engine.training.ranks import leave
from mudit_engine.training.recipe import Recipe, parse_recipe
from mudit_engine.training.tasks.choose import make_task, open_data
from mudit_engine.training.tasks.task import Task
from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe


def recipe_of(job: dict[str, Any]) -> Recipe:
    if "recipe" in job:
        return parse_recipe(job["recipe"], source="job")
    return small_recipe(Path(job["data"]), **job["changes"])


def main(path: str) -> None:
    torch.set_num_threads(1)
    trainer = None
    for job in json.loads(Path(path).read_text()):
        recipe = recipe_of(job)
        task = make_task(recipe, open_data(recipe))
        if job.get("wake"):
            wake(task, job["wake"])
        trainer = Trainer(recipe, Path(job["out"]), task=task, quiet=True)
        if "poison" in job:
            poison(trainer, job["poison"])
        trainer.run(resume=job.get("resume", "auto"))
    if trainer is not None:
        trainer.strategy.close()
    leave(0)


def poison(trainer: Trainer, step: int) -> None:
    """Makes a gradient of this step NaN on the last rank; no loss shows it."""
    backward, ranks = trainer.strategy.backward, trainer.ranks

    def spoilt(phase: str, loss: torch.Tensor) -> None:
        here = trainer.progress.step == step and ranks.rank == ranks.world - 1
        backward(phase, loss * float("nan") if here else loss)

    trainer.strategy.backward = spoilt  # type: ignore[method-assign]


def wake(task: Task, scale: float) -> None:
    """Moves every weight off its zero start, where most of the network has no gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in task.modules.values():
            for p in module.parameters():
                p.add_(torch.randn(p.shape, generator=generator) * scale)


if __name__ == "__main__":
    main(sys.argv[1])
