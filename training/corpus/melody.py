"""Rhythm of the sung (or, in instrumentals, played) melody.

Onsets lie on a grid of eighth notes; a line starts on the first beat of its bars and leaves a
breath at its end. Its pitches are planned as those of a request are (text/composition/melody.py).

    rhythm = draw_rhythm(rng, syllables=7, bars=2, bpm=100, swing=False)
    # [(0, 2), (2, 2), ...]: (start, length) in eighths
"""

from __future__ import annotations

import numpy as np

from mudit_engine.training.corpus.form import BEATS

GRID = BEATS * 2  # eighths in a bar
_FASTEST_SYLLABLE = 0.26  # seconds: a shorter one is not understood
_FASTEST_SWUNG = 0.2  # every other one, beside long neighbours
_LONGEST_LAST = 1.5


def most_syllables(bpm: int, bars: int, *, swing: bool) -> int:
    """Syllables that fit a line of `bars` bars at `bpm`, each at least _FASTEST_SYLLABLE long, with
    a breath after the last.
    """
    return bars * GRID // _unit(bpm, swing=swing) - 1


def _unit(bpm: int, *, swing: bool) -> int:
    """Shortest note in eighths. Swing takes a third from the second eighth of a beat."""
    if swing:
        return 1 if 20.0 / bpm >= _FASTEST_SWUNG else 2
    return 1 if 30.0 / bpm >= _FASTEST_SYLLABLE else 2


def draw_rhythm(
    rng: np.random.Generator, *, syllables: int, bars: int, bpm: int, swing: bool
) -> list[tuple[int, int]]:
    """(start, length) of every syllable in eighths.
    Raises ValueError when the line does not fit.
    """
    unit = _unit(bpm, swing=swing)
    eighth = 30.0 / bpm
    slots = bars * GRID // unit
    if syllables > slots - 1:
        raise ValueError(f"{syllables} syllables do not fit {bars} bars at {bpm} BPM")
    longest = max(1, int(0.9 / (eighth * unit)))
    longest_last = max(1, int(_LONGEST_LAST / (eighth * unit)))
    best: tuple[float, list[tuple[int, int]]] | None = None
    for _ in range(24):
        lengths = [1] * syllables
        spare = slots - 1 - syllables
        while spare > 0:
            open_places = [
                i
                for i in range(syllables)
                if lengths[i] < (longest_last if i == syllables - 1 else longest)
            ]
            if not open_places:
                break
            place = (
                syllables - 1
                if rng.random() < 0.3 and syllables - 1 in open_places
                else int(rng.choice(open_places))
            )
            lengths[place] += 1
            spare -= 1
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        on_beat = np.mean([(start * unit) % 2 == 0 for start in starts])
        score = on_beat + 0.1 * lengths[-1] - 0.15 * float(np.std(lengths)) + 0.35 * rng.random()
        rhythm = [
            (int(start) * unit, int(length) * unit)
            for start, length in zip(starts, lengths, strict=True)
        ]
        if best is None or score > best[0]:
            best = (score, rhythm)
    assert best is not None
    return best[1]
