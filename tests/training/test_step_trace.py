"""`log.profile` writes a trace of the steps that were asked for, and of no others."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from mudit_engine.errors import ConfigError, InputError
from mudit_engine.training.step_trace import parse_steps
from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe, write_songs


def traced(path: Path) -> tuple[list[int], int]:
    """(steps that the trace spans, updates of the optimiser in it)."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    steps = sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step (\d+)", name)))
    return steps, names.count("Optimizer.step#AdamW.step")


def test_steps_are_first_and_end() -> None:
    assert parse_steps(" 10:13 ") == range(10, 13)
    for text in ("10", "3:3", "5:2", "a:b", "", "-1:4"):
        with pytest.raises(InputError, match="is not FIRST:END: write 10:13"):
            parse_steps(text)


def test_a_recipe_with_other_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the steps to profile are '7', which is not FIRST:END"):
        small_recipe(tmp_path, log__profile="7")


@pytest.mark.parametrize(
    "steps, recorded, name",
    [
        ("2:4", [2, 3], "steps-2-3"),
        ("0:1", [0], "steps-0-0"),  # no step before it to warm up in
        ("5:9", [5], "steps-5-5"),  # the run ends first
    ],
)
def test_the_steps_of_the_range_are_traced(
    tmp_path: Path, steps: str, recorded: list[int], name: str
) -> None:
    recipe = small_recipe(write_songs(tmp_path / "data"), steps=6, log__profile=steps)
    Trainer(recipe, tmp_path / "run", quiet=True).run()
    (file,) = (tmp_path / "run/profile").iterdir()
    assert file.name == f"{name}-rank-00000.json.gz"
    assert traced(file) == (recorded, len(recorded))


def test_a_run_that_fails_keeps_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(write_songs(tmp_path / "data"), steps=6, log__profile="1:6")
    trainer = Trainer(recipe, tmp_path / "run", quiet=True)
    step = trainer._step

    def fail(work):  # type: ignore[no-untyped-def]
        if trainer.progress.step == 3:
            raise RuntimeError("the third step")
        return step(work)

    monkeypatch.setattr(trainer, "_step", fail)
    with pytest.raises(RuntimeError, match="the third step"):
        trainer.run()
    steps, updates = traced(tmp_path / "run/profile/steps-1-2-rank-00000.json.gz")
    assert steps[:2] == [1, 2] and updates == 2
