"""The task that a recipe names.

task = make_task(recipe, shards)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mudit_engine.training.dataset.shards import Shards
    from mudit_engine.training.recipe import Recipe
    from mudit_engine.training.tasks.task import Task


def make_task(recipe: Recipe, shards: Shards) -> Task:
    """Builds the networks of a recipe's stage over a data set. Raises InputError when the data set
    lacks a field that the stage needs.
    """
    if recipe.task == "vae":
        from mudit_engine.training.tasks.vae import VaeTask

        return VaeTask(recipe, shards)
    if recipe.task == "chinmu":
        from mudit_engine.training.tasks.chinmu import ChinMuTask

        return ChinMuTask(recipe, shards)
    from mudit_engine.training.tasks.dit import DitTask

    return DitTask(recipe, shards)
