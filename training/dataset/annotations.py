"""Songs with what professionals and amateurs said of them, from any annotation file, as a manifest.

    rows = annotated(Path("muchin.jsonl"), load_map(Path("map.json")), audio=Path("audio"))

The file is JSON Lines, a JSON list, or a JSON object of songs by id. The map says where in a song's
object each thing lies:

    {"id": "song.id",
     "audio": "{id}.wav",
     "split": "subset",
     "lyrics": "lyrics",
     "language": "zh",
     "professional": {"words": "pro.tags[*].name", "phrases": ["pro.mood", "pro.style"],
                      "sentences": "pro.description"},
     "amateur": {"words": "public.tags", "sentences": "public.description"}}

A path is names joined by dots; [*] is every item of a list. A list of paths takes what all of them
find. `audio` is a template over the id, below --audio, or a path that begins with "$." and names a
field. `language` is a word (zh, en), not a path. Only `id` and one of the user types are needed;
{"id": "key"} with a JSON object of songs by id takes the key, where a song has no such field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudit_engine.audio import FORMATS
from mudit_engine.errors import InputError
from mudit_engine.files import read_text
from mudit_engine.request import refuse_unknown
from mudit_engine.training.dataset.shards import LANGUAGES, SPLITS
from mudit_engine.training.dataset.sources import BY_LEVEL

ANNOTATORS = ("professional", "amateur")
KEY = "key"
FIELDS = ("id", "audio", "split", "lyrics", "language", *ANNOTATORS)


@dataclass(frozen=True)
class FieldMap:
    """Where things lie in a song's object; see the module's docstring."""

    id: str
    audio: str
    users: Mapping[str, Mapping[str, tuple[str, ...]]]  # user type -> level -> paths
    split: str = ""
    lyrics: str = ""
    language: str = ""


# what our own manifests and the corpus' labels hold: the map that is used without --fields
PLAIN = FieldMap(
    "id",
    "$.audio",
    {user: {name: (f"{user}.{name}",) for name in BY_LEVEL} for user in ANNOTATORS},
    "split",
    "lyrics",
)


def load_map(path: Path) -> FieldMap:
    """A field map. Raises InputError that names what is wrong."""
    try:
        fields = json.loads(read_text(path, "field map"))
    except json.JSONDecodeError as error:
        raise InputError(f"field map '{path}' is not JSON: {error}") from None
    where = f"field map '{path}'"
    if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
        raise InputError(f'{where}: an object with "id" and the path of the song\'s id is needed')
    refuse_unknown(fields, FIELDS, where=where)
    users = {}
    for user in ANNOTATORS:
        levels = fields.get(user) or {}
        if not isinstance(levels, dict):
            raise InputError(f'{where}: "{user}" is an object of paths by {", ".join(BY_LEVEL)}')
        refuse_unknown(levels, tuple(BY_LEVEL), where=f'{where} "{user}"')
        users[user] = {name: _paths(value, where) for name, value in levels.items()}
    if not any(users.values()):
        raise InputError(f"{where}: it maps no {' and no '.join(ANNOTATORS)}: map one of them")
    texts = {name: fields.get(name) or "" for name in ("audio", "split", "lyrics", "language")}
    if not all(isinstance(value, str) for value in texts.values()):
        raise InputError(f"{where}: audio, split, lyrics and language are texts")
    if texts["language"] and texts["language"] not in LANGUAGES:
        raise InputError(f"{where}: language '{texts['language']}' is none of {LANGUAGES}")
    return FieldMap(
        fields["id"],
        texts["audio"] or "{id}.wav",
        users,
        texts["split"],
        texts["lyrics"],
        texts["language"],
    )


def _paths(value: Any, where: str) -> tuple[str, ...]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(one, str) and one for one in paths):
        raise InputError(f"{where}: {value!r} is neither a path nor a list of paths")
    return tuple(paths)


def annotated(path: Path, fields: FieldMap, *, audio: Path) -> Iterator[dict[str, Any]]:
    """Lines of a manifest, one a song that has annotations; audio paths are absolute.

    Raises InputError that names the song: without an id, twice, or with no audio file. A file in
    which the map finds no annotation at all is an error too: the map is wrong.
    """
    seen: set[str] = set()
    for name, song in _songs(path):
        where = f"annotations '{path}' {name}"
        found = _at(song, fields.id)
        identity = str(found[0]) if found else (name if fields.id == KEY else "")
        if not identity:
            raise InputError(f"{where}: no id at '{fields.id}': mend the field map")
        if identity in seen:
            raise InputError(f"{where}: the id '{identity}' comes twice")
        described = list(_descriptions(song, fields))
        if not described:
            continue
        seen.add(identity)
        row: dict[str, Any] = {
            "audio": str(_audio(song, identity, fields, audio, where)),
            "id": identity,
            "descriptions": described,
        }
        if fields.lyrics and (lyrics := _texts(song, (fields.lyrics,))):
            row["lyrics"] = "\n".join(lyrics)
        if fields.split and (split := _texts(song, (fields.split,))):
            if split[0] not in SPLITS:
                raise InputError(f"{where}: split '{split[0]}' is none of {', '.join(SPLITS)}")
            row["split"] = split[0]
        yield row
    if not seen:
        raise InputError(
            f"annotations '{path}': the field map finds no annotation in any song: compare its "
            "paths with a song's object"
        )


def _descriptions(song: Any, fields: FieldMap) -> Iterator[dict[str, Any]]:
    for user, levels in fields.users.items():
        found = {name: texts for name, paths in levels.items() if (texts := _texts(song, paths))}
        if found:
            spoken = {"language": fields.language} if fields.language else {}
            yield {"user": user, **spoken, **found}


def _audio(song: Any, identity: str, fields: FieldMap, folder: Path, where: str) -> Path:
    if fields.audio.startswith("$."):
        named = _texts(song, (fields.audio[2:],))
        if not named:
            raise InputError(f"{where}: no audio at '{fields.audio[2:]}'")
        wanted = folder / named[0]
    else:
        wanted = folder / fields.audio.replace("{id}", identity)
    choices = [wanted, *(wanted.with_suffix(suffix) for suffix in FORMATS)]
    file = next((one for one in choices if one.is_file()), None)
    if file is None:
        raise InputError(f"{where}: no audio file '{wanted}': give --audio, or mend the map")
    return file.resolve()


def _songs(path: Path) -> Iterator[tuple[str, Any]]:
    """(what it is called, its object) of every song."""
    text = read_text(path, "annotations")
    try:
        if path.suffix.lower() == ".jsonl":
            lines = [(n, one) for n, one in enumerate(text.splitlines(), 1) if one.strip()]
            yield from ((f"line {n}", json.loads(one)) for n, one in lines)
            return
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"annotations '{path}' are not JSON: {error}") from None
    if isinstance(document, dict):
        yield from document.items()
    elif isinstance(document, list):
        yield from ((f"entry {number}", one) for number, one in enumerate(document, 1))
    else:
        raise InputError(f"annotations '{path}' are neither a list nor an object of songs")


def _texts(song: Any, paths: tuple[str, ...]) -> list[str]:
    """What the paths find, as texts that are not empty; lists are opened."""
    found: list[str] = []
    for path in paths:
        for value in _at(song, path):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, (str, int, float)) and str(one).strip():
                    found.append(str(one).strip())
    return list(dict.fromkeys(found))


def _at(value: Any, path: str) -> list[Any]:
    """Everything at a path; nothing where it leads nowhere."""
    here = [value]
    for step in path.split("."):
        name, every = step.removesuffix("[*]"), step.endswith("[*]")
        if name:
            here = [one[name] for one in here if isinstance(one, dict) and name in one]
        if every:
            here = [item for one in here if isinstance(one, list) for item in one]
    return [one for one in here if one is not None]
