"""Frechet distance against its closed form and scipy's matrix square root; intervals, ratios and
permutations against known answers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.metrics import figures
from mudit_engine.metrics.fad import FrechetReference, frechet_distance


def gaussian(n: int, mean: float, scale: float, d: int = 6, seed: int = 0) -> torch.Tensor:
    """Rows whose sample mean and covariance are exactly (mean, scale^2 I)."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    root = torch.linalg.cholesky(torch.cov(x.T))
    return torch.linalg.solve_triangular(root, x.T, upper=False).T * scale + mean


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.0, 3.0), (-2.0, 0.5)])
def test_two_isotropic_gaussians(shift: float, scale: float) -> None:
    expected = 6 * shift**2 + 6 * (scale - 1) ** 2
    assert frechet_distance(
        gaussian(200, 0, 1), gaussian(300, shift, scale, seed=1)
    ) == pytest.approx(expected, abs=1e-4)


def test_correlated_gaussians_against_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(3)
    a = (
        torch.randn(400, 12, generator=generator).double()
        @ torch.randn(12, 12, generator=generator).double()
        + 100
    )
    b = (
        torch.randn(300, 12, generator=generator).double()
        @ torch.randn(12, 12, generator=generator).double()
        + 99
    )
    ca, cb = (np.cov(x.numpy().T) for x in (a, b))
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(
        ca + cb - 2 * linalg.sqrtm(ca @ cb).real
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_same_set_is_at_zero_even_when_singular() -> None:
    few = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(1, 4), torch.full((5, 4), float("nan")), torch.zeros(0, 4)],
    ids=["one-row", "nan", "empty"],
)
@pytest.mark.parametrize("side", [0, 1])
def test_unusable_sets_are_refused(bad: torch.Tensor, side: int) -> None:
    good = torch.randn(10, 4)
    with pytest.raises(InputError, match=("first", "second")[side]):
        frechet_distance(*((bad, good) if side == 0 else (good, bad)))


def test_union_of_songs_equals_all_rows_and_a_weight_repeats_a_song() -> None:
    generator = torch.Generator().manual_seed(1)
    reference = FrechetReference(torch.randn(50, 5, generator=generator))
    songs = [torch.randn(n, 5, generator=generator) + n for n in (7, 12, 9)]
    moments = [reference.moments(song) for song in songs]
    assert reference.distance(moments, [1, 1, 1]) == pytest.approx(
        reference.distance([reference.moments(torch.cat(songs))], [1]), rel=1e-9
    )
    repeated = reference.moments(torch.cat([songs[0], songs[0], songs[2]]))
    assert reference.distance(moments, [2, 0, 1]) == pytest.approx(
        reference.distance([repeated], [1]), rel=1e-9
    )


def test_fad_interval_lies_around_the_estimate() -> None:
    generator = torch.Generator().manual_seed(2)
    songs = [
        torch.randn(15, 8, generator=generator) + 0.5 * torch.randn(8, generator=generator)
        for _ in range(20)
    ]
    found = figures.fad(FrechetReference(torch.randn(400, 8, generator=generator)), songs)
    assert found.n == 20 and found.low < found.value < found.high


def test_ratio_counts_songs_and_its_interval_is_the_binomial_one() -> None:
    hits = [1.0] * 60 + [0.0] * 40
    found = figures.ratio(range(100), hits, [1.0] * 100)
    assert found.value == 0.6 and found.n == 100
    assert found.low == pytest.approx(
        0.6 - 1.96 * 0.049, abs=0.015
    ) and found.high == pytest.approx(0.6 + 1.96 * 0.049, abs=0.015)


def test_entries_of_one_song_are_drawn_together() -> None:
    """Ten copies of each entry are no more evidence than one."""
    once = figures.ratio([0, 1, 2, 3], [1, 0, 1, 1], [1] * 4)
    tenfold = figures.ratio([0, 1, 2, 3] * 10, [1, 0, 1, 1] * 10, [1] * 40)
    assert tenfold == once


def test_balanced_accuracy_ignores_how_frequent_a_class_is() -> None:
    truth = ["on"] * 90 + ["off"] * 10
    assert figures.balanced_accuracy(range(100), truth, ["on"] * 100).value == 0.5
    assert figures.balanced_accuracy(range(100), truth, truth).value == 1.0
    assert figures.balanced_accuracy(range(3), ["on"] * 3, ["on"] * 3) == figures.NOTHING


def test_nothing_measured_is_nothing() -> None:
    assert figures.ratio([], [], []) == figures.NOTHING and str(figures.NOTHING) == "-"


@pytest.mark.parametrize("songs", [2, 3, 7])
def test_nobody_keeps_their_own_request(songs: int) -> None:
    ways = figures.derangements(songs, 5)
    assert len(ways) == min(5, songs - 1)
    for way in ways:
        assert sorted(way) == list(range(songs)) and all(
            other != song for song, other in enumerate(way)
        )
    assert all(len({way[song] for way in ways}) == len(ways) for song in range(songs))


def test_one_song_has_no_other() -> None:
    with pytest.raises(ValueError, match="1 song"):
        figures.derangements(1, 3)
