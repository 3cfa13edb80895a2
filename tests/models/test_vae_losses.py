"""Training losses: zero at equality, growing with damage, balanced signs, gradients where they
belong.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudit_engine.models.vae_losses import (
    LogMelLoss,
    MultiResolutionDiscriminator,
    MultiResolutionStftLoss,
    Verdict,
    discriminator_loss,
    feature_matching,
    generator_loss,
    kl_divergence,
    views,
)

SIZES = (128, 256)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["stft", "mel"])
def spectral_loss(request: pytest.FixtureRequest) -> torch.nn.Module:
    return (
        MultiResolutionStftLoss(SIZES)
        if request.param == "stft"
        else LogMelLoss(8000, n_fft=256, hop=64, mels=24)
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_spectral_losses_are_zero_at_equality_and_grow_with_damage(
    spectral_loss: torch.nn.Module, channels: int
) -> None:
    clean = noise(2, channels, 3001)
    losses = [
        spectral_loss(clean + level * noise(2, channels, 3001, seed=1), clean).item()
        for level in (0.0, 0.1, 0.5, 1.0)
    ]
    assert losses[0] == 0.0 and losses == sorted(set(losses))


def test_spectral_losses_survive_silence(spectral_loss: torch.nn.Module) -> None:
    output = noise(1, 1, 1024).requires_grad_()
    loss = spectral_loss(output, torch.zeros(1, 1, 1024))
    loss.backward()
    assert loss.isfinite() and output.grad is not None and output.grad.isfinite().all()


def test_swapping_left_and_right_is_heard(spectral_loss: torch.nn.Module) -> None:
    audio = noise(1, 2, 2048) * torch.tensor([1.0, 0.2])[:, None]
    assert spectral_loss(audio.flip(1), audio) > 0.1


def test_a_side_channel_of_the_wrong_level_is_heard_in_the_side_view() -> None:
    audio = noise(1, 2, 64)
    left, right, mid, side = views(audio)
    torch.testing.assert_close(torch.stack((mid + side, mid - side)), torch.stack((left, right)))


@pytest.mark.parametrize("mean", [0.0, 1.5])
@pytest.mark.parametrize("logvar", [-3.0, 0.0, 0.5])
def test_kl_equals_torch_distributions(mean: float, logvar: float) -> None:
    posterior = torch.distributions.Normal(torch.tensor(mean), torch.tensor(logvar / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(
        kl_divergence(torch.full((2, 3, 4), mean), torch.full((2, 3, 4), logvar)), expected
    )


@pytest.mark.parametrize("kind", ["hinge", "least-squares"])
def test_adversarial_losses_have_opposite_aims(kind: str) -> None:
    def verdict(value: float) -> Verdict:
        return Verdict([torch.full((1, 1, 3, 4), value)], [[]])

    high, low = (1.0, -1.0) if kind == "hinge" else (1.0, 0.0)
    assert discriminator_loss(verdict(high), verdict(low), kind=kind) == 0
    assert discriminator_loss(verdict(low), verdict(high), kind=kind) > 1
    assert generator_loss(verdict(high), kind=kind) < generator_loss(verdict(low), kind=kind)


@pytest.mark.parametrize("channels", [1, 2])
def test_discriminator_learns_to_tell_and_its_gradient_reaches_the_audio(channels: int) -> None:
    torch.manual_seed(0)
    discriminator = MultiResolutionDiscriminator(channels, sizes=SIZES, width=8)
    time = torch.arange(1000) / 1000
    real = torch.sin(2 * torch.pi * 50 * time).expand(2, channels, -1)
    fake = noise(2, channels, 1000).requires_grad_()
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss = discriminator_loss(discriminator(real), discriminator(fake.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    generator_loss(discriminator(fake)).backward()
    assert fake.grad is not None and fake.grad.isfinite().all() and fake.grad.abs().max() > 0


def test_feature_matching_is_zero_at_equality_and_leaves_the_recording_alone() -> None:
    torch.manual_seed(0)
    discriminator = MultiResolutionDiscriminator(1, sizes=SIZES, width=8)
    real, fake = noise(1, 1, 600).requires_grad_(), noise(1, 1, 600, seed=1).requires_grad_()
    assert feature_matching(discriminator(real), discriminator(real)) == 0
    feature_matching(discriminator(real), discriminator(fake)).backward()
    assert real.grad is None and fake.grad is not None and fake.grad.abs().max() > 0
