"""A plan as a MIDI file: the melody with its words' places, chords, and where sections begin.

    write_plan("plan.mid", outline)

Tracks: "melody" (notes that are sung or led), "chords" (each held as long as it sounds), and in the
first one tempo and a marker a section with who plays in it. Ticks are 480 a beat, so that a note is
where it was planned to within a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mudit_engine.availability import require
from mudit_engine.files import atomic_path
from mudit_engine.text.outline import Outline

TICKS = 480  # a beat
_CHORD_OCTAVE = 48
DEFAULT_BPM = 120.0


def write_plan(path: str | Path, outline: Outline) -> Path:
    """Writes melody, chords and sections of a plan. Returns the path.

    Args:
        path: a .mid file.
        outline: the plan.

    Raises:
        MissingError: without the package mido.

    Examples:
        >>> import tempfile
        >>> from mudit_engine.text.composition.given import read_melody_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = write_plan(Path(folder) / "a.mid", Outline(90.0, melody=[(0.0, 0.5, 60)]))
        ...     read_melody_file(file).notes[0].midi
        60
    """
    require("mido", "writing a plan as MIDI")
    import mido

    bpm = outline.bpm or DEFAULT_BPM
    per_second = bpm / 60 * TICKS
    first = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm), time=0)])
    marks = [
        (
            round(one.start * per_second),
            mido.MetaMessage("marker", text=f"{one.name}: {' '.join(one.plays)}"),
        )
        for one in outline.arrangement
    ]
    _append(first, marks)
    file = mido.MidiFile(ticks_per_beat=TICKS)
    melody = [(start, end, (midi,)) for start, end, midi in outline.melody]
    chords = [
        (one.start, one.end, tuple(_CHORD_OCTAVE + p for p in one.symbol.pitch_classes))
        for one in outline.chords
    ]
    file.tracks.append(first)
    for name, channel, velocity, notes in (("melody", 0, 96, melody), ("chords", 1, 64, chords)):
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=name, time=0)])
        events = []
        for start, end, pitches in notes:
            on = round(start * per_second)
            off = max(on + 1, round(end * per_second))
            for pitch in pitches:
                event = {"channel": channel, "note": pitch, "velocity": velocity}
                events.append((on, mido.Message("note_on", **event)))
                events.append((off, mido.Message("note_off", **{**event, "velocity": 0})))
        # at one tick notes end before others begin
        _append(track, sorted(events, key=lambda one: (one[0], one[1].type == "note_on")))
        file.tracks.append(track)
    with atomic_path(Path(path)) as aside:
        file.save(aside)
    return Path(path)


def _append(track: Any, events: Iterable[tuple[int, Any]]) -> None:
    """Events at their ticks, as the differences that MIDI keeps."""
    at = 0
    for tick, message in events:
        track.append(message.copy(time=tick - at))
        at = tick
