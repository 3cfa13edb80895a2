"""Paired tests: exact ones by counting, false alarms by simulation, Holm by his own example."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from mudit_engine.errors import InputError
from mudit_engine.metrics.significance import holm, paired_permutation


def test_exact_by_counting() -> None:
    a, b = [3.0, 1.0, 4.0, 2.5], [1.0, 2.0, 1.0, 2.0]
    difference = np.subtract(a, b)
    flips = [abs(difference @ signs) for signs in itertools.product((1, -1), repeat=4)]
    expected = np.mean([flip >= abs(difference.sum()) - 1e-12 for flip in flips])
    assert paired_permutation(a, b) == expected


def test_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=40) + 0.4
    b = rng.normal(size=40)
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    assert paired_permutation(a, b) == pytest.approx(theirs.pvalue, abs=0.01)


def test_false_alarms_and_power_of_simulated_comparisons() -> None:
    rng = np.random.default_rng(3)
    null = [
        paired_permutation(*rng.normal(size=(2, 20)), resamples=999, seed=n) for n in range(1000)
    ]
    assert 0.03 <= np.mean(np.array(null) < 0.05) <= 0.07
    planted = [
        paired_permutation(rng.normal(size=30) + 1.0, rng.normal(size=30), resamples=999, seed=n)
        for n in range(100)
    ]
    assert np.mean(np.array(planted) < 0.05) > 0.9


def test_equal_systems_never_differ() -> None:
    assert paired_permutation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1.0


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("a", "b"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([1.0, float("nan")], [1.0, 2.0])]
)
def test_bad_input(a: list[float], b: list[float]) -> None:
    with pytest.raises(InputError):
        paired_permutation(a, b)
