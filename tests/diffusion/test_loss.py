"""Losses and training noise levels."""

from __future__ import annotations

import pytest
import torch

from mudit_engine.config import PathConfig
from mudit_engine.diffusion.loss import (
    contrasted_rows,
    diffusion_loss,
    min_snr_weights,
    sample_times,
)
from mudit_engine.diffusion.paths import make_path
from mudit_engine.errors import ConfigError

LENGTHS = [5, 0, 63, 1]


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(69, 6, generator=g), torch.randn(69, 6, generator=g)


def test_packed_loss_is_the_sum_of_the_songs_alone(rows):
    out, target = rows
    total, frames = diffusion_loss(out, target, LENGTHS)
    assert frames == 69
    alone = [
        diffusion_loss(o, t, [len(o)])[0]
        for o, t in zip(out.split(LENGTHS), target.split(LENGTHS), strict=True)
    ]
    torch.testing.assert_close(total, torch.stack(alone).sum())
    torch.testing.assert_close(total / frames, torch.nn.functional.mse_loss(out, target))


def test_weights_multiply_the_error_and_not_the_count(rows):
    out, target = rows
    per_frame = (out - target).square().mean(1)
    song_weights, frame_weights = torch.tensor([2.0, 5.0, 0.5, 0.0]), torch.linspace(0, 1, 69)
    total, frames = diffusion_loss(
        out, target, torch.tensor(LENGTHS), frame_weights=frame_weights, song_weights=song_weights
    )
    by_hand = sum(
        (w * (e * f).sum())
        for w, e, f in zip(
            song_weights, per_frame.split(LENGTHS), frame_weights.split(LENGTHS), strict=True
        )
    )
    torch.testing.assert_close(total, by_hand)
    assert frames == 69


def test_low_precision_outputs_are_summed_in_float32():
    out, target = (
        torch.zeros(4096, 8, dtype=torch.bfloat16),
        torch.full((4096, 8), 1.0, dtype=torch.bfloat16),
    )
    total, _ = diffusion_loss(out.requires_grad_(), target, [4096])
    assert total.dtype == torch.float32 and total.item() == 4096
    total.backward()
    assert (
        out.grad is not None and out.grad.dtype == torch.bfloat16 and torch.all(out.grad == -0.25)
    )


def test_a_batch_with_no_frames_is_zero():
    total, frames = diffusion_loss(torch.zeros(0, 4), torch.zeros(0, 4), [0, 0])
    assert total.item() == 0 and frames == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [5, 63]}, "68 = sum of lengths"),
        ({"frame_weights": torch.ones(5)}, "one a target frame"),
        ({"song_weights": torch.ones(5)}, "one a song"),
    ],
    ids=["lengths", "frame-weights", "song-weights"],
)
def test_shapes_that_disagree_are_refused(rows, changes, message):
    with pytest.raises(ValueError, match=message):
        diffusion_loss(*rows, **{"lengths": LENGTHS, **changes})


def test_ddpm_times_are_uniform_over_the_steps():
    path = make_path(PathConfig(kind="ddpm", prediction="eps", train_steps=10))
    t = sample_times(20000, path, generator=torch.Generator().manual_seed(1))
    index = (path.network_time(t).double() * 10).round()
    assert set(index.tolist()) == set(range(10))
    assert (index.long().bincount() - 2000).abs().max() < 250
    torch.testing.assert_close(path.alpha(t.double()), path.alpha((index + 1) / 10))


def test_continuous_times_cover_t_min_to_1():
    path = make_path(PathConfig(kind="linear", t_min=0.02))
    t = sample_times(20000, path, generator=torch.Generator().manual_seed(1))
    assert t.dtype == torch.float32 and 0.02 <= t.min() < 0.021 and 0.999 < t.max() <= 1
    assert abs(t.mean() - 0.51) < 0.01


def test_logit_normal_times_and_their_uniform_share():
    path, g = make_path(PathConfig(kind="linear")), torch.Generator().manual_seed(1)
    t = sample_times(40000, path, generator=g, distribution="logit-normal", uniform_share=0.0)
    assert abs((t < 0.5).double().mean() - 0.5) < 0.01
    # one standard deviation of the logit
    assert abs(((t > 0.2689) & (t < 0.7311)).double().mean() - 0.6827) < 0.01
    rare = (t < 0.01).double().mean()
    t = sample_times(40000, path, generator=g, distribution="logit-normal", uniform_share=0.5)
    assert rare < 1e-3 < 4e-3 < (t < 0.01).double().mean()
    t = sample_times(
        40000, path, generator=g, distribution="logit-normal", logit_mean=1.0, uniform_share=0.0
    )
    assert abs(t.median() - torch.sigmoid(torch.tensor(1.0))) < 0.01


def test_times_repeat_with_their_generator():
    path = make_path(PathConfig(kind="bezier"))
    first, second = (
        sample_times(5, path, generator=torch.Generator().manual_seed(9)) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            PathConfig(kind="ddpm", prediction="eps"),
            {"distribution": "logit-normal"},
            "ddpm trains on uniform discrete steps",
        ),
        (PathConfig(kind="linear"), {"distribution": "beta"}, "use 'uniform' or 'logit-normal'"),
        (PathConfig(kind="linear"), {"logit_std": 0.0}, "logit_std=0.0"),
        (PathConfig(kind="linear"), {"uniform_share": 1.5}, "uniform_share=1.5"),
    ],
    ids=["ddpm", "unknown", "std", "share"],
)
def test_impossible_options_are_refused(config, options, message):
    with pytest.raises(ConfigError, match=message):
        sample_times(3, make_path(config), generator=None, **options)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_min_snr_weights_of_each_prediction(prediction):
    path = make_path(PathConfig(kind="ddpm", prediction=prediction))
    t = torch.tensor([1, 50, 200, 500], dtype=torch.float64) / 500
    snr = (path.alpha(t) / path.sigma(t)) ** 2
    held = snr.clamp(max=5)
    expected = {"eps": held / snr, "v": held / (snr + 1), "x0": held}[prediction]
    torch.testing.assert_close(min_snr_weights(path, t), expected)


@pytest.mark.parametrize(
    "config",
    [
        PathConfig(kind="linear"),
        PathConfig(kind="bezier", bezier_control=1.0),
        PathConfig(kind="ddpm", prediction="v", zero_terminal_snr=True),
    ],
    ids=["linear", "bezier1", "zero-snr"],
)
def test_min_snr_weights_weigh_the_error_of_x0(config):
    path = make_path(config)
    t = torch.tensor([path.t_min, 0.3, 0.9, 1.0])
    weights = min_snr_weights(path, t)
    assert (
        weights.dtype == torch.float32
        and weights.isfinite().all()
        and (weights >= 0).all()
        and weights[-1] == 0
    )
    _, q = path.x0_coefficients(t[:3])
    torch.testing.assert_close(
        weights[:3],
        (path.alpha(t[:3]) / path.sigma(t[:3])).square().clamp(max=5) * q**2,
        rtol=1e-4,
        atol=0,
    )


def test_contrasted_rows_are_the_next_songs():
    assert contrasted_rows([3, 2, 4]).tolist() == [3, 4, 3, 5, 6, 0, 1, 2, 0]
    for lengths in ([5], [], [3, 0]):
        with pytest.raises(ValueError, match="must be two songs or more"):
            contrasted_rows(lengths)
