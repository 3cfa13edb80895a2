"""Chords: symbols, Roman numerals, and the plan of a song's harmony before a note of it exists.

"C | Am F | G7"      bars between |, whose chords share it evenly; without any |, a bar a chord
"I V vi IV"          numerals in the natural scale of the mode: upper case is a major triad,
                     lower case a minor one

symbols = realise("I V vi IV".split(), key=9, mode="major", sevenths=False)      # A E F#m D
chords = planned_chords(bars, "A major", seed=1)      # a progression for each kind of section
chords = repeated_chords(bars, parse_chords("C | Am F | G"))
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mudit_engine.errors import InputError

QUALITIES: dict[str, tuple[int, ...]] = {
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "dim": (0, 3, 6),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "dom7": (0, 4, 7, 10),
}
_TRIAD_OF = {"maj7": "maj", "min7": "min", "dom7": "maj"}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
TONIC_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
TONICS = {name: number for number, name in enumerate(TONIC_NAMES)}
TONICS |= {"Db": 1, "Eb": 3, "Gb": 6, "Ab": 8, "Bb": 10, "Cb": 11, "Fb": 4, "E#": 5, "B#": 0}
_NUMERALS = ("i", "ii", "iii", "iv", "v", "vi", "vii")
_SUFFIXES = {
    "": "maj",
    "maj": "maj",
    "m": "min",
    "min": "min",
    "-": "min",
    "dim": "dim",
    "°": "dim",
}
_SUFFIXES |= {"7": "dom7", "maj7": "maj7", "M7": "maj7", "m7": "min7", "min7": "min7", "-7": "min7"}
_SUFFIX_OF = {quality: suffix for suffix, quality in reversed(_SUFFIXES.items())}
_CHORD = re.compile(r"([A-G])([#b♯♭]?)([^\s/|]*)")

# Four bars each. They start on the tonic or come back to it: a loop such as vi IV I V is heard in
# either of two keys.
PROGRESSIONS: dict[str, tuple[str, ...]] = {
    "major": (
        "I V vi IV",
        "I vi IV V",
        "I IV I V",
        "I IV vi V",
        "I iii IV V",
        "I ii IV V",
        "I V IV V",
        "I vi ii V",
        "I IV ii V",
        "I V vi iii",
        "I I IV V",
        "I V I IV",
        "I iii vi IV",
        "IV I V I",
    ),
    "minor": (
        "i VI i v",
        "i VII VI VII",
        "i iv VII i",
        "i VI VII i",
        "i iv i v",
        "i VI iv VII",
        "i iv i VII",
        "i v VI VII",
        "i iv VI V",
        "i VII iv V",
        "i III iv VI",
        "VI VII i i",
        "i VI iv V",
        "i III VI VII",
    ),
}
# which of a song's three progressions a section plays
PART_OF = {"verse": 0, "intro": 0, "chorus": 1, "outro": 1}
OTHER_PART = 2  # what every other section plays


@dataclass(frozen=True, slots=True)
class ChordSymbol:
    """`root`: pitch class 0-11, C = 0; `quality` one of QUALITIES; `roman` as it was asked for, if
    it was by numeral.
    """

    root: int
    quality: str
    roman: str = ""

    @property
    def name(self) -> str:
        """As parse_chords reads it: "F#m7"."""
        return TONIC_NAMES[self.root] + _SUFFIX_OF[self.quality]

    @property
    def triad(self) -> ChordSymbol:
        """Without its seventh."""
        return ChordSymbol(self.root, _TRIAD_OF.get(self.quality, self.quality), self.roman)

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        return tuple((self.root + step) % 12 for step in QUALITIES[self.quality])


@dataclass(frozen=True, slots=True)
class TimedChord:
    """A chord from `start` to `end`, in seconds."""

    start: float
    end: float
    symbol: ChordSymbol


@dataclass(frozen=True, slots=True)
class Bars:
    """The whole bars of a song: their length in seconds, and sections (name, bars) in order."""

    seconds: float
    sections: tuple[tuple[str, int], ...]


def key_parts(name: str) -> tuple[int, str]:
    """Pitch class and mode of a key such as "F# minor". Raises InputError for an unknown name."""
    tonic, _, mode = name.partition(" ")
    if tonic not in TONICS or mode not in SCALES:
        raise InputError(
            f"key '{name}' is unknown: write a tonic and a mode, such as 'A minor', 'F# minor' or "
            f"'Eb major'"
        )
    return TONICS[tonic], mode


def realise(numerals: Sequence[str], *, key: int, mode: str, sevenths: bool) -> list[ChordSymbol]:
    """Roman numerals -> chords in `key`. `sevenths` adds the scale's own seventh (dominant on V),
    as jazz does.
    """
    scale = SCALES[mode]
    chords = []
    for roman in numerals:
        degree = _NUMERALS.index(roman.lower())
        step = scale[degree]
        quality = "maj" if roman.isupper() else "min"
        if sevenths:
            # A dominant seventh belongs to V, and to VII of the minor mode (V of the relative
            # major); others keep the scale's.
            dominant = quality == "maj" and (degree == 4 or (mode == "minor" and degree == 6))
            quality = "dom7" if dominant else {"maj": "maj7", "min": "min7"}[quality]
        chords.append(ChordSymbol((key + step) % 12, quality, roman))
    return chords


def parse_chords(text: str) -> list[list[ChordSymbol]]:
    """The chords of each bar, as a user writes them.

    Args:
        text: a chord a bar, "C G Am F"; or bars between |, "C | Am F | G7", whose chords share the
            bar evenly. Known are major and minor triads, dim, 7, maj7 and m7.

    Returns:
        The symbols of each bar.

    Raises:
        InputError: for an unknown symbol, an empty bar or no chord at all.

    Examples:
        >>> [[chord.name for chord in bar] for bar in parse_chords("C | Am F | G7")]
        [['C'], ['Am', 'F'], ['G7']]
    """
    bars = (
        [bar.split() for bar in text.strip().strip("|").split("|")]
        if "|" in text
        else [[one] for one in text.split()]
    )
    if not bars or not all(bars):
        raise InputError(
            f"chords '{text}' hold an empty bar: write symbols such as 'C Am F G7', or bars as 'C "
            f"| Am F | G7'"
        )
    return [[chord_symbol(one) for one in bar] for bar in bars]


def chord_symbol(text: str) -> ChordSymbol:
    """Raises InputError for a symbol it does not know."""
    match = _CHORD.fullmatch(text)
    if match is None or match[3] not in _SUFFIXES:
        raise InputError(
            f"chord '{text}' is unknown: write a capital root, # or b, and nothing (major), m, "
            f"dim, 7, maj7 or m7, such as 'F#m7'"
        )
    return ChordSymbol(
        TONICS[match[1] + match[2].replace("♯", "#").replace("♭", "b")], _SUFFIXES[match[3]]
    )


def chord_names(chords: Sequence[TimedChord]) -> str | None:
    """Their symbols in order; None for no chords."""
    return " ".join(chord.symbol.name for chord in chords) or None


def planned_chords(bars: Bars, key: str, *, seed: int) -> tuple[TimedChord, ...]:
    """A chord for each bar of a song, in a key.

    The seed draws a progression for verses, one for choruses and one for the rest; the last bar is
    the tonic's.

    Args:
        bars: the bars of the song, section by section (`text.outline.plan_bars`).
        key: tonic and mode, such as "A minor".
        seed: the song's.

    Returns:
        Chords with their start and end in seconds.

    Raises:
        InputError: for an unknown key.

    Examples:
        >>> chords = planned_chords(Bars(2.0, (("verse", 4), ("chorus", 4))), "A minor", seed=1)
        >>> len(chords), chords[-1].symbol.name, chords[-1].end
        (8, 'Am', 16.0)
    """
    tonic, mode = key_parts(key)
    chosen = random.Random(seed).sample(PROGRESSIONS[mode], 3)
    numerals: list[str] = []
    for name, count in bars.sections:
        progression = chosen[PART_OF.get(name, OTHER_PART)].split()
        numerals += [progression[number % len(progression)] for number in range(count)]
    if numerals:
        numerals[-1] = "I" if mode == "major" else "i"
    symbols = realise(numerals, key=tonic, mode=mode, sevenths=False)
    return tuple(
        TimedChord(n * bars.seconds, (n + 1) * bars.seconds, symbol)
        for n, symbol in enumerate(symbols)
    )


def repeated_chords(bars: Bars, asked: Sequence[Sequence[ChordSymbol]]) -> tuple[TimedChord, ...]:
    """The bars that were asked for, again and again for as many bars as the song has."""
    chords = []
    for number in range(sum(count for _, count in bars.sections)):
        inside = asked[number % len(asked)]
        share = bars.seconds / len(inside)
        chords += [
            TimedChord(
                number * bars.seconds + n * share, number * bars.seconds + (n + 1) * share, one
            )
            for n, one in enumerate(inside)
        ]
    return tuple(chords)
