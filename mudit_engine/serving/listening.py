"""News of a job for whoever listens: progress, pieces of audio, the end.

    listener = service.subscribe(job.id)             # of a job that is open
    async for news in listener: ...
    listener.close()

Listeners live in the event loop; what they have not heard yet waits in a queue of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mudit_engine.reading import Understood
from mudit_engine.runtime.ticket import ENDED, Stage, Ticket
from mudit_engine.serving import job_store
from mudit_engine.serving.job_store import Job
from mudit_engine.serving.song_files import SongWriter

PATIENCE = 512  # pieces of news that a listener may be behind before it is let go


@dataclass(frozen=True)
class News:
    """What listeners hear: progress, a piece of PCM, or the end (status is then final)."""

    status: str
    stage: str
    step: int
    steps: int
    audio: bytes | None = None
    error: str | None = None

    @property
    def final(self) -> bool:
        """Whether nothing comes after it: the job ended, or the service is shutting down."""
        return self.status not in job_store.OPEN or self.stage in ENDED


@dataclass
class Run:
    """An open job in this process."""

    job: Job
    understood: Understood
    folder: Path
    ticket: Ticket | None = None
    writer: SongWriter | None = None
    stage: str = Stage.READING.value
    step: int = 0
    first_audio: float | None = None
    denoised: float | None = None
    decoded: float | None = None
    seconds_written: float = 0.0
    mastering: dict[str, float] | None = None
    cancelled: bool = False
    listeners: list[asyncio.Queue[News]] = field(default_factory=list)
    # what a listener that comes late has missed
    pieces: list[bytes] = field(default_factory=list)
    ended: News | None = None


class Listener:
    """News of one job, for one who listens: `async for news in listener`, then `close`."""

    def __init__(self, run: Run | None = None) -> None:
        self.queue: asyncio.Queue[News] = asyncio.Queue()
        self._run = run

    def attach(self, run: Run) -> None:
        """Hears a job that has not begun yet."""
        self._run = run
        run.listeners.append(self.queue)

    async def __aiter__(self) -> AsyncIterator[News]:
        while True:
            news = await self.queue.get()
            yield news
            if news.final:
                return

    def close(self) -> None:
        """Nothing more is kept for this listener."""
        if self._run is not None:
            with suppress(ValueError):
                self._run.listeners.remove(self.queue)
