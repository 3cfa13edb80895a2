"""Kernel audio distance against another package's figures, closed forms and its own promises."""

from __future__ import annotations

import math

import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.metrics.fad import FrechetReference, frechet_distance, frechet_infinity
from mudit_engine.metrics.kad import kernel_distance, median_distance


def sets() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(300, 24, generator=g), torch.randn(200, 24, generator=g) * 1.2 + 0.3


def test_equals_other_packages() -> None:
    """Figures of kadtk 1.1.0 (in float64) and of fadtk 1.1.0 on these features."""
    x, y = sets()
    assert kernel_distance(x, y) == pytest.approx(3.18621683, abs=1e-4)
    assert kernel_distance(x, y, bandwidth=median_distance(y)) == pytest.approx(2.48193, abs=1e-4)
    assert frechet_distance(x, y) == pytest.approx(4.8971528, abs=1e-4)


def test_by_hand() -> None:
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    assert median_distance(x) == 1.0

    def k(a: float) -> float:
        return math.exp(-(a**2) / 2)

    within = (4 * k(1) + 2 * k(2)) / 6 + 2 * k(3) / 2
    across = (k(0) + k(3) + k(1) + k(2) + k(2) + k(1)) / 6
    assert kernel_distance(x, y) == pytest.approx(100 * (within - 2 * across), rel=1e-12)


def test_equal_distributions_are_near_zero_at_any_size() -> None:
    g = torch.Generator().manual_seed(1)
    reference = torch.randn(1000, 8, generator=g)
    found = [kernel_distance(reference, torch.randn(40, 8, generator=g)) for _ in range(60)]
    assert abs(sum(found) / len(found)) < 0.1
    moved = kernel_distance(reference, torch.randn(40, 8, generator=g) + 1)
    assert moved > 20 * max(map(abs, found)) / 3


def test_drawn_pairs_and_blocks_change_little() -> None:
    x, _ = sets()
    assert median_distance(x, pairs=5000) == pytest.approx(median_distance(x), rel=0.02)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(1, 4), "at least 2 rows"),
        (torch.full((3, 4), torch.nan), "NaN"),
        (torch.zeros(5, 4), "rows are equal"),
    ],
    ids=["one", "nan", "equal"],
)
def test_bad_features(rows: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kernel_distance(rows, torch.randn(4, 4))


def test_fad_without_bias() -> None:
    """Of one distribution FAD is 0; few rows say more, and extrapolation less."""
    g = torch.Generator().manual_seed(2)
    reference = FrechetReference(torch.randn(20000, 16, generator=g))
    rows = torch.randn(3000, 16, generator=g)
    biased = reference.distance([reference.moments(rows[:600])], [1])
    found = frechet_infinity(reference, rows)
    assert abs(found.value) < biased / 3 and found.slope > 0 and found.r2 > 0.5
    assert found == frechet_infinity(reference, rows)
    with pytest.raises(InputError, match="more than 500"):
        frechet_infinity(reference, rows[:400])
