"""A perfect network: data from a known distribution, for which E[x0 | x_t] and E[eps | x_t] have
closed forms.

    x_t | component k ~ N(alpha m_k, C_k),  C_k = alpha^2 S_k + sigma^2 I
    r_k = posterior of k  z_k = C_k^-1 (x - alpha m_k)
    E[x0 | x] = sum_k r_k (m_k + alpha S_k z_k)        E[eps | x] = sigma sum_k r_k z_k

Neither divides by sigma or alpha, so both ends are exact. All paths share one probability-flow ODE
once it is written for x / sqrt(alpha^2 + sigma^2) in the angle omega = atan2(sigma, alpha), which
`flow` solves far more finely than any sampler.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mudit_engine.diffusion.paths import Path
from mudit_engine.diffusion.samplers import SamplerTable, Steps
from mudit_engine.kernels.guided_step import SongRows, guided_step_reference


@dataclass(frozen=True)
class Mixture:
    """K Gaussians in C dimensions, float64: weights [K], means [K, C], covariances [K, C, C]."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        second = self.covariances + self.means[:, :, None] * self.means[:, None, :]
        return torch.einsum("k,kij->ij", self.weights, second) - torch.outer(self.mean, self.mean)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[k] + torch.einsum(
            "nij,nj->ni", torch.linalg.cholesky(self.covariances)[k], noise
        )

    def log_density(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """log p_t at x [N, C]."""
        _, _, logits = self._posterior(x, alpha, sigma)
        return logits.logsumexp(dim=1)

    def x0_eps(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        z, pulled, logits = self._posterior(x, alpha, sigma)
        r = logits.softmax(dim=1)[..., None]
        return (r * (self.means + alpha * pulled)).sum(1), sigma * (r * z).sum(1)

    def _posterior(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        variances, axes = self._eigen
        spread = alpha**2 * variances + sigma**2
        offset = torch.einsum("kji,nkj->nki", axes, x[:, None] - alpha * self.means)
        scaled = offset / spread
        logits = (
            self.weights.log()
            - 0.5 * (spread.log() + math.log(2 * math.pi)).sum(1)
            - 0.5 * (offset * scaled).sum(-1)
        )
        return (
            torch.einsum("kij,nkj->nki", axes, scaled),
            torch.einsum("kij,nkj->nki", axes, variances * scaled),
            logits,
        )

    @functools.cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        variances, axes = torch.linalg.eigh(self.covariances)
        return variances, axes


TRIO = Mixture(
    weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    means=torch.tensor([[1.0, 0.4], [-1.0, 0.6], [0.1, -1.2]], dtype=torch.float64),
    covariances=torch.tensor(
        [[[0.20, 0.08], [0.08, 0.10]], [[0.10, -0.04], [-0.04, 0.16]], [[0.30, 0.0], [0.0, 0.08]]],
        dtype=torch.float64,
    ),
)

Network = Callable[[Tensor, Tensor], Tensor]


def perfect(path: Path, mixture: Mixture = TRIO) -> Network:
    """out(x [N, C] float64, t scalar float64): what a network that has learned this distribution on
    this path answers.
    """

    def network(x: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        x0, eps = mixture.x0_eps(x, float(path.alpha(t)), float(path.sigma(t)))
        f, g = path.mix(t)
        return f * x0 + g * eps

    return network


def level(path: Path, time: Tensor) -> Tensor:
    """The float64 noise level that a table's network_time stands for."""
    return (
        time.double() if path.config.kind != "ddpm" else time.double() + 1 / path.config.train_steps
    )


def follow(
    path: Path,
    table: SamplerTable | Steps,
    network: Network,
    x: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """x after every row of a table, through the reference of the fused step."""
    if isinstance(table, Steps):
        levels, rows = (
            table.t,
            torch.cat([table.coefficients, torch.ones(len(table.t), 1, dtype=torch.float64)], 1),
        )
    else:
        levels, rows = level(path, table.times), table.rows
    spans = SongRows(((0, len(x), 0, -1),))
    kept, states = torch.full_like(x, math.nan), []
    for t, row in zip(levels, rows, strict=True):
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator) if row[3] != 0 else None
        x, kept = guided_step_reference(x, kept, network(x, t), noise, row[None], spans)
        states.append(x)
    return states


def flow(
    path: Path,
    x: Tensor,
    mixture: Mixture = TRIO,
    *,
    start: float = 1.0,
    end: float = 0.0,
    steps: int = 100,
) -> Tensor:
    """The state at level `end` of the exact probability-flow ODE through x [N, C] at level `start`
    (Runge-Kutta 4 in omega).
    """
    ends = torch.tensor([start, end], dtype=torch.float64)
    alpha, sigma = path.alpha(ends), path.sigma(ends)
    omega, last = torch.atan2(sigma, alpha).tolist()
    scale, last_scale = torch.hypot(alpha, sigma).tolist()
    y, h = x / scale, (last - omega) / steps

    def slope(y: Tensor, omega: float) -> Tensor:
        x0, eps = mixture.x0_eps(y, math.cos(omega), math.sin(omega))
        return math.cos(omega) * eps - math.sin(omega) * x0

    for i in range(steps):
        now = omega + i * h
        k1 = slope(y, now)
        k2 = slope(y + 0.5 * h * k1, now + 0.5 * h)
        k3 = slope(y + 0.5 * h * k2, now + 0.5 * h)
        k4 = slope(y + h * k3, now + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * last_scale


def measured_order(steps: list[int], errors: list[float]) -> float:
    """Minus the slope of log error over log steps, by least squares."""
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x = x - x.mean()
    return -float((x * y).sum() / (x * x).sum())
