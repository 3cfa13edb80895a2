"""The one estimate of a song's length, and what is told of lyrics that do not fit it."""

from __future__ import annotations

import numpy as np
import pytest

from mudit_engine.errors import InputError
from mudit_engine.text.length import fit, planned_seconds, shortest_seconds
from mudit_engine.text.lyrics import LyricLine, Lyrics, Section, parse_lyrics
from mudit_engine.text.outline import plan_bars, plan_song, plan_syllables
from mudit_engine.text.phonemes import PhonemeSequence, phonemize
from mudit_engine.text.wishes import Wishes


def verse(lines: int, syllables: int, kind: str = "verse") -> PhonemeSequence:
    sung = tuple(LyricLine("啊" * syllables, number + 1) for number in range(lines))
    return phonemize(Lyrics((Section(kind, None, sung),)))


def test_a_length_is_held_against_the_plan() -> None:
    song = verse(8, 9)
    comfortable = planned_seconds(song, bpm=100)
    assert comfortable == 40  # 8 lines of 2 bars of 2.4 s, and a tail
    good, tight, hurried, lost, sparse = (
        fit(song, bpm=100, seconds=seconds) for seconds in (comfortable, 30, 20, 10, 200)
    )
    assert (good.fits, good.message, good.syllables) == (True, None, 72)
    assert good.rate == pytest.approx(72 / 38.4)
    assert tight.fits and tight.message is None, "2.5 syllables a second are not hurried"
    assert hurried.fits and "hurried (3.8 a second" in str(hurried.message)
    assert not lost.fits and lost.needed == comfortable
    assert "72 syllables do not fit into 10 s" in str(lost.message)
    assert sparse.fits and "rest is played" in str(sparse.message)


def test_slow_singing_is_never_called_hurried() -> None:
    song = phonemize(parse_lyrics("[intro]\n[verse]\n月亮\n[solo]\n[chorus]\n啊\n[outro]"))
    for seconds in range(3, 60):
        found = fit(song, bpm=100, seconds=seconds)
        assert found.rate < 2 and "hurried" not in str(found.message)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_length_is_a_positive_number(seconds: float) -> None:
    with pytest.raises(InputError, match="positive number"):
        fit(verse(3, 7), bpm=100, seconds=seconds)


def test_seconds_grow_with_lines_sections_and_played_parts() -> None:
    def seconds(text: str, bpm: float = 100) -> float:
        return planned_seconds(phonemize(parse_lyrics(text)), bpm=bpm)

    line = "月亮落在海面上"
    plain = seconds(f"[verse]\n{line}")
    assert seconds(f"[verse]\n{line}\n{line}") > plain
    assert seconds(f"[verse]\n{line}\n[solo]\n[outro]") > plain + 4
    assert seconds(f"[verse]\n{line}", 60) < seconds(f"[verse]\n{line * 2}", 60)
    assert shortest_seconds(verse(8, 16, "rap")) < shortest_seconds(verse(8, 16))
    assert seconds("[inst]") == 30
    assert fit(phonemize(parse_lyrics("[inst]")), bpm=100, seconds=12).message is None


def test_generate_and_check_plan_alike_and_say_when_the_limit_decided() -> None:
    song = verse(8, 9)
    free = plan_song(Wishes(), song, longest=260.0, seed=0, bpm=100)
    assert (free.seconds, free.notes) == (planned_seconds(song, bpm=100), ())
    for outlined in (True, False):
        cut = plan_song(Wishes(), song, longest=30.0, seed=0, outlined=outlined, bpm=100)
        assert cut.seconds == 30
        assert "need 40 s: the model's limit of 30 s decides the length" in cut.notes[0]


TIMED = "[verse]\n[00:04.00]月亮落在海面上\n[00:10.00]照着小河流\n啊\n[chorus]\n[00:30.5]一起飞"


def test_a_line_is_sung_at_its_time() -> None:
    song = phonemize(parse_lyrics(TIMED))
    assert song.starts == (4.0, 10.0, None, 30.5)
    assert planned_seconds(song, bpm=100) == 37  # 30.5 + 2 bars of 2.4 + .8, whole
    times = plan_syllables(song, bpm=100, seconds=37.0)
    assert times[[0, 7, 12, 13], 0] == pytest.approx([4.0, 10.0, 14.8, 30.5], abs=1e-4)
    assert (times[1:, 0] >= times[:-1, 1] - 1e-4).all() and times.max() < 37
    assert plan_bars(song, bpm=100, seconds=37.0).sections == (
        ("intro", 1),
        ("verse", 11),
        ("chorus", 3),
    )
    late = fit(song, bpm=100, seconds=20)
    assert not late.fits and "1 lines start after the end" in str(late.message)
    cut = plan_syllables(song, bpm=100, seconds=20.0)
    assert (cut[13:] == -1).all() and np.array_equal(cut[:13], times[:13])


def test_lines_that_come_too_soon_are_pressed_and_never_overlap() -> None:
    text = "[verse]\n[00:01.00]月亮落在海面上\n[00:02.00]照着小河流\n[00:01.50]啊啊啊"
    song = phonemize(parse_lyrics(text))
    times = plan_syllables(song, bpm=100, seconds=planned_seconds(song, bpm=100))
    assert times[0, 0] == 1.0 and times[7, 0] == 2.0 and times[6, 1] <= 2.0
    assert (times[1:, 0] >= times[:-1, 1] - 1e-4).all()
