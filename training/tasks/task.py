"""What a stage adds to the trainer: networks, batches and a loss. One class a stage, each in a file
of its own.

A task hands over one module per phase whose forward(batch) returns (loss sum, logs); `batch.weight`
is what the sum is divided by (real frames, samples, pairs), added up over the global batch.
Everything random in a batch is a pure function of (seed, step, song id), so a resumed run and any
world size see the same numbers.

    task = make_task(recipe, shards)                         # training/tasks/choose.py
    batch = task.load(songs, Moment(seed=0, epoch=0, step=17))
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from mudit_engine.config import OUTLINE_GROUPS, ModelConfig
from mudit_engine.errors import ConfigError, InputError, ModelError
from mudit_engine.models.folder import Part, load_config, load_part, model_folder, save_config
from mudit_engine.models.outline import outline_columns
from mudit_engine.models.outline_columns import widened
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe
from mudit_engine.training.seeding import chooser, generator

if TYPE_CHECKING:
    from mudit_engine.training.parallel.strategy import Strategy


@dataclass(frozen=True)
class Moment:
    """Where in training a batch belongs. `training` False asks for the fixed, undisturbed batch
    that evaluation uses.
    """

    seed: int
    epoch: int
    step: int
    training: bool = True

    def generator(self, purpose: str, song_id: str) -> torch.Generator:
        return generator(self.seed, purpose, self.step, song_id)

    def chooser(self, purpose: str, song_id: str) -> random.Random:
        return chooser(self.seed, purpose, self.step, song_id)


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the host: the songs' ids (for messages), the weight of its loss, and what
    the task's module takes.

    The rest is for the figures of a run: rows that the network works on, seconds of audio they
    stand for, FLOPs of a forward pass (None: counted by running one).
    """

    ids: tuple[str, ...]
    weight: float
    inputs: Any
    tokens: int = 0
    seconds: float = 0.0
    flops: float | None = None


class Task(ABC):
    """What a stage adds to the trainer: networks, batches and a loss.

    Args:
        recipe: of the run.
        shards: the data set.

    Raises:
        InputError: when the data set lacks a field that the task needs.

    Examples:
        >>> from mudit_engine.training.tasks.choose import make_task
        >>> task = make_task(small_recipe, Shards(small_recipe.data.folder))
        >>> batch = task.load([0, 1], Moment(seed=0, epoch=0, step=0))
        >>> len(batch.ids)
        2
    """

    part: Part
    needs: tuple[str, ...]  # fields that the data set must hold
    phases: tuple[str, ...] = ("model",)
    averaged: tuple[str, ...] = ("model",)  # phases with an average of the weights
    called_elsewhere: tuple[str, ...] = ()  # phases whose module another phase's forward calls
    lr_scale: Mapping[str, float] = {}
    # whether ranks share the songs of every pack, instead of taking different packs
    splits_packs = False

    def __init__(self, recipe: Recipe, shards: Shards) -> None:
        self.recipe, self.shards = recipe, shards
        self.config = recipe.model_config_resolved()
        missing = [name for name in self.needs if name not in shards.fields]
        if missing:
            raise InputError(
                f"task '{recipe.task}' needs the fields {missing}, which '{shards.folder}' lacks: "
                f"it holds {sorted(shards.fields)}"
            )
        torch.manual_seed(recipe.seed)
        self.modules = self.build()

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """One module a phase. The phase that holds the part names it by an attribute of the part's
        name.
        """

    @abstractmethod
    def costs(self) -> np.ndarray:
        """int [N]: what each song costs of a pack's size."""

    def weights(self) -> np.ndarray:
        """[N]: what each song weighs in the loss of a global batch. Every rank knows it of all
        songs, so that none has to be asked.
        """
        return self.costs()

    @abstractmethod
    def load(self, songs: Sequence[int] | np.ndarray, moment: Moment) -> Batch:
        """The micro-batch of these songs: a pure function of the songs and the moment."""

    def join_ranks(self, strategy: Strategy) -> None:  # noqa: B027 - most stages work on their own songs alone
        """Called once before training on ranks: from here on batches and modules reckon with
        others.
        """

    def stand_in(self, songs: Sequence[int] | np.ndarray, moment: Moment) -> Batch:
        """What a rank without songs of its own runs, so that collectives match: its loss counts for
        nothing.
        """
        return self.load(songs[:1], moment)

    def warm_start(self) -> None:  # noqa: B027 - most stages start from nothing
        """Called once before the first step of a run that starts from nothing."""

    def finish(self) -> None:  # noqa: B027
        """Called after the last step, with the averaged weights in place, before the last
        checkpoint.
        """

    def active(self, step: int) -> tuple[str, ...]:
        """The phases that take part in a step, in order."""
        return self.phases

    def save_config(self, folder: Path) -> None:
        """Writes the configuration of what is trained into the run's folder."""
        save_config(self.config, folder)

    def part_module(self) -> nn.Module:
        """The network that a model folder takes."""
        module: nn.Module = getattr(self.modules[self.phases[0]], self.part)
        return module

    def initialise(self, module: nn.Module) -> None:
        """Loads recipe.init into a freshly built part. Raises ModelError or ConfigError when it
        does not fit.
        """
        if self.recipe.init is None:
            return
        folder = model_folder(self.recipe.init)
        trained: ModelConfig = load_config(folder)
        ours, theirs = getattr(self.config, self.part), getattr(trained, self.part)
        grown = [
            name
            for name in OUTLINE_GROUPS
            if self.part == "dit" and getattr(ours, name) and not getattr(theirs, name)
        ]
        if ours != theirs.model_copy(update=dict.fromkeys(grown, True)):
            raise ConfigError(
                f"init='{self.recipe.init}' was trained with another {self.part} configuration "
                f"(differs in {', '.join(differing(ours, theirs))})"
            )
        weights = load_part(self.part, trained, folder).state_dict()
        if grown:  # columns that the trained model did not know begin at 0: nothing is forgotten
            weights["outline_in.weight"] = widened(
                weights["outline_in.weight"],
                theirs=outline_columns(theirs),
                ours=outline_columns(ours),
            )
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(f"init='{self.recipe.init}': {error}") from None


def differing(ours: BaseModel, theirs: BaseModel) -> list[str]:
    """Fields of two configurations of a part that are not alike, in their order."""
    return [n for n in type(ours).model_fields if getattr(ours, n) != getattr(theirs, n)]


def to_device(value: Any, device: torch.device) -> Any:
    """A copy of nested dataclasses, lists, tuples and dictionaries with every tensor on `device`
    (the value itself on the CPU).
    """
    if device.type == "cpu":
        return value
    return _each_tensor(value, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(value: Any) -> Any:
    """A copy whose tensors lie in page-locked memory, from which they reach a device while it
    works. For the threads that load.
    """
    return _each_tensor(value, lambda tensor: tensor.pin_memory())


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{f.name: _each_tensor(getattr(value, f.name), change) for f in fields(value)}
        )
    if isinstance(value, dict):
        return {name: _each_tensor(item, change) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return type(value)(_each_tensor(item, change) for item in value)
    return value


def read(values: Sequence[Tensor | float]) -> Tensor:
    """fp64 host values [n] of scalars here and there, with one read of the device that holds the
    tensors.
    """
    on_device = [value for value in values if isinstance(value, Tensor)]
    copied = iter(
        torch.stack([value.double() for value in on_device]).tolist() if on_device else ()
    )
    return torch.tensor(
        [next(copied) if isinstance(value, Tensor) else value for value in values],
        dtype=torch.float64,
    )


def average(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: total / weight for name, (total, weight) in sums.items() if weight}
