"""An ASGI layer that stops reading a request whose body is too large: 413, whatever it claims.

    app.add_middleware(BodyLimit, plain=1 << 20, upload=33 << 20)

Forms, which may hold a file, have a limit of their own. Only what the framework asks for is read,
so that nothing larger than the limit is ever held.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LISTEN_SECONDS, LISTEN_BYTES = 2.0, 8 << 20  # of a body that is refused already


class TooLarge(Exception):
    """A body went on beyond its limit. Whoever reads the body lets it pass."""


class BodyLimit:
    """`plain` and `upload`: bytes of a body at most, of a form for the latter."""

    def __init__(self, app: Any, *, plain: int, upload: int) -> None:
        self.app, self.plain, self.upload = app, plain, upload

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        form = headers.get(b"content-type", b"").lower().startswith(b"multipart/")
        limit = self.upload if form else self.plain
        claimed = headers.get(b"content-length", b"0")
        if not claimed.isdigit() or int(claimed) > limit:
            await self._refuse(receive, send, limit)
            return
        got, started = 0, False

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            if message["type"] == "http.request":
                got += len(message.get("body", b""))
                if got > limit:
                    raise TooLarge
            return message

        async def noticed(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noticed)
        except TooLarge:
            if started:
                raise
            await self._refuse(receive, send, limit)

    async def _refuse(self, receive: Receive, send: Send, limit: int) -> None:
        # a client that is still sending hears nothing: some of what it has to say is let pass
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTEN_SECONDS):
                passed = 0
                while passed < LISTEN_BYTES + limit:
                    message = await receive()
                    passed += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        error = {"type": "too_large", "message": f"the body is larger than {limit} bytes"}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
