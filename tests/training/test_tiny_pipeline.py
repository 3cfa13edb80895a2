"""What `make tiny` refuses before it begins; the steps themselves take a day."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mudit_engine.errors import InputError
from mudit_engine.training.recipe import load_recipe
from mudit_engine.training.tiny.pipeline import (
    LEAST_JUDGED,
    RECIPES,
    STEPS,
    TOLD_EVERY,
    Plan,
    counted,
    run,
)


@pytest.mark.parametrize(
    ("songs", "steps", "said"),
    [
        (LEAST_JUDGED - 1, STEPS, "held out to be judged"),
        (1000, ("vae", "singing"), "unknown step.s. singing"),
    ],
    ids=["few-songs", "unknown-step"],
)
def test_what_cannot_end_does_not_begin(
    tmp_path: Path, songs: int, steps: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run(Plan(tmp_path / "work", songs=songs), steps)
    assert not (tmp_path / "work").exists()


def test_every_training_has_its_recipe() -> None:
    assert set(RECIPES) <= set(STEPS)
    tasks = {step: load_recipe(name).task for step, name in RECIPES.items()}
    assert tasks["fewstep"] == "dit-distill" and tasks["decoder"] == tasks["vae"] == "vae"
    assert load_recipe(RECIPES["finetune-mudit"]).init == "tiny", "begun from the song model"


def test_steps_of_many_songs_tell_how_far_they_are(caplog: pytest.LogCaptureFixture) -> None:
    on_song = counted(3 * TOLD_EVERY)
    with caplog.at_level(logging.INFO):
        for number in range(2 * TOLD_EVERY + 1):
            on_song(number, 30.0)
    first, second = caplog.messages
    assert first.startswith(f"{TOLD_EVERY} songs of at most {3 * TOLD_EVERY}, ")
    assert second.startswith(f"{2 * TOLD_EVERY} songs") and second.endswith("minutes left")
