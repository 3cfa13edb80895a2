"""The data and the task that a recipe names.

task = make_task(recipe, open_data(recipe))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from mudit_engine.training.dataset.shards import Shards
    from mudit_engine.training.recipe import Recipe
    from mudit_engine.training.tasks.task import Task


def open_data(recipe: Recipe) -> Shards:
    """The songs that a recipe trains on: shards of encoded songs, or lyrics."""
    if recipe.task == "lyrics":
        from mudit_engine.training.dataset.lyric_set import LyricSet

        return cast("Shards", LyricSet.of_recipe(recipe))
    from mudit_engine.training.dataset.shards import Shards

    return Shards(recipe.data.folder)


def make_task(recipe: Recipe, shards: Shards) -> Task:
    """Builds the networks of a recipe's stage over a data set. Raises InputError when the data set
    lacks a field that the stage needs.
    """
    if recipe.task == "vae":
        from mudit_engine.training.tasks.vae import VaeTask

        return VaeTask(recipe, shards)
    if recipe.task == "lyrics":
        from mudit_engine.training.tasks.lyrics import LyricTask

        return LyricTask(recipe, shards)
    if recipe.task == "chinmu":
        from mudit_engine.training.tasks.chinmu import ChinMuTask

        return ChinMuTask(recipe, shards)
    if recipe.task == "dit-align":
        from mudit_engine.training.tasks.align import AlignTask

        return AlignTask(recipe, shards)
    if recipe.task == "dit-distill":
        from mudit_engine.training.tasks.distill import DistillTask

        return DistillTask(recipe, shards)
    from mudit_engine.training.tasks.dit import DitTask

    return DitTask(recipe, shards)
