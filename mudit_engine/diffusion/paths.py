"""How data turns into noise: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 data and t = 1 noise for
every kind.

    linear   alpha = 1 - t                              sigma = t
    bezier   alpha = (1 - t)^2 + 2 t (1 - t) c          sigma = t^2
    ddpm     alpha = sqrt(prod_{s <= t} (1 - beta_s))   sigma = sqrt(1 - alpha^2)

with c = cos(pi/2 bezier_control).

The network is asked for f x0 + g eps: eps (0, 1), x0 (1, 0), v (-sigma, alpha), velocity (alpha',
sigma'). With det = alpha g - sigma f,

    x0 = (g x - sigma out) / det          eps = (alpha out - f x) / det
    velocity = alpha' x0 + sigma' eps     score = -eps / sigma

so that every conversion is affine in (x, out), which is what makes a sampler a table.

    path = make_path(config.path)
    out, target = net(path.add_noise(x0, noise, t), path.network_time(t)), path.target(x0, noise, t)

Sources: SiT (arXiv 2401.08740) for the interpolants, DDPM (2006.11239), improved DDPM (2102.09672)
for the cosine betas, Salimans and Ho (2202.00512) for v, Lin et al. (2305.08891) for zero terminal
SNR. Schedules are evaluated in float64 whatever the dtype of t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mudit_engine.config import PathConfig
from mudit_engine.errors import ConfigError

_SNAP = 1e-3  # a float32 t that means step i lands this close to i, in steps


class Path:
    """A schedule and what the network predicts on it. Make one with make_path; safe to share
    between threads and devices.

    Every method takes t as a tensor of noise levels in [0, 1]. The schedule methods return its
    shape and dtype. The methods that take x return x's shape and dtype; there t has the leading
    dimensions of x ([T] or a scalar for packed x [T, C], [B] for [B, C, T]).
    """

    def __init__(self, config: PathConfig) -> None:
        self.config = config

    @property
    def t_min(self) -> float:
        """The lowest noise level that a network is trained or asked at."""
        return self.config.t_min

    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, alpha', sigma' at a float64 t."""
        raise NotImplementedError

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told, float32 in [0, 1]: t itself; for ddpm step index / train_steps,
        so that the scale is the same.
        """
        return t.float()

    def alpha(self, t: Tensor) -> Tensor:
        return self._schedule(t.double())[0].to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return self._schedule(t.double())[1].to(t.dtype)

    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""
        return self._schedule(t.double())[2].to(t.dtype)

    def dsigma(self, t: Tensor) -> Tensor:
        """d sigma / dt. For ddpm it is infinite at t = 0."""
        return self._schedule(t.double())[3].to(t.dtype)

    def mix(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g) with target = f x0 + g eps."""
        alpha, sigma, dalpha, dsigma = self._schedule(t.double())
        match self.config.prediction:
            case "eps":
                f, g = torch.zeros_like(alpha), torch.ones_like(alpha)
            case "x0":
                f, g = torch.ones_like(alpha), torch.zeros_like(alpha)
            case "v":
                f, g = -sigma, alpha
            case "velocity":
                f, g = dalpha, dsigma
        return f.to(t.dtype), g.to(t.dtype)

    def determinant(self, t: Tensor) -> Tensor:
        """alpha g - sigma f. Where it is 0 the network's output says nothing about x0."""
        wide = t.double()
        alpha, sigma, _, _ = self._schedule(wide)
        f, g = self.mix(wide)
        return (alpha * g - sigma * f).to(t.dtype)

    def x0_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) with x0 = p x + q out. Infinite where the determinant is 0."""
        wide = t.double()
        det = self.determinant(wide)
        return (self.mix(wide)[1] / det).to(t.dtype), (-self.sigma(wide) / det).to(t.dtype)

    def eps_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) with eps = p x + q out. Where alpha is 0, eps = x / sigma whatever the network
        says.
        """
        wide = t.double()
        det = self.determinant(wide)
        return (-self.mix(wide)[0] / det).to(t.dtype), (self.alpha(wide) / det).to(t.dtype)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma noise."""
        alpha, sigma, _, _ = self._schedule(t.double())
        return _times(alpha, x0) + _times(sigma, noise)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should output at x_t = add_noise(x0, noise, t)."""
        f, g = self.mix(t.double())
        return _times(f, x0) + _times(g, noise)

    def to_x0_eps(self, x: Tensor, out: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates of x0 and eps that the network's output stands for; alpha x0 + sigma eps =
        x.
        """
        wide = t.double()
        p, q = self.x0_coefficients(wide)
        pe, qe = self.eps_coefficients(wide)
        return _times(p, x) + _times(q, out), _times(pe, x) + _times(qe, out)

    def to_velocity(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """dx/dt of the probability-flow ODE, alpha' x0 + sigma' eps."""
        if self.config.prediction == "velocity":
            return out
        x0, eps = self.to_x0_eps(x, out, t)
        return _times(self.dalpha(t.double()), x0) + _times(self.dsigma(t.double()), eps)

    def to_score(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p_t at x, -eps / sigma."""
        p, q = self.eps_coefficients(t.double())
        sigma = self.sigma(t.double())
        return _times(-p / sigma, x) + _times(-q / sigma, out)


class LinearPath(Path):
    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(t)
        return 1 - t, t, -one, one


class BezierPath(Path):
    """The Bezier interpolant of MuSiT. bezier_control = 0 is the linear interpolant at u = t^2."""

    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c = math.cos(0.5 * math.pi * self.config.bezier_control)
        return (1 - t) ** 2 + 2 * t * (1 - t) * c, t**2, -2 * (1 - t) + 2 * c * (1 - 2 * t), 2 * t


class DdpmPath(Path):
    """Discrete steps i = 0 .. train_steps - 1 at t = (i + 1) / train_steps; t = 0 is clean data
    (alpha 1).

    Between steps alpha is interpolated linearly, which only the derivatives show; at a step they
    are those of the interval below it. terminal_alpha replaces the last alpha, for a solver in log
    alpha where the terminal SNR is zero.
    """

    def __init__(self, config: PathConfig, *, terminal_alpha: float | None = None) -> None:
        super().__init__(config)
        alphas = ddpm_alphas(config)
        if terminal_alpha is not None:
            alphas[-1] = terminal_alpha
        self._alphas = {torch.device("cpu"): torch.cat([alphas.new_ones(1), alphas])}

    @property
    def t_min(self) -> float:
        return 1 / self.config.train_steps

    def _position(self, t: Tensor) -> Tensor:
        position = t.double() * self.config.train_steps
        nearest = position.round()
        return torch.where((position - nearest).abs() < _SNAP, nearest, position)

    def _schedule(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if t.device not in self._alphas:
            self._alphas[t.device] = self._alphas[torch.device("cpu")].to(t.device)
        alphas = self._alphas[t.device]
        position = self._position(t)
        lower = (position.ceil().long() - 1).clamp(0, self.config.train_steps - 1)
        slope = alphas[lower + 1] - alphas[lower]
        alpha = alphas[lower + 1] - slope * (lower + 1 - position)
        sigma = (1 - alpha**2).clamp(min=0).sqrt()
        dalpha = slope * self.config.train_steps
        return alpha, sigma, dalpha, -alpha * dalpha / sigma

    def network_time(self, t: Tensor) -> Tensor:
        index = self._position(t).round() - 1
        return (index.clamp(min=0) / self.config.train_steps).float()


def ddpm_alphas(config: PathConfig) -> Tensor:
    """alpha of every ddpm step, float64 [train_steps], falling. With zero_terminal_snr the last one
    is exactly 0.
    """
    steps = config.train_steps
    if config.betas == "linear":
        if config.beta_start > config.beta_end:
            raise ConfigError(
                f"beta_start={config.beta_start} is above beta_end={config.beta_end}: betas grow "
                f"with the noise, swap them"
            )
        betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float64)
    else:
        edges = (
            (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * (math.pi / 2)
        ).cos() ** 2
        betas = (1 - edges[1:] / edges[:-1]).clamp(max=0.999)
    alphas = (1 - betas).cumprod(0).sqrt()
    if config.zero_terminal_snr:
        alphas = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
    return alphas


def make_path(config: PathConfig) -> Path:
    """The path that a configuration describes: x_t = alpha(t) x0 + sigma(t) eps.

    Args:
        config: kind (ddpm, linear, bezier) and what the network predicts.

    Returns:
        The path; t = 0 is data and t = 1 is noise for every kind.

    Raises:
        ConfigError: for values that no path can have.

    Source:
        DDPM (arXiv 2006.11239), SiT (2401.08740); the Bezier path is derived in the module's
        docstring.

    Examples:
        >>> import torch
        >>> from mudit_engine.config import PathConfig
        >>> path = make_path(PathConfig(kind="linear"))
        >>> float(path.alpha(torch.tensor(0.25))), float(path.sigma(torch.tensor(0.25)))
        (0.75, 0.25)
    """
    kinds: dict[str, type[Path]] = {"linear": LinearPath, "bezier": BezierPath, "ddpm": DdpmPath}
    return kinds[config.kind](config)


def _times(coefficient: Tensor, x: Tensor) -> Tensor:
    """coefficient x, with coefficient [leading dimensions of x] taken to x's dtype."""
    return (
        coefficient.to(x.dtype).reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim)) * x
    )
