"""Paths: schedules, training targets, and conversions between eps, x0, v, velocity and score,
against closed forms.
"""

from __future__ import annotations

import pytest
import torch

from diffusion_oracle import TRIO, perfect
from mudit_engine.config import PathConfig
from mudit_engine.diffusion.paths import DdpmPath, ddpm_alphas, make_path
from mudit_engine.errors import ConfigError

PATHS = {
    "linear": PathConfig(kind="linear"),
    "bezier0": PathConfig(kind="bezier", bezier_control=0.0),
    "bezier.5": PathConfig(kind="bezier", bezier_control=0.5),
    "bezier.9": PathConfig(kind="bezier", bezier_control=0.9),
    "ddpm-eps": PathConfig(kind="ddpm", prediction="eps"),
    "ddpm-v": PathConfig(kind="ddpm", prediction="v"),
    "ddpm-x0": PathConfig(kind="ddpm", prediction="x0"),
    "ddpm-v-zero-snr": PathConfig(kind="ddpm", prediction="v", zero_terminal_snr=True),
    "ddpm-v-cosine": PathConfig(kind="ddpm", prediction="v", betas="cosine", train_steps=1000),
}
every_path = pytest.mark.parametrize("config", PATHS.values(), ids=PATHS.keys())
CONTINUOUS = {name: config for name, config in PATHS.items() if config.kind != "ddpm"}


def levels(config: PathConfig) -> torch.Tensor:
    """Levels of training, noise first, without the two ends."""
    t = torch.linspace(0.95, 0.05, 19, dtype=torch.float64)
    return (t * config.train_steps).round() / config.train_steps if config.kind == "ddpm" else t


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(19, 4, dtype=torch.float64, generator=g), torch.randn(
        19, 4, dtype=torch.float64, generator=g
    )


@every_path
def test_data_and_noise_come_back_from_the_training_target(config, pair):
    path, t, (x0, noise) = make_path(config), levels(config), pair
    x = path.add_noise(x0, noise, t)
    out = path.target(x0, noise, t)
    back_x0, back_eps = path.to_x0_eps(x, out, t)
    torch.testing.assert_close(back_x0, x0, atol=1e-10, rtol=0)
    torch.testing.assert_close(back_eps, noise, atol=1e-10, rtol=0)
    velocity = path.dalpha(t)[:, None] * x0 + path.dsigma(t)[:, None] * noise
    torch.testing.assert_close(path.to_velocity(x, out, t), velocity, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(
        path.to_score(x, out, t), -noise / path.sigma(t)[:, None], atol=1e-9, rtol=1e-9
    )


@every_path
def test_score_of_a_perfect_network_is_the_gradient_of_the_log_density(config):
    path = make_path(config)
    network = perfect(path)
    for t in levels(config)[::3]:
        x = torch.randn(
            32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
        ).requires_grad_()
        (gradient,) = torch.autograd.grad(
            TRIO.log_density(x, float(path.alpha(t)), float(path.sigma(t))).sum(), x
        )
        torch.testing.assert_close(
            path.to_score(x.detach(), network(x.detach(), t), t), gradient, atol=1e-9, rtol=1e-8
        )


def test_predictions_of_one_schedule_agree(pair):
    x, t = pair[0][:, :2], levels(PATHS["ddpm-eps"])
    answers = []
    for prediction in ("eps", "v", "x0"):
        path = make_path(PathConfig(kind="ddpm", prediction=prediction))
        network = perfect(path)
        out = torch.cat([network(row[None], level) for row, level in zip(x, t, strict=True)])
        answers.append(
            torch.cat(
                [*path.to_x0_eps(x, out, t), path.to_velocity(x, out, t), path.to_score(x, out, t)],
                dim=1,
            )
        )
    torch.testing.assert_close(answers[0], answers[1], atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(answers[0], answers[2], atol=1e-10, rtol=1e-9)


@every_path
def test_derivatives_of_the_schedule(config):
    path, t, h = make_path(config), levels(config), 1e-6
    # one-sided at a step, below the snap that absorbs float32 rounding of t
    if config.kind == "ddpm":
        t, h = t - 0.5 / config.train_steps, 0.1 / config.train_steps
    tolerance = 1e-3 if config.kind == "ddpm" else 1e-8
    for value, slope in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
        torch.testing.assert_close(
            (value(t + h) - value(t - h)) / (2 * h), slope(t), atol=1e-8, rtol=tolerance
        )


@every_path
def test_ends_of_the_schedule_and_falling_snr(config):
    path = make_path(config)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert path.alpha(ends)[0] == 1 and path.sigma(ends)[0] == 0
    assert path.alpha(ends)[1] < 0.09 and path.sigma(ends)[1] > 0.99
    t = torch.arange(config.train_steps + 1, dtype=torch.float64) / config.train_steps
    snr = path.alpha(t) / path.sigma(t)
    assert (snr.diff()[1:] < 0).all()


def test_bezier_with_control_0_is_linear_at_the_square_of_t():
    bezier, linear = make_path(PATHS["bezier0"]), make_path(PATHS["linear"])
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(bezier.alpha(t), linear.alpha(t**2))
    torch.testing.assert_close(bezier.sigma(t), linear.sigma(t**2))
    g = torch.Generator().manual_seed(0)
    x, v = (
        torch.randn(50, 3, dtype=torch.float64, generator=g),
        torch.randn(50, 3, dtype=torch.float64, generator=g),
    )
    for ours, theirs in zip(
        bezier.to_x0_eps(x, 2 * t[:, None] * v, t), linear.to_x0_eps(x, v, t**2), strict=True
    ):
        torch.testing.assert_close(ours, theirs)  # dx/dt = 2 t dx/du


def test_bezier_formulas_of_the_paper():
    # c = cos(pi/3) = 1/2: alpha = (1 - t)^2 + t (1 - t) = 1 - t
    path = make_path(PathConfig(kind="bezier", bezier_control=2 / 3))
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t), 1 - t)
    torch.testing.assert_close(path.sigma(t), t**2)
    torch.testing.assert_close(path.determinant(t), 2 * t - t**2)  # alpha sigma' - alpha' sigma


@pytest.mark.parametrize("betas", ["linear", "cosine"])
@pytest.mark.parametrize("zero_snr", [False, True], ids=["", "zero-snr"])
def test_ddpm_schedule_equals_diffusers(betas, zero_snr):
    from diffusers import DDIMScheduler

    config = PathConfig(kind="ddpm", prediction="v", betas=betas, zero_terminal_snr=zero_snr)
    theirs = DDIMScheduler(
        num_train_timesteps=500,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[betas],
        rescale_betas_zero_snr=zero_snr,
    ).alphas_cumprod
    torch.testing.assert_close((ddpm_alphas(config) ** 2).float(), theirs, atol=2e-6, rtol=2e-5)
    assert (ddpm_alphas(config)[-1] == 0) == zero_snr


def test_network_time_of_ddpm_is_the_index_over_train_steps():
    path = make_path(PATHS["ddpm-eps"])
    t = ((torch.arange(500) + 1).double() / 500).float()
    assert torch.equal(
        path.network_time(t), torch.arange(500, dtype=torch.float64).div(500).float()
    )
    # float32 t still means its step
    torch.testing.assert_close(path.alpha(t.double()), ddpm_alphas(path.config), atol=1e-12, rtol=0)
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    assert make_path(PATHS["linear"]).network_time(t).dtype == torch.float32


def test_dtypes_and_broadcasting(pair):
    path = make_path(PATHS["bezier.5"])
    x0, noise = (z.to(torch.bfloat16) for z in pair)
    t = torch.linspace(0.1, 0.9, 19)
    assert path.add_noise(x0, noise, t).dtype == torch.bfloat16
    assert path.alpha(t).dtype == torch.float32
    scalar = torch.tensor(0.3)
    same = torch.full((19,), 0.3)
    assert torch.equal(path.target(*pair, scalar), path.target(*pair, same))
    assert torch.equal(
        path.add_noise(pair[0].T, pair[1].T, t[:4]).T,
        path.alpha(t[:4].double()) * pair[0] + path.sigma(t[:4].double()) * pair[1],
    )


def test_eps_at_pure_noise_is_the_state_itself():
    for config in (PATHS["linear"], PathConfig(kind="bezier", bezier_control=1.0)):
        one = torch.ones(1, dtype=torch.float64)
        x, out = (
            torch.full((1, 2), 3.0, dtype=torch.float64),
            torch.full((1, 2), 7.0, dtype=torch.float64),
        )
        assert torch.equal(make_path(config).to_x0_eps(x, out, one)[1], x)


def test_terminal_alpha_replaces_only_the_last_step():
    held = DdpmPath(PATHS["ddpm-v-zero-snr"], terminal_alpha=2.0**-12)
    t = torch.tensor([499 / 500, 1.0], dtype=torch.float64)
    assert held.alpha(t)[1] == 2.0**-12
    assert held.alpha(t)[0] == make_path(held.config).alpha(t)[0]


def test_falling_betas_are_refused():
    with pytest.raises(ConfigError, match=r"beta_start=0\.02 is above beta_end=0\.001"):
        make_path(PathConfig(kind="ddpm", prediction="eps", beta_start=0.02, beta_end=0.001))
