"""What the held-out songs say of a run: which step was best, and when to stop.

    known = watch(known, recipe.guard, step=200, figures={"loss": 0.61, "drift": 0.02})
    known["stopped"]                         # a sentence, or None

A run that stops this way ends as one that came to its last step; the checkpoint of `best_step` is
kept if checkpoints are made whenever the run is validated (checkpoint.every, checkpoint.keep).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mudit_engine.errors import ConfigError
from mudit_engine.training.guard import Progress
from mudit_engine.training.recipe import GuardConfig

log = logging.getLogger(__name__)


def watches(guard: GuardConfig) -> bool:
    """Whether a run's held-out songs may stop it."""
    return bool(guard.patience or guard.limits)


def observe(
    progress: Progress, guard: GuardConfig, figures: Mapping[str, float], *, tell: bool
) -> None:
    """Takes the figures of a validation down in `progress`; `tell`: says in the log why they stop
    the run.
    """
    if watches(guard):
        progress.held_out = watch(progress.held_out, guard, step=progress.step, figures=figures)
        if progress.stopped and tell:
            log.warning("stopped after step %d: %s", progress.step, progress.stopped)


def watch(
    known: Mapping[str, Any], guard: GuardConfig, *, step: int, figures: Mapping[str, float]
) -> dict[str, Any]:
    """What is known after a validation: best, best_step, worse (validations since then), stopped.

    A validation beyond one of guard.limits is never the best. Raises ConfigError for a limit of a
    figure that the task does not have.

    Examples:
        >>> guard = GuardConfig(patience=2, limits={"drift": 0.1})
        >>> known = watch({}, guard, step=0, figures={"loss": 0.69, "drift": 0.0})
        >>> known = watch(known, guard, step=9, figures={"loss": 0.5, "drift": 0.2})
        >>> known["best_step"], known["stopped"]
        (0, 'drift of the held-out songs is 0.2, more than guard.limits allow (0.1)')
    """
    best, best_step = known.get("best"), known.get("best_step", step)
    worse, stopped = known.get("worse", 0), None
    for name, most in guard.limits.items():
        if name not in figures:
            raise ConfigError(
                f"guard.limits names '{name}', which this task's validation does not have: it has "
                f"{', '.join(sorted(figures))}"
            )
        if not figures[name] <= most:  # NaN too
            stopped = (
                f"{name} of the held-out songs is {figures[name]:.4g}, more than guard.limits "
                f"allow ({most:g})"
            )
    if stopped is None and (best is None or figures["loss"] < best):
        best, best_step, worse = figures["loss"], step, 0
    else:
        worse += 1
    if stopped is None and guard.patience and worse >= guard.patience:
        stopped = (
            f"the held-out loss has not fallen below {best:.4g}, that of step {best_step}, in "
            f"{worse} validations"
        )
    return {"best": best, "best_step": best_step, "worse": worse, "stopped": stopped}


__all__ = ["observe", "watch", "watches"]
