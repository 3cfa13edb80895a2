"""Kernel audio distance: the squared maximum mean discrepancy of two sets of features, times 100.

    KAD = 100 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),    k(a, b) = exp(-|a - b|^2 / 2 s^2)

    distance = kernel_distance(reference_ND, evaluated_MD)

Means over pairs leave out a row with itself, so that the estimate is unbiased at any number of rows
(FAD is not) and may come out a little below 0 for equal distributions. The bandwidth s is the
median distance between rows of the reference, so that all systems are measured by one kernel; the
package kadtk takes it from the evaluated set instead, which `bandwidth` reproduces.

Source: Chung et al. 2025, "KAD: No More FAD! An Effective and Efficient Evaluation Metric for Audio
Generation"; Gretton et al. 2012, "A Kernel Two-Sample Test", eq. 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mudit_engine.errors import InputError

SCALE = 100.0
ROWS = 4096  # of the distances held at once


def median_distance(features_ND: Tensor, *, pairs: int = 1_000_000, seed: int = 0) -> float:
    """Median Euclidean distance between two rows: of all pairs, or of `pairs` drawn ones.

    Raises InputError with fewer rows than 2 and for rows that are all equal.
    """
    x, n = _checked(features_ND, "reference"), len(features_ND)
    if n * (n - 1) // 2 <= pairs:
        distances = torch.pdist(x)
    else:
        g = torch.Generator().manual_seed(seed)
        a = torch.randint(n, (pairs,), generator=g)
        b = (a + torch.randint(1, n, (pairs,), generator=g)) % n
        distances = (x[a] - x[b]).norm(dim=1)
    median = float(distances.median())
    if median == 0:
        raise InputError("half of the reference's rows are equal: no kernel fits them, add audio")
    return median


def kernel_distance(
    reference_ND: Tensor, evaluated_MD: Tensor, *, bandwidth: float | None = None
) -> float:
    """KAD of two sets of features; `bandwidth` None is the reference's median distance.

    Raises InputError with fewer rows than 2 and for features that are not finite.
    """
    x, y = _checked(reference_ND, "reference"), _checked(evaluated_MD, "evaluated")
    width = median_distance(reference_ND) if bandwidth is None else bandwidth
    own = [_sum(z, z, width) - len(z) for z in (x, y)]
    within = own[0] / (len(x) * (len(x) - 1)) + own[1] / (len(y) * (len(y) - 1))
    return SCALE * (within - 2 * _sum(x, y, width) / (len(x) * len(y)))


def _sum(x: Tensor, y: Tensor, width: float) -> float:
    total = 0.0
    for part in x.split(ROWS):
        total += float(torch.exp(-torch.cdist(part, y).square() / (2 * width**2)).sum())
    return total


def _checked(features_ND: Tensor, name: str) -> Tensor:
    if features_ND.dim() != 2 or len(features_ND) < 2:
        raise InputError(
            f"the {name} set of features has shape {tuple(features_ND.shape)}: at least 2 rows of "
            "one width are needed"
        )
    if not bool(torch.isfinite(features_ND).all()):
        raise InputError(
            f"the {name} set of features holds NaN or infinite values: the audio it was made from "
            "is broken"
        )
    return features_ND.double()
