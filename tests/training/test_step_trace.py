"""`--profile` writes a trace of the steps that were asked for, and no others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mudit_engine.errors import InputError
from mudit_engine.training.step_trace import parse_steps
from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe, write_songs


def forward_passes(path: Path) -> int:
    """Losses of the song transformer that the trace holds: one a micro-batch."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sum(event.get("name") == "Optimizer.step#AdamW.step" for event in events)


def test_steps_are_first_and_end() -> None:
    assert parse_steps("10:13") == range(10, 13)
    for text in ("10", "3:3", "5:2", "a:b", ""):
        with pytest.raises(InputError, match="must be FIRST:END"):
            parse_steps(text)


@pytest.mark.parametrize("steps, recorded", [("2:4", 2), ("5:9", 1)])
def test_the_steps_of_the_range_are_traced(tmp_path: Path, steps: str, recorded: int) -> None:
    recipe = small_recipe(write_songs(tmp_path / "data"), steps=6)
    trainer = Trainer(recipe, tmp_path / "run", quiet=True, profile=parse_steps(steps))
    trainer.run()
    assert forward_passes(tmp_path / "run/profile/rank-00000.json.gz") == recorded
