"""A folder of songs with their texts beside them: what belongs to which audio file.

songs/
  harbor.ogg               the song; its path below the folder, without the suffix, is its id
  harbor.txt               lyrics with section tags, or harbor.lrc with times, which are left out
  harbor.json              what else is known, all of it optional:
                           {"descriptions": {"professional": "Indie rock, 120 BPM, ...",
                                             "amateur": "a song for the drive home"},
                            "metadata": {"bpm": 120, "key": 9, "mode": "minor"},
                            "split": "validation"}
  harbor.vocals.ogg        a stem: vocals, drums, bass or chords

row = row_of(audio_file)          # as a line of a manifest has it
summary = summarise(folder)       # {"songs": 6, "lyrics": 5, "descriptions": 4, ...}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError
from mudit_engine.files import read_text
from mudit_engine.training.dataset.shards import STEMS

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
LYRIC_SUFFIXES = (".txt", ".lrc")


@dataclass(frozen=True)
class AudioFile:
    """A song of a folder and the files that belong to it."""

    id: str
    audio: Path
    lyrics: Path | None = None
    known: Path | None = None
    stems: dict[str, Path] = field(default_factory=dict)


def audio_files(folder: Path) -> list[AudioFile]:
    """The songs under `folder`, by id. Raises InputError when there is none, and when two files
    would share an id.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    by_place: dict[Path, list[Path]] = {}
    for path in paths:
        if path.suffix.lower() in AUDIO_SUFFIXES:
            by_place.setdefault(path.with_suffix(""), []).append(path)
    twice = {place: found for place, found in by_place.items() if len(found) > 1}
    if twice:
        place, found = next(iter(twice.items()))
        names = " and ".join(f"'{path.name}'" for path in found)
        raise InputError(
            f"{names} in '{place.parent}' would share the id '{place.relative_to(folder)}' "
            f"({len(twice)} such ids): rename or remove all but one"
        )
    stems: dict[Path, dict[str, Path]] = {}
    for place, (path,) in by_place.items():
        song = place.with_suffix("")
        if place.suffix[1:] in STEMS and song in by_place:
            stems.setdefault(song, {})[place.suffix[1:]] = path
    taken = {path for found in stems.values() for path in found.values()}
    present = set(paths)
    songs = []
    for place, (path,) in by_place.items():
        if path in taken:
            continue
        beside = [path.with_suffix(suffix) for suffix in LYRIC_SUFFIXES]
        known = path.with_suffix(".json")
        songs.append(
            AudioFile(
                place.relative_to(folder).as_posix(),
                path,
                next((lyrics for lyrics in beside if lyrics in present), None),
                known if known in present else None,
                stems.get(place, {}),
            )
        )
    if not songs:
        raise InputError(f"'{folder}' holds no audio file ({', '.join(AUDIO_SUFFIXES)})")
    return songs


def row_of(song: AudioFile) -> dict[str, Any]:
    """The song as a line of a manifest has it. Raises InputError for texts that cannot be read,
    ValueError for a .json that is no object.
    """
    row: dict[str, Any] = {}
    if song.known is not None:
        text = read_text(song.known, "song")
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"'{song.known.name}' is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"'{song.known.name}' must hold a JSON object")
        if "audio" in row or "id" in row:
            raise ValueError(f"'{song.known.name}' names audio or an id, which are its own file's")
    if song.lyrics is not None:
        if row.get("lyrics"):
            raise ValueError(f"'{song.lyrics.name}' and '{song.known}' both hold lyrics")
        row["lyrics"] = read_text(song.lyrics, "lyrics")
    stems = {stem: str(path.absolute()) for stem, path in song.stems.items()}
    return {**row, "audio": str(song.audio.absolute()), "id": song.id} | (
        {"stems": {**(row.get("stems") or {}), **stems}} if stems else {}
    )


def summarise(folder: Path) -> dict[str, int]:
    """For how many songs of a folder something lies beside the audio."""
    songs = audio_files(folder)
    return {
        "songs": len(songs),
        "lyrics": sum(song.lyrics is not None for song in songs),
        "json": sum(song.known is not None for song in songs),
        "stems": sum(bool(song.stems) for song in songs),
    }
