"""The batcher's own decisions in simulated time, for benchmarks/serving_load.py.

    spent = simulate(Batcher, pipeline, asked, (cost, decode_seconds_per_frame))

Nothing of the batcher is replaced: songs are read, admitted, picked and decoded by its code, and
what it calls time is the simulation's. A step and a piece of decoding are work of a known number of
CPU seconds on one machine, which both share when both are at work (processor sharing), so that
every way of serving has the same machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mudit_engine.config import VaeConfig
from mudit_engine.pipeline import SongPipeline
from mudit_engine.runtime import batcher as batching
from mudit_engine.runtime.batcher import Batcher
from mudit_engine.runtime.cost import StepCost
from mudit_engine.runtime.denoiser import SongInputs, SongProgress
from mudit_engine.runtime.ticket import Event, Stage

if TYPE_CHECKING:
    from mudit_engine.benchmarks.serving_load import Asked


class _Known(StepCost):
    """A curve that stays as it was measured."""

    def observe(self, rows: Sequence[int], seconds: float) -> None:
        pass


class _Runtime:
    """Steps that cost nothing here: their time is the simulation's."""

    def prepare(self, song: SongInputs) -> SongProgress:
        x = torch.zeros(song.frames, 1)
        return SongProgress(
            frames=song.frames,
            table=song.table,
            generator=torch.Generator(),
            x_TC=x,
            kept_TC=x,
        )

    def step(self, states: Sequence[SongProgress]) -> None:
        for one in states:
            one.step += 1


@dataclass
class _Decoder:
    """Silence, and how many frames were read to make it."""

    vae: VaeConfig
    receptive_field: int
    read: int = 0

    @property
    def config(self) -> VaeConfig:
        return self.vae.model_copy(update={"latent_channels": 1})

    def decode(self, latents_NTC: Tensor) -> Tensor:
        self.read += latents_NTC.shape[1]
        return torch.zeros(1, self.vae.channels, latents_NTC.shape[1] * self.vae.hop)


@dataclass
class _Work:
    """Something under way: what is left of it, and what happens when it is done."""

    left: float
    done: Any


def simulate(
    way: type[Batcher],
    pipeline: SongPipeline,
    asked: list[Asked],
    costs: tuple[StepCost, float],
) -> float:
    """Serves the load; fills in when everybody heard something and had the song (seconds). Returns
    the seconds that the machine was at work.
    """
    cost = _Known(base=costs[0].base, a=costs[0].a, b=costs[0].b)
    decoder = _Decoder(pipeline.config.vae, pipeline.decoder.receptive_field)
    with _simulated_time() as clock:
        batcher = way(_Runtime(), decoder, pipeline.config, cost=cost, start=False)
        waiting, spent = list(asked), 0.0
        jobs: dict[str, _Work] = {}
        while True:
            while waiting and waiting[0].at <= clock.now + 1e-9:
                _arrive(batcher, waiting.pop(0), clock, stream=way is Batcher)
            if "step" not in jobs and (work := _next_step(batcher, cost)):
                jobs["step"] = work
            for place in ("decode 1", "decode 2"):
                if place not in jobs and (work := _next_piece(batcher, decoder, costs[1])):
                    jobs[place] = work
            if not jobs and not waiting:
                return spent
            until = [waiting[0].at - clock.now] if waiting else []
            passed = min([*until, *(work.left * len(jobs) for work in jobs.values())])
            clock.now += passed
            spent += passed if jobs else 0.0
            for work in jobs.values():
                work.left -= passed / len(jobs)
            for name in [name for name, work in jobs.items() if work.left <= 1e-9]:
                jobs.pop(name).done()


@contextmanager
def _simulated_time() -> Iterator[Any]:
    clock = SimpleNamespace(now=0.0)
    module: Any = batching
    real = module.time
    shown: Any = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    module.time = shown
    try:
        yield clock
    finally:
        module.time = real


def _arrive(batcher: Batcher, one: Asked, clock: Any, *, stream: bool) -> None:
    def heard(event: Event) -> None:
        if event.audio is not None and one.first_audio is None:
            one.first_audio = clock.now
        if event.stage is Stage.COMPLETED:
            one.finished = clock.now

    one.ticket = batcher.submit(lambda: one.song, on_event=heard, stream=stream)
    one.ticket.submitted = clock.now
    unread = batcher._unread.get_nowait()
    assert unread is one.ticket
    batcher._read(one.ticket)


def _next_step(batcher: Batcher, cost: StepCost) -> _Work | None:
    with batcher._lock:
        batcher._drop()
        joining = batcher._admitted()
    for ticket in joining:
        batcher._prepare(ticket)
    with batcher._lock:
        batch = batcher._pick()
    if not batch:
        return None
    rows = [one for ticket in batch for one in batcher._sequences(ticket)]
    return _Work(cost.step(rows), lambda: batcher._advance(batch))


def _next_piece(batcher: Batcher, decoder: _Decoder, per_frame: float) -> _Work | None:
    """The piece is made at once, and handed over when its time has passed."""
    decodes = batcher.decodes
    if decodes is None or not (waiting := decodes.free()):
        return None
    ticket, pieces = min(waiting, key=lambda one: decodes.order(one[0]))
    decodes.at_decoder.add(ticket)
    before = decoder.read
    piece = next(pieces, None)
    frames = decoder.read - before

    entry = (ticket, _made(piece, pieces))
    place = [one for one, _ in decodes.songs].index(ticket)
    decodes.songs[place] = entry

    def hand_over() -> None:
        decodes.decode(entry)
        decodes.at_decoder.discard(ticket)

    return _Work(frames * per_frame, hand_over)


def _made(piece: Tensor | None, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    if piece is not None:
        yield piece
        yield from rest
