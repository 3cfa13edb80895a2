"""Every sampler on every path, with a perfect network for a known distribution: right distribution,
measured order of convergence, and marginals of the stochastic samplers at every level, against a
Runge-Kutta solution and closed-form moments."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from diffusion_oracle import TRIO, Mixture, flow, follow, measured_order, perfect
from mudit_engine.config import PathConfig, SamplerConfig
from mudit_engine.diffusion.paths import make_path
from mudit_engine.diffusion.samplers import (
    continuous_levels,
    diffusion_coefficient,
    dpmpp_steps,
    sampler_table,
)

# a second thread only waits for the first, at these sizes
pytestmark = pytest.mark.usefixtures("one_thread")

PATHS = {
    "linear": PathConfig(kind="linear", t_min=1e-5),
    "bezier0": PathConfig(kind="bezier", bezier_control=0.0, t_min=1e-5),
    "bezier.5": PathConfig(kind="bezier", bezier_control=0.5, t_min=1e-5),
    "bezier.9": PathConfig(kind="bezier", bezier_control=0.9, t_min=1e-5),
    "bezier1": PathConfig(kind="bezier", bezier_control=1.0, t_min=1e-5),
    # as the published schedule, cut 8 times finer: 500 steps would be the floor of the error
    "ddpm-eps": PathConfig(
        kind="ddpm", prediction="eps", train_steps=4096, beta_start=1.25e-5, beta_end=2.5e-3
    ),
    "ddpm-v-zero-snr": PathConfig(
        kind="ddpm",
        prediction="v",
        zero_terminal_snr=True,
        train_steps=4096,
        beta_start=1.25e-5,
        beta_end=2.5e-3,
    ),
    "ddpm-v-cosine": PathConfig(kind="ddpm", prediction="v", betas="cosine", train_steps=4096),
}
BLIND = "bezier1"  # its velocity says nothing about x0 at t = 1: ddim and dpmpp-2m refuse it
DIFFUSIONS = ("sigma", "constant", "linear", "sbdm", "decreasing", "increasing-decreasing")
ODE = ("ode-euler", "ode-heun")


def start(count: int) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@functools.cache
def exact_end(name: str) -> Tensor:
    return flow(make_path(PATHS[name]), start(200))


def errors(name: str, sampler: str, counts: list[int]) -> list[float]:
    """RMS distance to the exact end of the same trajectories."""
    config = PATHS[name]
    path = make_path(config)
    found = []
    for steps in counts:
        end = follow(
            path,
            sampler_table(config, SamplerConfig(name=sampler, steps=steps, guidance=1)),
            perfect(path),
            start(200),
        )[-1]
        found.append(float((end - exact_end(name)).square().mean().sqrt()))
    return found


def assert_order(name: str, counts: list[int], found: list[float], low: float, high: float) -> None:
    order = measured_order(counts, found)
    report = f"{name}: order {order:.2f}, errors " + ", ".join(
        f"{e:.2e} at {n}" for e, n in zip(found, counts, strict=True)
    )
    print(report)
    assert low <= order <= high, report


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        (n, s)
        for n in PATHS
        for s in ("ddim", "ode-euler")
        if not (n.startswith("ddpm") and s in ODE) and (n, s) != (BLIND, "ddim")
    ],
)
def test_first_order_samplers(name, sampler):
    counts = [32, 64, 128]
    assert_order(f"{name} {sampler}", counts, errors(name, sampler, counts), 0.9, 1.15)


@pytest.mark.parametrize("name", [n for n in PATHS if not n.startswith("ddpm")])
def test_heun_is_second_order(name):
    counts = [32, 64, 128]
    found = errors(name, "ode-heun", counts)
    assert_order(f"{name} ode-heun", counts, found, 1.85, 2.15)
    assert found[0] < 0.2 * errors(name, "ode-euler", [64])[0], "at equal network evaluations"


@pytest.mark.parametrize(
    "name",
    ["linear", "bezier0", "bezier.5", "bezier.9", "ddpm-eps", "ddpm-v-zero-snr", "ddpm-v-cosine"],
)
def test_dpmpp_2m_is_second_order_between_fixed_levels(name):
    """On the solver's own terms: steps of equal lambda from t = 0.95 to t = 0.05, started on an
    exact state.
    """
    path = make_path(PATHS[name])
    grid = torch.linspace(1, 0, 400001, dtype=torch.float64)[1:-1]
    lambda_ = (path.alpha(grid) / path.sigma(grid)).log()  # rises along the grid
    first, last = ((grid - t).abs().argmin() for t in (0.95, 0.05))
    x = flow(path, start(200), end=float(grid[first]))
    exact = flow(path, x, start=float(grid[first]), end=float(grid[last]))
    network, found, counts = perfect(path), [], [16, 32, 64, 128]
    for steps in counts:
        even = lambda_[first] + (lambda_[last] - lambda_[first]) * torch.linspace(
            0, 1, steps + 1, dtype=torch.float64
        )
        levels = torch.cat(
            [
                grid[first : first + 1],
                grid[torch.searchsorted(lambda_, even[1:-1])],
                grid[last : last + 1],
            ]
        )
        end = follow(path, dpmpp_steps(path, levels), network, x)[-1]
        found.append(float((end - exact).square().mean().sqrt()))
    assert_order(f"{name} dpmpp-2m, equal lambda", counts, found, 1.8, 2.3)


@pytest.mark.parametrize("name", [n for n in PATHS if n != BLIND])
def test_dpmpp_2m_on_its_own_grid(name):
    """From pure noise lambda starts at -inf and its first steps never get short, which costs a
    logarithm: h^2 log(1/h), most visible for linear and for the cosine betas, whose alpha leaves 0
    at a slope."""
    counts = [64, 128, 256]
    found = errors(name, "dpmpp-2m", counts)
    assert_order(f"{name} dpmpp-2m", counts, found, 1.4, 2.4)
    assert found[0] < 0.25 * errors(name, "ddim", [64])[0]


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("name", ["linear", "bezier.5", "bezier1"])
def test_sde_keeps_the_marginals_at_first_order(name, diffusion):
    """For Gaussian data the rows move mean and variance in closed form: no sampling noise, at t =
    3/4, 1/2, 1/4 and the end.
    """
    config = PATHS[name]
    counts, found = [64, 128], []
    for steps in counts:
        table = sampler_table(
            config, SamplerConfig(name="sde-euler", steps=steps, guidance=1, diffusion=diffusion)
        )
        found.append(
            gaussian_error(
                config,
                table,
                continuous_levels(make_path(config), steps),
                [steps // 4, steps // 2, 3 * steps // 4, steps],
            )
        )
    assert_order(f"{name} sde-euler {diffusion}", counts, found, 0.8, 1.3)
    assert found[-1] < 0.08, "data variances are 0.1, 0.5 and 1.5"


@pytest.mark.parametrize(
    "name", ["linear", "bezier.5", "ddpm-eps", "ddpm-v-zero-snr", "ddpm-v-cosine"]
)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_keeps_the_marginals_at_first_order(name, eta):
    config = PATHS[name]
    counts, found = [64, 128], []
    for steps in counts:
        table = sampler_table(config, SamplerConfig(name="ddim", steps=steps, guidance=1, eta=eta))
        levels = (
            torch.linspace(1, 0, steps + 1, dtype=torch.float64)
            if config.kind == "ddpm"
            else continuous_levels(make_path(config), steps)
        )
        found.append(gaussian_error(config, table, levels, [steps // 2, steps]))
    # what starting at alpha(1) = 0.08 without a trace of the data costs does not go away
    if name == "ddpm-eps":
        assert found[-1] < 0.1
        return
    assert_order(f"{name} ddim eta {eta}", counts, found, 0.8, 1.3)


GAUSS_MEAN, GAUSS_VARIANCE = (
    torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64),
    torch.tensor([0.1, 0.5, 1.5], dtype=torch.float64),
)


def gaussian_error(config: PathConfig, table, levels: Tensor, after: list[int]) -> float:
    """The largest error of mean and variance after some rows, of states that start as standard
    normal noise.
    """
    path = make_path(config)
    network = perfect(
        path,
        Mixture(torch.ones(1, dtype=torch.float64), GAUSS_MEAN[None], GAUSS_VARIANCE.diag()[None]),
    )
    mean, variance, worst = torch.zeros_like(GAUSS_MEAN), torch.ones_like(GAUSS_MEAN), 0.0
    probes = torch.stack([torch.zeros(3), torch.ones(3)]).double()
    for i, row in enumerate(table.rows.double()):
        zero, one = network(probes, levels[i])
        a, b, c, d = row[:4]
        assert c == 0
        gain = a + b * (one - zero)
        mean, variance = gain * mean + b * zero, gain**2 * variance + d**2
        if i + 1 in after:
            alpha, sigma = path.alpha(levels[i + 1]), path.sigma(levels[i + 1])
            miss = torch.cat(
                [mean - alpha * GAUSS_MEAN, variance - (alpha**2 * GAUSS_VARIANCE + sigma**2)]
            )
            worst = max(worst, float(miss.abs().max()))
    return worst


CASES = [
    (n, s, "sigma")
    for n in PATHS
    for s in ("ddim", "dpmpp-2m", *ODE)
    if not (n.startswith("ddpm") and s in ODE)
]
CASES = [case for case in CASES if case[0] != BLIND or case[1] in ODE] + [
    ("linear", "sde-euler", d) for d in DIFFUSIONS
]
CASES += [("bezier.5", "sde-euler", d) for d in ("sigma", "sbdm")]
# a second each; the moments of every diffusion are held in closed form above
DRAWN = (("linear", "sigma"), ("linear", "sbdm"), ("bezier.5", "sigma"))
CASES = [
    pytest.param(*case, marks=pytest.mark.slow)
    if case[1] == "sde-euler" and (case[0], case[2]) not in DRAWN
    else case
    for case in CASES
]


@pytest.mark.parametrize(("name", "sampler", "diffusion"), CASES)
def test_samples_have_the_mean_and_covariance_of_the_data(name, sampler, diffusion):
    config = PATHS[name]
    path = make_path(config)
    steps = 40 if sampler in ("ode-heun", "dpmpp-2m") else 200
    table = sampler_table(
        config, SamplerConfig(name=sampler, steps=steps, guidance=1, diffusion=diffusion)
    )
    # a Sobol start has next to no sampling error of its own; the noise of an SDE has, about 0.02 in
    # the covariance of 4,096 states
    stochastic = sampler == "sde-euler"
    uniform = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(
        4096 if stochastic else 1024, dtype=torch.float64
    )
    x = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    states = follow(path, table, perfect(path), x, generator=torch.Generator().manual_seed(4))
    checks = {len(states): torch.zeros((), dtype=torch.float64)}
    if stochastic:
        checks |= {i: continuous_levels(path, steps)[i] for i in (steps // 3, 2 * steps // 3)}
    for rows, t in checks.items():
        x, alpha, sigma = states[rows - 1], path.alpha(t), path.sigma(t)
        covariance = alpha**2 * TRIO.covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        atol = 0.06 if stochastic else 0.03
        torch.testing.assert_close(x.mean(0), alpha * TRIO.mean, atol=atol, rtol=0)
        torch.testing.assert_close(x.T.cov(), covariance, atol=atol, rtol=0)


def test_diffusion_coefficients():
    path = make_path(PATHS["linear"])
    t = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    w = {name: diffusion_coefficient(path, t, diffusion=name, norm=2.0) for name in DIFFUSIONS}
    expected = {
        "sigma": [0.5, 1.0, 2.0],
        "constant": [2.0, 2.0, 2.0],
        "linear": [0.5, 1.0, 2.0],
        "sbdm": [4 * 0.25 / 0.75, 4.0, torch.inf],  # 2 t / (1 - t)
        "decreasing": [0.5 * (1 - 0.5**0.5) ** 2, 0.5, 2.0],
        "increasing-decreasing": [1.0, 2.0, 0.0],
    }
    for name in DIFFUSIONS:
        torch.testing.assert_close(
            w[name], torch.tensor(expected[name], dtype=torch.float64), atol=1e-12, rtol=1e-12
        )
