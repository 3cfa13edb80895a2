"""The planner of melodies: in key, on the chords, within the voice, returning, led by the seed."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from mudit_engine.text.composition.melody import (
    VOICE_RANGE,
    Phrase,
    plan_melody,
    tone_agreement,
)
from mudit_engine.text.harmony import SCALES, Bars, key_parts, planned_chords
from mudit_engine.text.outline import _rhythm

FORM = ("verse", "chorus", "verse", "chorus", "bridge", "chorus")
KEYS = ("A minor", "C major", "Eb major", "F# minor")


def phrases(key: str, *, chord_seed: int, syllables: int = 7) -> list[Phrase]:
    """A song of 22 lines in two bars each; every chorus has the same words."""
    chooser = random.Random(5)
    bars = Bars(2.4, tuple((name, 4 if name == "bridge" else 8) for name in FORM))
    chords = planned_chords(bars, key, seed=chord_seed)
    said: dict[int, tuple[list[tuple[int, int]], tuple[int, ...]]] = {}
    found, bar = [], 0
    for section, (name, count) in enumerate(bars.sections):
        for line in range(count // 2):
            words = said.get(line) if name == "chorus" else None
            if words is None:
                rhythm = list(_rhythm(syllables + chooser.choice((0, 0, 1, -1)), 2, 100))
                words = rhythm, tuple(chooser.randint(1, 4) for _ in rhythm)
            if name == "chorus":
                said[line] = words
            sounding = tuple(chords[bar + start // 8].symbol for start, _ in words[0])
            beats = tuple((a / 2, b / 2) for a, b in words[0])
            found.append(Phrase(name, section, beats, sounding, words[1]))
            bar += 2
    return found


def songs(count: int, voice: str = "female") -> list[tuple[str, list[Phrase], list[tuple]]]:
    made = []
    for seed in range(count):
        key = KEYS[seed % len(KEYS)]
        lines = phrases(key, chord_seed=seed)
        made.append((key, lines, plan_melody(lines, key=key, voice=voice, seed=seed)))
    return made


@pytest.mark.parametrize("voice", ["male", "female", "child"])
def test_notes_are_in_key_on_the_chords_and_within_the_voice(voice: str) -> None:
    low, span = VOICE_RANGE[voice]
    for key, lines, tunes in songs(6, voice):
        tonic, mode = key_parts(key)
        scale = {(tonic + step) % 12 for step in SCALES[mode]}
        strong = on = 0
        for phrase, tune in zip(lines, tunes, strict=True):
            assert len(tune) == len(phrase.beats)
            for (start, _), chord, pitch in zip(phrase.beats, phrase.chords, tune, strict=True):
                # a chord may bring a foreign note, as the major dominant of a minor key does
                assert pitch % 12 in scale | set(chord.pitch_classes)
                assert low <= pitch <= low + span
                strong += start % 2 == 0
                on += start % 2 == 0 and pitch % 12 in chord.pitch_classes
        assert on >= 0.9 * strong
        assert tunes[-1][-1] % 12 == tonic


def test_choruses_return_second_verses_vary_little_and_bridges_contrast() -> None:
    same: dict[str, list[float]] = {"chorus": [], "verse": [], "bridge": []}
    for _, lines, tunes in songs(8):
        by_section = [
            [tune for phrase, tune in zip(lines, tunes, strict=True) if phrase.section == n]
            for n in range(len(FORM))
        ]
        assert by_section[1] == by_section[3]
        # the last note of the song comes home
        again = (by_section[1][-1][:-1], by_section[5][-1][:-1])
        assert by_section[1][:-1] == by_section[5][:-1] and again[0] == again[1]
        for name, (a, b) in (("verse", (0, 2)), ("bridge", (0, 4)), ("chorus", (0, 1))):
            pairs = [
                x == y
                for one, other in zip(by_section[a], by_section[b], strict=False)
                for x, y in zip(one, other, strict=False)
            ]
            same[name].append(sum(pairs) / len(pairs))
    share = {name: sum(found) / len(found) for name, found in same.items()}
    assert 0.5 <= share["verse"] < 1.0, share
    assert share["bridge"] <= 0.4 and share["chorus"] <= 0.4, share


def test_pitches_and_intervals_are_those_of_tunes() -> None:
    intervals: Counter[int] = Counter()
    for _, _, tunes in songs(12):
        pitches = [pitch for tune in tunes for pitch in tune]
        assert 7 <= len(set(pitches)) <= 14
        for tune in tunes:
            intervals.update(abs(b - a) for a, b in itertools.pairwise(tune))
    total = sum(intervals.values())
    steps = (intervals[1] + intervals[2]) / total
    leaps = sum(count for size, count in intervals.items() if size >= 3) / total
    wide = sum(count for size, count in intervals.items() if size >= 6) / total
    assert 0.35 <= steps <= 0.65 and 0.15 <= leaps <= 0.45, intervals
    assert 0.01 <= wide <= 0.12 and intervals[0] / total <= 0.3, intervals


@pytest.mark.parametrize("key", ["A minor", "C major"])
def test_seeds_sing_different_notes_over_the_same_chords(key: str) -> None:
    lines = phrases(key, chord_seed=3)
    sung = [
        [
            pitch % 12
            for tune in plan_melody(lines, key=key, voice="female", seed=n)
            for pitch in tune
        ]
        for n in range(16)
    ]
    pairs = [
        sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
        for one, other in itertools.combinations(sung, 2)
    ]
    shares = [Counter(one) for one in sung]
    chance = [
        sum(a[pitch] * b[pitch] for pitch in a) / len(sung[0]) ** 2
        for a, b in itertools.combinations(shares, 2)
    ]
    assert sum(pairs) / len(pairs) <= 0.3, (sum(pairs) / len(pairs), sum(chance) / len(chance))


def test_the_same_request_is_the_same_melody_and_other_words_are_another() -> None:
    lines = phrases("C major", chord_seed=1)
    again = plan_melody(lines, key="C major", voice="female", seed=1)
    assert again == plan_melody(lines, key="C major", voice="female", seed=1)
    other = phrases("C major", chord_seed=1, syllables=6)
    shorter = plan_melody(other, key="C major", voice="female", seed=1)
    assert [len(tune) for tune in shorter] != [len(tune) for tune in again]
    assert plan_melody([], key="C major", voice=None, seed=1) == []


def test_words_pull_the_tune_their_way() -> None:
    told, deaf = [], []
    for seed in range(10):
        lines = phrases("C major", chord_seed=seed)
        bare = [Phrase(p.kind, p.section, p.beats, p.chords) for p in lines]
        for words, found in ((lines, told), (bare, deaf)):
            tunes = plan_melody(words, key="C major", voice="female", seed=seed)
            found.append(tone_agreement(lines, tunes) or 0.0)
    assert sum(told) / len(told) > sum(deaf) / len(deaf) + 0.05
