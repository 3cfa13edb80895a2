"""The guard over held-out songs: what is best, when a run stops, and that a resumed one knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mudit_engine.errors import ConfigError
from mudit_engine.training.held_out import watch
from mudit_engine.training.recipe import GuardConfig
from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe, write_songs

pytestmark = pytest.mark.usefixtures("one_thread")


def walk(guard: GuardConfig, losses: list[float], **figures: list[float]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for step, loss in enumerate(losses):
        if not known.get("stopped"):
            here = {"loss": loss, **{name: values[step] for name, values in figures.items()}}
            known = watch(known, guard, step=step, figures=here)
    return known


def test_stops_after_patience_without_a_lower_loss() -> None:
    known = walk(GuardConfig(patience=2), [1.0, 0.8, 0.9, 0.7, 0.75, 0.7, 0.1])
    assert (known["best_step"], known["best"], known["worse"]) == (3, 0.7, 2)
    assert "below 0.7, that of step 3, in 2 validations" in known["stopped"]
    assert walk(GuardConfig(patience=2), [1.0, 0.9, 0.95, 0.8])["stopped"] is None


def test_a_step_beyond_a_limit_is_never_best() -> None:
    guard = GuardConfig(limits={"drift": 0.1})
    known = walk(guard, [1.0, 0.5, 0.4], drift=[0.0, 0.05, 0.2])
    assert known["best_step"] == 1 and "drift of the held-out songs is 0.2" in known["stopped"]
    assert "drift" in walk(guard, [1.0], drift=[float("nan")])["stopped"]
    with pytest.raises(ConfigError, match="does not have: it has loss"):
        walk(guard, [1.0])


def test_a_run_ends_early_once_and_for_all(tmp_path: Path) -> None:
    data = write_songs(tmp_path / "songs")
    # nothing is learned in a step so small, so that no validation is better than the first
    changes = {
        "steps": 12,
        "optimizer__lr": 1e-12,
        "log__validate_every": 2,
        "guard__patience": 3,
        "guard__limits": {"mse": 1e9},
    }
    trainer = Trainer(small_recipe(data, **changes), tmp_path / "run", quiet=True)
    losses = iter([1.0, 0.9, 0.95, 0.95, 0.95, 0.1])
    trainer.validate = lambda: {"loss": next(losses), "mse": 0.0}  # type: ignore[method-assign]
    summary = trainer.run()
    assert summary["steps"] == 8 and summary["held_out"]["best_step"] == 2
    again = Trainer(small_recipe(data, **changes), tmp_path / "run", quiet=True)
    summary = again.run()
    assert summary["steps"] == 8 and summary["steps_run"] == 0
    assert summary["held_out"]["stopped"] == again.progress.stopped


def test_a_guard_needs_validations(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set log.validate_every"):
        small_recipe(tmp_path, guard__patience=2)
