"""Every sampler as a table of coefficients, one row a network evaluation (kernels/guided_step.py
runs the rows).

    out = uncond + w (cond - uncond)
    x' = a x + b out + c kept + d noise
    kept' = p x + q out

    ddim         x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise
                 with s = eta sigma'/sigma sqrt(sigma^2 - (alpha sigma'/alpha')^2)
    dpmpp-2m     x' = sigma'/sigma x - alpha' expm1(-h) (x0 + (x0 - kept) h / (2 h_before))
                 with h = step of log(alpha / sigma)
    ode-euler    x' = x + (t' - t) velocity
    ode-heun     the same, then x' += (t' - t)/2 (velocity' - kept): two rows
    sde-euler    x' = x + (t' - t) (velocity - w/2 score) + sqrt(w (t - t')) noise

where x0, eps and score come from out by the path's affine conversions, so that any of them runs on
any path with that prediction.

    table = sampler_table(config.path, config.sampler)
    for time, row in zip(table.times, table.rows):
        x, kept = guided_step(x, kept, net(x, time), noise, row, spans)

Noise levels. linear and bezier: a uniform grid from 1 to t_min, warped by `shift`, whose last step
goes to t = 0 by taking the estimate of x0 (Tweedie's formula; for the linear path it is the Euler
step itself). The network is never asked below t_min, and a step is never spent between t_min and 0.
Heun's last step is that same single row: there is no velocity at t = 0 to correct with. ddpm:
`spacing` picks steps as diffusers' DDIMScheduler and DPMSolverMultistepScheduler do (they differ),
and what lies below step 0 is clean data (set_alpha_to_one, final sigma 0).

Sources: DDIM (arXiv 2010.02502), DPM-Solver++ (2211.01095, algorithm 2), SiT (2401.08740, eq. 5 and
table 2; its published code writes w/2 for w, so diffusion_norm = 2 gives its noise), EDM
(2206.00364) for a first-order last step after Heun, SD3 (2403.03206) for the shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mudit_engine.config import PathConfig, SamplerConfig, check_sampler
from mudit_engine.diffusion.paths import DdpmPath, Path, make_path
from mudit_engine.errors import ConfigError

# zero terminal SNR has log alpha = -inf: DPMSolverMultistepScheduler takes alpha^2 = 2^-24 there
_DPMPP_TERMINAL_ALPHA = 2.0**-12
_BLIND = 1e-9  # a determinant below this: the output says nothing about x0


@dataclass(frozen=True)
class SamplerTable:
    """A sampler of S rows. Tensors are float32 on the CPU; computed in float64 and cast once.

    Examples:
        >>> from mudit_engine.config import PathConfig, SamplerConfig
        >>> table = sampler_table(PathConfig(), SamplerConfig(name="ode-heun", steps=4))
        >>> len(table.times), any(table.needs_noise)
        (7, False)
    """

    times: Tensor
    """[S], what the network is told at each row (Path.network_time)."""
    rows: Tensor
    """[S, 7], columns as kernels.guided_step.COLUMNS: a, b, c, d, p, q, w."""
    guided: tuple[bool, ...]
    """Whether the row's w differs from 1; where False the unconditional branch need not be run."""
    noise_scale: float
    """What standard normal noise is multiplied by at the start: 1 for every path.

    For ddpm without zero terminal SNR alpha(1) > 0, so x_1 holds a trace of the data that the start
    lacks; like diffusers, it is left out and the variance kept at 1, that of x_1 for unit-variance
    latents.
    """
    needs_noise: tuple[bool, ...]
    """Whether the row has d != 0."""


@dataclass(frozen=True)
class Steps:
    """Rows before guidance, float64: noise levels t [S] at which the network is asked, coefficients
    [S, 6] (a, b, c, d, p, q).
    """

    t: Tensor
    coefficients: Tensor


def sampler_table(path: PathConfig, sampler: SamplerConfig) -> SamplerTable:
    """The table of a sampler on a path: one row of coefficients for each evaluation of the network.

    ode-heun has 2 steps - 1 rows, the others `steps`.

    Args:
        path: how data turns into noise, and what the network predicts.
        sampler: `eta` is read by ddim, `diffusion` and `diffusion_norm` by sde-euler, `spacing` by
            ddpm paths, `shift` by the others. guidance_interval is in noise levels t, from 0 to 1:
            outside of it w is 1.

    Returns:
        The table, computed in float64 and rounded once to float32.

    Raises:
        ConfigError: where sampler and path do not go together, or the levels are too close to tell
            apart.

    Source:
        DDIM (arXiv 2010.02502), DPM-Solver++ (2211.01095), SiT (2401.08740), EDM (2206.00364).

    Examples:
        >>> from mudit_engine.config import PathConfig, SamplerConfig
        >>> table = sampler_table(PathConfig(), SamplerConfig(steps=4, guidance=3))
        >>> table.rows.shape, table.guided
        (torch.Size([4, 7]), (True, True, True, True))
    """
    try:
        check_sampler(path, sampler)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    schedule = make_path(path)
    if isinstance(schedule, DdpmPath):
        steps = _ddpm_steps(schedule, sampler)
    else:
        steps = _continuous_steps(
            schedule, sampler, continuous_levels(schedule, sampler.steps, shift=sampler.shift)
        )
    low, high = sampler.guidance_interval
    inside = (steps.t >= low - 1e-9) & (steps.t <= high + 1e-9)
    w = torch.where(inside, sampler.guidance, 1.0).double()
    rows = torch.cat([steps.coefficients, w[:, None]], dim=1).float()
    if not bool(rows.isfinite().all()):
        raise ConfigError(
            f"sampler {sampler.name!r} has coefficients that are not finite on this {path.kind} "
            f"path: its levels of noise are too close "
            f"together to tell apart (steps={sampler.steps}, shift={sampler.shift:g}, "
            f"beta_end={path.beta_end:g}): "
            "take fewer steps or milder values"
        )
    return SamplerTable(
        times=schedule.network_time(steps.t),
        rows=rows,
        guided=tuple((rows[:, 6] != 1).tolist()),
        noise_scale=1.0,
        needs_noise=tuple((rows[:, 3] != 0).tolist()),
    )


def _ddpm_steps(path: DdpmPath, sampler: SamplerConfig) -> Steps:
    total = path.config.train_steps
    if sampler.shift != 1:
        raise ConfigError(
            f"shift={sampler.shift} is for linear and bezier paths: leave it at 1 for a ddpm model "
            f"and choose `spacing`"
        )
    if sampler.steps > total:
        raise ConfigError(
            f"steps={sampler.steps} is more than the {total} steps this ddpm model was trained "
            f"with: take at most {total}"
        )
    if sampler.name == "ddim":
        index = ddim_indices(total, sampler.steps, sampler.spacing)
        # Each row lands one stride lower, as DDIMScheduler's do. Where steps divide train_steps
        # (and for leading) that is the next row's level; elsewhere it is off by the rounding of the
        # stride, and the last row may land on step 0, sigma = sqrt(beta_start).
        return ddim_steps(
            path,
            _levels(index, total),
            _levels((index - total // sampler.steps).clip(min=-1), total),
            eta=sampler.eta,
        )
    index = dpmpp_indices(total, sampler.steps, sampler.spacing)
    if index[-1] < 0 or (len(index) > 1 and not bool((np.diff(index) < 0).all())):
        raise ConfigError(
            f"steps={sampler.steps} with spacing={sampler.spacing!r} visit one of the {total} "
            f"training steps twice: "
            "take fewer steps or 'trailing'"
        )
    levels = _levels(np.append(index, -1), total)
    if path.config.zero_terminal_snr:
        # held below the next visited alpha: lambda must rise, and alpha starts slowly on long
        # schedules
        path = DdpmPath(
            path.config,
            terminal_alpha=min(_DPMPP_TERMINAL_ALPHA, 0.5 * float(path.alpha(levels[1]))),
        )
    return dpmpp_steps(path, levels)


def _levels(index: np.ndarray, total: int) -> Tensor:
    """float64 noise levels of ddpm steps; -1 is clean data, t = 0."""
    return torch.from_numpy((index + 1.0) / total)


def ddim_indices(total: int, steps: int, spacing: str) -> np.ndarray:
    """Steps that DDIM visits, falling (Lin et al. 2023, table 2; rounding as diffusers'
    DDIMScheduler).
    """
    match spacing:
        case "trailing":
            return np.round(total - np.arange(steps) * (total / steps)).astype(np.int64) - 1
        case "leading":
            return np.arange(steps - 1, -1, -1) * (total // steps)
        case _:
            return np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)


def dpmpp_indices(total: int, steps: int, spacing: str) -> np.ndarray:
    """Steps that DPM-Solver++ visits: leading and linspace leave out step 0 of a grid of steps + 1
    points (DPMSolverMultistepScheduler).
    """
    match spacing:
        case "trailing":
            return ddim_indices(total, steps, spacing)
        case "leading":
            return np.arange(steps, 0, -1) * (total // (steps + 1))
        case _:
            return np.linspace(0, total - 1, steps + 1).round()[:0:-1].astype(np.int64)


def continuous_levels(path: Path, steps: int, *, shift: float = 1.0) -> Tensor:
    """float64 [steps + 1], falling: a uniform grid from 1 to t_min, warped by u -> shift u / (1 +
    (shift - 1) u), its end set to 0.
    """
    u = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    t = path.t_min + (1 - path.t_min) * (shift * u / (1 + (shift - 1) * u))
    t[0], t[-1] = 1.0, 0.0  # the warp may round 1 up, where alpha would be negative
    return t


def _continuous_steps(path: Path, sampler: SamplerConfig, levels: Tensor) -> Steps:
    match sampler.name:
        case "ddim":
            return ddim_steps(path, levels[:-1], levels[1:], eta=sampler.eta)
        case "dpmpp-2m":
            return dpmpp_steps(path, levels)
        case "ode-euler":
            return euler_steps(path, levels)
        case "ode-heun":
            return heun_steps(path, levels)
        case "sde-euler":
            return sde_steps(path, levels, diffusion=sampler.diffusion, norm=sampler.diffusion_norm)


def ddim_steps(path: Path, t: Tensor, to: Tensor, *, eta: float) -> Steps:
    """DDIM from levels t [S] to lower levels [S], for any alpha and sigma; eta = 1 draws from the
    exact posterior q(x_t' | x_t, x0).
    """
    alpha, sigma, alpha_to, sigma_to = path.alpha(t), path.sigma(t), path.alpha(to), path.sigma(to)
    s = eta * sigma_to / sigma * (sigma**2 - (alpha * sigma_to / alpha_to) ** 2).clamp(min=0).sqrt()
    along = (sigma_to**2 - s**2).clamp(min=0).sqrt()
    p, q = _x0(path, t)
    pe, qe = path.eps_coefficients(t)
    return _steps(t, a=alpha_to * p + along * pe, b=alpha_to * q + along * qe, d=s)


def dpmpp_steps(path: Path, levels: Tensor) -> Steps:
    """DPM-Solver++ 2M (midpoint); kept is the last estimate of x0. levels [S + 1] fall to 0.

    The first step is first-order for want of a kept estimate, the last because lambda = log(alpha /
    sigma) is infinite at t = 0. Where alpha(1) = 0 lambda starts at -inf, and the second step,
    which would extrapolate over an infinite h_before, is first-order too.
    """
    t, to = levels[:-1], levels[1:]
    lambda_ = path.alpha(levels).log() - path.sigma(levels).log()
    h = lambda_.diff()
    extrapolate = torch.zeros_like(t)
    if len(t) > 2:
        extrapolate[1:-1] = 0.5 * h[1:-1] / h[:-2]
    ratio, gain = path.sigma(to) / path.sigma(t), -path.alpha(to) * torch.expm1(-h)
    p, q = _x0(path, t)
    here = gain * (1 + extrapolate)
    return _steps(t, a=ratio + here * p, b=here * q, c=-gain * extrapolate, p=p, q=q)


def euler_steps(path: Path, levels: Tensor) -> Steps:
    """Probability-flow ODE by Euler, for velocity predictions. levels [S + 1] fall to 0."""
    dt = levels.diff()[:-1]
    return _then_x0(path, levels, _steps(levels[:-2], a=torch.ones_like(dt), b=dt))


def heun_steps(path: Path, levels: Tensor) -> Steps:
    """Heun: an Euler row that keeps the velocity, then a row at the new level that corrects with
    it. levels [S + 1] fall to 0.
    """
    dt = levels.diff()[:-1]
    one = torch.ones_like(dt)
    predict = _steps(levels[:-2], a=one, b=dt, q=one)
    correct = _steps(levels[1:-1], a=one, b=0.5 * dt, c=-0.5 * dt)
    t = torch.stack([predict.t, correct.t], dim=1).flatten()
    return _then_x0(
        path,
        levels,
        Steps(t, torch.stack([predict.coefficients, correct.coefficients], dim=1).flatten(0, 1)),
    )


def sde_steps(path: Path, levels: Tensor, *, diffusion: str, norm: float) -> Steps:
    """Reverse SDE by Euler-Maruyama, for velocity predictions; the last row is deterministic.
    levels [S + 1] fall to 0.

    Any w >= 0 keeps the marginals, but one explicit step adds sqrt(w (t - t')) of noise whatever is
    left of it at t', and diverges where that passes 2 sigma and the score is stiffest (data on a
    point). So w is held to sigma'^2 / (t - t'): a step adds no more noise than the level it lands
    on holds. This binds in the last few steps, and at t = 1 for sbdm, whose w is infinite there.
    """
    t, h = levels[:-2], -levels.diff()[:-1]
    sigma = path.sigma(t)
    w = torch.minimum(
        diffusion_coefficient(path, t, diffusion=diffusion, norm=norm),
        path.sigma(levels[1:-1]) ** 2 / h,
    )
    pe, qe = path.eps_coefficients(t)
    pull = 0.5 * h * w / sigma
    return _then_x0(path, levels, _steps(t, a=1 - pull * pe, b=-h - pull * qe, d=(w * h).sqrt()))


def diffusion_coefficient(path: Path, t: Tensor, *, diffusion: str, norm: float = 1.0) -> Tensor:
    """norm w(t) of the reverse SDE, in t's dtype.

    sbdm is the forward diffusion of the score-based model with these marginals (infinite where
    alpha is 0); decreasing falls from noise to data; increasing-decreasing vanishes at both ends.
    """
    alpha, sigma, dalpha, dsigma = path.alpha(t), path.sigma(t), path.dalpha(t), path.dsigma(t)
    match diffusion:
        case "sigma":
            w = sigma
        case "constant":
            w = torch.ones_like(t)
        case "linear":
            w = t
        case "sbdm":
            w = torch.where(alpha == 0, math.inf, 2 * (sigma * dsigma - sigma**2 * dalpha / alpha))
        case "decreasing":
            w = 0.25 * (1 - (math.pi * t).cos()) ** 2
        case "increasing-decreasing":
            w = (math.pi * t).sin() ** 2
        case _:
            raise ConfigError(
                f"diffusion={diffusion!r} is unknown: use sigma, constant, linear, sbdm, "
                f"decreasing or increasing-decreasing"
            )
    return norm * w


def _x0(path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) with x0 = p x + q out, refused where the network's output holds nothing about x0."""
    blind = path.determinant(t).abs() < _BLIND
    if bool(blind.any()):
        config = path.config
        remedy = (
            f"train it to predict v or x0, or take a beta_end below {config.beta_end:g}"
            if config.kind == "ddpm"
            else f"use ode-euler, ode-heun or sde-euler with 2 or more steps, or a bezier_control "
            f"below {config.bezier_control:g}"
        )
        raise ConfigError(
            f"the {config.kind} path's {config.prediction} says nothing about x0 at t = "
            f"{float(t[blind][0]):g}: {remedy}"
        )
    return path.x0_coefficients(t)


def _then_x0(path: Path, levels: Tensor, steps: Steps) -> Steps:
    """`steps`, and from the last level above 0 straight to the estimate of x0."""
    p, q = _x0(path, levels[-2:-1])
    last = _steps(levels[-2:-1], a=p, b=q)
    return Steps(torch.cat([steps.t, last.t]), torch.cat([steps.coefficients, last.coefficients]))


def _steps(t: Tensor, **columns: Tensor) -> Steps:
    zero = torch.zeros_like(t)
    return Steps(
        t, torch.stack([columns.get(name, zero) for name in ("a", "b", "c", "d", "p", "q")], dim=1)
    )
