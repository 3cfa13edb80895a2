"""A slow rank is named: from its own work, not from the time of a step, which all share."""

from __future__ import annotations

import logging
import time

import pytest
import torch

from mudit_engine.training.ranks import Ranks
from mudit_engine.training.stragglers import WINDOW, Pace, slowest


def test_the_slowest_is_found_among_any_number() -> None:
    assert slowest([(1.0, 0.1), (1.2, 0.3)]) == {
        "slowest_rank": 1,
        "slowest_ratio": 1.2,
        "slowest_wait_s": 0.3,
    }
    paces = [(1.0 + 0.01 * (n % 5), 0.0) for n in range(64)]
    paces[17] = (1.25, 0.0)
    found = slowest(paces)
    assert found["slowest_rank"] == 17 and 1.2 < found["slowest_ratio"] < 1.25
    assert slowest([(0.0, 0.0), (0.0, 0.0)])["slowest_ratio"] == 1.0


class Two(Ranks):
    """This rank beside one that needs `other` seconds a row."""

    world = 2

    def __init__(self, other: float) -> None:
        self.other = other

    def gather(self, thing):  # type: ignore[no-untyped-def]
        return [thing, ((self.other, 0.0), [3.0, 2.0, 1.0, 0.5])]


def test_a_slow_rank_is_named_within_fifty_steps(caplog: pytest.LogCaptureFixture) -> None:
    pace = Pace(Two(3.0), torch.device("cpu"))
    told = []
    with caplog.at_level(logging.WARNING):
        for step in range(50):
            with pace.forward(rows=100):
                time.sleep(0.0001)
            pace.step(0.0, 0.2, 0.01)
            if found := pace.compare():
                told.append((step, found["slowest_rank"]))
    assert told == [(WINDOW - 1, 1), (2 * WINDOW - 1, 1)] and WINDOW <= 25
    assert "rank 1 is slow" in caplog.text
    assert pace.table[1] == {
        "rank": 1,
        "step_s": 3.0,
        "forward_s": 2.0,
        "load_s": 1.0,
        "wait_s": 0.5,
    }
    assert pace.table[0]["step_s"] == 0.2 and 0 < pace.table[0]["forward_s"] < 0.1
    alone = Pace(Ranks(), torch.device("cpu"))
    for _ in range(60):
        alone.step(0.0)
        assert not alone.compare()
