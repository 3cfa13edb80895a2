"""Linear probes: can drums, a voice or a style be read off a song's features? Ridge regression on
one-hot labels, in closed form.

    W = argmin sum_i w_i |y_i - W x_i|^2 + s |W|^2,     w_i = 1 / (songs of i's class)

The classes weigh the same however rare they are, and the strength s is the one with the best
leave-one-out balanced accuracy, which the singular values give at once: residual_i / (1 -
leverage_i).

    probe = RidgeProbe.fit(features_ND, ["on", "off", ...])
    guesses = probe(other_MD)

Source: Hastie, Tibshirani, Friedman, Elements of Statistical Learning, eq. 3.47 and 7.52.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mudit_engine.errors import InputError

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-6, 7))  # of the mean squared singular value


@dataclass(frozen=True)
class RidgeProbe:
    """Weights in the units of the features; `left_out` is the balanced accuracy over training
    songs, each left out in turn.
    """

    classes: tuple[str, ...]
    weight_DC: Tensor
    bias_C: Tensor
    strength: float
    left_out: float

    @classmethod
    def fit(cls, features_ND: Tensor, labels: Sequence[str]) -> RidgeProbe:
        """Raises InputError with fewer than two classes, or fewer than two songs of one."""
        classes = tuple(sorted(set(labels)))
        counts = [list(labels).count(label) for label in classes]
        if len(classes) < 2 or min(counts) < 2:
            found = dict(zip(classes, counts, strict=True))
            raise InputError(
                f"a probe needs two songs of each of at least two classes, got {found}: use more "
                f"songs"
            )
        x = features_ND.double()
        target = torch.tensor([classes.index(label) for label in labels])
        # sums to 1
        weight = (1.0 / torch.tensor(counts, dtype=torch.float64))[target] / len(classes)
        centre = (weight[:, None] * x).sum(0)
        scale = (weight[:, None] * (x - centre).square()).sum(0).sqrt()
        # what never changes says nothing
        scale = torch.where(scale > 1e-9 * scale.max(), scale, torch.inf)
        y = torch.nn.functional.one_hot(target, len(classes)).double()
        prior = (weight[:, None] * y).sum(0)
        root = weight.sqrt()[:, None]
        left, singular, right = torch.linalg.svd(root * (x - centre) / scale, full_matrices=False)
        projected = left.T @ (root * (y - prior))
        best: tuple[float, float] | None = None
        for strength in STRENGTHS:
            shrink = singular.square() / (singular.square() + strength * singular.square().mean())
            fitted = left @ (shrink[:, None] * projected)
            leverage = left.square() @ shrink + weight
            residual = (root * (y - prior) - fitted) / (1 - leverage).clamp_min(1e-6)[:, None]
            guess = (y - residual / root).argmax(1)
            score = float((weight * (guess == target)).sum())
            if best is None or score >= best[0]:  # of equals, the strongest
                best = score, strength
        assert best is not None
        shrunk = singular / (singular.square() + best[1] * singular.square().mean())
        solution = (right.T @ (shrunk[:, None] * projected)) / scale[:, None]
        return cls(classes, solution, prior - centre @ solution, best[1], best[0])

    def __call__(self, features_MD: Tensor) -> list[str]:
        """The likeliest class of each row."""
        scores = features_MD.double() @ self.weight_DC + self.bias_C
        return [self.classes[int(k)] for k in scores.argmax(1)]
