"""A running HTTP service in this process: uvicorn in a thread, on a free port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx


class Served:
    """`url` and a client of a service; `service` is its SongService."""

    def __init__(self, url: str, app: Any) -> None:
        self.url, self.app = url, app
        self.client = httpx.Client(base_url=url, timeout=60)

    @property
    def service(self) -> Any:
        return self.app.state.service

    def song(self, **fields: Any) -> dict[str, Any]:
        """A job that is handed in."""
        answer = self.client.post("/v1/songs", json=fields)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def ended(self, id: str, *, seconds: float = 240.0) -> dict[str, Any]:
        """A job once it has ended."""
        deadline = time.monotonic() + seconds
        while True:
            job = self.client.get(f"/v1/songs/{id}").json()
            if job["status"] in ("completed", "failed", "cancelled"):
                return dict(job)
            assert time.monotonic() < deadline, job
            time.sleep(0.01)


@contextlib.contextmanager
def serving(open_engine: Callable[[], Any], folder: Path, **options: Any) -> Iterator[Served]:
    """Serves until the block ends."""
    import uvicorn

    from mudit_engine.serving.app import create_app

    app = create_app(open_engine, folder=folder, **options)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the service did not start"
            time.sleep(0.01)
        served = Served(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
        yield served
        served.client.close()
    finally:
        server.should_exit = True
        thread.join(120)
        listening.close()
