"""Continuous batching at the step: one engine thread, songs that join and leave between steps.

    batcher = Batcher(runtime, decoder, config, cost=measure_cost(runtime, config))
    ticket = batcher.submit(lambda: reader.inputs(request), on_event=print)      # any thread
    for audio_cS in ticket.audio(): send(audio_cS)                               # as it is decoded
    batcher.drain(); batcher.close()

    read (its own thread) -> wait -> step, step, step ... (the engine's thread) -> decode (its own
    thread), piece by piece

Which songs a step takes: the ones with the least work left, so that a short song doesn't wait for a
long one; as many as a step is worth, by the measured cost curve (runtime/cost.py). A share of the
time belongs to the song that waits longest: it advances with at least `OLDEST_SHARE` of the machine
whatever else arrives, so a song's delay is at most its and its elders' work over that share. Songs
that would miss their deadline come first; those that can't make it any more end at once.

A song is the same song alone and among others: lengths are never padded and every song has its own
noise. What goes wrong with one (a failing read, a NaN, a fault in a step) is its own error.

Songs of another adapter (a LoRA that is merged into the weights) never share a step: `adapt` swaps
it in, and its measured time is part of what changing over costs.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from mudit_engine.config import ModelConfig
from mudit_engine.errors import (
    BusyError,
    DeadlineError,
    InputError,
    ModelError,
    MuditError,
    StoppedError,
)
from mudit_engine.runtime.cost import StepCost, predicted_bytes_of, sequence_rows
from mudit_engine.runtime.decode import LatentDecoder
from mudit_engine.runtime.decode_queue import DecodeQueue, Entry
from mudit_engine.runtime.denoiser import Runtime
from mudit_engine.runtime.saved_song import freeze, thaw
from mudit_engine.runtime.ticket import Event, Reading, Stage, StepRecord, Ticket

logger = logging.getLogger(__name__)

OLDEST_SHARE = 0.1  # of the time, for the song that waits longest
WORTH = 5.0  # a step takes more songs until it costs this many times what batching saves
EARLY = 1.5  # a song that has this many times its own work left until its deadline is urgent


class Batcher:
    """Songs of many callers on one runtime, batched at the step: they join and leave as they come.

    A song is the same song alone and among others.

    Args:
        runtime: what denoises.
        decoder: what makes audio of latents; None ends a song with its latents.
        config: of the model.
        cost: what a step costs, measured (runtime/cost.py); None guesses until steps were run.
        memory: predicted bytes of all songs in flight at most; None is no limit.
        most_songs: in one step.
        most_waiting: songs that wait, beyond which `submit` raises BusyError; None is no limit.
        readers: threads that read requests.
        decoders: threads that decode, so that a short song needs not wait for a piece of a long
            one; 0 decodes between steps, for a runtime whose decoder shares its device's stream.
        on_step: told of every step.
        save_every: seconds between savings of a song's progress; None saves none.
        on_save: gets that progress, to resume the song later.
        adapt: makes the adapter of this name act, None the model as it is; without it songs have
            none.
        start: False starts no threads: a simulation does their work itself.

    Examples:
        >>> from mudit_engine import SongPipeline, SongRequest
        >>> pipeline = SongPipeline.from_pretrained("tiny", dtype=torch.float32)
        >>> request = SongRequest(description="钢琴", seconds=1, seed=1, sampler={"steps": 2})
        >>> batcher = Batcher(pipeline.runtime, pipeline.decoder, pipeline.config)
        >>> ticket = batcher.submit(lambda: pipeline.reader.inputs(pipeline.reader.read(request)))
        >>> ticket.wait(60).shape
        torch.Size([11, 128])
        >>> batcher.close()
    """

    def __init__(
        self,
        runtime: Runtime[Any],
        decoder: LatentDecoder | None,
        config: ModelConfig,
        *,
        cost: StepCost | None = None,
        memory: int | None = None,
        most_songs: int = 64,
        most_waiting: int | None = None,
        readers: int = 1,
        decoders: int = 2,
        on_step: Callable[[StepRecord], None] | None = None,
        save_every: float | None = None,
        on_save: Callable[[Ticket, bytes], None] | None = None,
        adapt: Callable[[str | None], None] | None = None,
        start: bool = True,
    ) -> None:
        self.adapt = adapt
        self._adapter: str | None = None  # that the weights have now
        self._swap_seconds = 0.0
        self.runtime, self.decoder, self.config = runtime, decoder, config
        self.cost = cost or StepCost()
        self.memory, self.most_songs, self.most_waiting = memory, most_songs, most_waiting
        self.on_step, self.save_every, self.on_save = on_step, save_every, on_save
        self.element = int(getattr(getattr(runtime, "dtype", None), "itemsize", 4))
        self.steps_done = 0
        self._numbers = itertools.count(1)
        self._lock = threading.Condition()
        self._waiting: list[Ticket] = []  # read, not prepared
        self._active: list[Ticket] = []  # prepared, not done
        self._unread: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._reading = 0  # tickets handed in and not yet read
        self._credit = 0.0
        self._saved_at: dict[Ticket, float] = {}
        self._accepting, self._closing = True, False
        self.decodes = DecodeQueue(decoder, config, self._lock) if decoder is not None else None
        decoders = decoders if decoder is not None else 0
        self._beside = decoders > 0
        self._threads = [
            threading.Thread(target=self._read_songs, name=f"mudit-read-{n}", daemon=True)
            for n in range(readers)
        ]
        self._threads.append(threading.Thread(target=self._step_songs, name="mudit-engine"))
        self._threads += [
            threading.Thread(target=self._decode_songs, name=f"mudit-decode-{n}")
            for n in range(decoders)
        ]
        for thread in self._threads if start else ():  # a simulation turns the wheels itself
            thread.daemon = True
            thread.start()

    # What callers use

    def submit(
        self,
        read: Reading,
        *,
        on_event: Callable[[Event], None] | None = None,
        deadline: float | None = None,
        stream: bool = True,
        saved: bytes | None = None,
        adapter: str | None = None,
    ) -> Ticket:
        """Takes a song. `read` makes its inputs, in a thread of its own; on_event is called from
        the batcher's threads and must return at once.

        deadline: seconds from now. saved: progress of an earlier run of the same inputs. adapter:
        of the song, which `adapt` knows. Raises BusyError when too many wait or the batcher is
        closing.
        """
        assert adapter is None or self.adapt is not None
        until = None if deadline is None else time.monotonic() + deadline
        ticket = Ticket(next(self._numbers), read, on_event, until, stream, saved, adapter)
        ticket.on_cancel = self._notify
        with self._lock:
            if not self._accepting:
                raise BusyError("the engine is shutting down: try another one", retry_after=5.0)
            waiting = self._reading + len(self._waiting)
            if self.most_waiting is not None and waiting >= self.most_waiting:
                raise BusyError(
                    f"{waiting} songs wait already: try again later",
                    retry_after=max(1.0, self._backlog()),
                )
            self._reading += 1
            self._unread.put(ticket)
        ticket.tell(Event(Stage.READING))
        return ticket

    def backlog(self) -> float:
        """Predicted seconds of all the steps that are asked for."""
        with self._lock:
            return self._backlog()

    def ahead(self, ticket: Ticket) -> int:
        """How many songs are likely to be finished before this one."""
        with self._lock:
            own = self._left(ticket)
            return sum(
                self._left(other) < own
                for other in (*self._active, *self._waiting)
                if other is not ticket
            )

    def estimate(self, ticket: Ticket) -> float:
        """Predicted seconds until the song is decoded: its own work and that of songs before it."""
        if ticket.ended:
            return 0.0
        with self._lock:
            own = self._left(ticket)
            others = (*self._active, *self._waiting)
            before = sum(min(self._left(other), own) for other in others if other is not ticket)
            frames = ticket.song.frames if ticket.song else 0
            per_frame = self.decodes.seconds_per_frame if self.decodes is not None else 0.0
            return own + before + frames * per_frame

    def queued_frames(self) -> int:
        """Latent frames of all songs that wait or are denoised."""
        with self._lock:
            return sum(t.song.frames for t in (*self._waiting, *self._active) if t.song)

    def counts(self) -> dict[str, int]:
        """Songs by stage, frames and predicted bytes in flight."""
        with self._lock:
            return {
                "reading": self._reading,
                "waiting": len(self._waiting),
                "denoising": len(self._active),
                "decoding": len(self._decoding),
                "frames": sum(t.song.frames for t in self._active if t.song),
                "bytes": sum(t.bytes for t in self._active),
            }

    @property
    def alive(self) -> bool:
        """False when a thread of the engine has ended."""
        return not self._closing and all(thread.is_alive() for thread in self._threads)

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more songs and waits for those that are here. False when some are left."""
        with self._lock:
            self._accepting = False
            return self._lock.wait_for(
                lambda: not (self._reading or self._waiting or self._active or self._decoding),
                timeout,
            )

    def close(self, *, timeout: float = 30.0) -> None:
        """Cancels what is left, saving its progress, and ends the threads."""
        with self._lock:
            self._accepting, self._closing = False, True
            for _ in self._threads:
                self._unread.put(None)
            self._lock.notify_all()
        for thread in self._threads:
            thread.join(timeout)
        with self._lock:
            left = [*self._waiting, *self._active, *(t for t, _ in self._decoding)]
            with suppress(queue.Empty):
                while True:
                    unread = self._unread.get_nowait()
                    left += [unread] if unread is not None else []
            self._waiting, self._active = [], []
            self._decoding.clear()
        for ticket in left:
            self._save(ticket)
            self._end(ticket, StoppedError("the engine was shut down"))

    # Reading, in its own thread

    def _read_songs(self) -> None:
        while (ticket := self._unread.get()) is not None:
            self._read(ticket)

    def _read(self, ticket: Ticket) -> None:
        try:
            if ticket.cancelled:
                raise StoppedError("the song was cancelled before it was read")
            song = ticket.read()
            ticket.bytes = predicted_bytes_of(self.config.dit, song, element=self.element)
            if self.memory is not None and ticket.bytes > self.memory:
                raise InputError(
                    f"a song of {song.seconds:g} s takes {ticket.bytes >> 20} MiB, and this "
                    f"engine has {self.memory >> 20}: ask for a shorter one"
                )
        except Exception as error:
            self._end(ticket, error)
            with self._lock:
                self._reading -= 1
                self._lock.notify_all()
            return
        ticket.song, ticket.steps = song, len(song.table.times)
        ticket.tell(Event(Stage.WAITING, 0, ticket.steps))
        with self._lock:
            self._reading -= 1
            self._waiting.append(ticket)
            self._lock.notify_all()

    # Stepping, in the engine's thread

    def _step_songs(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(
                    lambda: self._closing or self._waiting or self._active or self._turn()
                )
                if self._closing:
                    return
                self._drop()
                joining = self._admitted()
            # those of the adapter that acts first
            for ticket in sorted(joining, key=lambda one: one.adapter != self._adapter):
                self._prepare(ticket)
            with self._lock:
                batch = self._pick()
            if batch:
                self._advance(batch)
            if self._turn() and self.decodes is not None:
                self.decodes.decode_piece()

    def _turn(self) -> bool:
        """Whether the engine's thread itself has something to decode."""
        return not self._beside and bool(self._decoding)

    @property
    def _decoding(self) -> list[Entry]:
        """Songs that are decoded or wait for it. With the lock held."""
        return self.decodes.songs if self.decodes is not None else []

    def _decode_songs(self) -> None:
        assert self.decodes is not None
        while True:
            with self._lock:
                self._lock.wait_for(
                    lambda: self._closing or (self.decodes is not None and self.decodes.free())
                )
                if self._closing:
                    return
            self.decodes.decode_piece()

    def _drop(self) -> None:
        """Takes out cancelled songs, and those that can't be finished in time. With the lock
        held.
        """
        now = time.monotonic()
        for ticket in [*self._waiting, *self._active]:
            reason: MuditError | None = None
            if ticket.cancelled:
                reason = StoppedError(f"the song was cancelled at step {ticket.step}")
            elif ticket.deadline is not None and now + self._left(ticket) > ticket.deadline:
                reason = DeadlineError(
                    f"the song could not be finished in time: at step {ticket.step} of "
                    f"{ticket.steps} it needed {self._left(ticket):.1f} s more"
                )
            if reason is not None:
                self._leave(ticket)
                self._end(ticket, reason)

    def _leave(self, ticket: Ticket) -> None:
        for songs in (self._waiting, self._active):
            if ticket in songs:
                songs.remove(ticket)
        if ticket.state is not None and hasattr(self.runtime, "release"):
            self.runtime.release(ticket.state)
        ticket.state = None
        self._saved_at.pop(ticket, None)
        self._lock.notify_all()

    def _admitted(self) -> list[Ticket]:
        """Waiting songs for which there is memory, the least work first; the eldest always when it
        alone is left out. With the lock held.
        """
        joining: list[Ticket] = []
        held = sum(ticket.bytes for ticket in self._active)
        if not self._waiting:
            return joining
        eldest = min(self._waiting, key=lambda ticket: ticket.number)
        overdue = time.monotonic() - eldest.submitted > 2 * self._left(eldest) / OLDEST_SHARE
        for ticket in sorted(self._waiting, key=self._left):
            # what is free is kept for a song that has waited too long
            if self.memory is not None and (
                held + ticket.bytes > self.memory or (overdue and ticket is not eldest)
            ):
                continue
            held += ticket.bytes
            joining.append(ticket)
        for ticket in joining:
            self._waiting.remove(ticket)
            self._active.append(ticket)
        return joining

    def _prepare(self, ticket: Ticket) -> None:
        try:
            assert ticket.song is not None
            self._use(ticket.adapter)
            state = self.runtime.prepare(ticket.song)
            if ticket.saved is not None:
                thaw(state, ticket.saved)
                ticket.step = state.step
            ticket.state = state
            self._saved_at[ticket] = time.monotonic()
        except Exception as error:
            with self._lock:
                self._leave(ticket)
            self._end(ticket, error)
            return
        if state.done:  # progress of a song that was stopped while it was decoded
            with self._lock:
                self._finish(ticket)

    def _pick(self) -> list[Ticket]:
        """Songs of the next step. With the lock held."""
        if not self._active:
            return []
        now = time.monotonic()

        def order(ticket: Ticket) -> tuple[int, float]:
            left = self._left(ticket)
            if ticket.deadline is not None and ticket.deadline - now < EARLY * left + 1e-3:
                return 0, ticket.deadline
            # there and back again
            return 1, left + 2 * self._swap(ticket)

        ranked = sorted(self._active, key=order)
        eldest = min(self._active, key=lambda ticket: ticket.number)
        if self._credit >= self._next(eldest) + 2 * self._swap(eldest):
            ranked.remove(eldest)
            ranked.insert(0, eldest)
        budget = WORTH * self.cost.base
        batch: list[Ticket] = []
        total = 0.0
        for ticket in ranked:
            cost = self._next(ticket)
            if batch and ticket.adapter != batch[0].adapter:
                continue  # other weights
            if not batch or (total + cost <= budget and len(batch) < self.most_songs):
                batch.append(ticket)
                total += cost
        if eldest in batch:
            self._credit = 0.0
        else:
            spent = self.cost.base + total + self._swap(batch[0])
            self._credit += OLDEST_SHARE / (1 - OLDEST_SHARE) * spent
        return batch

    def _swap(self, ticket: Ticket) -> float:
        """Seconds until the weights have the song's adapter."""
        return self._swap_seconds if ticket.adapter != self._adapter else 0.0

    def _use(self, adapter: str | None) -> None:
        """Gives the weights this adapter. In the engine's thread."""
        if adapter == self._adapter:
            return
        assert self.adapt is not None
        started = time.perf_counter()
        self.adapt(adapter)
        self._adapter = adapter
        spent = time.perf_counter() - started
        known = self._swap_seconds
        self._swap_seconds = 0.8 * known + 0.2 * spent if known else spent

    def _advance(self, batch: list[Ticket]) -> None:
        states = [ticket.state for ticket in batch]
        rows = [r for ticket in batch for r in self._sequences(ticket)]
        for ticket in batch:
            if ticket.started is None:
                ticket.started, ticket.stage = time.monotonic(), Stage.DENOISING
        generators = [state.generator.get_state() for state in states]
        started = time.perf_counter()
        try:
            self._use(batch[0].adapter)
            started = time.perf_counter()
            self.runtime.step(states)
        except Exception as error:
            self._advance_alone(batch, generators, error)
        else:
            seconds = time.perf_counter() - started
            self.cost.observe(rows, seconds)
            self._recorded(batch, len(rows), seconds)
        self.steps_done += 1
        for ticket in batch:
            if ticket.state is None:
                continue
            ticket.step = ticket.state.step
            ticket.tell(Event(Stage.DENOISING, ticket.step, ticket.steps))
            if ticket.state.done:
                with self._lock:
                    self._finish(ticket)
            elif self.save_every is not None:
                self._save(ticket, since=self.save_every)

    def _advance_alone(
        self, batch: list[Ticket], generators: list[Tensor], error: Exception
    ) -> None:
        """A step failed: every song takes it by itself, and those that fail again end. What a
        failed step changed is put back first.
        """
        logger.warning("a step of %d songs failed (%s): taking it song by song", len(batch), error)
        for ticket, generator in zip(batch, generators, strict=True):
            state = ticket.state
            if state.step != ticket.step:  # this one was done before the fault
                continue
            try:
                if len(batch) == 1:
                    raise error
                state.generator.set_state(generator)
                self._use(ticket.adapter)
                self.runtime.step([state])
            except Exception as own:
                with self._lock:
                    self._leave(ticket)
                self._end(ticket, own)

    def _recorded(self, batch: list[Ticket], sequences: int, seconds: float) -> None:
        if self.on_step is not None:
            frames = sum(ticket.song.frames for ticket in batch if ticket.song)
            self.on_step(StepRecord(len(batch), frames, sequences, seconds))

    def _finish(self, ticket: Ticket) -> None:
        """From the steps to the decoder. With the lock held."""
        latents = ticket.state.x_TC.float().cpu()
        self._leave(ticket)
        if not torch.isfinite(latents).all():
            message = (
                "the song became NaN or infinite while sampling: check the weights, lower the "
                "guidance or take more steps"
            )
            self._end(ticket, ModelError(message))
            return
        ticket.latents = latents
        if self.decodes is None:
            self._end(ticket)
        else:
            self.decodes.add(ticket, latents)

    # What songs cost

    def _sequences(self, ticket: Ticket) -> list[int]:
        assert ticket.song is not None
        return sequence_rows(ticket.song, ticket.step)

    def _next(self, ticket: Ticket) -> float:
        return sum(map(self.cost.sequence, self._sequences(ticket)))

    def _left(self, ticket: Ticket) -> float:
        """Predicted seconds of the song's own steps that are left, each alone."""
        return self.cost.left(ticket.song, ticket.step) if ticket.song is not None else 0.0

    def _backlog(self) -> float:
        return sum(self._left(ticket) for ticket in (*self._active, *self._waiting))

    # Ends

    def _save(self, ticket: Ticket, *, since: float = 0.0) -> None:
        if self.on_save is None or ticket.state is None or not ticket.step:
            return
        now = time.monotonic()
        if now - self._saved_at.get(ticket, now) < since:
            return
        self._saved_at[ticket] = now
        if (data := freeze(ticket.state)) is not None:
            try:
                self.on_save(ticket, data)
            except Exception:
                logger.exception("the progress of song %d could not be saved", ticket.number)

    def _end(self, ticket: Ticket, error: BaseException | None = None) -> None:
        if self.decodes is not None:
            self.decodes.forget(ticket)
        ticket.end(error)

    def _notify(self) -> None:
        with self._lock:
            self._lock.notify_all()
