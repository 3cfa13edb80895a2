"""A melody that somebody brings: names of notes, a MIDI file, or a MusicXML file.

    parse_melody("C4 D4 E4 G4 | E4 D4 C4")       names, one a syllable; | ends a line of the lyrics
    read_melody_file("tune.mid")                 .mid .midi .musicxml .xml, with rhythm and tempo

Names take the planned rhythm, files bring theirs. Files are read without entities or links, and
one voice of one part sings: the one with words, else the first with notes.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mudit_engine.availability import require
from mudit_engine.errors import InputError
from mudit_engine.text.composition.notes import Note, checked_pitch, pitch_name, pitch_of
from mudit_engine.text.phonemes import PhonemeSequence, lines_of_sections

MELODY_SUFFIXES = (".mid", ".midi", ".musicxml", ".xml")
LARGEST_FILE = 8_000_000  # bytes
BEATS = 4


@dataclass(frozen=True)
class GivenNote:
    """`start` and `end` in beats of the song, None where the rhythm is planned; `bar` from 1."""

    midi: int
    bar: int
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class GivenMelody:
    """Notes that somebody wrote.

    Args:
        notes: in order.
        lines: notes of each line of the lyrics, where the writer said so.
        bpm: tempo of a file, if it says one.
        source: what messages call it.

    Examples:
        >>> parse_melody("C4 E4 | G4").lines
        (2, 1)
    """

    notes: tuple[GivenNote, ...]
    lines: tuple[int, ...] = ()
    bpm: float | None = None
    source: str = "melody"

    @property
    def timed(self) -> bool:
        """Whether it brings its own rhythm."""
        return self.notes[0].start is not None

    @property
    def end_beat(self) -> float:
        """Where the last bar ends, in beats; 0 without a rhythm."""
        last = max((note.end or 0.0 for note in self.notes), default=0.0)
        return -(-last // BEATS) * BEATS


def parse_melody(text: str) -> GivenMelody:
    """Names of notes, one a syllable: C4 is middle C; | ends a line of the lyrics.

    Raises:
        InputError: for a name that is none, or no note at all; it names the bar and the place.

    Examples:
        >>> [note.midi for note in parse_melody("C4 D4 Bb3").notes]
        [60, 62, 58]
    """
    notes: list[GivenNote] = []
    lines: list[int] = []
    parts = text.replace("\n", " | ").split("|")
    for number, part in enumerate(filter(str.strip, parts), 1):
        names = part.split()
        for place, name in enumerate(names, 1):
            try:
                notes.append(GivenNote(pitch_of(name), number))
            except InputError as error:
                raise InputError(f"melody, bar {number}, note {place}: {error}") from None
        lines.append(len(names))
    if not notes:
        raise InputError("the melody has no notes: write names such as 'C4 D4 E4', or give a file")
    return GivenMelody(tuple(notes), tuple(lines) if "|" in text or "\n" in text.strip() else ())


def read_melody_file(path: str | Path) -> GivenMelody:
    """The melody of a MIDI or MusicXML file.

    Raises:
        InputError: for another kind of file, one that is broken, several notes at once, or pitches
            that cannot be sung; it names the bar.
        MissingError: for MIDI without the package mido.
    """
    path = Path(path)
    if path.suffix.lower() not in MELODY_SUFFIXES:
        raise InputError(
            f"melody '{path}': give one of {', '.join(MELODY_SUFFIXES)}, or names of notes such as "
            "'C4 D4 E4'"
        )
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"melody '{path}' is larger than {LARGEST_FILE:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"melody '{path}' cannot be read: {error.strerror}") from None
    if path.suffix.lower() in (".mid", ".midi"):
        raw, bpm = _midi_notes(path, data)
    else:
        raw, bpm = _musicxml_notes(path, data)
    notes: list[GivenNote] = []
    for start, end, midi in sorted(raw):
        bar = int(start // BEATS) + 1
        if notes and start < (notes[-1].end or 0) - 0.1:
            raise InputError(
                f"melody '{path}', bar {bar}: {pitch_name(midi)} begins while "
                f"{pitch_name(notes[-1].midi)} sounds: keep one note at a time"
            )
        try:
            checked_pitch(midi, pitch_name(midi))
        except InputError as error:
            raise InputError(f"melody '{path}', bar {bar}: {error}") from None
        if notes and (before := notes[-1]).end is not None and before.end > start:
            notes[-1] = GivenNote(before.midi, before.bar, before.start, start)
        notes.append(GivenNote(midi, bar, start, end))
    if not notes:
        raise InputError(f"melody '{path}' has no notes")
    return GivenMelody(tuple(notes), (), bpm, f"melody '{path}'")


@dataclass(frozen=True)
class SungMelody:
    """A given melody on a song: its notes in seconds, and when each syllable is sung."""

    notes: tuple[Note, ...]
    syllables: np.ndarray | None


def sung_as_given(
    melody: GivenMelody,
    song: PhonemeSequence | None,
    planned: np.ndarray | None,
    *,
    bpm: float,
    seconds: float,
) -> SungMelody:
    """A note for each syllable, at the file's times or at the planned ones.

    Args:
        melody: what was given.
        song: what is sung; None for an instrumental.
        planned: [syllables, 2], when each would be sung; None for an instrumental.
        bpm: beats a minute.
        seconds: length of the song.

    Returns:
        Notes and syllables in seconds.

    Raises:
        InputError: where notes and syllables do not come out even; it names bar and syllable.
    """
    beat = 60 / bpm
    if song is None or planned is None:
        times = [
            (
                (note.start, note.end or note.start + 1)
                if note.start is not None
                else (float(number), number + 0.95)
            )
            for number, note in enumerate(melody.notes)
        ]
        led = [
            Note(round(a * beat, 4), round(b * beat, 4), note.midi)
            for (a, b), note in zip(times, melody.notes, strict=True)
        ]
        return SungMelody(tuple(one for one in led if one.start < seconds), None)
    _check_even(melody, song)
    syllables = np.array(planned, np.float32)
    if melody.timed:
        for number, note in enumerate(melody.notes):
            start = (note.start or 0.0) * beat
            end = (note.end or 0.0) * beat
            if start >= seconds:
                raise InputError(
                    f"{melody.source}, bar {note.bar}: syllable {number + 1} of "
                    f"{song.syllables} would be sung at {start:.1f} s, after the end of the song "
                    f"at {seconds:g} s: ask for more seconds or a faster tempo"
                )
            syllables[number] = start, min(end, seconds)
    notes = [
        Note(round(float(start), 4), round(float(end), 4), note.midi)
        for note, (start, end) in zip(melody.notes, syllables, strict=True)
        if start >= 0
    ]
    return SungMelody(tuple(notes), syllables)


def _check_even(melody: GivenMelody, song: PhonemeSequence) -> None:
    """Raises InputError that names the first syllable without a note or the first note too many."""
    counts = [count for _, lines in lines_of_sections(song) for count in lines]
    notes = melody.notes
    if melody.lines and len(melody.lines) == len(counts):
        for line, (have, want) in enumerate(zip(melody.lines, counts, strict=True), 1):
            if have != want:
                raise InputError(
                    f"{melody.source}, bar {line}: line {line} of the lyrics has {want} syllables "
                    f"and {have} notes: {_odd(have, want, 'of this line')}"
                )
    if len(notes) != song.syllables:
        ends = [sum(counts[: n + 1]) for n in range(len(counts))]
        first = min(len(notes), song.syllables)
        line = bisect.bisect_right(ends, first) + 1
        where = (
            f"syllable {first + 1} (line {line} of the lyrics) has no note, the melody ends in bar "
            f"{notes[-1].bar}"
            if len(notes) < song.syllables
            else f"note {first + 1} in bar {notes[first].bar} has no syllable"
        )
        raise InputError(
            f"{melody.source}: {len(notes)} notes for {song.syllables} syllables: {where}. Give "
            "one note a syllable"
        )


def _odd(have: int, want: int, of: str) -> str:
    first = min(have, want) + 1
    return f"{'syllable' if have < want else 'note'} {first} {of} is left over"


def _midi_notes(path: Path, data: bytes) -> tuple[list[tuple[float, float, int]], float | None]:
    """(start, end, pitch) in beats of the track that sings, and the first tempo."""
    import io

    require("mido", "reading a MIDI melody")
    import mido

    try:
        file = mido.MidiFile(file=io.BytesIO(data), clip=True)
    except Exception as error:  # mido raises EOFError, OSError, ValueError, KeyError, IndexError
        raise InputError(f"melody '{path}' is no MIDI file that can be read ({error})") from None
    bpm = None
    tracks: list[tuple[int, list[tuple[float, float, int]]]] = []
    for track in file.tracks:
        at, words = 0, 0
        sounding: dict[int, int] = {}
        notes: list[tuple[float, float, int]] = []
        for message in track:
            at += message.time
            if message.type == "set_tempo" and bpm is None:
                bpm = round(mido.tempo2bpm(message.tempo), 3)
            elif message.type == "lyrics":
                words += 1
            elif message.type in ("note_on", "note_off") and message.channel != 9:
                begun = sounding.pop(message.note, None)
                if begun is not None and at > begun:
                    per = file.ticks_per_beat
                    notes.append((begun / per, at / per, message.note))
                if message.type == "note_on" and message.velocity:
                    sounding[message.note] = at
        if notes:
            tracks.append((words, notes))
    if not tracks:
        return [], bpm
    # words say who sings; max keeps the first of equals
    return max(tracks, key=lambda track: track[0])[1], bpm


@dataclass
class _Element:
    tag: str
    attributes: dict[str, str]
    children: list[_Element] = field(default_factory=list)
    text: str = ""

    def first(self, tag: str) -> _Element | None:
        return next((child for child in self.children if child.tag == tag), None)

    def value(self, tag: str, default: str = "") -> str:
        found = self.first(tag)
        return found.text.strip() if found is not None else default

    def every(self, tag: str) -> Iterator[_Element]:
        return (child for child in self.children if child.tag == tag)


def _xml(path: Path, data: bytes) -> _Element:
    """The tree of an XML file. Entities and files that it names are refused, not followed."""
    from xml.parsers import expat

    root = _Element("", {})
    open_elements = [root]
    parser = expat.ParserCreate()

    def begin(tag: str, attributes: dict[str, str]) -> None:
        element = _Element(tag, attributes)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def text(words: str) -> None:
        open_elements[-1].text += words

    def refuse(*_: object) -> None:
        raise InputError(f"melody '{path}' declares entities: save it without a document type")

    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _: open_elements.pop()
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(f"melody '{path}' is no XML that can be read ({error})") from None
    return root


def _musicxml_notes(path: Path, data: bytes) -> tuple[list[tuple[float, float, int]], float | None]:
    """(start, end, pitch) in beats of the part and voice that sing, and the first tempo."""
    score = _xml(path, data).first("score-partwise")
    if score is None:
        raise InputError(
            f"melody '{path}' is no partwise MusicXML: export it as .musicxml (not compressed)"
        )
    parts = [_part_notes(path, part) for part in score.every("part")]
    voices = [voice for found, _ in parts for voice in found if voice]
    bpm = next((tempo for _, tempo in parts if tempo), None)
    if not voices:
        return [], bpm
    sung = max(voices, key=lambda notes: sum(words for *_, words in notes))
    return [(start, end, midi) for start, end, midi, _ in sung], bpm


_Sung = list[tuple[float, float, int, bool]]


def _part_notes(path: Path, part: _Element) -> tuple[list[_Sung], float | None]:
    voices: dict[str, _Sung] = {}
    bpm: float | None = None
    at, divisions = 0.0, 1.0
    for number, measure in enumerate(part.every("measure"), 1):
        begin = reached = at
        for element in measure.children:
            try:
                if element.tag == "attributes":
                    divisions = float(element.value("divisions") or divisions)
                elif element.tag in ("backup", "forward"):
                    moved = float(element.value("duration", "0")) / divisions
                    at += moved if element.tag == "forward" else -moved
                elif element.tag in ("direction", "sound") and bpm is None:
                    bpm = _tempo(element if element.tag == "sound" else element.first("sound"))
                elif element.tag == "note" and element.first("grace") is None:
                    at = _note(element, at, divisions, voices)
            except (ValueError, KeyError, ZeroDivisionError) as error:
                raise InputError(f"melody '{path}', bar {number}: {error} cannot be read") from None
            reached = max(reached, at)
        at = max(begin, reached)
    return list(voices.values()), bpm


def _tempo(sound: _Element | None) -> float | None:
    """What a sound element says of the tempo."""
    said = "" if sound is None else sound.attributes.get("tempo", "")
    return float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else None


def _note(element: _Element, at: float, divisions: float, voices: dict[str, _Sung]) -> float:
    """Adds a note to its voice and returns where the next begins."""
    length = float(element.value("duration", "0")) / divisions
    sung = voices.setdefault(element.value("voice", "1"), [])
    pitch = element.first("pitch")
    if pitch is None:  # a rest, or a drum
        return at if element.first("chord") else at + length
    letter = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}[pitch.value("step")]
    midi = 12 * (int(pitch.value("octave")) + 1) + letter + int(float(pitch.value("alter", "0")))
    ties = {tie.attributes.get("type") for tie in element.every("tie")}
    if element.first("chord") is not None:  # sounds with the note before it
        start = sung[-1][0] if sung else at
        sung.append((start, start + length, midi, False))
        return at
    if "stop" in ties and sung and sung[-1][2] == midi:
        start, _, _, words = sung[-1]
        sung[-1] = (start, at + length, midi, words)
    else:
        sung.append((at, at + length, midi, element.first("lyric") is not None))
    return at + length


def melody_text(notes: Sequence[tuple[float, float, int]]) -> str:
    """Names of notes in order, as `parse_melody` reads them."""
    return " ".join(pitch_name(midi) for _, _, midi in notes)
