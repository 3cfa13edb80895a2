"""The page at / and what it asks beside the public API: what was understood of a request so far.

    add_page(app, service_of=..., owner_of=..., job_of=..., body_of=..., page=folder)

The page is plain files; nothing of it comes from elsewhere, and its content policy says so.
"""

# annotations are evaluated where they stand: FastAPI is imported inside add_page

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mudit_engine.serving.fields import GenerateBody

FILES = {
    "page.js": "text/javascript",
    "words.js": "text/javascript",
    "sound.js": "text/javascript",
    "repaint.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
POLICY = (
    "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def add_page(
    app: Any,
    *,
    service_of: Callable[..., Any],
    owner_of: Callable[..., str],
    job_of: Callable[..., Any],
    body_of: Callable[..., Any],
    page: Path,
) -> None:
    """Routes of the page, and what was understood of requests and songs."""
    from fastapi import Request
    from fastapi.responses import FileResponse, JSONResponse, Response
    from starlette.concurrency import run_in_threadpool

    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return FileResponse(page / "index.html", media_type="text/html", headers=headers)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in FILES:
            return JSONResponse(
                {"error": {"type": "not_found", "message": "no such file"}}, status_code=404
            )
        return FileResponse(page / name, media_type=FILES[name], headers=headers)

    @app.post("/v1/understand", tags=["songs"])
    async def understand(request: Request) -> JSONResponse:
        """What the model understands of a request, without making the song: readings, sections and
        their times, tempo, key, chords, description terms, and whether the lyrics fit.
        """
        owner = owner_of(request)
        service = service_of(request)
        body, _ = await body_of(request, GenerateBody, Path("."))

        def read() -> dict[str, Any]:
            from mudit_engine.serving.understanding import understanding

            edit = service.song_to_edit(body.edit, owner=owner) if body.edit else None
            read = service.engine.read(body.request(edit=edit))
            return understanding(read, service.engine.config)

        return JSONResponse(await run_in_threadpool(read))

    @app.get("/v1/songs/{id}/understood", tags=["jobs"])
    async def understood(request: Request, id: str) -> JSONResponse:
        """What the model understood of a song's request, as /v1/understand shows it."""
        service, job = job_of(request, id)

        def read() -> dict[str, Any]:
            from mudit_engine.serving.understanding import understanding

            return understanding(service.read_again(job), service.engine.config)

        return JSONResponse(await run_in_threadpool(read))
