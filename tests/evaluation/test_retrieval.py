"""Retrieval among embeddings whose answers are known,
and chance against counting and simulation.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.evaluation.bars import missed
from mudit_engine.evaluation.retrieval import CUTOFFS, judge_retrieval
from mudit_engine.evaluation.songs import LEVELS, EvalSong
from mudit_engine.metrics.retrieval import chance, first_right
from mudit_engine.models.chinmu import ChinMu

RATE = 8000


@pytest.mark.parametrize(
    ("candidates", "right", "k"), [(6, 1, 2), (6, 2, 3), (7, 3, 5), (5, 5, 1), (5, 0, 3), (4, 4, 4)]
)
def test_chance_by_counting(candidates: int, right: int, k: int) -> None:
    ways = list(itertools.combinations(range(candidates), k))
    assert chance(candidates, right, k) == pytest.approx(
        sum(any(i < right for i in way) for way in ways) / len(ways)
    )


def test_chance_with_fewer_candidates_than_answers() -> None:
    assert chance(3, 1, 5) == 1.0 and chance(3, 0, 5) == 0.0


def test_first_right() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.2]])
    right = np.array([[True, False, False], [False, True, True], [False, True, False]])
    assert first_right(scores, right).tolist() == [0, 1, 2]


class Oracle:
    """A ChinMu that hears a song's number in its first sample and reads it at the end of a text;
    `blind` ones do not.
    """

    def __init__(self, songs: int, *, blind: bool) -> None:
        self.songs, self.blind = songs, blind
        self.generator = torch.Generator().manual_seed(0)

    def _vector(self, number: int) -> Tensor:
        if self.blind:
            return torch.nn.functional.normalize(torch.randn(64, generator=self.generator), dim=0)
        return torch.nn.functional.one_hot(torch.tensor(number), self.songs).float()

    def encode_audio(self, songs: list[Tensor], sample_rate: int) -> Tensor:
        return torch.stack([self._vector(round(float(song[0, 0]) * 1000)) for song in songs])

    def encode_text(self, texts: list[str]) -> Tensor:
        return torch.stack([self._vector(int(text.split()[-1])) for text in texts])


def songs(folder: Path, count: int, *, shared_words: bool = False) -> list[EvalSong]:
    import soundfile

    made = []
    for number in range(count):
        soundfile.write(
            folder / f"{number}.wav", np.full(100, number / 1000), RATE, subtype="FLOAT"
        )
        texts = {level: tuple(f"{level} {i} {number}" for i in range(3)) for level in LEVELS}
        if shared_words:
            texts["word"] = (f"slow {number % 2}",)
        path = folder / f"{number}.wav"
        made.append(
            EvalSong(
                str(number),
                path,
                True,
                1.0,
                "pop",
                100,
                "C major",
                True,
                "none",
                "none",
                "",
                fragments=texts,
            )
        )
    return made


def test_a_perfect_embedding_finds_everything(tmp_path: Path) -> None:
    rows, found = judge_retrieval(cast(ChinMu, Oracle(20, blind=False)), songs(tmp_path, 20))
    assert {(r.direction, r.level, r.k) for r in rows} == set(
        itertools.product(("text to audio", "audio to text"), LEVELS, CUTOFFS)
    )
    for row in rows:
        assert (
            row.accuracy.value == 1.0
            and row.accuracy.n == 20
            and row.chance == pytest.approx(row.k / 20)
        )
    assert missed(found) == []


def test_a_blind_embedding_is_at_chance(tmp_path: Path) -> None:
    rows, found = judge_retrieval(
        cast(ChinMu, Oracle(60, blind=True)), songs(tmp_path, 60, shared_words=True)
    )
    for row in rows:
        assert row.accuracy.value is not None
        assert abs(row.accuracy.value - row.chance) < 0.15
        if row.level == "word":
            assert row.chance > 0.95, "half of the songs hold the word"
    assert missed(found) == ["text_to_audio", "audio_to_text"]


def test_too_few_songs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="30 songs"):
        judge_retrieval(cast(ChinMu, Oracle(15, blind=True)), songs(tmp_path, 15))
