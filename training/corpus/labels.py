"""What is known about a song of the corpus, as frozen dataclasses that go to and from JSON without
loss.

A corpus folder is `corpus.json` (how it was made) and one folder per song, `songs/000123/`, with
`song.json` (a `Song`), `mix.flac` and one file per stem. mix = sum of the stems, sample for sample
up to 16-bit rounding; a stem that would be silent (vocals of an instrumental, drums of a song
without drums) has no file. All times are seconds from the first sample.

    for folder in song_folders("corpus"):
        song = Song.load(folder)
        print(song.id, split(song), song.bpm, song.key_name, song.lyrics)
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mudit_engine.errors import InputError
from mudit_engine.text.composition.arrangement import PlannedSection

SCHEMA_VERSION = 3
STEMS = ("vocals", "drums", "bass", "chords")
VOICES = ("none", "male", "female", "child")
TIMBRES = ("none", "clear", "breathy", "bright")
SECTIONS = ("intro", "verse", "pre-chorus", "chorus", "bridge", "outro")
KEYS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
HELD_OUT_SHARE = 0.12  # of songs, and of lyric lines


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the form: bars [first_bar, first_bar + bars)."""

    name: str  # one of SECTIONS
    start: float
    end: float
    first_bar: int
    bars: int


@dataclass(frozen=True, slots=True)
class Chord:
    """`root` is a pitch class 0-11 (C = 0); `quality` is one of text.harmony.QUALITIES; `roman` is
    relative to the key.
    """

    start: float
    end: float
    root: int
    quality: str
    roman: str


@dataclass(frozen=True, slots=True)
class Note:
    """A melody note: sung in a song with a voice, played by the lead instrument otherwise. `midi`
    60 is middle C.
    """

    start: float
    end: float
    midi: int


@dataclass(frozen=True, slots=True)
class Syllable:
    """One sung syllable on one note. The vowel begins at `start`; the consonant before it sounds up
    to 0.15 s earlier.

    `text` is a Chinese character, or the syllable's share of an English word ("re", "mem", "ber").
    `phonemes` are the pinyin with tone number ("yue4"), or ARPAbet without stress digits ("M EH
    M"). `word` counts words (zh: characters) and `line` counts lyric lines of the song, both from
    0.
    """

    start: float
    end: float
    midi: int
    text: str
    phonemes: str
    word: int
    line: int


@dataclass(frozen=True, slots=True)
class Line:
    """One sung line. `id` names the text itself: the same words have the same id in every song."""

    id: str
    text: str
    section: int  # index into Song.form
    rhyme: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Description:
    """One way to ask for the song. `text` is whole; the fragments are parts of it or say the same
    facts in fewer words.
    """

    language: Literal["zh", "en"]
    user: Literal["professional", "amateur"]
    text: str
    words: tuple[str, ...]
    phrases: tuple[str, ...]
    sentences: tuple[str, ...]
    unseen: bool = False  # in words and sentences that no training song is described by


@dataclass(frozen=True, slots=True)
class Song:
    """Everything the generator decided. The audio is made from this and from nothing else but
    `seed` and `index`.
    """

    schema: int
    id: str
    seed: int
    index: int
    held_out: bool
    style: str  # one of STYLES
    instrument_set: str  # an id from styles.STYLE_BOOK
    instruments: tuple[str, ...]
    bpm: int
    key: int  # pitch class of the tonic, C = 0
    mode: Literal["major", "minor"]
    seconds: float
    sample_rate: int
    drums: bool
    voice: str  # one of VOICES
    timbre: str  # one of TIMBRES
    language: Literal["none", "zh", "en"]
    progressions: tuple[str, ...]  # ids of the chord progressions, in order of first use
    bars: tuple[float, ...]  # start of every bar; 4/4 throughout
    form: tuple[Section, ...]
    chords: tuple[Chord, ...]
    melody: tuple[Note, ...]
    arrangement: tuple[PlannedSection, ...]  # who plays in each part of the form
    lyrics: str
    lines: tuple[Line, ...]
    syllables: tuple[Syllable, ...]
    descriptions: tuple[Description, ...]
    stems: tuple[str, ...]  # which of STEMS have a file

    @property
    def key_name(self) -> str:
        """For people: "A minor", "Eb major"."""
        return f"{KEYS[self.key]} {self.mode}"

    @property
    def line_ids(self) -> frozenset[str]:
        return frozenset(line.id for line in self.lines)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Song:
        """Raises InputError for another schema version, unknown or missing fields."""
        data = json.loads(text)
        if data.get("schema") != SCHEMA_VERSION:
            found = data.get("schema")
            raise InputError(
                f"song label has schema {found!r}, this version reads {SCHEMA_VERSION}: make the "
                f"corpus again, into another folder"
            )
        return _build(cls, data)

    @classmethod
    def load(cls, folder: Path) -> Song:
        return cls.from_json((Path(folder) / "song.json").read_text(encoding="utf-8"))


def split(song: Song) -> Literal["train", "test"]:
    """A test song holds only lyric lines and chord progressions that no training song of any seed
    can hold.

    The share is decided by (seed, index); the lines by a hash of their text, the progressions by
    name. See `lyrics.is_held_out_line` and `text.harmony.PROGRESSIONS`.
    """
    return "test" if song.held_out else "train"


def song_folders(corpus: Path | str) -> Iterator[Path]:
    """Folders of finished songs, by id. Raises InputError when `corpus` holds none."""
    folders = sorted(path.parent for path in Path(corpus).glob("songs/*/song.json"))
    if not folders:
        raise InputError(
            f"'{corpus}' holds no songs: make some with `mudit data synth --out {corpus}`"
        )
    yield from folders


def _build(kind: Any, data: Any) -> Any:
    """JSON value -> `kind`, a (nested) dataclass, tuple or plain type."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if set(data) != set(hints):
            raise InputError(
                f"{kind.__name__} label: missing {sorted(set(hints) - set(data))}, unknown "
                f"{sorted(set(data) - set(hints))}"
            )
        return kind(**{name: _build(hints[name], value) for name, value in data.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(_build(typing.get_args(kind)[0], value) for value in data)
    return data
