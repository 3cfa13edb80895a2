"""Sampler tables: equal to diffusers' schedulers step by step, guidance, noise levels, and what
holds for every configuration.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffusion_oracle import TRIO, follow, level, perfect
from mudit_engine.config import PathConfig, SamplerConfig
from mudit_engine.diffusion.paths import make_path
from mudit_engine.diffusion.samplers import (
    continuous_levels,
    ddim_steps,
    dpmpp_steps,
    euler_steps,
    sampler_table,
)
from mudit_engine.errors import ConfigError
from mudit_engine.kernels.guided_step import COLUMNS, SongRows, guided_step_reference

# a second thread only waits for the first, at these sizes
pytestmark = pytest.mark.usefixtures("one_thread")

LINEAR = PathConfig(kind="linear")
SAMPLERS = ("ddim", "dpmpp-2m", "ode-euler", "ode-heun", "sde-euler")
THEIR_PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
THEIR_BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}

# prediction, betas, zero terminal SNR, training steps
DDPM = {
    "published": ("eps", "linear", False, 500),
    "v": ("v", "linear", False, 500),
    "x0": ("x0", "linear", False, 500),
    "v-zero-snr": ("v", "linear", True, 500),
    "x0-cosine-zero-snr": ("x0", "cosine", True, 1000),
    "v-zero-snr-1000": ("v", "linear", True, 1000),
    "v-cosine": ("v", "cosine", False, 500),
    "eps-1000": ("eps", "linear", False, 1000),
}


def ddpm(name: str) -> PathConfig:
    prediction, betas, zero_snr, train_steps = DDPM[name]
    return PathConfig(
        kind="ddpm",
        prediction=prediction,
        betas=betas,
        zero_terminal_snr=zero_snr,
        train_steps=train_steps,
    )


def their_arguments(config: PathConfig, spacing: str) -> dict[str, object]:
    return {
        "num_train_timesteps": config.train_steps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": THEIR_BETAS[config.betas],
        "prediction_type": THEIR_PREDICTION[config.prediction],
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "timestep_spacing": spacing,
    }


def with_wide_schedule(scheduler, config: PathConfig):
    """The scheduler with its own schedule in float64, where its float32 products are too coarse to
    compare to 1e-5.

    Its cosine betas end at 0.999, so that float32 holds 1 - beta to 6e-5, and 1 - alphas_cumprod
    cancels near the data: up to 2e-5 in a state (and NaN for cosine with eta 1). The linear
    schedules without zero terminal SNR, the published one among them, are compared as shipped.
    """
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    if config.betas == "linear" and not config.zero_terminal_snr:
        return scheduler
    betas = torch.linspace(
        config.beta_start, config.beta_end, config.train_steps, dtype=torch.float64
    )
    if config.betas == "cosine":
        edges = [
            math.cos((i / config.train_steps + 0.008) / 1.008 * math.pi / 2) ** 2
            for i in range(config.train_steps + 1)
        ]
        betas = torch.tensor(
            [min(1 - b / a, 0.999) for a, b in itertools.pairwise(edges)], dtype=torch.float64
        )
    if config.zero_terminal_snr:
        betas = rescale_zero_terminal_snr(betas)
    wide = (1 - betas).cumprod(0)
    if config.zero_terminal_snr:
        wide[-1] = scheduler.alphas_cumprod[-1]
    torch.testing.assert_close(wide.float(), scheduler.alphas_cumprod, atol=2e-6, rtol=2e-4)
    scheduler.alphas_cumprod = wide
    return scheduler


def assert_same_chain(config: PathConfig, table, scheduler, steps: int, step) -> None:
    """Both chains run on their own states with a perfect network and the same noise; every state
    agrees to 1e-5.
    """
    path = make_path(config)
    network = perfect(path)
    scheduler.set_timesteps(steps)
    assert (
        table.times.double() * config.train_steps
    ).round().long().tolist() == scheduler.timesteps.tolist()
    g = torch.Generator().manual_seed(7)
    ours = theirs = torch.randn(64, 2, dtype=torch.float64, generator=g)
    kept, spans = torch.full_like(ours, torch.nan), SongRows(((0, 64, 0, -1),))
    for i, (row, timestep) in enumerate(zip(table.rows, scheduler.timesteps, strict=True)):
        t = level(path, table.times[i])
        noise = torch.randn(64, 2, dtype=torch.float64, generator=g)
        ours, kept = guided_step_reference(ours, kept, network(ours, t), noise, row[None], spans)
        theirs = step(network(theirs, t), timestep, theirs, noise)
        difference = float((ours - theirs).abs().max())
        assert difference <= 1e-5, (
            f"step {i} (timestep {int(timestep)}) differs by {difference:.2e}"
        )


@pytest.mark.parametrize("steps", [20, 30], ids="steps{}".format)
@pytest.mark.parametrize("eta", [0.0, 1.0, 0.4], ids="eta{:g}".format)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("name", DDPM)
def test_ddim_equals_diffusers(name, spacing, eta, steps):
    from diffusers import DDIMScheduler

    config = ddpm(name)
    table = sampler_table(
        config, SamplerConfig(name="ddim", steps=steps, eta=eta, spacing=spacing, guidance=1)
    )
    scheduler = with_wide_schedule(
        DDIMScheduler(**their_arguments(config, spacing), clip_sample=False), config
    )

    def step(out, timestep, x, noise):
        return scheduler.step(
            out, timestep, x, eta=eta, variance_noise=noise if eta else None
        ).prev_sample

    assert_same_chain(config, table, scheduler, steps, step)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 6, 14, 15, 20], ids="steps{}".format)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("name", DDPM)
def test_dpmpp_2m_equals_diffusers(name, spacing, steps):
    from diffusers import DPMSolverMultistepScheduler

    config = ddpm(name)
    table = sampler_table(
        config, SamplerConfig(name="dpmpp-2m", steps=steps, spacing=spacing, guidance=1)
    )
    solver = {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "lower_order_final": True,
    }
    scheduler = with_wide_schedule(
        DPMSolverMultistepScheduler(**their_arguments(config, spacing), **solver), config
    )
    assert_same_chain(
        config,
        table,
        scheduler,
        steps,
        lambda out, timestep, x, noise: scheduler.step(out, timestep, x).prev_sample,
    )


def test_published_sampler_visits_its_twenty_steps():
    table = sampler_table(ddpm("published"), SamplerConfig(name="ddim", steps=20))
    assert (table.times * 500).round().long().tolist() == list(range(499, 0, -25))
    assert table.noise_scale == 1.0


def test_heun_by_hand():
    """Two rows a step against x + dt/2 (v(x, t) + v(x + dt v, t')), and one row from the last level
    to x0.
    """
    path = make_path(LINEAR)
    network, levels = perfect(path), continuous_levels(path, 4)
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = sampler_table(LINEAR, SamplerConfig(name="ode-heun", steps=4, guidance=1))
    states = follow(path, table, network, x)
    assert len(states) == 7
    for i in range(3):
        dt = levels[i + 1] - levels[i]
        first = network(x, levels[i])
        x = x + dt / 2 * (first + network(x + dt * first, levels[i + 1]))
        torch.testing.assert_close(states[2 * i + 1], x, atol=1e-6, rtol=0)
    torch.testing.assert_close(states[-1], x - levels[3] * network(x, levels[3]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("config", [LINEAR, PathConfig(kind="bezier")], ids=["linear", "bezier"])
def test_one_step_is_the_mean_of_the_data(name, config):
    """At t = 1 a state of pure noise says nothing, so the estimate of x0 is the mean."""
    table = sampler_table(config, SamplerConfig(name=name, steps=1, guidance=1))
    path = make_path(config)
    (end,) = follow(
        path,
        table,
        perfect(path),
        torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    torch.testing.assert_close(end, TRIO.mean.expand(8, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_known_song_is_found_exactly(name):
    """Where the data is a single point, the estimate of x0 is that point at every level: any
    sampler, any number of steps, ends on it.
    """
    point = torch.tensor([[0.7, -1.3, 2.0]], dtype=torch.float64)
    for config in (LINEAR, PathConfig(kind="bezier", bezier_control=0.9)):
        path = make_path(config)

        def network(x, t, path=path):
            eps = (x - path.alpha(t) * point) / path.sigma(t)
            return path.target(point.expand_as(x), eps, t)

        g = torch.Generator().manual_seed(1)
        start = torch.randn(32, 3, dtype=torch.float64, generator=g)
        for steps in (2, 9):
            table = sampler_table(config, SamplerConfig(name=name, steps=steps, guidance=1))
            end = follow(path, table, network, start, generator=g)[-1]
            torch.testing.assert_close(end, point.expand_as(end), atol=1e-5, rtol=0)


@pytest.mark.parametrize("diffusion", ["constant", "decreasing", "sbdm"])
@pytest.mark.parametrize("config", [LINEAR, PathConfig(kind="bezier")], ids=["linear", "bezier"])
def test_sde_is_stable_where_the_score_is_stiffest(config, diffusion):
    """Data on a point, much noise, few steps: the distance from alpha x0 stays that of the
    marginal, sigma, at every level.
    """
    path = make_path(config)
    table = sampler_table(
        config,
        SamplerConfig(
            name="sde-euler", steps=20, guidance=1, diffusion=diffusion, diffusion_norm=8.0
        ),
    )
    network = lambda x, t: path.target(torch.zeros_like(x), x / path.sigma(t), t)  # noqa: E731
    g = torch.Generator().manual_seed(0)
    states = follow(
        path, table, network, torch.randn(4096, 1, dtype=torch.float64, generator=g), generator=g
    )
    for x, sigma in zip(states[:-1], path.sigma(table.times[1:].double()), strict=True):
        assert 0.9 * sigma < x.square().mean().sqrt() < 1.4 * sigma


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_scales_the_difference_of_the_branches(name):
    config = SamplerConfig(name=name, steps=6, guidance=3.5)
    guided, plain = (
        sampler_table(LINEAR, config),
        sampler_table(LINEAR, config.model_copy(update={"guidance": 1.0})),
    )
    assert guided.guided == (True,) * len(guided.rows) and plain.guided == (False,) * len(
        plain.rows
    )
    assert torch.equal(guided.rows[:, :6], plain.rows[:, :6])
    g = torch.Generator().manual_seed(0)
    x, kept, noise = (torch.randn(5, 3, generator=g) for _ in range(3))
    both = torch.randn(10, 3, generator=g)
    cond, uncond = both[:5], both[5:]
    for i in range(len(guided.rows)):
        new, new_kept = guided_step_reference(
            x, kept, both, noise, guided.rows[i : i + 1], SongRows(((0, 5, 0, 5),))
        )
        mixed = uncond + 3.5 * (cond - uncond)
        old, old_kept = guided_step_reference(
            x, kept, mixed, noise, plain.rows[i : i + 1], SongRows(((0, 5, 0, -1),))
        )
        torch.testing.assert_close(new, old)
        torch.testing.assert_close(new_kept, old_kept)


def test_guidance_interval_is_in_noise_levels():
    config = SamplerConfig(name="ode-euler", steps=10, guidance=4.0, guidance_interval=(0.25, 0.75))
    table = sampler_table(LINEAR, config)
    assert table.rows[:, 6].tolist() == [
        4.0 if 0.25 <= t <= 0.75 else 1.0 for t in table.times.tolist()
    ]
    assert table.guided == (False, False, False, True, True, True, True, True, False, False)
    heun = sampler_table(LINEAR, config.model_copy(update={"name": "ode-heun"}))
    assert heun.guided == tuple(0.25 <= t <= 0.75 for t in heun.times.tolist())
    ends = sampler_table(
        ddpm("published"),
        SamplerConfig(name="ddim", steps=20, guidance=2.0, guidance_interval=(0.5, 1.0)),
    )
    # t = 1, .95, ... .5: both ends of the interval are inside
    assert ends.guided == (True,) * 11 + (False,) * 9
    off = sampler_table(LINEAR, SamplerConfig(name="ode-euler", steps=3, guidance=0.0))
    assert off.guided == (True,) * 3  # w = 0 is the unconditional branch alone, which must be run


def test_shift_keeps_the_ends_and_moves_levels_to_noise():
    path = make_path(LINEAR)
    plain, warped = continuous_levels(path, 8), continuous_levels(path, 8, shift=3.0)
    assert warped[0] == plain[0] == 1 and warped[-1] == plain[-1] == 0
    assert (warped[1:-1] > plain[1:-1]).all()
    torch.testing.assert_close(
        warped[4], path.t_min + (1 - path.t_min) * torch.tensor(3 * 0.5 / 2, dtype=torch.float64)
    )
    table = sampler_table(LINEAR, SamplerConfig(name="ode-euler", steps=8, shift=3.0))
    torch.testing.assert_close(table.times, warped[:-1].float())


def test_the_network_is_never_asked_below_t_min():
    config = PathConfig(kind="bezier", t_min=0.2)
    table = sampler_table(config, SamplerConfig(name="ode-euler", steps=1000, shift=0.1))
    assert table.times.min() >= 0.2 and (table.times.diff() < 0).all()


def test_bezier_control_0_samples_like_linear_on_squared_levels():
    """The same ODE in another clock: DDIM and DPM-Solver++ know x_t only by alpha and sigma, so
    their states are equal.
    """
    bezier, linear = make_path(PathConfig(kind="bezier", bezier_control=0.0)), make_path(LINEAR)
    levels = continuous_levels(bezier, 12)
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for solve in (lambda path, at: ddim_steps(path, at[:-1], at[1:], eta=0.0), dpmpp_steps):
        ours = follow(bezier, solve(bezier, levels), perfect(bezier), x)
        theirs = follow(linear, solve(linear, levels**2), perfect(linear), x)
        torch.testing.assert_close(ours[-1], theirs[-1], atol=1e-9, rtol=0)
        torch.testing.assert_close(ours[5], theirs[5], atol=1e-9, rtol=0)


def test_ddim_is_euler_on_the_linear_path():
    path = make_path(LINEAR)
    levels = continuous_levels(path, 10)
    table = sampler_table(LINEAR, SamplerConfig(name="ddim", steps=10))
    torch.testing.assert_close(
        table.rows[:, :6], euler_steps(path, levels).coefficients.float(), atol=1e-6, rtol=1e-6
    )


@st.composite
def paths(draw) -> PathConfig:
    kind = draw(st.sampled_from(["linear", "bezier", "ddpm"]))
    if kind != "ddpm":
        return PathConfig(
            kind=kind, bezier_control=draw(st.floats(0, 0.999)), t_min=draw(st.floats(1e-5, 0.3))
        )
    prediction = draw(st.sampled_from(["eps", "v", "x0"]))
    return PathConfig(
        kind=kind,
        prediction=prediction,
        betas=draw(st.sampled_from(["linear", "cosine"])),
        train_steps=draw(st.integers(2, 1500)),
        zero_terminal_snr=prediction != "eps" and draw(st.booleans()),
    )


@st.composite
def configurations(draw) -> tuple[PathConfig, SamplerConfig]:
    path = draw(paths())
    low = draw(st.floats(0, 1))
    sampler = SamplerConfig(
        name=draw(st.sampled_from(["ddim", "dpmpp-2m"] if path.kind == "ddpm" else SAMPLERS)),
        steps=draw(st.integers(1, min(path.train_steps, 200) if path.kind == "ddpm" else 200)),
        guidance=draw(st.sampled_from([0.0, 1.0, 3.0])),
        guidance_interval=(low, draw(st.floats(low, 1))),
        eta=draw(st.sampled_from([0.0, 0.5, 1.0])),
        spacing=draw(st.sampled_from(["trailing", "leading", "linspace"])),
        diffusion=draw(
            st.sampled_from(
                ["sigma", "constant", "linear", "sbdm", "decreasing", "increasing-decreasing"]
            )
        ),
        diffusion_norm=draw(st.floats(0.1, 4)),
        shift=1.0 if path.kind == "ddpm" else draw(st.floats(0.2, 5)),
    )
    return path, sampler


@settings(max_examples=150)
@given(configurations())
@example(  # alpha leaves 0 more slowly than the 2^-12 that stands for it at the end
    (
        PathConfig(kind="ddpm", prediction="v", zero_terminal_snr=True, train_steps=1221),
        SamplerConfig(name="dpmpp-2m", steps=107),
    )
)
def test_every_table_is_sound(configuration):
    path, sampler = configuration
    try:
        table = sampler_table(path, sampler)
    except ConfigError as error:
        assert sampler.name == "dpmpp-2m" and "twice" in str(error), (
            "a grid too fine for its spacing is the only refusal here"
        )
        return
    count = 2 * sampler.steps - 1 if sampler.name == "ode-heun" else sampler.steps
    assert table.rows.shape == (count, len(COLUMNS)) and table.times.shape == (count,)
    assert table.rows.dtype == table.times.dtype == torch.float32
    assert table.rows.isfinite().all() and table.noise_scale == 1
    _, _, c, d, p, q, w = table.rows.unbind(1)
    assert ((table.times >= 0) & (table.times <= 1)).all() and (table.times.diff() <= 0).all()
    assert table.guided == tuple((w != 1).tolist()) and table.needs_noise == tuple(
        (d != 0).tolist()
    )
    t = torch.stack([level(make_path(path), time) for time in table.times])
    low, high = sampler.guidance_interval
    sure = ((t - low).abs() > 1e-6) & ((t - high).abs() > 1e-6)
    expected = torch.where((t >= low) & (t <= high), sampler.guidance, 1.0).float()
    assert torch.equal(w[sure], expected[sure])
    assert c[0] == 0, "nothing has been kept before the first row"
    assert d[-1] == 0 or (path.kind == "ddpm" and path.train_steps % sampler.steps), (
        "the last row is deterministic"
    )
    if sampler.name not in ("ddim", "sde-euler") or (sampler.name == "ddim" and sampler.eta == 0):
        assert not any(table.needs_noise)
    if sampler.name == "dpmpp-2m":
        assert (c <= 0).all(), "lambda rises, so the last estimate is subtracted"
    kept_is_written = torch.cat([torch.zeros(1, dtype=torch.bool), ((p != 0) | (q != 0))[:-1]])
    assert not ((c != 0) & ~kept_is_written).any()


@pytest.mark.parametrize(
    ("path", "sampler", "message"),
    [
        (
            {"kind": "ddpm", "prediction": "eps"},
            {"name": "ode-heun"},
            "a ddpm model takes ddim or dpmpp-2m",
        ),
        ({"kind": "ddpm", "prediction": "eps"}, {"name": "ddim", "steps": 501}, "at most 500"),
        (
            {"kind": "ddpm", "prediction": "eps"},
            {"name": "ddim", "shift": 2.0},
            "leave it at 1 for a ddpm model",
        ),
        (
            {"kind": "ddpm", "prediction": "eps"},
            {"name": "dpmpp-2m", "steps": 500, "spacing": "leading"},
            "take fewer steps or 'trailing'",
        ),
        (
            {"kind": "ddpm", "prediction": "eps", "beta_end": 0.5},
            {"name": "ddim"},
            "predict v or x0",
        ),
        (
            {"kind": "ddpm", "prediction": "v", "beta_start": 0.9, "beta_end": 0.99},
            {"name": "dpmpp-2m"},
            "not finite on this ddpm path",
        ),
        (
            {"kind": "linear"},
            {"name": "dpmpp-2m", "shift": 1e300},
            "too close together to tell apart",
        ),
        (
            {"kind": "bezier", "bezier_control": 1.0},
            {"name": "ddim"},
            "says nothing about x0 at t = 1",
        ),
        (
            {"kind": "bezier", "bezier_control": 1.0},
            {"name": "dpmpp-2m"},
            "a bezier_control below 1",
        ),
        (
            {"kind": "bezier", "bezier_control": 1.0},
            {"name": "ode-euler", "steps": 1},
            "2 or more steps",
        ),
    ],
    ids=[
        "ode-on-ddpm",
        "too-many-steps",
        "shift",
        "leading",
        "blind-eps",
        "vanishing-alpha",
        "absurd-shift",
        "blind-ddim",
        "blind-2m",
        "blind-one-step",
    ],
)
def test_impossible_tables_are_refused(path, sampler, message):
    with pytest.raises(ConfigError, match=message):
        sampler_table(PathConfig(**path), SamplerConfig(**sampler))


def test_tables_are_frozen():
    table = sampler_table(LINEAR, SamplerConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.noise_scale = 2.0  # type: ignore[misc]
    assert isinstance(table.guided, tuple) and not isinstance(table.rows, np.ndarray)
