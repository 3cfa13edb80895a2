"""Frechet audio distance between two sets of feature vectors.

    d = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

    frechet_distance(features(reference), features(generated))

Source: Kilgour et al. 2019, eq. 1. The features are the caller's (musicnn's penultimate layer in `mudit eval tiny`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mudit_engine.errors import InputError

RIDGE = 1e-6


def frechet_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """Distance of the Gaussians fitted to rows of a and b. Raises InputError with fewer rows than 2, and for non-finite features.

    With fewer rows than dimensions the covariance is singular and the distance biased upwards: use some hundreds of rows.
    """
    for name, x in (("first", a_ND), ("second", b_ND)):
        if len(x) < 2 or not bool(torch.isfinite(x).all()):
            raise InputError(f"the {name} set of features has {len(x)} rows, or holds NaN: at least 2 finite rows are needed")
    a, b = a_ND.double(), b_ND.double()
    eye = RIDGE * torch.eye(a.shape[1], dtype=torch.float64)
    cov_a, cov_b = torch.cov(a.T) + eye, torch.cov(b.T) + eye
    # tr (Ca Cb)^(1/2) = sum of square roots of the eigenvalues of Ca^(1/2) Cb Ca^(1/2), which is symmetric and positive
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    return float(gap + cov_a.trace() + cov_b.trace() - 2 * cross)
