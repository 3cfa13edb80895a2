"""Packs of an epoch: which songs share a micro-batch. Pure Python and numpy, so that a process of
its own can do it for a large data set while the run starts.

    plan = plan_packs(order, costs, budget=16384)
    future = plan_beside(order, costs, 16384)        # the same, by another process
    plan = future.result()

Packing is one long loop, which a thread could only run by keeping the interpreter from all others.
"""

from __future__ import annotations

import bisect
import io
import subprocess
import sys
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

import numpy as np

# songs that wait to be packed: more fill packs a little better and plan slower (1.5 M songs: about
# half a minute)
WINDOW = 256


@dataclass(frozen=True)
class EpochPlan:
    """The packs of an epoch, end to end: pack p holds songs[ends[p - 1] : ends[p]]."""

    songs: np.ndarray
    ends: np.ndarray
    efficiency: float

    def __len__(self) -> int:
        return len(self.ends)

    def pack(self, number: int) -> np.ndarray:
        return self.songs[(self.ends[number - 1] if number else 0) : self.ends[number]]


def plan_packs(
    order: np.ndarray, costs: np.ndarray, budget: int, *, window: int = WINDOW
) -> EpochPlan:
    """Packs the songs of `order`: each pack begins with the songs that have waited longest and ends
    with those that fill it best.

    Only the last songs of a pack are chosen by length (best fit among a window of waiting songs,
    single or pair), so that packs stay full and their songs random. Beginning with the longest
    waiting one keeps any song from being put off to the end.
    """
    songs: list[int] = []
    ends: list[int] = []
    source = iter(order.tolist())
    cost = costs.tolist()
    waiting: deque[int] = deque()
    pool: list[
        tuple[int, int]
    ] = []  # (cost, song), sorted; `taken` marks the songs of `waiting` that have left it
    taken: set[int] = set()
    mean = float(costs[order].mean()) if len(order) else 0.0

    def take(song: int) -> int:
        del pool[bisect.bisect_left(pool, (cost[song], song))]
        songs.append(song)
        return cost[song]

    while True:
        while len(pool) < window and (song := next(source, None)) is not None:
            waiting.append(song)
            bisect.insort(pool, (cost[song], song))
        if not pool:
            break
        room = budget
        while waiting and (
            waiting[0] in taken or room == budget or room - cost[waiting[0]] >= 2.5 * mean
        ):
            song = waiting.popleft()
            if song in taken:
                taken.remove(song)
            else:
                room -= take(song)
        while chosen := _best_fit(pool, room):
            for song in chosen:
                room -= take(song)
                taken.add(song)
        ends.append(len(songs))
    total = int(costs[order].sum())
    return EpochPlan(
        np.array(songs, np.int64),
        np.array(ends, np.int64),
        total / (len(ends) * budget) if ends else 1.0,
    )


def _best_fit(pool: list[tuple[int, int]], room: int) -> tuple[int, ...]:
    """The song, or the pair of songs, of the sorted pool that leaves the least of `room`; empty
    when nothing fits.
    """
    last = bisect.bisect_right(pool, (room, sys.maxsize)) - 1
    if last < 0:
        return ()
    left, close = room - pool[last][0], room >> 9  # within 0.2 % is as good as full
    low, high = 0, last
    best: tuple[int, ...] = (last,)
    while low < high and left > close:
        spare = room - pool[low][0] - pool[high][0]
        if spare < 0:
            high -= 1
            continue
        if spare < left:
            best, left = (low, high), spare
        low += 1
    return tuple(pool[place][1] for place in best)


def plan_beside(
    order: np.ndarray, costs: np.ndarray, budget: int, *, window: int = WINDOW
) -> Future[EpochPlan]:
    """plan_packs in a process of its own. A process that fails gives RuntimeError with its last
    words.
    """
    future: Future[EpochPlan] = Future()
    given = io.BytesIO()
    np.savez(given, order=order, costs=costs, numbers=np.array([budget, window]))
    process = subprocess.Popen(
        [sys.executable, "-m", "mudit_engine.training.dataset.packing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def wait() -> None:
        out, told = process.communicate(given.getvalue())
        if process.returncode:
            words = told.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            future.set_exception(RuntimeError(f"planning the epoch failed: {words[0]}"))
            return
        made = np.load(io.BytesIO(out))
        future.set_result(EpochPlan(made["songs"], made["ends"], float(made["efficiency"])))

    # a daemon: a run that ends does not wait for the plan of an epoch that it will not see
    Thread(target=wait, name="epoch-plan", daemon=True).start()
    return future


def _serve() -> None:
    given = np.load(io.BytesIO(sys.stdin.buffer.read()))
    budget, window = (int(number) for number in given["numbers"])
    plan = plan_packs(given["order"], given["costs"], budget, window=window)
    made = io.BytesIO()
    np.savez(made, songs=plan.songs, ends=plan.ends, efficiency=np.array(plan.efficiency))
    sys.stdout.buffer.write(made.getvalue())


if __name__ == "__main__":
    _serve()
