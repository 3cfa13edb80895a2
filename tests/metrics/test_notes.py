"""Notes: the matching against exhaustive search, the reading of posteriors, and (with basic-pitch)
real tones.
"""

from __future__ import annotations

import importlib.util
import itertools
import math

import numpy as np
import pytest
import torch

from mudit_engine import availability
from mudit_engine.errors import MissingError
from mudit_engine.metrics.notes import (
    FRAME_HOP,
    RATE,
    NoteListener,
    matched_notes,
    note_f1,
    notes_of,
)

RATE_FRAMES = RATE / FRAME_HOP


def notes(*rows: tuple[float, int]) -> np.ndarray:
    return np.array([(start, start + 0.3, midi) for start, midi in rows], float).reshape(-1, 3)


def most_pairs(a: np.ndarray, b: np.ndarray) -> int:
    """By trying every assignment."""
    ok = (np.abs(a[:, None, 0] - b[None, :, 0]) <= 0.05 + 1e-9) & (a[:, None, 2] == b[None, :, 2])
    best = 0
    for order in itertools.permutations(range(len(b)), min(len(a), len(b))):
        for rows in itertools.combinations(range(len(a)), len(order)):
            best = max(best, sum(bool(ok[i, j]) for i, j in zip(rows, order, strict=True)))
    return best


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs"),
    [
        (notes((0.0, 60)), notes((0.04, 60)), 1),
        (notes((0.0, 60)), notes((0.05, 60)), 1),
        (notes((0.0, 60)), notes((0.06, 60)), 0),
        (notes((0.0, 60)), notes((0.0, 61)), 0),
        (notes((0.0, 60)), notes((0.01, 60), (0.02, 60)), 1),
        (notes((0.0, 60), (0.05, 60)), notes((0.05, 60), (0.1, 60)), 2),
        (notes(), notes((0.0, 60)), 0),
    ],
    ids=["near", "at-the-limit", "late", "semitone", "one-partner-each", "chain", "empty"],
)
def test_matching(ours: np.ndarray, theirs: np.ndarray, pairs: int) -> None:
    assert matched_notes(ours, theirs) == matched_notes(theirs, ours) == pairs


@pytest.mark.parametrize("seed", range(20))
def test_matching_is_the_best_there_is(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = (
        notes(
            *((float(generator.uniform(0, 0.3)), int(generator.integers(60, 62))) for _ in range(n))
        )
        for n in (5, 4)
    )
    assert matched_notes(a, b) == most_pairs(a, b)


def test_f1() -> None:
    reference, estimate = (
        notes((0, 60), (1, 62), (2, 64)),
        notes((0.01, 60), (1.02, 62), (2.0, 66), (3.0, 60)),
    )
    assert note_f1(reference, estimate) == pytest.approx(2 * 2 / 7)
    assert (
        note_f1(reference, reference) == 1.0
        and note_f1(reference, notes()) == 0.0
        and note_f1(notes(), notes()) == 1.0
    )


def test_posteriors_become_notes() -> None:
    note, onset = np.zeros((200, 88)), np.zeros((200, 88))
    note[20:60, 39], onset[20, 39] = 0.8, 0.9  # middle C
    note[40:42, 39] = 0.1  # a dip of two frames is no rest
    # struck again while it sounds
    note[100:140, 43], onset[100, 43], onset[120, 43] = (
        0.8,
        0.9,
        0.7,
    )
    note[150:153, 50], onset[150, 50] = 0.9, 0.9  # too short
    note[10:90, 60], onset[10, 60] = 0.9, 0.3  # no onset
    note[190:200, 10], onset[190, 10] = 0.9, 0.9  # to the end
    expected = [(20, 60, 60), (100, 120, 64), (120, 140, 64), (190, 200, 31)]
    found = notes_of(note, onset)
    assert [
        (round(s * RATE_FRAMES), round(e * RATE_FRAMES), int(p)) for s, e, p in found
    ] == expected


def test_absent_network_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(availability, "available", lambda module: True)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "basic_pitch" else real(name, package),
    )
    with pytest.raises(MissingError, match="install --no-deps basic-pitch"):
        NoteListener.load()


@pytest.fixture(scope="module")
def listener() -> NoteListener:
    if not (availability.available("onnxruntime") and availability.available("basic_pitch")):
        pytest.skip("needs onnxruntime and basic-pitch")
    return NoteListener.load()


def test_tones_are_heard_where_they_are(listener: NoteListener) -> None:
    """Eight seconds, so that several windows are joined: a drift of 10 ms a window would show."""
    melody = [
        (0.25 + 0.5 * i, midi)
        for i, midi in enumerate([60, 64, 67, 72, 71, 67, 65, 62, 60, 55, 57, 59, 60, 64, 67])
    ]
    time = torch.arange(round(0.45 * RATE)) / RATE
    audio = torch.zeros(8 * RATE)
    for start, midi in melody:
        f = 440 * 2 ** ((midi - 69) / 12)
        tone = (
            sum(torch.sin(2 * math.pi * f * h * time) / h for h in range(1, 7))
            * torch.exp(-3 * time)
            * 0.2
        )
        audio[round(start * RATE) :][: len(tone)] += tone
    found = listener(audio, RATE)
    assert matched_notes(notes(*melody), found) == len(melody)
    assert len(found) <= 1.4 * len(melody), (
        "a strong fifth harmonic may be taken for a note now and then"
    )
    first = [
        abs(row[0] - start)
        for start, midi in melody
        for row in found
        if row[2] == midi and abs(row[0] - start) < 0.1
    ]
    assert np.mean(first) < 0.03
    assert note_f1(notes(*((start + 0.2, midi) for start, midi in melody)), found) < 0.2


@pytest.mark.parametrize("samples", [1, 100, 36352, 36353], ids=str)
def test_audio_of_any_length(listener: NoteListener, samples: int) -> None:
    note, onset = listener.posteriors(torch.zeros(1, samples), RATE)
    assert note.shape == onset.shape == (-(-samples // FRAME_HOP), 88)
    assert len(listener(torch.zeros(samples), RATE)) == 0
