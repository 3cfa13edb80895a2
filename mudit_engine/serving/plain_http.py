"""What HTTP asks of every server and the framework leaves out: HEAD, and ranges that are none.

    answer_head(app, but=("/v1/songs/{id}/events",))     # once all routes are there
    app.add_middleware(PlainRanges)

RFC 9110: HEAD is answered where GET is (9.3.2), as load balancers and download managers do; a Range
header of another unit, or one that is malformed, is as if it were not there (14.2).
"""

# annotations are evaluated where they stand: FastAPI is imported inside answer_head

import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
_RANGES = re.compile(rb"bytes=\s*[0-9-][0-9\s,-]*", re.IGNORECASE)
_ONE = re.compile(rb"(\d{0,18})-(\d{0,18})")


def answer_head(app: Any, *, but: Collection[str] = ()) -> None:
    """Gives every GET route of a FastAPI application its HEAD, which its document does not list.

    Args:
        app: with all its routes.
        but: paths of routes whose GET goes on for as long as something happens.
    """
    from fastapi.routing import APIRoute

    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()) and route.path not in but:
            app.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_class=route.response_class,
                include_in_schema=False,
            )


def is_range(header: bytes) -> bool:
    """Whether a Range header is one of bytes that is well formed: `bytes=0-99`, `bytes=100-`,
    `bytes=-100`, or several of them with commas.
    """
    if not _RANGES.fullmatch(header.strip()):
        return False
    for part in header.split(b"=", 1)[1].split(b","):
        found = _ONE.fullmatch(part.strip())
        if found is None or found[0] == b"-":
            return False
        if found[1] and found[2] and int(found[1]) > int(found[2]):
            return False
    return True


class PlainRanges:
    """An ASGI layer that drops a Range header which is none, so that the whole is answered."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "http":
            kept = [
                (name, value)
                for name, value in scope["headers"]
                if name != b"range" or is_range(value)
            ]
            scope = {**scope, "headers": kept}
        await self.app(scope, receive, send)
