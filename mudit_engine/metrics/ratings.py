"""Tests and figures of listeners' ratings: t-tests, rank tests, effect sizes, agreement, and how
many listeners a difference needs.

    students_t(a, b)                             # of two systems' ratings, as papers report it
    paired_t(a_by_listener, b_by_listener)       # of the listeners' own means
    krippendorff_alpha(ratings_RU, level="interval")
    listeners_needed(difference=0.3, spread=0.8)

Two systems' ratings come from the same listeners, so that they are no independent samples:
`students_t` treats them as such and is here because tables in the literature do. Trust `paired_t`,
the rank tests and the mixed model (metrics/mixed_model.py).

Sources: Student 1908; Wilcoxon 1945; Friedman 1937; Cohen 1988; Cliff 1993; Krippendorff 2011;
Bradley and Terry 1952.

Shapes: R raters, U units (songs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mudit_engine.availability import require
from mudit_engine.errors import InputError
from mudit_engine.metrics.significance import EXACT_PAIRS, paired_permutation

Level = Literal["nominal", "ordinal", "interval"]
MOST_LISTENERS = 100_000


def students_t(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of equal means of two samples, of equal variance as the textbook's t-test is.
    1 where all values are one.
    """
    stats = _stats()
    _enough(a, b)
    if np.ptp([*a, *b]) == 0:
        return 1.0
    return float(stats.ttest_ind(a, b).pvalue)


def paired_t(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of a mean difference of 0 over pairs. 1 where all pairs are equal."""
    stats = _stats()
    _enough(a, b, paired=True)
    difference = np.subtract(a, b)
    if np.ptp(difference) == 0:
        return 1.0 if difference[0] == 0 else 0.0
    return float(stats.ttest_rel(a, b).pvalue)


def signed_rank(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, zeros ranked and left out (Pratt). Up to 13
    pairs exact, ties or not; beyond by the normal approximation.
    """
    stats = _stats()
    _enough(a, b, paired=True)
    # means of few ratings: rounding must not part what is equal
    difference = np.round(np.subtract(a, b), 9)
    if not difference.any():
        return 1.0
    if len(difference) <= EXACT_PAIRS:
        signed = np.sign(difference) * stats.rankdata(np.abs(difference))
        return paired_permutation(signed.tolist(), [0.0] * len(signed))
    found = stats.wilcoxon(difference, zero_method="pratt", method="asymptotic")
    return float(found.pvalue)


def friedman(rows: np.ndarray) -> float | None:
    """p that all systems rank alike, of [listeners, systems]; None below 3 systems or 2 rows."""
    if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 3:
        return None
    if np.ptp(rows, axis=1).max() == 0:
        return 1.0
    return float(_stats().friedmanchisquare(*np.round(rows, 9).T).pvalue)


def cohens_d(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Mean difference of pairs in units of the differences' spread; None without spread."""
    difference = np.subtract(a, b)
    spread = float(np.std(difference, ddof=1)) if len(difference) > 1 else 0.0
    return None if spread == 0 else float(difference.mean() / spread)


def cliffs_delta(a: Sequence[float], b: Sequence[float]) -> float:
    """How much more often a rating of a is above one of b than below it: -1 to 1."""
    if not len(a) or not len(b):
        raise InputError("Cliff's delta needs ratings of both systems")
    above = np.sign(np.subtract.outer(np.asarray(a, float), np.asarray(b, float)))
    return float(above.mean())


def krippendorff_alpha(ratings_RU: np.ndarray, *, level: Level = "interval") -> float | None:
    """Agreement of raters about units, NaN where a rater did not rate one: 1 is perfect, 0 is
    chance. None where no unit has two ratings or all ratings are one value.
    """
    ratings = np.asarray(ratings_RU, float)
    counted = ratings[:, np.isfinite(ratings).sum(0) >= 2]
    values = np.unique(counted[np.isfinite(counted)])
    if len(values) < 2:
        return None
    # pairs of values within a unit, each unit weighing as much as it has ratings
    held_UV = np.stack([(counted == value).sum(0) for value in values], 1).astype(float)
    size_U = held_UV.sum(1)
    seen_VV = np.einsum("uv,uw,u->vw", held_UV, held_UV, 1 / (size_U - 1))
    seen_VV -= np.diag((held_UV / (size_U - 1)[:, None]).sum(0))
    total_V = seen_VV.sum(1)
    expected_VV = np.outer(total_V, total_V) - np.diag(total_V)
    distance_VV = _distance(values, total_V, level)
    by_chance = float((expected_VV * distance_VV).sum()) / (total_V.sum() - 1)
    return 1.0 - float((seen_VV * distance_VV).sum()) / by_chance


def _distance(values: np.ndarray, total_V: np.ndarray, level: Level) -> np.ndarray:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return np.subtract.outer(values, values) ** 2
    # between two ranks lie all the ratings between them, and half of each end's
    upto = np.cumsum(total_V) - total_V / 2
    return np.subtract.outer(upto, upto) ** 2


def listeners_needed(
    difference: float, spread: float, *, power: float = 0.8, level: float = 0.05
) -> int:
    """Listeners with whom a paired t-test of their means finds `difference` with this power, where
    the listeners' differences have the standard deviation `spread` (both in points of the scale).

    Raises InputError for a difference or spread of 0, or one that needs more than 100,000.
    """
    require("scipy", "the number of listeners")
    from scipy.stats import nct, t

    if not difference or spread <= 0 or not 0 < level < power < 1:
        raise InputError(
            f"difference={difference}, spread={spread}, power={power}, level={level}: give a "
            "difference other than 0, a spread above 0, and 0 < level < power < 1"
        )
    effect = abs(difference) / spread

    def reached(n: int) -> bool:
        critical, shift = t.isf(level / 2, n - 1), effect * np.sqrt(n)
        found = nct.sf(critical, n - 1, shift) + nct.cdf(-critical, n - 1, shift)
        # nct gives NaN where all of its mass is beyond the critical value
        return bool(np.isnan(found) or found >= power)

    low, high = 1, 2
    while not reached(high):
        low, high = high, 2 * high
        if high > MOST_LISTENERS:
            raise InputError(
                f"a difference of {difference} at a spread of {spread} needs more than "
                f"{MOST_LISTENERS:,} listeners: look for a larger one"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p that each of two is preferred as often; undecided answers are left out."""
    decided = wins + losses
    return 1.0 if decided == 0 else float(_stats().binomtest(wins, decided).pvalue)


def bradley_terry(wins: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Strength of each system, as the logarithm of its odds against the mean one. `wins[a, b]` is
    how often a was preferred to b; a draw is half a win for both. One win each way between the
    systems is added in all, so that who never lost stays finite.
    """
    names = sorted({name for pair in wins for name in pair})
    if len(names) < 2:
        raise InputError("strengths need the preferences between two systems or more")
    place = {name: number for number, name in enumerate(names)}
    count = np.zeros((len(names), len(names)))
    for (a, b), number in wins.items():
        count[place[a], place[b]] += number
    count += (1 - np.eye(len(names))) / (len(names) - 1)
    meetings, won = count + count.T, count.sum(1)
    strength = np.ones(len(names))
    for _ in range(10_000):  # Zermelo's iteration, which rises at every step
        new = won / (meetings / np.add.outer(strength, strength)).sum(1)
        new /= np.exp(np.log(new).mean())
        if np.abs(np.log(new / strength)).max() < 1e-10:
            break
        strength = new
    return {name: float(np.log(strength[number])) for name, number in place.items()}


def _enough(a: Sequence[float], b: Sequence[float], *, paired: bool = False) -> None:
    if len(a) < 2 or len(b) < 2 or (paired and len(a) != len(b)):
        raise InputError(f"{len(a)} and {len(b)} ratings: a test needs 2 of each, in pairs or not")


def _stats():  # type: ignore[no-untyped-def]  # scipy has no types
    require("scipy", "tests of ratings")
    from scipy import stats

    return stats
