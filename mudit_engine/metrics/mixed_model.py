"""A linear mixed model with crossed random intercepts: ratings of songs by listeners.

    y = X b + sum over groupings k of Z_k u_k + e,     u_k ~ N(0, s_k^2), e ~ N(0, s^2)

    fit = fit_mixed(y_N, x_NP, {"listener": who_N, "request": asked_N, "song": song_N})
    fit.test([0.0, 1.0])                          # estimate, standard error, p of one contrast

The variances maximise the restricted likelihood over the ratios s_k / s, with the fixed effects and
s profiled out through Henderson's mixed-model equations. Contrasts are tested by t with the degrees
of freedom of Satterthwaite, from the curvature of the likelihood in the variances: a difference
between two systems that rests on ten songs has about nine, however many listeners heard them.

Sources: Henderson 1975; Bates et al. 2015 (profiled criterion); Satterthwaite 1946 and Kuznetsova
et al. 2017 (degrees of freedom); Baayen et al. 2008 (crossed raters and items).

Shapes: N ratings, P fixed effects, Q random effects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mudit_engine.availability import require
from mudit_engine.errors import InputError

NONE = 1e-3  # a ratio s_k / s below this is no variance


@dataclass(frozen=True)
class Contrast:
    """An estimate in the units of the ratings, its standard error, and its two-sided p."""

    estimate: float
    error: float
    degrees: float
    p: float


class _Equations:
    """The model's cross products, and what follows from given variances."""

    def __init__(self, y_N: np.ndarray, x_NP: np.ndarray, groups: Sequence[np.ndarray]) -> None:
        self.n, self.p = x_NP.shape
        blocks = []
        for labels in groups:
            _, place = np.unique(labels, return_inverse=True)
            blocks.append(np.eye(int(place.max()) + 1)[place])
        z_NQ = np.concatenate(blocks, 1)
        self.sizes = [block.shape[1] for block in blocks]
        self.zz, self.zr = z_NQ.T @ z_NQ, z_NQ.T @ np.column_stack((x_NP, y_N))
        self.xx, self.xy, self.yy = x_NP.T @ x_NP, x_NP.T @ y_N, float(y_N @ y_N)

    def at(self, ratios: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        """(log determinants, effects, their information at s = 1, residual sum of squares)."""
        scale = np.repeat(ratios, self.sizes)
        inner = np.linalg.cholesky(scale[:, None] * self.zz * scale + np.eye(len(scale)))
        right = np.linalg.solve(inner, scale[:, None] * self.zr)
        rx, ry = right[:, :-1], right[:, -1]
        information, moment = self.xx - rx.T @ rx, self.xy - rx.T @ ry
        effects = np.linalg.solve(information, moment)
        rest = max(self.yy - float(ry @ ry) - float(effects @ moment), 1e-12 * (1 + self.yy))
        _, logdet = np.linalg.slogdet(information)
        return 2 * float(np.log(np.diag(inner)).sum()) + float(logdet), effects, information, rest

    def profiled(self, ratios: np.ndarray) -> float:
        """-2 log restricted likelihood with the best s, less a constant."""
        logdets, _, _, rest = self.at(np.abs(ratios))
        return logdets + (self.n - self.p) * float(np.log(rest))

    def deviance(self, variances: np.ndarray) -> float:
        """The same for variances of the groupings and, last, of the rest."""
        variance = variances[-1]
        logdets, _, _, rest = self.at(np.sqrt(np.maximum(variances[:-1], 0) / variance))
        return logdets + (self.n - self.p) * float(np.log(variance)) + rest / float(variance)

    def covariance(self, variances: np.ndarray) -> np.ndarray:
        """Of the effects."""
        ratios = np.sqrt(np.maximum(variances[:-1], 0) / variances[-1])
        return np.asarray(variances[-1] * np.linalg.inv(self.at(ratios)[2]))


@dataclass(frozen=True)
class MixedFit:
    """Fixed effects, their covariance, and the standard deviation of each grouping and the rest."""

    effects_P: np.ndarray
    covariance_PP: np.ndarray
    sds: dict[str, float]
    residual_sd: float
    _equations: _Equations
    _variances: np.ndarray  # of all groupings in order, and the rest

    def test(self, contrast_P: Sequence[float]) -> Contrast:
        """Of sum(contrast * effects) = 0."""
        from scipy.stats import t

        c = np.asarray(contrast_P, float)
        estimate = float(c @ self.effects_P)
        error = float(np.sqrt(max(0.0, c @ self.covariance_PP @ c)))
        if error < 1e-6:  # no spread at all: all ratings of a system are one value
            return Contrast(estimate, 0.0, float("inf"), float(abs(estimate) < 1e-6))
        degrees = self._degrees(c)
        return Contrast(estimate, error, degrees, float(2 * t.sf(abs(estimate / error), degrees)))

    def _degrees(self, c: np.ndarray) -> float:
        """Satterthwaite: 2 f^2 / (g' A g), f the contrast's variance, g its gradient in the
        variances, A their covariance, over the groupings that have any.
        """
        ratios = np.sqrt(self._variances[:-1] / self._variances[-1])
        free = [*np.flatnonzero(ratios > NONE), len(self._variances) - 1]

        def spread(some: np.ndarray) -> np.ndarray:
            whole = self._variances.copy()
            whole[free] = some
            return whole

        here = self._variances[free]
        step = 0.02 * here
        gradient = _gradient(
            lambda some: float(c @ self._equations.covariance(spread(some)) @ c), here, step
        )
        curvature = _hessian(lambda some: self._equations.deviance(spread(some)), here, step)
        most = float(self._equations.n - self._equations.p)
        try:
            doubt = 2 * float(gradient @ np.linalg.solve(curvature, gradient))
        except np.linalg.LinAlgError:
            return most
        variance = float(c @ self.covariance_PP @ c)
        return most if doubt <= 0 else float(np.clip(2 * variance**2 / doubt, 1.0, most))


def fit_mixed(
    y_N: np.ndarray, x_NP: np.ndarray, groups: Mapping[str, Sequence[object] | np.ndarray]
) -> MixedFit:
    """Fits by restricted maximum likelihood; `groups` gives each grouping's labels of the ratings.

    Raises InputError for no more ratings than fixed effects, or effects that are linearly
    dependent.
    """
    require("scipy", "the mixed-effects test")
    from scipy.optimize import minimize

    y, x = np.asarray(y_N, float), np.asarray(x_NP, float)
    if len(y) <= x.shape[1]:
        raise InputError(f"{len(y)} ratings cannot tell {x.shape[1]} systems apart: collect more")
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise InputError("the systems' effects cannot be told apart by these ratings")
    equations = _Equations(y, x, [np.asarray(labels) for labels in groups.values()])
    found = minimize(
        equations.profiled,
        np.full(len(groups), 0.4),
        method="L-BFGS-B",
        bounds=[(0.0, 100.0)] * len(groups),
    )
    ratios = np.where(np.abs(found.x) > NONE, np.abs(found.x), 0.0)
    _, effects, information, rest = equations.at(ratios)
    variance = rest / (equations.n - equations.p)
    return MixedFit(
        effects,
        variance * np.linalg.inv(information),
        dict(zip(groups, (ratios * np.sqrt(variance)).tolist(), strict=True)),
        float(np.sqrt(variance)),
        equations,
        np.append(ratios**2, 1.0) * variance,
    )


Function = Callable[[np.ndarray], float]


def _gradient(function: Function, at: np.ndarray, step: np.ndarray) -> np.ndarray:
    moves = np.diag(step)
    return np.array(
        [(function(at + m) - function(at - m)) / (2 * h) for m, h in zip(moves, step, strict=True)]
    )


def _hessian(function: Function, at: np.ndarray, step: np.ndarray) -> np.ndarray:
    moves = np.diag(step)
    found = np.empty((len(at), len(at)))
    for i, a in enumerate(moves):
        for j, b in enumerate(moves[: i + 1]):
            corners = (
                function(at + a + b)
                - function(at + a - b)
                - function(at - a + b)
                + function(at - a - b)
            )
            found[i, j] = found[j, i] = corners / (4 * step[i] * step[j])
    return found
