"""Runs the application with uvicorn, and drains on a signal before the connections are closed.

    run_service(app, folder=Path("songs"), host="127.0.0.1", port=8000, drain_seconds=60)

On the first SIGTERM or SIGINT new songs are refused and /ready is 503 at once, so that a load
balancer looks elsewhere, while open songs are finished and their listeners hear the end.
"""

from __future__ import annotations

import logging
import socket
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from mudit_engine.errors import InputError, MuditError
from mudit_engine.serving.folder_claim import claimed

logger = logging.getLogger(__name__)

GRACE = 5  # seconds for the last bytes of connections after the drain


def run_service(app: Any, *, folder: Path, host: str, port: int, drain_seconds: float) -> None:
    """Serves until a signal. Raises InputError when the address or the folder of the application's
    songs cannot be had, before anything is loaded, and what the engine could not be opened for.
    """
    import uvicorn

    listening = bound(host, port)

    class Server(uvicorn.Server):
        """uvicorn's, with a drain before its own shutdown."""

        draining = False

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service = app.state.service
            if self.draining or service is None:
                super().handle_exit(sig, frame)
                return
            self.draining = True
            service.draining = True

            def drain() -> None:
                if not service.drain(drain_seconds):
                    logger.warning("songs are left: they go on after a restart")
                self.should_exit = True

            threading.Thread(target=drain, name="mudit-drain", daemon=True).start()

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=30,
        server_header=False,
    )
    server = Server(config)
    # uvicorn logs a start that failed with a traceback, which says nothing of a wrong model folder
    log = logging.getLogger("uvicorn.error")
    log.addFilter(unless_refused := lambda record: app.state.refused is None)
    try:
        with listening, claimed(folder):
            server.run(sockets=[listening])
    except SystemExit:  # how uvicorn ends a start that failed
        pass
    finally:
        log.removeFilter(unless_refused)
    if not server.started and not server.draining:
        raise app.state.refused or MuditError("the service could not start: its log says why")


def bound(host: str, port: int) -> socket.socket:
    """A socket with this address, which nobody can connect to yet. Raises InputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind((host, port))
    except (OSError, OverflowError) as error:
        one.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{host}:{port} cannot be listened on ({reason}): choose another"
        ) from None
    return one
