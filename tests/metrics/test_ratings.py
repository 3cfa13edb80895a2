"""Tests and figures of ratings: equal to scipy, to published examples and to textbooks' tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mudit_engine.errors import InputError
from mudit_engine.metrics import ratings
from mudit_engine.metrics.mixed_model import fit_mixed

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: 4 observers, 12 units
NAN = math.nan
EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


def test_t_and_rank_tests_are_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 6, 24).astype(float), rng.integers(2, 6, 24).astype(float)
    assert ratings.students_t(a, b[:20]) == pytest.approx(stats.ttest_ind(a, b[:20]).pvalue)
    assert ratings.paired_t(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    expected = stats.wilcoxon(a, b, zero_method="pratt", method="asymptotic").pvalue
    assert ratings.signed_rank(a, b) == pytest.approx(expected)
    c, d = rng.normal(size=(2, 10))
    exact = stats.wilcoxon(c, d, method="exact").pvalue
    assert ratings.signed_rank(c, d) == pytest.approx(exact)
    rows = rng.normal(size=(12, 3))
    assert ratings.friedman(rows) == pytest.approx(stats.friedmanchisquare(*rows.T).pvalue)


def test_without_spread_a_p_is_still_a_number() -> None:
    assert ratings.students_t([3, 3], [3, 3]) == ratings.paired_t([3, 4], [3, 4]) == 1.0
    assert ratings.paired_t([4, 5], [3, 4]) == 0.0
    assert ratings.signed_rank([3, 4], [3, 4]) == 1.0
    assert ratings.cohens_d([4, 5], [3, 4]) is None
    with pytest.raises(InputError, match="1 and 2 ratings"):
        ratings.students_t([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_that_of_the_published_example(level: ratings.Level, alpha: float) -> None:
    assert ratings.krippendorff_alpha(EXAMPLE, level=level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_perfect_chance_and_constant_ratings() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 6, 200)
    assert ratings.krippendorff_alpha(np.stack([truth] * 3)) == pytest.approx(1.0)
    noise = ratings.krippendorff_alpha(rng.integers(1, 6, (4, 500)))
    assert noise is not None and abs(noise) < 0.05
    assert ratings.krippendorff_alpha(np.ones((3, 5))) is None
    assert ratings.krippendorff_alpha(np.array([[1, NAN], [NAN, 2]])) is None


def test_effect_sizes() -> None:
    assert ratings.cohens_d([2, 4, 3], [1, 2, 2]) == pytest.approx(
        (4 / 3) / np.std([1, 2, 1], ddof=1)
    )
    assert ratings.cliffs_delta([4, 5], [1, 2]) == 1.0
    assert ratings.cliffs_delta([1, 3], [2, 2]) == 0.0


@pytest.mark.parametrize(("effect", "listeners"), [(0.5, 34), (0.2, 199), (1.0, 10)])
def test_listeners_needed_are_those_of_the_textbooks_tables(effect: float, listeners: int) -> None:
    """Paired t, power .8, 5 % two-sided (G*Power gives these)."""
    assert ratings.listeners_needed(effect * 0.7, 0.7) == listeners


def test_too_small_a_difference_is_refused() -> None:
    with pytest.raises(InputError, match="more than 100,000 listeners"):
        ratings.listeners_needed(0.0001, 1.0)
    with pytest.raises(InputError, match="spread"):
        ratings.listeners_needed(0.3, 0.0)


def test_strengths_are_the_log_odds_of_winning() -> None:
    strength = ratings.bradley_terry({("a", "b"): 3000.0, ("b", "a"): 1000.0})
    assert strength["a"] - strength["b"] == pytest.approx(math.log(3), abs=2e-3)
    assert math.isfinite(ratings.bradley_terry({("a", "b"): 5.0})["a"])
    assert ratings.sign_test(9, 1) == pytest.approx(stats.binomtest(9, 10).pvalue)
    assert ratings.sign_test(0, 0) == 1.0


def balanced(rng: np.random.Generator, listeners: int, items: int) -> tuple[np.ndarray, ...]:
    who, what = (grid.ravel() for grid in np.meshgrid(range(listeners), range(items)))
    system = what % 2
    y = rng.normal(0, 0.7, listeners)[who] + rng.normal(0, 1.0, len(who))
    return y + 0.4 * system, who, what, system


def test_a_balanced_mixed_model_is_the_paired_t_test() -> None:
    """With a listener-by-system variance its test is the exact one of classical ANOVA."""
    rng = np.random.default_rng(4)
    y, who, _, system = balanced(rng, 14, 8)
    y = y + rng.normal(0, 1.0, (14, 2))[who, system]
    x = np.stack([system == 0, system == 1], 1).astype(float)
    fit = fit_mixed(y, x, {"listener": who, "listener by system": who * 2 + system})
    found = fit.test([-1.0, 1.0])
    means = [[y[(who == n) & (system == s)].mean() for n in range(14)] for s in (0, 1)]
    expected = stats.ttest_rel(means[1], means[0])
    assert found.estimate == pytest.approx(np.mean(means[1]) - np.mean(means[0]))
    assert found.degrees == pytest.approx(13, rel=0.02)
    assert found.p == pytest.approx(expected.pvalue, rel=0.02)
    assert found.estimate / found.error == pytest.approx(expected.statistic, rel=1e-3)


def test_a_mixed_model_refuses_what_it_cannot_tell_apart() -> None:
    x = np.array([[1.0, 1.0]] * 6)
    with pytest.raises(InputError, match="told apart"):
        fit_mixed(np.arange(6.0), x, {"listener": np.arange(6) % 2})
    with pytest.raises(InputError, match="collect more"):
        fit_mixed(np.arange(2.0), np.eye(2), {"listener": np.arange(2)})
