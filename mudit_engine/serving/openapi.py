"""The service's OpenAPI document: bodies of both kinds, answers, headers and examples, of routes
whose bodies are read by hand.

    complete(app)        # app.openapi() is then the whole document

FastAPI writes what it sees in a route's signature; here is the rest. A test holds the document
against the running service (schemathesis).
"""

from __future__ import annotations

from typing import Any

from mudit_engine.serving.fields import ALIASES, GenerateBody, SongBody, SpeechBody
from mudit_engine.serving.job_store import STATUSES
from mudit_engine.serving.song_files import MEDIA_TYPES

ERRORS = {
    "400": "What was asked for is wrong; the message names the field.",
    "401": "No such key.",
    "404": "No such song or model.",
    "409": "The song is not ready, or never will be.",
    "413": "The body is too large.",
    "415": "The body is of another kind.",
    "429": "No room now: come back after Retry-After seconds.",
    "500": "The engine failed on this song.",
    "503": "The model is being loaded, or the service is shutting down.",
    "504": "The song's deadline passed.",
}
EXAMPLES = {
    "instrumental": {"description": "calm piano, slow, in C major", "seconds": 4, "steps": 4},
    "song": {
        "description": "流行抒情，钢琴与弦乐，女声，温暖，BPM 84",
        "lyrics": "[verse]\n月亮升起来\n照着旧窗台",
        "seed": 7,
        "response_format": "mp3",
    },
    "in other services' words": {"prompt": "rock band", "duration": 4, "inference_steps": 4},
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}


def _nullable(kind: str) -> dict[str, Any]:
    return {"type": [kind, "null"]}


SONG = {
    "type": "object",
    "required": ["id", "object", "status", "created_at", "step", "steps", "progress"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "song"},
        "status": {"enum": list(STATUSES)},
        "stage": {"type": "string"},
        "created_at": {"type": "number"},
        "started_at": _nullable("number"),
        "finished_at": _nullable("number"),
        "step": {"type": "integer"},
        "steps": {"type": "integer"},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "position": {**_nullable("integer"), "description": "songs that are likely to be first"},
        "estimated_seconds": _nullable("number"),
        "preview_seconds": {"type": "number"},
        "error": _nullable("string"),
        "result": _nullable("object"),
        "request": {"type": "object"},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
}
SONGS = {
    "type": "object",
    "required": ["object", "data", "before"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"$ref": "#/components/schemas/Song"}},
        "before": _nullable("number"),
    },
}
DELETED = {
    "type": "object",
    "required": ["id", "cancelled", "deleted"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "song"},
        "cancelled": {"type": "boolean"},
        "deleted": {"type": "boolean"},
    },
}
EVENTS = {
    "type": "string",
    "description": "server-sent events: progress, preview, end; data is JSON",
}


def complete(app: Any) -> None:
    """Makes `app.openapi()` the whole document."""
    from fastapi.openapi.utils import get_openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            app.openapi_schema = _completed(found)
        return dict(app.openapi_schema)

    app.openapi = document


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for kind in (SongBody, GenerateBody, SpeechBody):
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = _with_aliases(schema, kind)
    schemas |= {"Song": SONG, "Songs": SONGS, "Deleted": DELETED, "Error": ERROR}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete_operation(path, method, operation)
    return document


def _with_aliases(schema: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Other services' names beside ours. They are told in words: a schema of every name would let a
    field be given twice.
    """
    if kind.aliases:
        told = "; ".join(f"{name} is {own}" for name, own in ALIASES.items())
        schema["description"] = f"{schema.get('description', '')} Other names: {told}."
    return schema


def _complete_operation(path: str, method: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    codes = ["400", "401", "404", "413", "503"]
    if method == "post":
        codes += ["415", "429", "500", "504"]
        kind = "SpeechBody" if path.endswith("speech") else "GenerateBody"
        operation["requestBody"] = _body(kind)
    if "{id}" in path:
        codes += ["409", "500"]
    for code in sorted(codes):
        answers[code] = {
            "description": ERRORS[code],
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        if code in ("429", "503"):
            answers[code]["headers"] = {"Retry-After": {"schema": {"type": "string"}}}
    good = answers.pop("200", answers.pop("202", None))
    code = "202" if (path, method) == ("/v1/songs", "post") else "200"
    answers[code] = {**(good or {}), **_answer(path, method)}
    if path.endswith("/content"):
        answers["206"] = _answer(path, method) | {"description": "A range of the song."}
        answers["416"] = {"description": "No such range."}
    if path.endswith("/preview"):
        answers["206"] = _answer(path, method) | {"description": "A range of the audio."}
        answers["416"] = {"description": "No such range."}


def _body(kind: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{kind}"}
    if kind == "SpeechBody":
        example = {
            "input": "[verse]\n月亮升起来",
            "instructions": "慢歌，钢琴",
            "seconds": 3,
            "steps": 2,
        }
        return {
            "required": True,
            "content": {"application/json": {"schema": reference, "example": example}},
        }
    form = {
        "type": "object",
        "properties": {
            "description": {"type": "string"},
            "lyrics": {"type": "string"},
            "seconds": {"type": "string", "description": "fields are as in JSON, written as text"},
            "reference": {
                "type": "string",
                "format": "binary",
                "description": "an audio file: WAV, FLAC, MP3 or OGG",
            },
        },
    }
    examples = {name: {"value": value} for name, value in EXAMPLES.items()}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": reference, "examples": examples},
            "multipart/form-data": {"schema": form},
        },
    }


LOUDNESS = {
    "X-Song-Loudness": {
        "description": "LUFS of the audio in the answer, or 'decoded' where it has the level that "
        "the song was decoded to: of what is streamed nobody knows the loudness before its end. "
        "The file that the service keeps has the loudness that was asked for.",
        "schema": {"type": "string"},
    }
}


def _answer(path: str, method: str) -> dict[str, Any]:
    """What a route answers when all is well."""
    audio = {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()
    }
    told: dict[str, Any]
    match path.rsplit("/", 1)[-1], method:
        case "generate", _:
            told, text = audio, "The song."
        case "speech", _:
            told, text = {**audio, "text/event-stream": {"schema": EVENTS}}, "The song."
        case "content" | "preview", _:
            told, text = audio, "The song."
        case "events", _:
            told, text = {"text/event-stream": {"schema": EVENTS}}, "Events until the song ends."
        case "songs", "get":
            told, text = _json("Songs"), "One's own songs."
        case "songs", "post":
            told, text = _json("Song"), "The song is taken."
        case "{id}", "delete":
            told, text = _json("Deleted"), "The song was stopped, or deleted."
        case "{id}", _:
            told, text = _json("Song"), "Where the song is."
        case "metrics", _:
            told = {"text/plain": {"schema": {"type": "string"}}}
            text = "Metrics in Prometheus' format."
        case _:
            told = {"application/json": {"schema": {"type": "object"}}}
            text = "The answer."
    answer: dict[str, Any] = {"description": text, "content": told}
    if path.startswith("/v1/audio/"):
        answer["headers"] = LOUDNESS
    return answer


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
