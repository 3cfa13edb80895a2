"""The corpus's chord progressions and voicings: a voicing places a chord as close as possible to
the one before it.

A progression is a string of Roman numerals (text/harmony.py), each lasting one unit: a bar or half
a bar.

    names = progressions("major", held_out=False)[0].split()
    chords = realise(names, key=9, mode="major", sevenths=False)
    pitches = voice_leading(chords, low=52, high=72)
"""

from __future__ import annotations

from mudit_engine.text.harmony import PROGRESSIONS, ChordSymbol

# Only songs of the test split use these.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "major": ("I IV V IV", "I vi iii IV", "IV I ii V", "I V ii IV"),
    "minor": ("i VII III iv", "i iv III VII", "VI i VII i", "i v iv VII"),
}


def progressions(mode: str, *, held_out: bool) -> tuple[str, ...]:
    """The progressions a song of that split may use."""
    return (HELD_OUT if held_out else PROGRESSIONS)[mode]


def voice_leading(chords: list[ChordSymbol], *, low: int, high: int) -> list[tuple[int, ...]]:
    """MIDI pitches of each chord inside [low, high], moving as little as possible. `high - low`
    must be at least 16.
    """
    if high - low < 16:
        raise ValueError(
            f"voicing range {low}..{high} is too narrow: 16 semitones are needed for every "
            f"inversion"
        )
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
