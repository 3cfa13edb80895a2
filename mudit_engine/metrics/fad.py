"""Frechet audio distance between two sets of feature vectors.

    d = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

    frechet_distance(features(reference), features(generated))

    frechet_infinity(reference, features_ND)        # what it would be with rows without end

The estimate of finite sets is biased upwards by an amount that falls as 1 / rows; extrapolating a
line in 1 / rows to 0 removes it.

Sources: Kilgour et al. 2019, eq. 1; Chong and Forsyth 2020 (extrapolation). The features are the
caller's (musicnn's penultimate layer in `mudit eval tiny`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mudit_engine.errors import InputError

RIDGE = 1e-6


@dataclass(frozen=True)
class Moments:
    """Sums over the rows of one song: enough for the mean and covariance of any union of songs."""

    rows: int
    sum_D: Tensor
    squares_DD: Tensor


class FrechetReference:
    """The set that others are measured against; its covariance is factored once.

    With fewer rows than dimensions the covariance is singular and the distance biased upwards: use
    some hundreds of rows, and compare only distances of sets of about the same size.
    """

    def __init__(self, features_ND: Tensor) -> None:
        """Raises InputError with fewer rows than 2, and for non-finite features."""
        self.origin = (
            features_ND.double().mean(0)
            if len(features_ND)
            else torch.zeros(features_ND.shape[1], dtype=torch.float64)
        )
        everything = self.moments(features_ND, name="first")
        self.mean, self.cov = _gaussian([everything], [1], name="first")
        # tr (Ca Cb)^(1/2) = sum of square roots of the eigenvalues of Ca^(1/2) Cb Ca^(1/2), which
        # is symmetric and positive
        values, vectors = torch.linalg.eigh(self.cov)
        self.root = vectors * values.clamp_min(0).sqrt() @ vectors.T

    def moments(self, features_ND: Tensor, *, name: str = "second") -> Moments:
        if not bool(torch.isfinite(features_ND).all()):
            raise InputError(
                f"the {name} set of features holds NaN or infinite values: the audio it was made "
                f"from is broken"
            )
        # about the reference's mean, so that large offsets do not cancel in sum of squares - square
        # of sum
        x = features_ND.double() - self.origin
        return Moments(len(x), x.sum(0), x.T @ x)

    def distance(self, songs: Sequence[Moments], weights: Sequence[int]) -> float:
        """Distance of the union of `songs`, each taken `weights` times. Raises InputError with
        fewer rows than 2.
        """
        mean, cov = _gaussian(songs, weights, name="second")
        cross = torch.linalg.eigvalsh(self.root @ cov @ self.root).clamp_min(0).sqrt().sum()
        return float((self.mean - mean).square().sum() + self.cov.trace() + cov.trace() - 2 * cross)


def frechet_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """Distance of the Gaussians fitted to rows of a and b. Raises InputError with fewer rows than
    2, and for non-finite features.
    """
    reference = FrechetReference(a_ND)
    return reference.distance([reference.moments(b_ND)], [1])


@dataclass(frozen=True)
class Extrapolation:
    """FAD without bias, the slope in 1 / rows, and how well a line fits (1 is exactly)."""

    value: float
    slope: float
    r2: float


def frechet_infinity(
    reference: FrechetReference,
    features_ND: Tensor,
    *,
    fewest: int = 500,
    steps: int = 25,
    seed: int = 0,
) -> Extrapolation:
    """FAD extrapolated to rows without end, from `steps` sizes between `fewest` and all rows, each
    drawn with replacement.

    Raises InputError with fewer rows than `fewest`: too few to see a slope.
    """
    rows = len(features_ND)
    if rows <= fewest:
        raise InputError(
            f"FAD-infinity of {rows} rows of features: more than {fewest} are needed. Give more or "
            "longer audio"
        )
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(fewest, rows, steps).int().tolist()
    found = []
    for size in sizes:
        drawn = features_ND[torch.randint(rows, (size,), generator=generator)]
        found.append(reference.distance([reference.moments(drawn)], [1]))
    x = 1 / torch.tensor(sizes, dtype=torch.float64)
    y = torch.tensor(found, dtype=torch.float64)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    value = float(y.mean()) - slope * float(x.mean())
    left = (y - value - slope * x).square().sum()
    spread = (y - y.mean()).square().sum()
    return Extrapolation(value, slope, float(1 - left / spread) if spread > 0 else 1.0)


def _gaussian(
    songs: Sequence[Moments], weights: Sequence[int], *, name: str
) -> tuple[Tensor, Tensor]:
    rows = sum(song.rows * weight for song, weight in zip(songs, weights, strict=True))
    if rows < 2:
        raise InputError(f"the {name} set of features has {rows} rows: at least 2 are needed")
    taken = [(song, weight) for song, weight in zip(songs, weights, strict=True) if weight]
    mean = torch.stack([song.sum_D * weight for song, weight in taken]).sum(0) / rows
    squares = torch.zeros_like(taken[0][0].squares_DD)
    for song, weight in taken:
        squares.add_(song.squares_DD, alpha=weight)
    cov = (squares - rows * mean.outer(mean)) / (rows - 1)
    return mean, cov + RIDGE * torch.eye(len(mean), dtype=torch.float64)
