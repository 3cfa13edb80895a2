"""A short song that arrives while a long one is being made: how long it waits, and what both cost.

    joining    it takes the next step with the long song, and leaves when it is done
    queueing   it starts when the long song is done
    padded     so it does, as long as the long song: an engine whose graphs have one length

    rows = run(Options(size="tiny", rounds=3))                        # or: mudit bench run serve

seconds are from the arrival to the short song's latents; figures.both_seconds until both are done.
The gate: joining changes neither song.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from mudit_engine.benchmarks.end_to_end import make_network, make_states
from mudit_engine.benchmarks.registry import Options, Row, rows_of
from mudit_engine.benchmarks.step_peers import usual_place
from mudit_engine.benchmarks.timing import Times, interleave, settle
from mudit_engine.benchmarks.workloads import Workload, network_config
from mudit_engine.errors import GateError
from mudit_engine.runtime.denoiser import Denoiser, SongState, denoise

SONGS = {
    "tiny": ((160, 80), (16, 8)),
    "small": ((320, 160), (32, 16)),
    "published": ((1523, 1024), (88, 60)),
}
STEPS, ARRIVES = 8, 2
LIMIT = 1e-4


def run(options: Options) -> list[Row]:
    """Rows of the three ways. Raises GateError when joining changes a song."""
    place, rounds = usual_place(), options.rounds or 3
    denoiser = Denoiser(make_network(network_config(options.size)).to(place))
    long, short = SONGS[options.size]
    together: dict[str, list[float]] = {}

    def songs(*which: tuple[int, int]) -> list[SongState]:
        return make_states(denoiser, Workload("", which, True, ""), steps=STEPS)

    def begin(*which: tuple[int, int]) -> tuple[list[SongState], float]:
        """The songs, the first of them at the step at which the short one arrives."""
        states = songs(*which)
        for _ in range(ARRIVES):
            denoiser.step(states[:1])
        settle()
        return states, time.perf_counter()

    def joining() -> float:
        states, start = begin(long, short)
        done = 0.0
        while active := [state for state in states if not state.done]:
            denoiser.step(active)
            if states[1].done and not done:
                settle()
                done = time.perf_counter() - start
        return _finish("joining", start, done)

    def queueing() -> float:
        states, start = begin(long, short)
        denoise(denoiser, states[:1])
        denoise(denoiser, states[1:])
        settle()
        done = time.perf_counter() - start
        return _finish("queueing", start, done)

    def padded() -> float:
        states, start = begin(long)
        denoise(denoiser, states)
        denoise(denoiser, songs((long[0], long[1])))
        settle()
        return _finish("padded", start, time.perf_counter() - start)

    def _finish(name: str, start: float, done: float) -> float:
        settle()
        together.setdefault(name, []).append(time.perf_counter() - start)
        return done

    options.report("checking")
    error = _check(denoiser, songs, long, short)
    waits: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], float]) -> Callable[[], None]:
        return lambda: waits.setdefault(name, []).append(call())

    ways = {"joining": joining, "queueing": queueing, "padded": padded}
    options.report(f"{rounds} rounds of {len(ways)} ways")
    found = interleave({name: timed(name, call) for name, call in ways.items()}, rounds=rounds)
    # what counts is the wait, which only the ways themselves know; the first was the warm-up
    times = {name: Times(waits[name][1:], found[name].cpus, found[name].joules) for name in ways}
    more: dict[str, dict[str, Any]] = {
        name: {
            "figures": {"both_seconds": sorted(together[name][1:])[len(together[name][1:]) // 2]}
        }
        for name in ways
    }
    more["joining"] |= {"error": error, "limit": LIMIT}
    return rows_of(
        "serve",
        f"{options.size}, {short[0]} frames join {long[0]} at step {ARRIVES} of {STEPS}",
        times,
        reference="queueing",
        roles={"joining": "ours"},
        more=more,
    )


def _check(
    denoiser: Denoiser,
    songs: Callable[..., list[SongState]],
    long: tuple[int, int],
    short: tuple[int, int],
) -> float:
    alone = songs(long, short)
    denoise(denoiser, alone[:1])
    denoise(denoiser, alone[1:])
    joined = songs(long, short)
    for _ in range(ARRIVES):
        denoiser.step(joined[:1])
    while active := [state for state in joined if not state.done]:
        denoiser.step(active)
    error = max(
        float((a.x_TC - b.x_TC).norm() / b.x_TC.norm()) for a, b in zip(joined, alone, strict=True)
    )
    if not error <= LIMIT or not torch.isfinite(joined[1].x_TC).all():
        raise GateError(
            f"a song that joins another changes by {error:.1e} (limit {LIMIT:.0e}): no speed is "
            f"reported"
        )
    return error
