"""The band: notes -> MIDI -> a General MIDI soundfont -> one stem each.

A whole chunk of songs is laid end to end, stem after stem, in one MIDI file and rendered by one
fluidsynth process: reading the soundfont is paid once, and silent channels cost nothing. Each
segment starts on a whole second and is preceded by silence, so that nothing rings over. Reverb and
chorus are off (mixing adds its own), output is float, as 16-bit output is dithered from a running
table.

    segments = render([Segment(notes, seconds, kit), ...], soundfont)
    # float32 [samples] each, mono at RENDER_RATE
"""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mudit_engine.availability import require, require_tool
from mudit_engine.errors import InputError, MissingError, OutputError
from mudit_engine.training.corpus.arrange import DRUMS, PartNote

# Soundfonts are sampled at 44.1 kHz and fluidsynth does not filter what lies above a lower output
# rate: it would fold back.
RENDER_RATE = 44100
_GAP = 3  # seconds of silence between segments, for releases to die
_TICKS = 1000  # per beat at 120 BPM: a tick is half a millisecond
_DRUM_CHANNEL = 9
SOUNDFONT_VARIABLE = "MUDIT_SOUNDFONT"
# MIT-licensed ones, in the places Debian and Fedora put them. TimGM6mb (GPL) is left out on
# purpose.
SOUNDFONTS = (
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/soundfonts/FluidR3_GM.sf2",
    "/usr/share/sounds/sf3/FluidR3Mono_GM.sf3",
    "/usr/share/sounds/sf3/MuseScore_General.sf3",
    "/usr/share/sounds/sf2/MuseScore_General.sf2",
)


@dataclass(frozen=True, slots=True)
class Segment:
    """One stem of one song: notes in seconds from its start."""

    notes: Sequence[PartNote]
    seconds: float
    kit: int = 0


def find_soundfont(path: str | Path | None = None) -> Path:
    """`path`, else $MUDIT_SOUNDFONT, else a known location.

    Raises MissingError with the install command, InputError for another kind of file.
    """
    named = path or os.environ.get(SOUNDFONT_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise MissingError(
                f"soundfont '{named}' does not exist: apt-get install fluid-soundfont-gm, or name "
                f"another .sf2/.sf3 file"
            )
        with Path(named).open("rb") as file:
            header = file.read(12)
        if header[:4] != b"RIFF" or header[8:] != b"sfbk":
            raise InputError(f"'{named}' is no soundfont: name a General MIDI .sf2 or .sf3 file")
        return Path(named)
    for place in SOUNDFONTS:
        if Path(place).is_file():
            return Path(place)
    raise MissingError(
        "rendering the band needs an MIT-licensed General MIDI soundfont, and none is in the usual "
        "places: "
        f"apt-get install fluid-soundfont-gm, or set {SOUNDFONT_VARIABLE} or --soundfont to a "
        f".sf2/.sf3 file"
    )


def _messages(
    segments: Sequence[Segment],
) -> tuple[list[tuple[int, int, str, dict[str, int]]], list[int], int]:
    """MIDI events as (tick, order, type, fields); start of each segment in seconds;
    end in seconds.
    """
    events: list[tuple[int, int, str, dict[str, int]]] = []
    starts: list[int] = []
    at = 1
    for segment in segments:
        starts.append(at)
        programs = sorted({note.program for note in segment.notes if note.program != DRUMS})
        channels = {
            program: place if place < _DRUM_CHANNEL else place + 1
            for place, program in enumerate(programs)
        }
        early = (at * 2 - 1) * _TICKS
        for program, channel in channels.items():
            events.append((early, 0, "program_change", {"channel": channel, "program": program}))
        events.append(
            (early, 0, "program_change", {"channel": _DRUM_CHANNEL, "program": segment.kit})
        )
        for note in segment.notes:
            channel = _DRUM_CHANNEL if note.program == DRUMS else channels[note.program]
            on = at * 2 * _TICKS + round(note.start * 2 * _TICKS)
            off = at * 2 * _TICKS + max(
                round(note.end * 2 * _TICKS), round(note.start * 2 * _TICKS) + 1
            )
            events.append(
                (
                    on,
                    2,
                    "note_on",
                    {"channel": channel, "note": note.pitch, "velocity": note.velocity},
                )
            )
            # Notes end before others begin at the same tick, or a repeated pitch would be cut.
            events.append(
                (off, 1, "note_off", {"channel": channel, "note": note.pitch, "velocity": 0})
            )
        at += math.ceil(segment.seconds) + _GAP
    events.sort(
        key=lambda event: (event[0], event[1], event[3].get("channel", 0), event[3].get("note", 0))
    )
    return events, starts, at


def write_midi(segments: Sequence[Segment], path: Path) -> tuple[list[int], int]:
    """One MIDI file of all segments end to end. Returns the start of each and the end, in whole
    seconds.
    """
    require("mido", "rendering the band")
    import mido

    events, starts, end = _messages(segments)
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000, time=0)])
    now = 0
    for tick, _, kind, fields in events:
        track.append(mido.Message(kind, time=tick - now, **fields))
        now = tick
    track.append(mido.MetaMessage("end_of_track", time=max(0, end * 2 * _TICKS - now)))
    file = mido.MidiFile(ticks_per_beat=_TICKS)
    file.tracks.append(track)
    file.save(path)
    return starts, end


def synthesise(midi: Path, wav: Path, soundfont: Path) -> None:
    """MIDI file -> stereo float WAV at RENDER_RATE. Raises MissingError without fluidsynth,
    OutputError when it fails.
    """
    program = require_tool("fluidsynth", "rendering the band")
    command = [
        program,
        "-n",
        "-i",
        "-q",
        "-R",
        "0",
        "-C",
        "0",
        "-g",
        "0.5",
        "-r",
        str(RENDER_RATE),
        "-O",
        "float",
        "-T",
        "wav",
    ]
    # Without an empty default, a soundfont that cannot be read is replaced by the system's,
    # whatever its licence.
    command += [
        "-o",
        "synth.default-soundfont=",
        "-o",
        "synth.dynamic-sample-loading=1",
        "-o",
        "synth.polyphony=512",
    ]
    command += ["-F", str(wav), str(soundfont), str(midi)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not wav.exists():
        raise OutputError(
            f"fluidsynth failed ({done.returncode}) on {midi.name}: {done.stderr.strip()[-300:]}"
        )


def render(segments: Sequence[Segment], soundfont: Path) -> list[np.ndarray]:
    """Mono float32 at RENDER_RATE, round(seconds * RENDER_RATE) samples per segment.

    Raises what synthesise raises, and OutputError for silence where there are notes.
    """
    import soundfile

    with tempfile.TemporaryDirectory(prefix="mudit-band-") as folder:
        midi, wav = Path(folder) / "chunk.mid", Path(folder) / "chunk.wav"
        starts, _ = write_midi(segments, midi)
        synthesise(midi, wav, soundfont)
        stereo, rate = soundfile.read(wav, dtype="float32")
    if rate != RENDER_RATE:
        raise OutputError(f"fluidsynth wrote {rate} Hz instead of {RENDER_RATE}")
    mono = stereo.mean(axis=1)
    rendered = []
    for segment, start in zip(segments, starts, strict=True):
        length = round(segment.seconds * RENDER_RATE)
        piece = mono[start * RENDER_RATE : start * RENDER_RATE + length]
        if segment.notes and not np.any(piece):
            # fluidsynth reports success for a soundfont it cannot read.
            raise OutputError(
                f"fluidsynth played nothing with soundfont '{soundfont}': is it a General MIDI "
                f".sf2 or .sf3 file?"
            )
        rendered.append(np.pad(piece, (0, length - len(piece))))
    return rendered
