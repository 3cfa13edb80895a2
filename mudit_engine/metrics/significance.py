"""Is one system better than another? Tests on what both made of the same requests.

    p = paired_permutation(a_N, b_N)            # two-sided, of the mean difference
    adjusted = holm([p1, p2, p3])               # for several comparisons at once

A permutation flips the sign of each pair's difference: under the null hypothesis the two systems'
values of one request could be swapped. With up to 13 pairs all flips are counted, which is exact;
otherwise `resamples` are drawn and the observed one is counted among them, so that p is never 0.

Sources: Fisher 1935; Phipson and Smyth 2010 (drawn permutations); Holm 1979.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from mudit_engine.errors import InputError

EXACT_PAIRS = 13
RESAMPLES = 9999


def paired_permutation(
    a: Sequence[float], b: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Two-sided p-value of mean(a - b) = 0. Raises InputError for sets of other lengths or of
    fewer than 2 pairs.
    """
    if len(a) != len(b) or len(a) < 2:
        raise InputError(f"{len(a)} and {len(b)} values: a paired test needs 2 pairs or more")
    difference = np.asarray(a, float) - np.asarray(b, float)
    if not np.isfinite(difference).all():
        raise InputError("a paired test needs finite values: leave out the pairs that have none")
    observed = abs(difference.sum())
    # rounding must not part what is equal
    limit = observed - 1e-12 * max(1.0, float(np.abs(difference).sum()))
    if len(difference) <= EXACT_PAIRS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(difference))))
        return float(np.mean(np.abs(signs @ difference) >= limit))
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(resamples, len(difference)))
    return float((1 + np.sum(np.abs(signs @ difference) >= limit)) / (1 + resamples))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in their order: those below a level hold together."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * float(p_values[place])))
        adjusted[place] = running
    return adjusted.tolist()
