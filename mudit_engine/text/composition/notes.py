"""Notes of a melody, and the names that people give to pitches.

    pitch_of("C4")                      60
    pitch_name(61)                      'C#4'

Middle C is C4, MIDI 60. The pitches that a plan may hold are those that the network has a column
for (models/outline_columns.py): E2 to B5.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mudit_engine.errors import InputError
from mudit_engine.text.harmony import TONIC_NAMES, TONICS

LOWEST_PITCH, HIGHEST_PITCH = 40, 83  # E2 to B5
_NAME = re.compile(r"([A-Ga-g])([#b♯♭]?)(-?\d)")


class Note(NamedTuple):
    """A note from `start` to `end`, in seconds, of the MIDI pitch `midi`.

    Examples:
        >>> Note(0.0, 0.5, 60).midi
        60
    """

    start: float
    end: float
    midi: int


def pitch_of(name: str) -> int:
    """MIDI pitch of a name such as "C4", "F#3" or "Bb4".

    Raises:
        InputError: for another name, or a pitch outside of E2 to B5.

    Examples:
        >>> pitch_of("A4"), pitch_of("Bb3")
        (69, 58)
    """
    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise InputError(
            f"note '{name}' is unknown: write a letter, # or b, and an octave, such as C4 or F#3"
        )
    accidental = match[2].replace("♯", "#").replace("♭", "b")
    letter = TONICS[match[1].upper()]
    pitch = 12 * (int(match[3]) + 1) + letter + {"": 0, "#": 1, "b": -1}[accidental]
    return checked_pitch(pitch, name)


def checked_pitch(pitch: int, name: str) -> int:
    """The pitch itself. Raises InputError where it lies outside of what can be planned."""
    if not LOWEST_PITCH <= pitch <= HIGHEST_PITCH:
        raise InputError(
            f"note '{name}' lies outside of {pitch_name(LOWEST_PITCH)} to "
            f"{pitch_name(HIGHEST_PITCH)}: move the melody by octaves"
        )
    return pitch


def pitch_name(midi: int) -> str:
    """Name of a MIDI pitch with sharps: 60 is C4."""
    return f"{TONIC_NAMES[midi % 12]}{midi // 12 - 1}"
