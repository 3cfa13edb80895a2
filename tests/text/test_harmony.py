"""Chord symbols, numerals and the plan of a song's chords."""

from __future__ import annotations

import pytest

from mudit_engine.errors import InputError
from mudit_engine.text.harmony import (
    PROGRESSIONS,
    QUALITIES,
    Bars,
    ChordSymbol,
    chord_names,
    key_parts,
    parse_chords,
    planned_chords,
    realise,
    repeated_chords,
)

BARS = Bars(
    2.0, (("intro", 2), ("verse", 4), ("chorus", 4), ("verse", 4), ("bridge", 2), ("outro", 1))
)


def test_symbols_and_bars_are_read() -> None:
    assert parse_chords("C G Am F") == [
        [ChordSymbol(0, "maj")],
        [ChordSymbol(7, "maj")],
        [ChordSymbol(9, "min")],
        [ChordSymbol(5, "maj")],
    ]
    assert parse_chords("| F#m7 | Bb♭ |".replace("b♭", "♭") + " Gdim E7 Dmaj7 |") == [
        [ChordSymbol(6, "min7")],
        [ChordSymbol(10, "maj")],
        [ChordSymbol(7, "dim"), ChordSymbol(4, "dom7"), ChordSymbol(2, "maj7")],
    ]


@pytest.mark.parametrize(
    "text", ["", "  ", "|", "C || F", "C | | F", "H", "Csus", "c", "C/E", "C G a"]
)
def test_what_is_no_chord_is_named(text: str) -> None:
    with pytest.raises(InputError, match="chord"):
        parse_chords(text)


@pytest.mark.parametrize("quality", sorted(QUALITIES))
def test_names_read_back(quality: str) -> None:
    for root in range(12):
        chord = ChordSymbol(root, quality)
        assert parse_chords(chord.name) == [[chord]]
        assert chord.triad.pitch_classes == chord.pitch_classes[:3]


@pytest.mark.parametrize("key", ["C major", "F# minor", "Eb major"])
def test_a_plan_stays_in_its_key_and_ends_at_home(key: str) -> None:
    tonic, mode = key_parts(key)
    plans = [planned_chords(BARS, key, seed=seed) for seed in range(20)]
    for chords in plans:
        assert [(c.start, c.end) for c in chords] == [(2.0 * n, 2.0 * n + 2) for n in range(17)]
        # chords of one section name follow one progression of the mode
        verse = [c.symbol.roman for c in chords[2:6]]
        assert " ".join(verse) in PROGRESSIONS[mode] and verse == [
            c.symbol.roman for c in chords[10:14]
        ]
        assert verse != [c.symbol.roman for c in chords[6:10]]
        assert (
            chords[-1].symbol
            == realise(["I" if mode == "major" else "i"], key=tonic, mode=mode, sevenths=False)[0]
        )
    assert len({chord_names(chords) for chords in plans}) > 10
    assert planned_chords(BARS, key, seed=3) == plans[3]


def test_asked_chords_repeat_to_the_end_and_share_their_bar() -> None:
    chords = repeated_chords(Bars(2.0, (("verse", 3),)), parse_chords("C | Am F"))
    expected = [(0, 2, "C"), (2, 3, "Am"), (3, 4, "F"), (4, 6, "C")]
    assert [(c.start, c.end, c.symbol.name) for c in chords] == expected
    assert chord_names(chords) == "C Am F C" and chord_names(()) is None
