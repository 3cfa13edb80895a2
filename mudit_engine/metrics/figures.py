"""Figures with their uncertainty: ratios, balanced accuracies and Frechet distances over songs,
each with a bootstrap 95 % interval.

The bootstrap draws songs (not patches or notes, which are not independent) with replacement. A
resample repeats songs, which by itself raises a Frechet distance; its interval is therefore the
spread of the resamples laid around the estimate.

    ratio(songs=[0, 0, 1], hits=[1, 0, 1], counts=[1, 1, 1]).value       # 2 / 3, n = 2 songs

Source: Efron and Tibshirani 1993, percentile intervals; Brodersen et al. 2010 for balanced
accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mudit_engine.metrics.fad import FrechetReference

RESAMPLES, FAD_RESAMPLES = 1000, 200
LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """An estimate over n songs and its 95 % interval.
    All None where there was nothing to measure.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0

    def __str__(self) -> str:
        return "-" if self.value is None else f"{self.value:.2f}"


NOTHING = Figure(None)


def draws(songs: int, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each song is in each resample, [resamples, songs]."""
    return np.random.default_rng(seed).multinomial(songs, np.full(songs, 1 / songs), size=resamples)


def ratio(songs: Sequence[int], hits: Sequence[float], counts: Sequence[float]) -> Figure:
    """sum(hits) / sum(counts); `songs` says which song each entry belongs to (any numbers)."""
    if not songs or sum(counts) == 0:
        return NOTHING
    places, n = _places(songs)
    top, bottom = (np.bincount(places, np.asarray(x, float), n) for x in (hits, counts))
    weight = draws(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _figure(top.sum() / bottom.sum(), (weight @ top) / (weight @ bottom), n)


def balanced_accuracy(songs: Sequence[int], truth: Sequence[str], guess: Sequence[str]) -> Figure:
    """Mean over the classes in `truth` of the share guessed right: 1 / classes for any guess that
    ignores the input.
    """
    if len(set(truth)) < 2:
        return NOTHING
    places, n = _places(songs)
    weight, recalls, value = draws(n), [], []
    right = np.array([a == b for a, b in zip(truth, guess, strict=True)], float)
    for label in sorted(set(truth)):
        member = np.array([t == label for t in truth], float)
        hits, count = np.bincount(places, member * right, n), np.bincount(places, member, n)
        value.append(hits.sum() / count.sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            recalls.append((weight @ hits) / (weight @ count))
    return _figure(float(np.mean(value)), np.mean(recalls, 0), n)


def mean(values: Iterable[float]) -> Figure:
    """Mean of one value a song."""
    values = list(values)
    return ratio(range(len(values)), values, [1.0] * len(values))


def fad(reference: FrechetReference, features: Sequence[Tensor]) -> Figure:
    """Distance of the features [P, D] of several songs from the reference."""
    moments = [reference.moments(song) for song in features]
    value = reference.distance(moments, [1] * len(moments))
    spread = np.array(
        [
            reference.distance(moments, weight.tolist())
            for weight in draws(len(moments), resamples=FAD_RESAMPLES)
        ]
    )
    return _figure(value, value + spread - spread.mean(), len(moments))


def derangements(songs: int, count: int, *, seed: int = 0) -> list[list[int]]:
    """Up to `count` ways to give every song another's request, none of them the same for any song.
    Raises ValueError for one song.
    """
    if songs < 2:
        raise ValueError(f"{songs} song cannot be given another's request")
    order = np.random.default_rng(seed).permutation(songs)
    ways = []
    for shift in range(1, min(count, songs - 1) + 1):
        way = np.empty(songs, int)
        way[order] = np.roll(order, shift)
        ways.append(way.tolist())
    return ways


def _places(songs: Sequence[int]) -> tuple[np.ndarray, int]:
    known, places = np.unique(np.asarray(songs), return_inverse=True)
    return places, len(known)


def _figure(value: float, resampled: np.ndarray, n: int) -> Figure:
    """A resample that holds no song of some class has no value and is left out."""
    resampled = resampled[np.isfinite(resampled)]
    if not math.isfinite(value) or not len(resampled):
        return Figure(float(value) if math.isfinite(value) else None, n=n)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Figure(float(value), float(low), float(high), n)
