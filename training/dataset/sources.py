"""Where songs come from before they are encoded: the labelled corpus, a manifest, or a folder of
audio files. All become SourceSong.

A manifest is JSON Lines; only `audio` is needed:
    {"audio": "a.flac", "id": "a", "lyrics": "[verse]\\n...", "split": "train",
     "stems": {"vocals": "v.flac"},
     "descriptions": [{"language": "zh", "user": "amateur", "text": "..."}]}

    for song in open_source("corpus"): ...
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError
from mudit_engine.text.descriptions import (
    FASTEST_BPM,
    SLOWEST_BPM,
    description_fragments,
    fragments,
)
from mudit_engine.text.harmony import SCALES, ChordSymbol, chord_symbol
from mudit_engine.training.dataset.shards import LANGUAGES, SPLITS, STEMS, USER_TYPES

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_FULL_STOPS = "。.!！?？"
MOST_FRAGMENTS = 32  # of the description as the engine itself would split it


@dataclass(frozen=True)
class SourceFragment:
    """A piece of a description. `asked`: the engine makes it of a request with this description;
    the others are further ways to say it.
    """

    text: str
    level: str
    asked: bool


@dataclass(frozen=True)
class SourceDescription:
    language: str
    user: str
    text: str
    fragments: tuple[SourceFragment, ...]

    @classmethod
    def of(
        cls, language: str, user: str, text: str, extra: Mapping[str, tuple[str, ...]] | None = None
    ) -> SourceDescription:
        """Splits `text` as a request is split, in that order, then adds the `extra` fragments by
        level (None: the words of the text).
        """
        levels = {part.text: part.level for part in fragments(text)}
        asked = description_fragments(text, MOST_FRAGMENTS)
        parts = {one: SourceFragment(one, levels.get(one, "sentence"), True) for one in asked}
        for level in ("sentence", "phrase", "word"):
            more = (
                [one for one, found in levels.items() if found == level]
                if extra is None
                else extra.get(level, ())
            )
            for one in (text.strip().rstrip(_FULL_STOPS) for text in more):
                if one and one not in parts:
                    parts[one] = SourceFragment(one, level, False)
        return cls(language, user, text, tuple(parts.values()))


@dataclass(frozen=True)
class SourceSong:
    """A song on disk and what is known of it. `syllables` are (start, end) in seconds in the order
    in which the lyrics are sung.
    """

    id: str
    audio: Path
    split: str = "train"
    lyrics: str = ""
    descriptions: tuple[SourceDescription, ...] = ()
    stems: Mapping[str, Path] = field(default_factory=dict)
    syllables: tuple[tuple[float, float], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def open_source(path: str | Path) -> Iterator[SourceSong]:
    """The songs of a corpus folder (`mudit data synth`), a .jsonl manifest, or a folder of audio
    files. Raises InputError.
    """
    path = Path(path)
    if path.is_file():
        return manifest_songs(path)
    if (path / "corpus.json").is_file():
        return corpus_songs(path)
    if path.is_dir():
        return folder_songs(path)
    raise InputError(
        f"no songs at '{path}': give a corpus folder, a .jsonl manifest or a folder of "
        f"{', '.join(AUDIO_SUFFIXES)} files"
    )


def corpus_songs(corpus: Path) -> Iterator[SourceSong]:
    """The labelled corpus, with everything its labels know."""
    from mudit_engine.training.corpus import labels

    for folder in labels.song_folders(corpus):
        song = labels.Song.load(folder)
        descriptions = tuple(
            SourceDescription.of(
                d.language,
                d.user,
                d.text,
                {"sentence": d.sentences, "phrase": d.phrases, "word": d.words},
            )
            for d in song.descriptions
        )
        known = (
            "style",
            "instrument_set",
            "bpm",
            "key",
            "mode",
            "drums",
            "voice",
            "timbre",
            "language",
            "seconds",
            "progressions",
        )
        yield SourceSong(
            id=song.id,
            audio=folder / "mix.flac",
            split=labels.split(song),
            lyrics=song.lyrics,
            descriptions=descriptions,
            stems={stem: path for stem in STEMS if (path := folder / f"{stem}.flac").is_file()},
            syllables=tuple((s.start, s.end) for s in song.syllables),
            metadata={name: getattr(song, name) for name in known}
            | {
                "chords": [
                    (c.start, c.end, ChordSymbol(c.root, c.quality).name) for c in song.chords
                ]
            },
        )


def manifest_songs(path: Path) -> Iterator[SourceSong]:
    """Songs of a JSON Lines file; paths are relative to it. Raises InputError with the number of a
    wrong line.

    A model with an outline learns from `metadata` what was played: bpm, key (0 to 11, C = 0) with
    mode ("major" or "minor"), and chords as [start, end, symbol] in seconds, such as [0.0, 2.0,
    "F#m7"].
    """
    with path.open("rb") as lines:  # one at a time: a manifest may name millions of songs
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
                if not isinstance(row, dict):
                    raise ValueError(f"a JSON object is wanted, not {type(row).__name__}")
                song = _manifest_song(row, path.parent)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"'{path}' line {number}: "
                    f"{f'{error} is missing' if isinstance(error, KeyError) else error}"
                ) from None
            yield song


def _manifest_song(row: dict[str, Any], folder: Path) -> SourceSong:
    known = {"audio", "id", "lyrics", "split", "stems", "descriptions", "metadata"}
    if unknown := set(row) - known:
        raise ValueError(f"unknown fields {sorted(unknown)}: known are {sorted(known)}")
    split, stems = row.get("split", "train"), row.get("stems", {})
    for value, accepted in ((split, SPLITS), *((stem, STEMS) for stem in stems)):
        if value not in accepted:
            raise ValueError(f"'{value}' is none of {', '.join(accepted)}")
    descriptions = []
    for one in row.get("descriptions", ()):
        language, user = one.get("language", "en"), one.get("user", "none")
        for value, accepted in ((language, LANGUAGES), (user, USER_TYPES)):
            if value not in accepted:
                raise ValueError(f"'{value}' is none of {', '.join(accepted)}")
        descriptions.append(SourceDescription.of(language, user, one["text"]))
    metadata = row.get("metadata", {})
    _check_course(metadata)
    audio = folder / row["audio"]
    return SourceSong(
        id=str(row.get("id", Path(row["audio"]).with_suffix("").as_posix())),
        audio=audio,
        split=split,
        lyrics=row.get("lyrics", ""),
        descriptions=tuple(descriptions),
        stems={stem: folder / name for stem, name in stems.items()},
        metadata=metadata,
    )


def _check_course(known: Any) -> None:
    """Raises ValueError for metadata that is no object, or a tempo, a key or chords that training
    could not read.
    """
    if not isinstance(known, dict):
        raise ValueError(f"metadata {known!r} is no object")
    if "bpm" in known and not (
        _is_number(known["bpm"]) and SLOWEST_BPM <= known["bpm"] <= FASTEST_BPM
    ):
        raise ValueError(
            f"bpm {known['bpm']!r} is no number from {SLOWEST_BPM:g} to {FASTEST_BPM:g}"
        )
    if "key" in known and (
        type(known["key"]) is not int
        or known["key"] not in range(12)
        or known.get("mode") not in SCALES
    ):
        raise ValueError(
            f"key {known['key']!r} with mode {known.get('mode')!r}: write 0 to 11 (C = 0), and "
            f"{' or '.join(SCALES)}"
        )
    chords = known.get("chords", [])
    for chord in chords if isinstance(chords, list) else [chords]:
        match chord:
            case [start, end, str(symbol)] if (
                _is_number(start) and _is_number(end) and 0 <= start < end
            ):
                chord_symbol(symbol)
            case _:
                raise ValueError(
                    f"chord {chord!r} is no [start, end, symbol] with 0 <= start < end"
                )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def folder_songs(folder: Path) -> Iterator[SourceSong]:
    """Every audio file under `folder`; the relative path is the id. Raises InputError when there is
    none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise InputError(f"'{folder}' holds no audio file ({', '.join(AUDIO_SUFFIXES)})")
    for path in files:
        yield SourceSong(id=path.relative_to(folder).with_suffix("").as_posix(), audio=path)
