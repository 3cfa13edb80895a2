"""What is done about steps that go wrong: NaN, infinity, spikes of the loss or the gradient norm.

a value is a spike when it is spike_factor times its running geometric mean
mean of the logarithms: m' = SPIKE_MEMORY m + (1 - SPIKE_MEMORY) log value

guard = Guard(recipe, ranks)
if guard.spiked(progress, "model", "loss", 3.1, ids): ...
guard.count_bad(progress, step, ids)       # raises DivergedError after too many
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mudit_engine.errors import MuditError
from mudit_engine.training.ranks import Ranks

if TYPE_CHECKING:
    from mudit_engine.training.recipe import Recipe

BAD_WINDOW = 100  # steps among which bad ones are counted
SPIKE_MEMORY = 0.98  # of the running means of the logarithms of loss and gradient norm
SPIKE_WARMUP = 50  # steps before a spike can be told from the start of training

log = logging.getLogger(__name__)


class DivergedError(MuditError):
    """Too many steps gave NaN or infinity."""


@dataclass
class Progress:
    """The trainer's own state. `step` counts finished steps; (epoch, epoch_step) is the next global
    batch.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    songs: int = 0
    weight: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    bad_steps: list[int] = field(default_factory=list)
    log_norm: dict[str, float] = field(default_factory=dict)
    log_loss: dict[str, float] = field(default_factory=dict)
    spikes: int = 0
    held_out: dict[str, Any] = field(default_factory=dict)  # held_out.py

    @property
    def stopped(self) -> str | None:
        """Why the held-out songs ended the run before its last step; None while they have not."""
        return self.held_out.get("stopped")


class Guard:
    """Judges the figures of a step, which are the same on every rank, and keeps their means."""

    def __init__(self, recipe: Recipe, ranks: Ranks) -> None:
        self.config, self.ranks = recipe.guard, ranks

    @property
    def skips(self) -> bool:
        """Whether a step with a spike is left out."""
        return self.config.spikes == "skip"

    def limit(self, progress: Progress, known: float | None) -> float:
        """What a value may be at most not to be a spike, by the logarithm of its running mean."""
        if known is None or progress.step <= SPIKE_WARMUP:
            return math.inf
        return math.exp(known) * self.config.spike_factor

    def spiked(
        self,
        progress: Progress,
        phase: str,
        what: Literal["loss", "gradient norm"],
        value: float,
        ids: list[str],
    ) -> bool:
        """Whether a value is far above its running mean, which it then joins; a spike is reported
        with the songs of all ranks (`ids` are this one's).
        """
        if value <= 0:  # an adversarial loss may be: it has no logarithm
            return False
        means = progress.log_loss if what == "loss" else progress.log_norm
        known = means.get(phase)
        limit = self.limit(progress, known)
        spiked = value > limit
        if spiked:
            progress.spikes += 1
            names = some_of(self.everyone(ids))
            if self.ranks.main:
                log.warning(
                    "step %d: %s %.3g is %.1f times its mean (songs %s)",
                    progress.step,
                    what,
                    value,
                    value / math.exp(known or 0.0),
                    names,
                )
        level = math.log(value)
        if spiked and self.skips:
            # what was left out pulls the mean no further than what was let in
            level = math.log(limit)
        means[phase] = level if known is None else SPIKE_MEMORY * known + (1 - SPIKE_MEMORY) * level
        return spiked

    def count_bad(self, progress: Progress, step: int, ids: list[str]) -> None:
        """Notes a step that was left out. Raises DivergedError when there were too many."""
        progress.skipped += 1
        progress.bad_steps = [*(s for s in progress.bad_steps if s > step - BAD_WINDOW), step]
        if self.ranks.main:
            log.warning(
                "step %d gave NaN, infinity or a spike and was skipped (songs %s)",
                step,
                some_of(ids),
            )
        if len(progress.bad_steps) > self.config.max_bad_steps:
            raise DivergedError(
                f"{len(progress.bad_steps)} of the last {BAD_WINDOW} steps gave NaN, infinity or a "
                f"spike (guard.max_bad_steps={self.config.max_bad_steps}); the last batch held "
                f"songs {some_of(ids)}. Check them with `mudit data inspect`, lower optimizer.lr, "
                f"and resume: the newest checkpoint is from before"
            )

    def everyone(self, ids: list[str]) -> list[str]:
        """The ids that any rank names."""
        return list(dict.fromkeys(i for own in self.ranks.gather(ids) for i in own))


def some_of(ids: list[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(dict.fromkeys(ids[:most]))
    return f"{shown} and {len(ids) - most} more" if len(ids) > most else shown
