"""How well a ranking finds its right answers: the place of the first right one, and what chance
would give.

    ranks = first_right(scores_QN, right_QN)                        # 0 = nearest
    expected = chance(candidates=48, right=2, k=5)

Shapes: Q queries, N candidates.
"""

from __future__ import annotations

import math

import numpy as np


def first_right(scores_QN: np.ndarray, right_QN: np.ndarray) -> np.ndarray:
    """Place (0 = nearest) of each query's best right answer. Of equal scores the wrong come first:
    a constant embedding finds nothing.
    """
    best_Q1 = np.where(right_QN, scores_QN, -np.inf).max(1, keepdims=True)
    ahead: np.ndarray = ((scores_QN >= best_Q1) & ~right_QN).sum(1)
    return ahead


def chance(candidates: int, right: int, k: int) -> float:
    """Probability that k of the candidates (or all, if they are fewer), drawn without replacement,
    hold one of the right ones.
    """
    k = min(k, candidates)
    return 1.0 - math.comb(candidates - right, k) / math.comb(candidates, k)
