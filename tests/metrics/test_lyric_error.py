"""Errors of sung lines: what was changed, left out or added costs the line it belongs to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.metrics.ctc import edit_distance
from mudit_engine.metrics.lyric_error import _edited, line_errors, lyric_error, phonemes_by_line
from mudit_engine.metrics.repetition import repetition

ASKED = [list("abcd"), list("efgh"), list("ijkl")]


@pytest.mark.parametrize(
    ("heard", "errors"),
    [
        ("abcdefghijkl", [0, 0, 0]),
        ("abcdefXhijkl", [0, 0.25, 0]),
        ("abcdijkl", [0, 1, 0]),
        ("abcdefghefghijkl", [1, 0, 0]),
        ("abcXdefghijkl", [0.25, 0, 0]),
        ("", [1, 1, 1]),
    ],
    ids=["all", "changed", "left-out", "twice", "added", "silence"],
)
def test_an_error_belongs_to_its_line(heard: str, errors: list[float]) -> None:
    assert line_errors(ASKED, list(heard)) == errors


def test_edits_are_as_few_as_can_be() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (list(rng.choice(list("abc"), rng.integers(1, 12))) for _ in range(2))
        assert len(_edited(a, b)) == edit_distance(a, b)


def test_texts_are_compared_as_they_sound() -> None:
    assert phonemes_by_line("[verse]\n月亮\n\n[chorus]\n银行") == [
        ["ve", "l", "iang"],
        phonemes_by_line("银行")[0],
    ]
    assert lyric_error("[verse]\n月亮升起来", "月亮升起来") == 0.0
    assert lyric_error("[verse]\n银行", "银航") == 0.0, "the same sounds in other characters"
    assert 0 < lyric_error("[verse]\n月亮升起来\n银行长大了", "月亮升起来") <= 0.6
    assert lyric_error("", "月亮") is None
    with pytest.raises(InputError, match="without phonemes"):
        line_errors([[]], ["a"])


def notes(pitches: list[int], rate: int = 8000) -> torch.Tensor:
    t = torch.arange(rate // 2) / rate
    return torch.cat([torch.sin(2 * math.pi * 440 * 2 ** ((p - 69) / 12) * t) for p in pitches])[
        None
    ]


def test_a_song_that_returns_repeats_more_than_one_that_drifts() -> None:
    rng = np.random.default_rng(1)
    verse = rng.integers(57, 81, 20).tolist()
    again, drift = notes(verse * 3), notes(rng.integers(57, 81, 60).tolist())
    found, other = repetition(again, 8000), repetition(drift, 8000)
    assert found is not None and other is not None
    assert found > 0.95 and other < 0.6
    assert repetition(again[:, : 8000 * 10], 8000) is None
    assert repetition(torch.zeros(1, 8000 * 20), 8000) is None
