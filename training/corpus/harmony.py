"""Keys, chord progressions and voicings.

A progression is a string of Roman numerals, each lasting one unit (a bar or half a bar); upper case is a major triad, lower case a
minor one, relative to the natural scale of the mode. A voicing places a chord as close as possible to the one before it.

    chords = realise(PROGRESSIONS["major"][0].split(), key=9, mode="major", sevenths=False)
"""

from __future__ import annotations

from dataclasses import dataclass

QUALITIES: dict[str, tuple[int, ...]] = {
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "dim": (0, 3, 6),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "dom7": (0, 4, 7, 10),
}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PENTATONIC = {"major": (0, 2, 4, 7, 9), "minor": (0, 3, 5, 7, 10)}
_NUMERALS = ("i", "ii", "iii", "iv", "v", "vi", "vii")

# Four units each. They start on the tonic or come back to it: a loop such as vi IV I V is heard in either of two keys.
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
# Only songs of the test split use these.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "major": ("I IV V IV", "I vi iii IV", "IV I ii V", "I V ii IV"),
    "minor": ("i VII III iv", "i iv III VII", "VI i VII i", "i v iv VII"),
}


@dataclass(frozen=True, slots=True)
class ChordSymbol:
    """`root`: pitch class 0-11, C = 0."""

    root: int
    quality: str
    roman: str

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        return tuple((self.root + step) % 12 for step in QUALITIES[self.quality])


def progressions(mode: str, *, held_out: bool) -> tuple[str, ...]:
    """The progressions a song of that split may use."""
    return (HELD_OUT if held_out else PROGRESSIONS)[mode]


def realise(numerals: list[str], *, key: int, mode: str, sevenths: bool) -> list[ChordSymbol]:
    """Roman numerals -> chords in `key`. `sevenths` adds the scale's own seventh (dominant on V), as jazz does."""
    scale = SCALES[mode]
    chords = []
    for roman in numerals:
        degree = _NUMERALS.index(roman.lower())
        step = scale[degree]
        quality = "maj" if roman.isupper() else "min"
        if sevenths:
            # A dominant seventh belongs to V, and to VII of the minor mode (V of the relative major); others keep the scale's.
            dominant = quality == "maj" and (degree == 4 or (mode == "minor" and degree == 6))
            quality = "dom7" if dominant else {"maj": "maj7", "min": "min7"}[quality]
        chords.append(ChordSymbol((key + step) % 12, quality, roman))
    return chords


def voice_leading(chords: list[ChordSymbol], *, low: int, high: int) -> list[tuple[int, ...]]:
    """MIDI pitches of each chord inside [low, high], moving as little as possible. `high - low` must be at least 16."""
    if high - low < 16:
        raise ValueError(f"voicing range {low}..{high} is too narrow: 16 semitones are needed for every inversion")
    placed: list[tuple[int, ...]] = []
    centre = (low + high) / 2
    for chord in chords:
        classes = chord.pitch_classes
        candidates = []
        for turn in range(len(classes)):
            rotated = classes[turn:] + classes[:turn]
            bottom = low + (rotated[0] - low) % 12
            while True:
                pitches = [bottom]
                for pitch_class in rotated[1:]:
                    pitches.append(pitches[-1] + ((pitch_class - pitches[-1]) % 12 or 12))
                if pitches[-1] > high:
                    break
                candidates.append(tuple(pitches))
                bottom += 12
        if placed:
            last = placed[-1]

            def cost(pitches: tuple[int, ...], last: tuple[int, ...] = last) -> float:
                moved = sum(min(abs(p - q) for q in last) for p in pitches)
                return moved + 0.15 * abs(sum(pitches) / len(pitches) - centre)
        else:

            def cost(pitches: tuple[int, ...], last: tuple[int, ...] = ()) -> float:
                return abs(sum(pitches) / len(pitches) - centre)

        placed.append(min(candidates, key=cost))
    return placed
