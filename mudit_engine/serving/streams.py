"""A song in the answer: pieces as they are decoded, or the whole song once it is finished; whoever
goes away cancels it.

    stream = pieces(service, job, listener)          # 16-bit PCM, piece by piece
    await whole(request, service, job)               # folder/song.wav is there then
    headers(service, job, understood, streamed=True)

What is streamed has the level that it was decoded to, since nobody knows a song's loudness before
its end; the file has the loudness that was asked for. `X-Song-Loudness` says which of them it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from mudit_engine.errors import DeadlineError, MuditError, StoppedError
from mudit_engine.reading import Understood
from mudit_engine.serving import job_store
from mudit_engine.serving.answers import Failure
from mudit_engine.serving.job_store import Job
from mudit_engine.serving.listening import Listener
from mudit_engine.serving.service import SongService

DECODED = "decoded"  # in place of LUFS: the level that the song was decoded to


def headers(
    service: SongService, job: Job, understood: Understood, *, streamed: bool
) -> dict[str, str]:
    """What an answer with audio says of its song; of one that is not streamed once it is whole."""
    now = None if streamed else service.store.get(job.id)
    level = (now.result.get("mastering") if now is not None else None) or {}
    return {
        "X-Song-Id": job.id,
        "X-Song-Seed": str(understood.seed),
        "X-Song-Seconds": f"{understood.seconds:g}",
        "X-Song-Loudness": f"{level['loudness']:.1f}" if level else DECODED,
        "Cache-Control": "no-store",
    }


async def pieces(
    service: SongService, job: Job, listener: Listener | None
) -> AsyncGenerator[bytes]:
    """PCM as it is decoded; nothing of a song that has ended already (None). The last sample comes
    when the song's file is there: who has heard the whole of it may ask for it. Whoever goes away
    before cancels the song. Raises the song's error.
    """
    ended, held, width = False, b"", 2 * service.engine.config.vae.channels
    try:
        if listener is not None:
            async for news in listener:
                if news.audio is not None:
                    data = held + news.audio
                    held = data[-width:]
                    if len(data) > width:
                        yield data[:-width]
                elif news.final:
                    ended = True
                    if news.status != job_store.COMPLETED:
                        raise _error_of(news.status, news.error)
                    yield held
            return
        ended = True
        now = service.store.get(job.id)
        if now is None or now.status != job_store.COMPLETED:
            raise _error_of(now.status if now else "failed", now.error if now else None)
    finally:
        if listener is not None:
            listener.close()
        if not ended:
            service.cancel(job.id)


async def whole(request: Any, service: SongService, job: Job) -> None:
    """Waits until the song is finished; a client that goes away cancels it."""
    stream = pieces(service, job, service.subscribe(job.id))
    gone = asyncio.create_task(disconnected(request))
    waiting = asyncio.create_task(exhaust(stream))
    try:
        await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            service.cancel(job.id)
            raise Failure(499, "client_gone", "the client went away")
        waiting.result()
    finally:
        for task in (gone, waiting):
            task.cancel()
        await asyncio.gather(gone, waiting, return_exceptions=True)
        await stream.aclose()


async def first_of(
    stream: AsyncGenerator[bytes], request: Any, service: SongService, job: Job
) -> bytes:
    """The first piece of a stream, so that an error that comes before it is an answer of its own.
    A client that goes away meanwhile cancels the song.
    """
    gone = asyncio.create_task(disconnected(request))
    first = asyncio.create_task(_next(stream))
    try:
        await asyncio.wait({gone, first}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            raise Failure(499, "client_gone", "the client went away")
        return first.result() or b""
    except BaseException:
        # the stream cannot be closed while somebody waits for its next piece
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await stream.aclose()
        service.cancel(job.id)
        raise
    finally:
        gone.cancel()


async def exhaust(stream: AsyncIterator[bytes]) -> None:
    """Takes what comes, and keeps none of it."""
    async for _ in stream:
        pass


async def disconnected(request: Any) -> None:
    """Returns when the client has gone away."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.1)


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    return await anext(stream, None)


def _error_of(status: str, message: str | None) -> MuditError:
    told = message or f"the song is {status}"
    if status == job_store.CANCELLED:
        return StoppedError(told)
    return DeadlineError(told) if "in time" in told else MuditError(told)
