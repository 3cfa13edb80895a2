"""The loss on songs that are held out: the averaged weights, fixed batches, fixed noise and noise
levels, no dropped conditions, so that any two evaluations can be compared.

    losses = Validation(recipe, task, shards, strategy).losses()     # {"loss": 0.61, ...}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from mudit_engine.errors import InputError
from mudit_engine.training.dataset.packing import EpochPlan, plan_packs
from mudit_engine.training.tasks.task import Batch, Moment, average, read, to_device

if TYPE_CHECKING:
    from mudit_engine.training.dataset.shards import Shards
    from mudit_engine.training.parallel.strategy import Strategy
    from mudit_engine.training.recipe import Recipe
    from mudit_engine.training.tasks.task import Task


class Validation:
    """Evaluates a task on the recipe's validation split, spread over the ranks.

    Args:
        recipe: says which split, and how many packs of it.
        task: whose first phase is asked.
        shards: the data set.
        strategy: which runs the forward passes.
    """

    def __init__(self, recipe: Recipe, task: Task, shards: Shards, strategy: Strategy) -> None:
        self.recipe, self.task, self.shards, self.strategy = recipe, task, shards, strategy

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """The loss and the figures that the network logs, as means over the held-out songs. The
        ranks come here together, with the modules in evaluation mode.

        Raises:
            InputError: when the split holds no song.
        """
        split = self.recipe.log.validation_split
        numbers = self.shards.numbers(split)
        if not len(numbers):
            raise InputError(
                f"log.validate_every is set, but '{self.shards.folder}' holds no song of the split "
                f"'{split}': encode some, or set it to 0"
            )
        plan = plan_packs(numbers, self.task.costs(), self.recipe.data.pack_size)
        moment = Moment(self.recipe.seed, 0, 0, training=False)
        sums: dict[str, tuple[Any, Any]] = {}
        with self.strategy.averaged():
            for batch, share in self._batches(plan, moment):
                loss, logs = self.strategy.forward(
                    self.task.phases[0], to_device(batch.inputs, self.strategy.device)
                )
                for name, (value, amount) in {**logs, "loss": (loss, batch.weight)}.items():
                    total, weight = sums.get(name, (0.0, 0.0))
                    sums[name] = (total + value.double() * share, weight + amount * share)
        names = sorted(sums)
        told = self.strategy.ranks.sum(read([value for name in names for value in sums[name]]))
        pairs = zip(names, told.view(-1, 2).tolist(), strict=True)
        return average({name: (total, weight) for name, (total, weight) in pairs})

    def _batches(self, plan: EpochPlan, moment: Moment) -> Iterator[tuple[Batch, float]]:
        """This rank's part of the validation packs, with 0 where it keeps the others company."""
        rank, world, share = self.strategy.rank, self.strategy.world, 1.0 / self.strategy.shares
        packs = [
            plan.pack(number) for number in range(min(len(plan), self.recipe.log.validation_packs))
        ]
        if self.task.splits_packs:
            local = [pack[rank::world] for pack in packs]
        else:
            none = packs[0][:0]
            local = [
                packs[n] if n < len(packs) else none
                for n in range(rank, -(-len(packs) // world) * world, world)
            ]
        for songs in local:
            yield (
                (self.task.load(songs, moment), share)
                if len(songs)
                else (self.task.stand_in(packs[0], moment), 0.0)
            )
