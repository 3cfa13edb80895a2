"""The packs of an epoch by another process: the same, once, and nobody is kept waiting."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mudit_engine.training.dataset import batching
from mudit_engine.training.dataset.batching import Sampler
from mudit_engine.training.dataset.packing import EpochPlan, plan_beside, plan_packs


def same(a: EpochPlan, b: EpochPlan) -> bool:
    return bool(
        np.array_equal(a.songs, b.songs)
        and np.array_equal(a.ends, b.ends)
        and a.efficiency == b.efficiency
    )


def test_another_process_packs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    costs = rng.integers(300, 3000, 400)
    order = rng.permutation(400)[:350]
    assert same(plan_beside(order, costs, 16384).result(60), plan_packs(order, costs, 16384))
    small = Sampler(costs, seed=1, budget=16384, packs_per_step=2)
    here = [small.plan(0), small.plan(1)]
    asked: list[int] = []

    def count(*args: object, **kwargs: object) -> object:
        asked.append(1)
        return plan_beside(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(batching, "LARGE", 100)
    monkeypatch.setattr(batching, "plan_beside", count)
    large = Sampler(costs, seed=1, budget=16384, packs_per_step=2)
    large.prepare(0)
    assert same(large.plan(0), here[0])
    assert len(asked) == 2, "this epoch's, and the next one's before it is needed"
    assert same(large.plan(1), here[1]) and same(large.plan(0), here[0])
    assert len(asked) == 3


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="planning the epoch failed: IndexError"):
        plan_beside(np.array([7]), np.array([1, 2]), 100).result(60)


@pytest.mark.slow
def test_a_million_and_a_half_songs_keep_nobody_waiting() -> None:
    """The longest time that another thread of this process is kept from running while an epoch is
    planned: milliseconds, not the half minute that planning takes.
    """
    costs = np.random.default_rng(0).lognormal(7.7, 0.28, 1_500_000).astype(np.int64)
    sampler = Sampler(costs, seed=0, budget=16384, packs_per_step=64)
    started = time.monotonic()
    planned = sampler.prepare(0)
    asked = time.monotonic() - started
    longest, last = 0.0, time.monotonic()
    while not planned.done():
        time.sleep(0.005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    seconds = time.monotonic() - started
    print(f"asked {asked:.2f} s, planned in {seconds:.1f} s, longest pause {longest:.3f} s")
    assert len(planned.result().songs) == 1_500_000
    assert longest < 0.1 * seconds
