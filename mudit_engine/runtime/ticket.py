"""A song on its way through an engine: where it is, what is heard of it, and how it ends.

    ticket = batcher.submit(lambda: reader.inputs(request), on_event=print)
    for audio_cS in ticket.audio(): send(audio_cS)

Both engines write it: the batcher of this process, and the dispatcher whose steps run elsewhere.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor

from mudit_engine.errors import MuditError, StoppedError
from mudit_engine.runtime.denoiser import SongInputs

logger = logging.getLogger(__name__)

Reading = Callable[[], SongInputs]


class Stage(StrEnum):
    """Where a song is."""

    READING = "reading"
    WAITING = "waiting"
    DENOISING = "denoising"
    DECODING = "decoding"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (Stage.COMPLETED, Stage.FAILED, Stage.CANCELLED)


@dataclass(frozen=True)
class Event:
    """Something happened to a song: another stage, a step done, or a piece of audio."""

    stage: Stage
    step: int = 0
    steps: int = 0
    audio: Tensor | None = None  # fp32 [channels, samples]; peaks may pass full scale
    error: BaseException | None = None  # of a song that failed or was cancelled


@dataclass(frozen=True)
class StepRecord:
    """One step of the engine: how many songs, target frames and sequences, and how long it took."""

    songs: int
    frames: int
    sequences: int
    seconds: float


@dataclass(eq=False)
class Ticket:
    """A song that was handed in. Fields and methods below `audio` are for the engine that makes it;
    read the fields any time.
    """

    number: int
    read: Reading = field(repr=False)
    on_event: Callable[[Event], None] | None = field(repr=False)
    deadline: float | None  # of time.monotonic()
    stream: bool  # decode a short piece first
    saved: bytes | None = field(repr=False)
    adapter: str | None = None
    submitted: float = field(default_factory=time.monotonic)
    stage: Stage = Stage.READING
    error: BaseException | None = None
    song: SongInputs | None = field(default=None, repr=False)
    latents: Tensor | None = field(default=None, repr=False)
    started: float | None = None  # of the first step
    finished: float | None = None
    bytes: int = 0
    step: int = 0
    steps: int = 0
    state: Any = field(default=None, repr=False)  # of the runtime
    on_cancel: Callable[[], None] = field(default=lambda: None, repr=False)
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)
    _pieces: queue.SimpleQueue[Tensor | None] = field(default_factory=queue.SimpleQueue, repr=False)

    @property
    def ended(self) -> bool:
        return self.stage in ENDED

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for its end."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stops the song before its next step or piece, wherever it is. Does nothing to an ended
        one.
        """
        self._cancelled.set()
        self.on_cancel()

    def wait(self, timeout: float | None = None) -> Tensor:
        """Latents fp32 [T, C] of the song once it is decoded. Raises its error, or TimeoutError."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"song {self.number} is still {self.stage.value}")
        if self.error is not None:
            raise self.error
        assert self.latents is not None
        return self.latents

    def audio(self) -> Iterator[Tensor]:
        """Yields pieces of audio [channels, samples] as they are decoded, once. Raises the song's
        error.
        """
        while (piece := self._pieces.get()) is not None:
            yield piece
        if self.error is not None:
            raise self.error

    def tell(self, event: Event) -> None:
        """Passes an event on. What a listener raises is logged."""
        self.stage = event.stage
        if self.on_event is not None:
            try:
                self.on_event(event)
            except Exception:
                logger.exception("the listener of song %d failed", self.number)

    def give(self, piece_cS: Tensor) -> None:
        """A decoded piece of audio."""
        self._pieces.put(piece_cS)
        self.tell(Event(Stage.DECODING, self.steps, self.steps, piece_cS))

    def end(self, error: BaseException | None = None) -> None:
        """The song is complete, cancelled (a StoppedError) or failed."""
        stage = Stage.COMPLETED
        if error is not None:
            stage = Stage.CANCELLED if isinstance(error, StoppedError) else Stage.FAILED
            if not isinstance(error, MuditError):
                logger.error("song %d failed", self.number, exc_info=error)
        self.error, self.finished = error, time.monotonic()
        self.tell(Event(stage, self.step, self.steps, error=error))
        self._pieces.put(None)
        self._ended.set()
