"""Where songs come from before they are encoded: the labelled corpus, a manifest, or a folder of
audio files. All become SourceSong.

A manifest is JSON Lines; only `audio` is needed:
    {"audio": "a.flac", "id": "a", "lyrics": "[verse]\\n...", "split": "train",
     "stems": {"vocals": "v.flac"},
     "descriptions": [{"language": "zh", "user": "amateur", "text": "...",
                       "words": ["..."], "phrases": ["..."], "sentences": ["..."]}]}
`descriptions` may also be texts, or an object of texts by user type. Without words, phrases and
sentences the text is split; with them it may be left out. Annotations in another form become such a
manifest by a field map (annotations.py). What lies beside the files of
a folder is told in beside.py.

    for song in open_source("corpus"): ...
    for song in open_source("songs.jsonl", on_bad=refused.__setitem__): ...     # and goes on
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError, MuditError
from mudit_engine.names import USER_TYPES
from mudit_engine.text.composition.arrangement import section_of
from mudit_engine.text.descriptions import (
    FASTEST_BPM,
    SLOWEST_BPM,
    description_fragments,
    fragments,
)
from mudit_engine.text.harmony import SCALES, ChordSymbol, chord_symbol
from mudit_engine.text.mandarin import is_han
from mudit_engine.training.dataset.beside import AUDIO_SUFFIXES, audio_files, row_of
from mudit_engine.training.dataset.shards import LANGUAGES, SPLITS, STEMS

_FULL_STOPS = "。.!！?？"
BY_LEVEL = {"words": "word", "phrases": "phrase", "sentences": "sentence"}
MOST_FRAGMENTS = 32  # of the description as the engine itself would split it


@dataclass(frozen=True)
class SourceFragment:
    """A piece of a description. `in_request`: a request with this description would give it; the
    others are further ways to say it.
    """

    text: str
    level: str
    in_request: bool


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
        in_request = description_fragments(text, MOST_FRAGMENTS)
        parts = {one: SourceFragment(one, levels.get(one, "sentence"), True) for one in in_request}
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


OnBad = Callable[[str, str], None]  # what it is called, and what is wrong with it


def open_source(path: str | Path, *, on_bad: OnBad | None = None) -> Iterator[SourceSong]:
    """The songs of a corpus folder, a .jsonl manifest, or a folder of audio files.

    Args:
        path: one of the three.
        on_bad: told of a song that cannot be read, and the others follow; without it, it raises.

    Returns:
        Songs one after the other, nothing of them decoded yet.

    Raises:
        InputError: for a path that is none of the three, a song that cannot be read, and always
            where two songs have one id.

    Examples:
        >>> [song.id for song in open_source(audio_folder)]
        ['one', 'two']
    """
    path = Path(path)
    if path.is_file():
        return _unique(manifest_songs(path, on_bad=on_bad), path)
    if (path / "corpus.json").is_file():
        return _unique(corpus_songs(path, on_bad=on_bad), path)
    if path.is_dir():
        return folder_songs(path, on_bad=on_bad)
    raise InputError(
        f"no songs at '{path}': give a corpus folder, a .jsonl manifest or a folder of "
        f"{', '.join(AUDIO_SUFFIXES)} files"
    )


def _unique(songs: Iterator[SourceSong], path: Path) -> Iterator[SourceSong]:
    seen: set[int] = set()  # of hashes: a set of a million ids would cost much more
    for song in songs:
        key = hash(song.id)
        if key in seen:
            raise InputError(
                f"'{path}' holds the id {song.id!a} more than once: give every song one of its own"
            )
        seen.add(key)
        yield song


def corpus_songs(corpus: Path, *, on_bad: OnBad | None = None) -> Iterator[SourceSong]:
    """The labelled corpus, with everything its labels know."""
    from mudit_engine.training.corpus import labels

    for folder in labels.song_folders(corpus):
        try:
            song = _corpus_song(folder)
        except (MuditError, OSError, ValueError, KeyError, TypeError) as error:
            _bad(on_bad, folder.name, f"'{folder}' cannot be read: {_told(error)}")
            continue
        yield song


def _corpus_song(folder: Path) -> SourceSong:
    from mudit_engine.training.corpus import labels

    song = labels.Song.load(folder)
    descriptions = tuple(
        SourceDescription.of(
            d.language,
            d.user,
            d.text,
            {"sentence": d.sentences, "phrase": d.phrases, "word": d.words},
        )
        for d in song.descriptions
        if not d.unseen
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
    return SourceSong(
        id=song.id,
        audio=folder / "mix.flac",
        split=labels.split(song),
        lyrics=song.lyrics,
        descriptions=descriptions,
        stems={stem: path for stem in STEMS if (path := folder / f"{stem}.flac").is_file()},
        syllables=tuple((s.start, s.end) for s in song.syllables),
        metadata={name: getattr(song, name) for name in known}
        | {"chords": [(c.start, c.end, ChordSymbol(c.root, c.quality).name) for c in song.chords]}
        | {"melody": [(n.start, n.end, n.midi) for n in song.melody]}
        | {"arrangement": [dataclasses.asdict(section) for section in song.arrangement]},
    )


def manifest_songs(path: Path, *, on_bad: OnBad | None = None) -> Iterator[SourceSong]:
    """Songs of a JSON Lines file; paths are relative to it. A wrong line is named by its number.

    A model with an outline learns from `metadata` what was played: bpm, key (0 to 11, C = 0) with
    mode ("major" or "minor"), chords as [start, end, symbol] in seconds, such as [0.0, 2.0,
    "F#m7"], melody as [start, end, MIDI pitch], arrangement as sections (text/composition/
    arrangement.py, `section_of`), drums (true or false), voice and style (names.py).
    """
    with path.open("rb") as lines:  # one at a time: a manifest may name millions of songs
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                # a byte order mark is what some editors put before the first line
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(row, dict):
                    raise ValueError(f"a JSON object is wanted, not {type(row).__name__}")
                song = row_song(row, path.parent)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                _bad(on_bad, f"line {number}", f"'{path}' line {number}: {_told(error)}")
                continue
            yield song


def _bad(on_bad: OnBad | None, name: str, reason: str) -> None:
    if on_bad is None:
        raise InputError(reason)
    on_bad(name, reason)


def _told(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def row_song(row: dict[str, Any], folder: Path) -> SourceSong:
    """The song of a manifest's line. Raises ValueError, KeyError or TypeError for what it must not
    hold.
    """
    known = {"audio", "id", "lyrics", "split", "stems", "descriptions", "metadata"}
    if unknown := set(row) - known:
        raise ValueError(f"unknown fields {sorted(unknown)}: known are {sorted(known)}")
    # null says that nothing is known, as leaving the field out does; chords, which metadata hold,
    # have no such meaning of null
    row = {name: value for name, value in row.items() if value is not None}
    audio, split, lyrics = row["audio"], row.get("split", "train"), row.get("lyrics", "")
    stems, metadata = row.get("stems", {}), row.get("metadata", {})
    for what, value in (("audio", audio), ("split", split), ("lyrics", lyrics)):
        if not isinstance(value, str):
            raise ValueError(f"{what} must be a text, not {value!r}")
    if not isinstance(stems, dict) or not all(isinstance(name, str) for name in stems.values()):
        raise ValueError(f"stems must be an object of files, not {stems!r}")
    song_id = row.get("id", Path(audio).with_suffix("").as_posix())
    if type(song_id) not in (str, int) or song_id == "":
        raise ValueError(f"id {song_id!r} is no text")
    for value, accepted in ((split, SPLITS), *((stem, STEMS) for stem in stems)):
        if value not in accepted:
            raise ValueError(f"'{value}' is none of {', '.join(accepted)}")
    _check_course(metadata)
    return SourceSong(
        id=str(song_id),
        audio=folder / audio,
        split=split,
        lyrics=lyrics,
        descriptions=tuple(_descriptions(row.get("descriptions", ()))),
        stems={stem: folder / name for stem, name in stems.items()},
        metadata=metadata,
    )


def _descriptions(given: Any) -> Iterator[SourceDescription]:
    """A text, an object of texts by user type, or a list of texts and of objects with a text."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, dict):
        given = [
            {"user": user, "text": text}
            for user, texts in given.items()
            for text in (texts if isinstance(texts, list) else [texts])
        ]
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"descriptions must be texts or objects with a text, not {given!r}")
    for one in given:
        fields = {"text": one} if isinstance(one, str) else one
        levels = _levels(fields) if isinstance(fields, dict) else None
        if not isinstance(fields, dict) or not isinstance(
            fields.get("text", "" if levels else None), str
        ):
            raise ValueError(f"description {one!r} is neither a text nor an object with a text")
        if unknown := set(fields) - {"text", "language", "user", *BY_LEVEL}:
            raise ValueError(f"description has unknown fields {sorted(unknown)}")
        text = fields.get("text") or "，".join(chain.from_iterable((levels or {}).values()))
        language = fields.get("language") or ("zh" if any(map(is_han, text)) else "en")
        user = fields.get("user") or "none"
        for value, accepted in ((language, LANGUAGES), (user, USER_TYPES)):
            if value not in accepted:
                raise ValueError(f"'{value}' is none of {', '.join(accepted)}")
        if levels is None:
            yield SourceDescription.of(language, user, text)
            continue
        # what annotators wrote at each level, and not the engine's own way of splitting it; a
        # request would hold their sentences
        yield SourceDescription(
            language,
            user,
            text,
            tuple(
                SourceFragment(part, level, level == "sentence" or not levels["sentence"])
                for level, parts in levels.items()
                for part in dict.fromkeys(parts)
            ),
        )


def _levels(fields: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """The texts of each level, None where a description has none of its own."""
    if not set(BY_LEVEL) & set(fields):
        return None
    found: dict[str, list[str]] = {}
    for name, level in BY_LEVEL.items():
        parts = fields.get(name) or []
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{name} must be a list of texts, not {parts!r}")
        found[level] = [part.strip() for part in parts if part.strip()]
    return found if any(found.values()) else None


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
    for note in known.get("melody", []):
        match note:
            case [start, end, int(midi)] if (
                _is_number(start) and _is_number(end) and 0 <= start < end and 0 <= midi < 128
            ):
                pass
            case _:
                raise ValueError(
                    f"note {note!r} of the melody is no [start, end, MIDI pitch] with 0 <= start < "
                    "end"
                )
    for section in known.get("arrangement", []):
        section_of(section)
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


def folder_songs(folder: Path, *, on_bad: OnBad | None = None) -> Iterator[SourceSong]:
    """Every song under `folder` with what lies beside it; the relative path is the id. Raises
    InputError when there is none, and where two files would share an id.
    """
    for file in audio_files(folder):
        try:
            song = row_song(row_of(file), folder)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            _bad(on_bad, file.id, f"'{file.audio}': {_told(error)}")
            continue
        yield song
