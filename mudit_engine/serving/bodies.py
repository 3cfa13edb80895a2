"""What a request brings: JSON or a form with a reference, checked field by field.

body, reference = await read_body(request, GenerateBody, scratch, most=1 << 20, upload=limits)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mudit_engine.errors import InputError
from mudit_engine.serving.answers import Failure
from mudit_engine.serving.body_limit import TooLarge
from mudit_engine.serving.fields import SpeechBody, numbers_of_form, parse
from mudit_engine.serving.uploads import UploadLimits, decode_upload


async def read_body(
    request: Any, kind: type[BaseModel], scratch: Path, *, most: int, upload: UploadLimits
) -> tuple[Any, Path | None]:
    """(the validated body, the decoded reference) of JSON or a form.

    Args:
        request: of starlette.
        kind: what is asked for.
        scratch: a folder for the reference, which is decoded in a process of its own.
        most: bytes of a field.
        upload: limits of the reference.

    Raises InputError for what is wrong with it, Failure for another kind of content.
    """
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException

    content = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content in ("application/json", ""):
        try:
            fields = json.loads(await request.body() or b"null", parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body is no JSON ({str(error)[:120]})") from None
        return parse(kind, fields), None  # type: ignore[arg-type]
    if content != "multipart/form-data" or kind is SpeechBody:
        raise Failure(
            415,
            "unsupported",
            f"'{content[:60]}': send application/json or multipart/form-data",
        )
    try:
        form = await request.form(max_files=1, max_fields=40, max_part_size=most)
    except (HTTPException, TooLarge):
        raise
    except Exception as error:  # the parser's own types
        raise InputError(f"the form cannot be read ({str(error)[:120]})") from None
    try:
        texts: dict[str, str] = {}
        sent: Any = None
        for name, value in form.multi_items():
            if isinstance(value, str):
                if name in texts:
                    raise InputError(f"field '{name[:60]}' is given twice")
                texts[name] = value
            elif name == "reference":
                sent = value
            else:
                raise InputError(f"file '{name[:60]}': the one file is named 'reference'")
        body = parse(kind, numbers_of_form(texts, kind))  # type: ignore[arg-type]
        if sent is None:
            return body, None
        given, decoded = scratch / "upload", scratch / "reference.wav"
        with given.open("wb") as file:
            await run_in_threadpool(shutil.copyfileobj, sent.file, file)
        await decode_upload(given, decoded, limits=upload)
        return body, decoded
    finally:
        await form.close()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
