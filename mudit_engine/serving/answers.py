"""Answers of the service that are no success: {"error": {"type", "message"}} with a status each.

raise Failure(404, "not_found", "no song 'x'")
add_answers(app)  # and every error of mudit_engine.errors has its answer
"""

# annotations are evaluated where they stand: FastAPI is imported inside add_answers

from typing import Any

from mudit_engine.errors import BusyError, DeadlineError, InputError, MuditError
from mudit_engine.serving.service import refused


class Failure(Exception):
    """An answer that is no success."""

    def __init__(
        self, status: int, kind: str, message: str, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, headers


def after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, round(seconds)))}


def add_answers(app: Any) -> None:
    """Gives a FastAPI application an answer for every error, and counts what is refused."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer(status: int, kind: str, message: str, headers: Any = None) -> JSONResponse:
        return JSONResponse(
            {"error": {"type": kind, "message": message}}, status_code=status, headers=headers
        )

    @app.exception_handler(Failure)
    async def on_failure(request: Request, error: Failure) -> JSONResponse:
        if request.app.state.service is not None and error.status != 404:
            request.app.state.service.metrics.rejected.labels(error.kind).inc()
        return answer(error.status, error.kind, error.message, error.headers)

    @app.exception_handler(MuditError)
    async def on_mudit_error(request: Request, error: MuditError) -> JSONResponse:
        service = request.app.state.service
        if service is not None:
            service.metrics.rejected.labels(refused(error)).inc()
        if isinstance(error, BusyError):
            draining = service is None or service.draining
            return answer(
                503 if draining else 429,
                "shutting_down" if draining else "busy",
                str(error),
                after(error.retry_after),
            )
        if isinstance(error, DeadlineError):
            return answer(504, "deadline", str(error))
        if isinstance(error, InputError):
            return answer(400, "invalid_request", str(error))
        return answer(500, "failed", str(error))

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        told = "; ".join(
            f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()
        )
        return answer(400, "invalid_request", told)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        kind = {404: "not_found", 405: "method_not_allowed"}.get(
            error.status_code, "invalid_request"
        )
        return answer(error.status_code, kind, str(error.detail), error.headers)
