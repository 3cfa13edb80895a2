"""Retrieval with ChinMu: does a fragment of a description find its song among all, and a song its
fragment?

    RA@K = share of queries with a right answer among the K nearest by cosine

For each level (word, phrase, sentence) one fragment a song is drawn, several times. Fragments say
little when short, and "slow" is true of many songs: every song whose descriptions hold the same
words counts as right, and chance is the probability that K answers drawn at random hold a right
one, 1 - C(N - r, K) / C(N, K) for r right among N.

    rows = judge_retrieval(chinmu, songs)

Source: the paper's Table 3 (RA@5, 10, 15).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.evaluation.bars import RETRIEVAL, Verdict, verdicts
from mudit_engine.evaluation.songs import LEVELS, Track, silent_track
from mudit_engine.metrics import figures
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.retrieval import chance, first_right

CUTOFFS = (5, 10, 15)
DRAWS = 10
Direction = Literal["text to audio", "audio to text"]


class Encoder(Protocol):
    """Words and songs in one space: ChinMu, or a CLAP (metrics/similarity.py)."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, embedding]."""

    def encode_audio(self, songs: Sequence[Tensor], sample_rate: int) -> Tensor:
        """Unit vectors [N, embedding] of songs [channels, samples]."""


class Described(Protocol):
    """A song and the fragments of its descriptions, by level."""

    @property
    def fragments(self) -> Mapping[str, Sequence[str]]: ...

    def load(self) -> tuple[Tensor, int]:
        """Audio [channels, samples] and its rate."""


@dataclass(frozen=True)
class Retrieval:
    """Accuracy of one direction and fragment length at K answers, among `songs` songs or the
    distinct fragments drawn for them.
    """

    direction: Direction
    level: str
    k: int
    accuracy: Figure
    chance: float
    songs: int


def judge_retrieval(
    chinmu: Encoder, songs: Sequence[Described], *, seed: int = 0, track: Track = silent_track
) -> tuple[list[Retrieval], list[Verdict]]:
    """Both directions, every level, K = 5, 10, 15. Raises InputError with too few songs for K to
    mean anything.
    """
    if len(songs) <= max(CUTOFFS):
        raise InputError(
            f"retrieval of {max(CUTOFFS)} among {len(songs)} songs says nothing: evaluate at least "
            f"{2 * max(CUTOFFS)} songs"
        )
    with torch.inference_mode():
        loaded = (song.load() for song in track(songs, "embedding songs"))
        audio_NE = torch.cat([chinmu.encode_audio([audio], rate) for audio, rate in loaded])
    rows = []
    for level in LEVELS:
        if all(song.fragments.get(level) for song in songs):
            rows += _level(chinmu, songs, audio_NE, level, seed)
    return rows, _verdicts(rows)


def _level(
    chinmu: Encoder, songs: Sequence[Described], audio_NE: Tensor, level: str, seed: int
) -> list[Retrieval]:
    generator = np.random.default_rng(seed)
    texts = sorted({text for song in songs for text in song.fragments[level]})
    number = {text: place for place, text in enumerate(texts)}
    holds = np.zeros((len(texts), len(songs)), bool)
    for column, song in enumerate(songs):
        holds[[number[text] for text in song.fragments[level]], column] = True
    with torch.inference_mode():
        text_NE = torch.cat(
            [chinmu.encode_text(texts[start : start + 256]) for start in range(0, len(texts), 256)]
        )
    cosine = (text_NE @ audio_NE.T).numpy()
    hits: dict[tuple[Direction, int], list[float]] = {}
    chances: dict[tuple[Direction, int], list[float]] = {}
    for _ in range(DRAWS):
        drawn = [
            number[song.fragments[level][int(generator.integers(len(song.fragments[level])))]]
            for song in songs
        ]
        # among the answers a text stands once: copies of it would fill the K nearest together
        distinct = sorted(set(drawn))
        ways: dict[Direction, tuple[np.ndarray, np.ndarray]] = {
            "text to audio": (cosine[drawn], holds[drawn]),
            "audio to text": (cosine[distinct].T, holds[distinct].T),
        }
        for direction, (score, true) in ways.items():
            ranks = first_right(score, true)
            for k in CUTOFFS:
                hits.setdefault((direction, k), []).extend((ranks < k).astype(float).tolist())
                chances.setdefault((direction, k), []).extend(
                    chance(true.shape[1], int(r), k) for r in true.sum(1)
                )
    owner = list(range(len(songs))) * DRAWS
    return [
        Retrieval(
            direction,
            level,
            k,
            figures.ratio(owner, values, [1.0] * len(values)),
            float(np.mean(chances[direction, k])),
            len(songs),
        )
        for (direction, k), values in hits.items()
    ]


def _verdicts(rows: Sequence[Retrieval]) -> list[Verdict]:
    measured: dict[str, float | None] = {bar.name: None for bar in RETRIEVAL}
    for row in rows:
        if row.level == "sentence" and row.k == CUTOFFS[0] and row.accuracy.value is not None:
            measured[row.direction.replace(" ", "_")] = row.accuracy.value / row.chance
    return verdicts(RETRIEVAL, measured, {bar.name: "sentences" for bar in RETRIEVAL})
