"""The HTTP service: FastAPI routes around a SongService. `mudit serve` runs it with uvicorn.

    app = create_app(lambda: Engine.open("tiny"), folder=Path("songs"), options=ServiceOptions())

    POST /v1/audio/generate   a song in the answer, streamed as it is decoded
    POST /v1/audio/speech     the same in OpenAI's words
    POST /v1/songs            a job; GET, DELETE, /events (SSE), /content (ranges), /preview,
                              /sidecar
    GET  /v1/models /health /ready /metrics /docs /openapi.json, and the page at /

Every error is {"error": {"type", "message"}}: 400 what was asked for is wrong, 401 no such key, 404
no such song, 409 not ready yet, 413 too large, 415 of another kind, 429 no room (with Retry-After),
503 shutting down, 504 a deadline passed. The body of a request is never a path on the server.
"""

# annotations are evaluated where they stand: FastAPI is imported inside create_app

import asyncio
import base64
import contextlib
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from pydantic import BaseModel

from mudit_engine import __version__
from mudit_engine.availability import require
from mudit_engine.errors import InputError, MuditError
from mudit_engine.reading import Understood
from mudit_engine.serving import job_store
from mudit_engine.serving.access import Keys
from mudit_engine.serving.answers import Failure, add_answers, after
from mudit_engine.serving.bodies import read_body
from mudit_engine.serving.body_limit import BodyLimit
from mudit_engine.serving.engine import SongEngine
from mudit_engine.serving.fields import (
    GenerateBody,
    SongBody,
    SpeechBody,
)
from mudit_engine.serving.job_store import Job
from mudit_engine.serving.listening import Listener
from mudit_engine.serving.monitoring import Metrics, open_tracer
from mudit_engine.serving.openapi import complete
from mudit_engine.serving.plain_http import PlainRanges, answer_head
from mudit_engine.serving.service import Retention, SongService
from mudit_engine.serving.song_files import MEDIA_TYPES, SONG, converted, part_of, wav_header
from mudit_engine.serving.streams import exhaust, first_of, headers, pieces, whole
from mudit_engine.serving.uploads import UploadLimits

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
KEEP_ALIVE = 15.0  # seconds of silence after which a comment is sent to a listener


@dataclass(frozen=True)
class ServiceOptions:
    """Limits and places of a service.

    Args:
        most_seconds: the longest song; None is the model's own.
        most_open: songs that are open at once; more are answered 429.
        body: bytes of a request without a file.
        upload: limits of a reference.
        retention: how long finished songs stay.
        save_every: seconds between savings of a song's progress.
        sweep_every: seconds between looks at what is too old.
    """

    most_seconds: float | None = None
    most_open: int = 100
    body: int = 1 << 20
    upload: UploadLimits = field(default_factory=UploadLimits)
    retention: Retention = field(default_factory=Retention)
    save_every: float = 10.0
    sweep_every: float = 300.0


class Made(NamedTuple):
    """A song that was taken; a listener where its audio is streamed."""

    service: SongService
    job: Job
    understood: Understood
    listener: Listener | None


def create_app(
    open_engine: Callable[[], SongEngine],
    *,
    folder: Path,
    options: ServiceOptions | None = None,
    keys: Keys | None = None,
) -> Any:
    """The ASGI application of the service. Nothing is answered before its engine is open.

    Args:
        open_engine: opens the model when the application starts.
        folder: where jobs and songs are kept.
        options: limits, uploads, and how long songs stay.
        keys: who may ask; None is everybody.

    Returns:
        A FastAPI application.

    Raises:
        MissingError: without the extra `serve`.

    Examples:
        >>> app = create_app(lambda: Engine.open("tiny"), folder=Path("songs"))
        >>> "/v1/songs" in {getattr(route, "path", "") for route in app.routes}
        True
    """
    require("fastapi", "mudit serve")
    require("python_multipart", "mudit serve")
    from fastapi import FastAPI, Request
    from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
    from starlette.concurrency import run_in_threadpool

    options, keys = options or ServiceOptions(), keys or Keys()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            engine = await run_in_threadpool(open_engine)
        except MuditError as error:
            app.state.refused = error  # serving/run.py says it in place of a traceback
            raise
        engine.batcher.save_every = options.save_every
        service = SongService(
            engine,
            folder,
            loop=asyncio.get_running_loop(),
            metrics=Metrics(engine.batcher.counts),
            keys=keys,
            retention=options.retention,
            most_open=options.most_open,
            tracer=open_tracer(),
        )
        found = await run_in_threadpool(service.recover)
        if any(found.values()):
            logger.warning("after a restart: %s", found)
        app.state.service = service
        sweeping = asyncio.create_task(_sweep(service, options.sweep_every))
        try:
            yield
        finally:
            sweeping.cancel()
            app.state.service = None
            await run_in_threadpool(service.close)

    app = FastAPI(
        title="mudit",
        version=__version__,
        description="Descriptions and lyrics become whole songs.",
        lifespan=lifespan,
    )
    app.state.service, app.state.refused = None, None
    app.add_middleware(PlainRanges)
    app.add_middleware(BodyLimit, plain=options.body, upload=options.upload.bytes + options.body)

    def service_of(request: Request) -> SongService:
        service = request.app.state.service
        if service is None:
            raise Failure(503, "not_ready", "the model is being loaded", headers=after(2))
        return cast(SongService, service)

    def owner_of(request: Request) -> str:
        owner = keys.owner(request.headers.get("authorization"))
        if owner is None:
            challenge = {"WWW-Authenticate": "Bearer"}
            message = "no such key: send 'Authorization: Bearer KEY'"
            raise Failure(401, "unauthorized", message, headers=challenge)
        return owner

    def job_of(request: Request, id: str) -> tuple[SongService, Job]:
        service, owner = service_of(request), owner_of(request)
        job = service.store.get(id)
        if job is None or job.owner != owner:
            raise Failure(404, "not_found", f"no song '{id[:80]}'")
        return service, job

    add_answers(app)

    # What requests bring

    async def body_of(
        request: Request, kind: type[BaseModel], scratch: Path
    ) -> tuple[Any, Path | None]:
        return await read_body(request, kind, scratch, most=options.body, upload=options.upload)

    async def start(
        request: Request,
        body: SongBody,
        reference: Path | None,
        owner: str,
        *,
        kind: str,
        streams: bool = False,
    ) -> Made:
        service = service_of(request)
        config = service.engine.config
        if body.model is not None and body.model not in (config.name, "mudit"):
            raise Failure(
                404, "not_found", f"model '{body.model}' is not served here: {config.name} is"
            )
        most = min(options.most_seconds or config.max_seconds, config.max_seconds)
        if body.seconds is not None and body.seconds > most:
            raise InputError(f"seconds={body.seconds:g} is longer than {most:g}: ask for less")

        def create() -> tuple[Job, Understood]:
            edit = service.song_to_edit(body.edit, owner=owner) if body.edit else None
            understood = service.engine.read(body.request(reference=reference, edit=edit))
            if understood.seconds > most:
                raise InputError(
                    f"the song would be {understood.seconds:.0f} s long, and songs of at most "
                    f"{most:g} are made here: shorten the lyrics, or give 'seconds'"
                )
            kept = {"response_format": kind, "loudness": body.loudness}
            if body.deadline is not None:
                kept["deadline"] = body.deadline
            job = service.create(
                understood,
                owner=owner,
                body=kept,
                reference=reference,
                lora=body.lora,
                edit=body.edit,
                listener=listener,
            )
            return job, understood

        # a stream hears its song from the beginning, however short the song is
        listener = Listener() if streams and kind == "wav" and not body.whole else None
        job, understood = await run_in_threadpool(create)
        return Made(service, job, understood, listener)

    # Songs in the answer

    async def song_response(request: Request, made: Made, kind: str) -> Response:
        service, job, understood, listener = made
        if listener is None:
            await whole(request, service, job)
            path = await run_in_threadpool(converted, service.songs_folder(job.id) / SONG, kind)
            told = headers(service, job, understood, streamed=False)
            return FileResponse(path, media_type=MEDIA_TYPES[kind], headers=told)
        stream = pieces(service, job, listener)
        piece = await first_of(stream, request, service, job)
        header, length = stream_header(service, understood)

        async def sound() -> AsyncIterator[bytes]:
            try:
                yield header + piece
                async for more in stream:
                    yield more
            finally:
                await stream.aclose()

        told = headers(service, job, understood, streamed=True)
        return StreamingResponse(
            sound(), media_type="audio/wav", headers={**told, "Content-Length": str(length)}
        )

    @app.post("/v1/audio/generate", tags=["songs"], response_class=Response)
    async def generate(request: Request) -> Response:
        """Makes a song and answers with its audio. WAV is streamed while it is decoded, at the
        level that it was decoded to, unless the request gives a loudness.
        """
        owner = owner_of(request)
        service_of(request)
        with tempfile.TemporaryDirectory(prefix="mudit-upload-") as scratch:
            body, reference = await body_of(request, GenerateBody, Path(scratch))
            kind = body.response_format
            made = await start(request, body, reference, owner, kind=kind, streams=True)
        return await song_response(request, made, kind)

    @app.post("/v1/audio/speech", tags=["songs"], response_class=Response)
    async def speech(request: Request) -> Response:
        """Makes a song of lyrics (`input`) and a description (`instructions`)."""
        owner = owner_of(request)
        service_of(request)
        body, _ = await body_of(request, SpeechBody, Path("."))
        kind = body.response_format
        made = await start(request, body.song(), None, owner, kind=kind, streams=True)
        if body.stream_format == "audio":
            return await song_response(request, made, kind)
        service, job, understood, listener = made
        stream = pieces(service, job, listener or service.subscribe(job.id))

        async def events() -> AsyncIterator[bytes]:
            try:
                if listener is not None:
                    yield _delta(stream_header(service, understood)[0])
                    async for piece in stream:
                        yield _delta(piece)
                else:
                    await exhaust(stream)
                    path = await run_in_threadpool(
                        converted, service.songs_folder(job.id) / SONG, kind
                    )
                    yield _delta(path.read_bytes())
                usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
                yield _event(None, {"type": "speech.audio.done", "usage": usage})
            except MuditError as error:
                yield _event(None, {"type": "error", "error": {"message": str(error)}})
            finally:
                await stream.aclose()

        told = headers(service, job, understood, streamed=True)
        if listener is None:  # the headers are out before the song is whole
            told.pop("X-Song-Loudness")
        return StreamingResponse(events(), media_type="text/event-stream", headers=told)

    # Songs as jobs

    @app.post("/v1/songs", tags=["jobs"], status_code=202)
    async def create_song(request: Request) -> JSONResponse:
        """Takes a song as a job, which survives a restart of the service."""
        owner = owner_of(request)
        service_of(request)
        with tempfile.TemporaryDirectory(prefix="mudit-upload-") as scratch:
            body, reference = await body_of(request, GenerateBody, Path(scratch))
            made = await start(request, body, reference, owner, kind=body.response_format)
        service, job, understood, _ = made
        shown = {**service.view(job), "notes": list(understood.notes)}
        return JSONResponse(shown, status_code=202, headers={"Location": f"/v1/songs/{job.id}"})

    @app.get("/v1/songs", tags=["jobs"])
    async def list_songs(
        request: Request, limit: int = 20, before: float | None = None, status: str | None = None
    ) -> JSONResponse:
        """One's own songs, the newest first."""
        service, owner = service_of(request), owner_of(request)
        if not 1 <= limit <= 100:
            raise InputError(f"limit={limit} is out of range: use 1 to 100")
        if status is not None and status not in job_store.STATUSES:
            raise InputError(
                f"status '{status[:40]}' is unknown: use one of {', '.join(job_store.STATUSES)}"
            )
        jobs = service.store.list(
            owner=owner,
            statuses=(status,) if status else job_store.STATUSES,
            before=before,
            limit=limit,
        )
        more = jobs[-1].created if len(jobs) == limit else None
        songs = [service.view(job) for job in jobs]
        return JSONResponse({"object": "list", "data": songs, "before": more})

    @app.get("/v1/songs/{id}", tags=["jobs"])
    async def get_song(request: Request, id: str) -> JSONResponse:
        """Where a song is: status, step, position in the queue, estimate."""
        service, job = job_of(request, id)
        return JSONResponse(service.view(job))

    @app.delete("/v1/songs/{id}", tags=["jobs"])
    async def delete_song(request: Request, id: str) -> JSONResponse:
        """Stops an open song before its next step; deletes an ended one with its files."""
        service, _ = job_of(request, id)
        if service.cancel(id):
            return JSONResponse({"id": id, "object": "song", "cancelled": True, "deleted": False})
        await run_in_threadpool(service.forget, id)
        return JSONResponse({"id": id, "object": "song", "cancelled": False, "deleted": True})

    @app.get("/v1/songs/{id}/events", tags=["jobs"], response_class=Response)
    async def song_events(request: Request, id: str) -> Response:
        """Server-sent events: progress, preview (audio that can be heard already), and the end."""
        service, job = job_of(request, id)
        listener = service.subscribe(id)

        async def events() -> AsyncIterator[bytes]:
            if listener is None:
                yield _event("end", service.view(service.store.get(id) or job))
                return
            source = listener.__aiter__()
            try:
                while True:
                    try:
                        news = await asyncio.wait_for(
                            asyncio.shield(_next_news(source)), KEEP_ALIVE
                        )
                    except TimeoutError:
                        yield b": still here\n\n"
                        continue
                    if news is None:
                        return
                    now = service.view(service.store.get(id) or job)
                    if news.final:
                        yield _event("end", now)
                        return
                    if news.audio is not None:
                        url = f"/v1/songs/{id}/preview"
                        yield _event("preview", {"seconds": now["preview_seconds"], "url": url})
                    else:
                        yield _event("progress", {**now, "step": news.step, "stage": news.stage})
            finally:
                listener.close()

        told = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=told)

    @app.get("/v1/songs/{id}/content", tags=["jobs"], response_class=Response)
    async def song_content(
        request: Request, id: str, format: Literal["wav", "flac", "mp3", "ogg"] | None = None
    ) -> Response:
        """The finished song; ranges are served."""
        service, job = job_of(request, id)
        if job.status != job_store.COMPLETED:
            raise Failure(409, "not_ready", f"song '{id}' is {job.status}: it has no whole audio")
        kind = format or job.request.get("response_format", "wav")
        path = await run_in_threadpool(converted, service.songs_folder(id) / SONG, kind)
        return FileResponse(path, media_type=MEDIA_TYPES[kind], filename=f"{id}.{kind}")

    @app.get("/v1/songs/{id}/preview", tags=["jobs"], response_class=Response)
    async def song_preview(request: Request, id: str) -> Response:
        """A WAV of what is decoded so far."""
        service, job = job_of(request, id)
        if job.status == job_store.COMPLETED:
            return FileResponse(service.songs_folder(id) / SONG, media_type="audio/wav")
        data = await run_in_threadpool(part_of, service.songs_folder(id))
        if data is None:
            raise Failure(409, "not_ready", f"song '{id}' has no audio yet")
        return Response(data, media_type="audio/wav", headers={"Cache-Control": "no-store"})

    @app.get("/v1/songs/{id}/sidecar", tags=["jobs"])
    async def song_sidecar(request: Request, id: str) -> Response:
        """Everything that made the finished song: request, plan, sampler, versions."""
        service, job = job_of(request, id)
        path = service.songs_folder(id) / "song.json"
        if job.status != job_store.COMPLETED or not path.is_file():
            raise Failure(409, "not_ready", f"song '{id}' is {job.status}: it has no sidecar")
        return FileResponse(path, media_type="application/json", filename=f"{id}.json")

    # The service itself

    @app.get("/v1/models", tags=["service"])
    async def models(request: Request) -> JSONResponse:
        """The served model and its limits."""
        service = service_of(request)
        owner_of(request)
        config = service.engine.config
        most = min(options.most_seconds or config.max_seconds, config.max_seconds)
        entry = {
            "id": config.name,
            "object": "model",
            "owned_by": "mudit",
            "licence": config.licence,
            "runtime": service.engine.runtime_name,
            "sample_rate": config.vae.sample_rate,
            "channels": config.vae.channels,
            "max_seconds": most,
            "sampler": config.sampler.model_dump(mode="json"),
            "outline": config.dit.outline,
            "edits": config.dit.edits and service.engine.runtime_name == "torch",
            "loras": sorted(service.engine.loras),
            "fast": service.engine.fast,
        }
        return JSONResponse({"object": "list", "data": [entry]})

    @app.get("/health", tags=["service"])
    async def health(request: Request) -> JSONResponse:
        """Whether the process lives: 503 when the engine's threads have ended."""
        service = request.app.state.service
        if service is not None and not service.engine.batcher.alive and not service.draining:
            raise Failure(503, "broken", "the engine has stopped: restart the service")
        return JSONResponse({"status": "ok", "version": __version__})

    @app.get("/ready", tags=["service"])
    async def ready(request: Request) -> JSONResponse:
        """Whether songs are taken: 503 while the model loads and while the service drains."""
        service = service_of(request)
        if service.draining or not service.engine.batcher.alive:
            raise Failure(503, "shutting_down", "the service takes no more songs", headers=after(5))
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["service"], response_class=Response)
    async def metrics(request: Request) -> Response:
        """Prometheus metrics."""
        service = service_of(request)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    from mudit_engine.serving.page_api import add_page

    add_page(
        app, service_of=service_of, owner_of=owner_of, job_of=job_of, body_of=body_of, page=PAGE
    )
    answer_head(app, but=("/v1/songs/{id}/events",))
    complete(app)
    return app


async def _sweep(service: SongService, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        try:
            await asyncio.to_thread(service.sweep)
        except Exception:
            logger.exception("old songs could not be swept")


async def _next_news(source: AsyncIterator[Any]) -> Any:
    return await anext(source, None)


def stream_header(service: SongService, understood: Understood) -> tuple[bytes, int]:
    """The header of a song that is streamed, and the bytes of the whole."""
    vae = service.engine.config.vae
    samples = round(understood.seconds * vae.sample_rate)
    header = wav_header(rate=vae.sample_rate, channels=vae.channels, samples=samples)
    return header, len(header) + samples * vae.channels * 2


def _event(name: str | None, data: Any) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _delta(audio: bytes) -> bytes:
    return _event(
        None, {"type": "speech.audio.delta", "audio": base64.b64encode(audio).decode("ascii")}
    )
