"""Which songs each rank sees at each step, as a pure function of (seed, epoch, step).

A *pack* is one micro-batch: songs whose costs (frames, samples) sum to at most `budget`. An epoch
is shuffled and packed as a whole, and a global batch is `packs_per_step` packs, whatever the number
of ranks. Rank r of W takes packs r, r + W, ... of the global batch, so that another W continues in
the middle of an epoch with no song lost or seen twice, and the gradient of a step does not depend
on W.

    efficiency = sum of costs / (packs x budget)

    sampler = Sampler(costs, seed=0, budget=16384, packs_per_step=8)
    # int64 song numbers; empty where the packs run out
    for pack in sampler.local(epoch=0, step=17, rank=3, world=4): ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.training.dataset.packing import WINDOW, EpochPlan, plan_beside, plan_packs
from mudit_engine.training.seeding import permutation

__all__ = ["EpochPlan", "Sampler", "plan_packs", "prefetch"]

LARGE = 50_000  # songs, from which on a process of its own plans an epoch (a second or so)

T = TypeVar("T")
R = TypeVar("R")


class Sampler:
    """Which songs form which batch: a pure function of the seed, sliced by rank.

    Songs are packed end to end into packs of at most `budget`; a global batch is `packs_per_step`
    packs, whatever the number of ranks.

    Args:
        costs: int [N], what each song costs of a pack, such as its frames.
        seed: of the run.
        budget: cost of a pack at most.
        packs_per_step: packs of a global batch.
        numbers: int64, the songs an epoch goes through; None is all.
        window: songs among which those that fill a pack are sought.

    Raises:
        InputError: for no songs, or songs that do not fit a pack.

    Examples:
        >>> sampler = Sampler(np.array([30, 50, 20, 70]), seed=0, budget=100, packs_per_step=1)
        >>> epoch = [pack for step in range(sampler.steps(0)) for pack in sampler.batch(0, step)]
        >>> sorted(int(song) for pack in epoch for song in pack)      # each song once
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        costs: np.ndarray,
        *,
        seed: int,
        budget: int,
        packs_per_step: int,
        numbers: np.ndarray | None = None,
        window: int = WINDOW,
    ) -> None:
        self.costs, self.seed, self.budget, self.packs_per_step, self.window = (
            costs,
            seed,
            budget,
            packs_per_step,
            window,
        )
        self.numbers = np.arange(len(costs)) if numbers is None else np.asarray(numbers)
        if not len(self.numbers):
            raise InputError(
                "the data set holds no song to train on: encode some, or choose another split"
            )
        wrong = self.numbers[(costs[self.numbers] > budget) | (costs[self.numbers] <= 0)]
        if len(wrong):
            raise InputError(
                f"{len(wrong)} song(s) do not fit a pack, the first is number {wrong[0]} with a "
                f"length of {costs[wrong[0]]}: "
                f"a pack takes 1 to {budget}; raise data.pack_size to {costs[self.numbers].max()} "
                f"or leave those songs out"
            )
        self._plans: dict[int, Future[EpochPlan]] = {}
        self._lock = Lock()

    def prepare(self, epoch: int) -> Future[EpochPlan]:
        """Has the packs of an epoch planned, once, whoever asks: a large data set's by another
        process.
        """
        with self._lock:
            if epoch not in self._plans:
                order = self.numbers[permutation(len(self.numbers), "epoch", self.seed, epoch)]
                if len(order) >= LARGE:
                    planned = plan_beside(order, self.costs, self.budget, window=self.window)
                else:
                    planned = Future()
                    planned.set_result(
                        plan_packs(order, self.costs, self.budget, window=self.window)
                    )
                kept = {n: plan for n, plan in self._plans.items() if epoch - 2 <= n <= epoch + 1}
                self._plans = {**kept, epoch: planned}
            return self._plans[epoch]

    def plan(self, epoch: int) -> EpochPlan:
        """The packs of an epoch. Those of a large data set's next epoch are planned meanwhile."""
        plan = self.prepare(epoch).result()
        if len(self.numbers) >= LARGE:
            self.prepare(epoch + 1)
        return plan

    def steps(self, epoch: int) -> int:
        """Global batches of an epoch; the last one may hold fewer packs."""
        return -(-len(self.plan(epoch)) // self.packs_per_step)

    def batch(self, epoch: int, step: int) -> list[np.ndarray]:
        """The packs of a global batch. Raises ValueError past the end of the epoch."""
        plan = self.plan(epoch)
        first = step * self.packs_per_step
        if not 0 <= first < len(plan):
            raise ValueError(f"step {step} of epoch {epoch}, which has {self.steps(epoch)} steps")
        return [
            plan.pack(number)
            for number in range(first, min(first + self.packs_per_step, len(plan)))
        ]

    def local(self, epoch: int, step: int, *, rank: int = 0, world: int = 1) -> list[np.ndarray]:
        """The micro-batches of a rank: as many on every rank (collectives must match), empty ones
        where the packs run out.
        """
        packs = self.batch(epoch, step)
        none = np.empty(0, np.int64)
        return [
            packs[number] if number < len(packs) else none
            for number in range(rank, -(-len(packs) // world) * world, world)
        ]

    def walk(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        """(epoch, step) from here on, for ever."""
        while True:
            if step >= self.steps(epoch):
                epoch, step = epoch + 1, 0
            yield epoch, step
            step += 1


def prefetch(
    items: Iterable[T], fetch: Callable[[T], R], *, threads: int = 1, ahead: int = 2
) -> Iterator[R]:
    """fetch(item) for each item, in order, `ahead` of them being prepared by threads while the last
    one is used.
    """
    with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="loader") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(fetch, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
