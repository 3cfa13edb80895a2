"""An engine whose steps run elsewhere: songs are handed to replicas, and handed on when one dies.

    engine = RemoteEngine(config, about, Dispatcher(denoise, decode, config, lost=(ActorDied,)))
    ticket = engine.submit(engine.read(request), on_event=print)

`denoise` and `decode` call a replica of serving/replicas.py, whichever has room; they raise one of
`lost` when it died on the way. A song that loses its denoiser goes to another one with its last
saved progress, one that loses its decoder goes on where its audio stopped: what comes out is the
same to the bit. A song that was there when three replicas died is given up: it may be the reason.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mudit_engine.config import ModelConfig
from mudit_engine.errors import BusyError, DeadlineError, ModelError, StoppedError
from mudit_engine.models.lora import LoraSpec
from mudit_engine.pipeline import song_info
from mudit_engine.reading import TextReader, Understood
from mudit_engine.request import SongRequest
from mudit_engine.runtime.limits import refuse_edit
from mudit_engine.runtime.ticket import Event, Stage, StepRecord, Ticket
from mudit_engine.serving.edited import source_of
from mudit_engine.serving.engine import check_lora, loras_row
from mudit_engine.serving.replicas import Said, error_of
from mudit_engine.serving.song_files import unpacked

logger = logging.getLogger(__name__)

MOST_LOSSES = 3  # replicas that may die under a song
SEEN = 60.0  # seconds that a replica counts as there since it last said something
PAUSE = 0.5  # seconds before a song whose replica died is handed to the next

Denoise = Callable[..., AsyncIterator[Said]]
Decode = Callable[..., AsyncIterator[bytes]]


@dataclass(eq=False)
class _Song:
    """An open song."""

    ticket: Ticket
    understood: Understood
    saved: bytes | None
    lora: str | None = None
    task: asyncio.Task[None] | None = None
    losses: int = 0
    heard: int = 0  # latent frames whose audio is out
    latents: np.ndarray | None = field(default=None, repr=False)

    @property
    def work(self) -> int:
        """Frames times steps that are left."""
        if self.latents is not None:
            return 0
        left = len(self.understood.table.times) - self.ticket.step
        return max(left, 0) * self.understood.frames


class Dispatcher:
    """Hands songs to replicas. It looks like a Batcher to the service.

    Args:
        denoise: calls a denoiser with SongDenoiser.denoise's arguments.
        decode: calls a decoder with SongDecoder.decode's arguments.
        config: of the model.
        lost: what they raise when their replica died or cannot be reached.
    """

    def __init__(
        self,
        denoise: Denoise,
        decode: Decode,
        config: ModelConfig,
        *,
        lost: tuple[type[BaseException], ...],
    ) -> None:
        self.denoise, self.decode, self.config, self.lost = denoise, decode, config, lost
        self.on_step: Callable[[StepRecord], None] | None = None
        self.on_save: Callable[[Ticket, bytes], None] | None = None
        self.save_every: float | None = None  # is the replicas' own
        self._numbers = itertools.count(1)
        self._lock = threading.Condition()
        self._open: dict[Ticket, _Song] = {}
        self._accepting = True
        self._seen: dict[str, float] = {}
        self._seconds_per_frame = 0.0  # of a step
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="mudit-dispatch", daemon=True
        )
        self._thread.start()

    def submit(
        self,
        understood: Understood,
        *,
        on_event: Callable[[Event], None] | None = None,
        deadline: float | None = None,
        saved: bytes | None = None,
        lora: str | None = None,
    ) -> Ticket:
        """Takes a song. Raises BusyError when the dispatcher is closing."""
        until = None if deadline is None else time.monotonic() + deadline
        ticket = Ticket(next(self._numbers), _unread, on_event, until, True, saved)
        ticket.steps = len(understood.table.times)
        song = _Song(ticket, understood, saved, lora)
        with self._lock:
            if not self._accepting:
                raise BusyError("the engine is shutting down: try another one", retry_after=5.0)
            self._open[ticket] = song
        ticket.on_cancel = lambda: self._stop(song)
        ticket.tell(Event(Stage.WAITING, 0, ticket.steps))
        # not in the caller's context: Ray Serve would tie the song to the HTTP request it came with
        self._loop.call_soon_threadsafe(self._begin, song, context=contextvars.Context())
        return ticket

    # One song's way, in the dispatcher's loop

    def _begin(self, song: _Song) -> None:
        song.task = self._loop.create_task(self._run(song))
        # a task that is cancelled before its first step runs nothing of it
        song.task.add_done_callback(lambda task: self._ended(song))

    def _ended(self, song: _Song) -> None:
        if not song.ticket.ended:
            self._end(song, StoppedError("the song was cancelled before it was read"))

    def _stop(self, song: _Song) -> None:
        def cancel() -> None:
            if song.task is not None:
                song.task.cancel()

        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(cancel)

    async def _run(self, song: _Song) -> None:
        ticket = song.ticket
        error: Exception | None = None
        try:
            await self._again(song, self._denoised)
            assert song.latents is not None
            ticket.latents = torch.from_numpy(np.array(song.latents))
            ticket.tell(Event(Stage.DECODING, ticket.steps, ticket.steps))
            await self._again(song, self._decoded)
        except asyncio.CancelledError:
            if ticket.cancelled:
                error = StoppedError(f"the song was cancelled at step {ticket.step}")
            else:
                error = StoppedError("the engine was shut down")
        except Exception as caught:
            error = caught
        self._end(song, error)

    async def _again(self, song: _Song, part: Callable[[_Song], Any]) -> None:
        """Does a part of the song, with another replica when one dies."""
        while True:
            try:
                return await part(song)
            except self.lost as error:
                song.losses += 1
                logger.warning("song %d lost its replica: %s", song.ticket.number, error)
                if song.losses >= MOST_LOSSES:
                    raise ModelError(
                        f"{song.losses} replicas died while they made this song: their logs say why"
                    ) from None
            await asyncio.sleep(PAUSE)

    async def _denoised(self, song: _Song) -> None:
        ticket = song.ticket
        deadline = None
        if ticket.deadline is not None:
            deadline = ticket.deadline - time.monotonic()
            if deadline <= 0:
                raise DeadlineError("the song could not be finished in time: no replica had room")
        request, reference = song.understood.request, None
        if request.reference is not None:
            reference = await asyncio.to_thread(Path(request.reference).read_bytes)
        source = await asyncio.to_thread(source_of, song.understood.edit)
        # paths mean nothing on another machine
        plain = replace(song.understood, request=replace(request, reference=None))
        stream = self.denoise(
            plain,
            reference=reference,
            source=source,
            deadline=deadline,
            saved=song.saved,
            lora=song.lora,
        )
        async with aclosing(stream):  # type: ignore[type-var]
            async for said in stream:
                self._heard_of(said)
                if said.error is not None:
                    raise error_of(said.error)
                ticket.step = said.step
                if said.saved is not None:
                    song.saved = said.saved
                    if self.on_save is not None:
                        self.on_save(ticket, said.saved)
                elif said.latents is not None:
                    song.latents = said.latents
                    return
                elif said.stage == Stage.DENOISING:
                    if ticket.started is None:
                        ticket.started = time.monotonic()
                    ticket.tell(Event(Stage.DENOISING, said.step, ticket.steps))
        raise RuntimeError("a denoiser said no end of its song")

    async def _decoded(self, song: _Song) -> None:
        ticket, c = song.ticket, self.config.vae
        stream = self.decode(song.latents, song.understood.seconds, start=song.heard)
        async with aclosing(stream):  # type: ignore[type-var]
            async for data in stream:
                piece_cS = unpacked(data, c.channels)
                song.heard += -(-piece_cS.shape[1] // c.hop)
                if piece_cS.shape[1]:
                    ticket.give(piece_cS)

    def _heard_of(self, said: Said) -> None:
        self._seen[said.replica] = time.monotonic()
        for record in said.records:
            spent = record.seconds / max(record.frames, 1)
            known = self._seconds_per_frame
            self._seconds_per_frame = 0.9 * known + 0.1 * spent if known else spent
            if self.on_step is not None:
                self.on_step(record)

    def _end(self, song: _Song, error: BaseException | None) -> None:
        song.ticket.end(error)
        with self._lock:
            self._open.pop(song.ticket, None)
            self._lock.notify_all()

    # What the service asks

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def replicas(self) -> int:
        """Denoisers that said something lately; 1 when none did."""
        now = time.monotonic()
        return max(1, sum(now - seen < SEEN for seen in list(self._seen.values())))

    def backlog(self) -> float:
        """Predicted seconds of all the steps that are asked for."""
        with self._lock:
            return self._seconds(sum(song.work for song in self._open.values()))

    def ahead(self, ticket: Ticket) -> int:
        """How many songs are likely to be finished before this one."""
        with self._lock:
            if (own := self._open.get(ticket)) is None:
                return 0
            return sum(song.work < own.work for song in self._open.values() if song is not own)

    def estimate(self, ticket: Ticket) -> float:
        """Predicted seconds until the song's steps are done, others' shorter work before it."""
        with self._lock:
            if (own := self._open.get(ticket)) is None:
                return 0.0
            others = sum(
                min(song.work, own.work) for song in self._open.values() if song is not own
            )
            # its own steps run on one replica, whatever there are
            return self._seconds(others) + own.work * self._seconds_per_frame

    def _seconds(self, work: float) -> float:
        return work * self._seconds_per_frame / self.replicas()

    def counts(self) -> dict[str, int]:
        """Songs by stage, and frames that are denoised. Bytes are the replicas' own affair."""
        with self._lock:
            stages = [song.ticket.stage for song in self._open.values()]
            frames = sum(
                song.understood.frames
                for song in self._open.values()
                if song.ticket.stage is Stage.DENOISING
            )
        return {
            "reading": 0,
            "waiting": stages.count(Stage.WAITING),
            "denoising": stages.count(Stage.DENOISING),
            "decoding": stages.count(Stage.DECODING),
            "frames": frames,
            "bytes": 0,
        }

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more songs and waits for those that are here. False when some are left."""
        with self._lock:
            self._accepting = False
            return self._lock.wait_for(lambda: not self._open, timeout)

    def close(self, *, timeout: float = 10.0) -> None:
        """Cancels what is left and ends the thread."""
        with self._lock:
            self._accepting = False
            left = list(self._open.values())
        for song in left:
            self._stop(song)
        self.drain(timeout)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout)


def _unread() -> Any:
    raise AssertionError("a dispatched song is read by its replica")


class RemoteEngine:
    """An engine for the service, whose networks are on other machines: here requests are read.

    Args:
        config: the model's, with the sampler of its few-step student where that makes the songs.
        about: what SongDenoiser.about says.
        dispatcher: hands the songs out.
        loras: that every denoiser has, by name.
    """

    def __init__(
        self,
        config: ModelConfig,
        about: dict[str, Any],
        dispatcher: Dispatcher,
        *,
        loras: Mapping[str, LoraSpec] | None = None,
    ) -> None:
        self.config, self.about, self.batcher = config, about, dispatcher
        self.loras = loras or {}
        check = None if about["runtime"] == "torch" else refuse_edit
        self.reader = TextReader(config, check=check, fast=self.fast)

    @property
    def runtime_name(self) -> str:
        return str(self.about["runtime"])

    @property
    def fast(self) -> bool:
        """Whether the model's few-step student makes the songs."""
        return self.about.get("fast") is not None

    def read(self, request: SongRequest) -> Understood:
        """The request as the model understands it. Raises InputError."""
        return self.reader.read(request)

    def submit(
        self,
        understood: Understood,
        *,
        on_event: Callable[[Event], None] | None = None,
        deadline: float | None = None,
        saved: bytes | None = None,
        lora: str | None = None,
    ) -> Ticket:
        """See Dispatcher.submit. Raises InputError for an unknown LoRA."""
        check_lora(lora, self.loras)
        return self.batcher.submit(
            understood, on_event=on_event, deadline=deadline, saved=saved, lora=lora
        )

    def info(
        self, understood: Understood, timings: dict[str, float], *, lora: str | None = None
    ) -> dict[str, Any]:
        """The song's sidecar; machine and runtime are those of the denoiser that spoke first."""
        made = song_info(self.config, understood, self.about, timings, 1)
        return {**made, "loras": loras_row(lora, self.loras)}

    def drain(self, timeout: float | None = None) -> bool:
        """See Dispatcher.drain."""
        return self.batcher.drain(timeout)

    def close(self) -> None:
        """See Dispatcher.close."""
        self.batcher.close()
