"""Which rank holds the others up: each one's own work, timed between collectives.

    pace = own seconds of the window / rows of the window      (forward passes and loading)
    a rank is slow when its pace is SLOW times that of the lower median of all ranks

A step lasts as long on every rank, since all wait for the slowest: only what a rank does by itself
tells them apart. Packs differ in length, so seconds are taken by the rows they were spent on. The
figures cross the ranks once in WINDOW steps.

    pace = Pace(ranks, device)
    with pace.forward(rows): ...
    if told := pace.compare(step): told                 # {"slowest_rank": 3, "slowest_ratio": 1.3}
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from mudit_engine.training.ranks import Ranks

WINDOW = 25  # steps: a slow rank is named within two of them
SLOW = 1.15
# of a mean step, by rank: all of it, its forward passes, reading its batch (by a thread, while
# others are worked on), waiting for that
TIMES = ("step_s", "forward_s", "load_s", "wait_s")

log = logging.getLogger(__name__)


class Pace:
    """One rank's own times since they were last compared."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks, self.cuda = ranks, device.type == "cuda"
        self.table: list[dict[str, float]] = []  # of the last comparison: a row a rank
        self._clear()

    def _clear(self) -> None:
        self.rows, self.seconds, self.steps = 0, 0.0, 0
        self.waiting = self.stepping = self.loading = 0.0
        self._events: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def forward(self, rows: int) -> Iterator[None]:
        """Times a forward pass over so many rows; on a GPU by its own clock, which is read when
        paces are compared.
        """
        self.rows += rows
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
            return
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def step(self, waiting: float, stepping: float = 0.0, loading: float = 0.0) -> None:
        """Counts a step: seconds it waited for its batch, took, and a thread needed to read the
        batch.
        """
        self.steps += 1
        self.waiting += waiting
        self.stepping += stepping
        self.loading += loading

    def compare(self) -> dict[str, float | int]:
        """After WINDOW steps: the slowest rank and how much slower it is than the lower median;
        else nothing. Ranks come here together. Warns of a slow one, by name.
        """
        self.table = []
        if self.ranks.world == 1 or self.steps < WINDOW:
            return {}
        if self._events:
            self._events[-1][1].synchronize()
            self.seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        own = (self.seconds / max(self.rows, 1), self.waiting / self.steps)
        times = (self.stepping, self.seconds, self.loading, self.waiting)
        shown = [round(seconds / self.steps, 5) for seconds in times]
        self._clear()
        told = self.ranks.gather((own, shown))
        self.table = [
            {"rank": rank, **dict(zip(TIMES, values, strict=True))}
            for rank, (_, values) in enumerate(told)
        ]
        found = slowest([own for own, _ in told])
        if self.ranks.main and found["slowest_ratio"] >= SLOW:
            log.warning(
                "rank %d is slow: its forward passes take %.2f times those of the median rank "
                "(waiting %.3f s a step for batches): all ranks wait for it",
                found["slowest_rank"],
                found["slowest_ratio"],
                found["slowest_wait_s"],
            )
        return found


def slowest(paces: list[tuple[float, float]]) -> dict[str, float | int]:
    """Of (seconds a row, seconds of waiting for a batch) by rank."""
    rows = sorted(pace for pace, _ in paces)
    median = rows[(len(rows) - 1) // 2]
    rank = max(range(len(paces)), key=lambda number: paces[number][0])
    ratio = paces[rank][0] / median if median else 1.0
    return {
        "slowest_rank": rank,
        "slowest_ratio": round(ratio, 3),
        "slowest_wait_s": round(paces[rank][1], 4),
    }
