"""What the spectral VAE is trained on: spectral distances, KL, and adversaries that look at complex
spectra of several sizes.

    spectral  mean over sizes of  || |Y| - |X| || / || X ||  +  mean | log(|Y| + e) - log(|X| + e) |
    mel        mean | log mel(y) - log mel(x) |
    KL         mean over elements of  (mean^2 + var - 1 - log var) / 2
    hinge  D: mean relu(1 - D(x)) + mean relu(1 + D(y));  G: -mean D(y);  plus feature matching

    loss = stft_loss(y, x) + mel_loss(y, x) + 1e-3 * kl_divergence(mean, logvar)
    real, fake = discriminator(x), discriminator(y)
    loss = loss + generator_loss(fake) + 2.0 * feature_matching(real, fake)

Audio is fp32 [N, channels, S]; stereo is judged on left, right, mid and side, or a wide sound could
hide in one of them. Multi-resolution STFT loss: Yamamoto et al. 2020 (Parallel WaveGAN). STFT
discriminators: Defossez et al. 2022 (EnCodec), Jang et al. 2021 (UnivNet).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mudit_engine.models.spectral import LogMel, Stft, magnitude

Adversary = Literal["hinge", "least-squares"]


def views(audio_NcS: Tensor) -> Tensor:
    """Mono as it is; stereo as left, right, mid and side; flattened to [N * views, S]."""
    if audio_NcS.shape[1] == 2:
        left, right = audio_NcS.unbind(1)
        audio_NcS = torch.stack((left, right, (left + right) / 2, (left - right) / 2), 1)
    return audio_NcS.flatten(0, 1)


def _whole_frames(audio_NS: Tensor, hop: int) -> Tensor:
    return F.pad(audio_NS, (0, -audio_NS.shape[-1] % hop))


class MultiResolutionStftLoss(nn.Module):
    """Spectral convergence and log-magnitude distance, averaged over window sizes (hop a quarter of
    each).
    """

    def __init__(
        self, sizes: Sequence[int] = (512, 1024, 2048, 4096), *, floor: float = 1e-5
    ) -> None:
        super().__init__()
        self.stfts = nn.ModuleList(Stft(size, size // 4) for size in sizes)
        self.floor = floor

    def forward(self, output_NcS: Tensor, target_NcS: Tensor) -> Tensor:
        """Scalar; both [N, channels, S]."""
        output_NS, target_NS = views(output_NcS), views(target_NcS)
        total = output_NS.new_zeros(())
        for stft in self.stfts:
            assert isinstance(stft, Stft)
            output = magnitude(*stft(_whole_frames(output_NS, stft.hop)))
            target = magnitude(*stft(_whole_frames(target_NS, stft.hop)))
            # the floor in the denominator keeps a silent batch from dividing by zero
            total = total + (output - target).norm() / (
                target.norm() + self.floor * target.numel() ** 0.5
            )
            total = total + ((output + self.floor).log() - (target + self.floor).log()).abs().mean()
        return total / len(self.stfts)


class LogMelLoss(nn.Module):
    """L1 between log-mel spectra: what is heard of pitch and timbre,
    at about the ear's resolution.
    """

    def __init__(
        self, sample_rate: int, *, n_fft: int = 2048, hop: int = 512, mels: int = 96
    ) -> None:
        super().__init__()
        self.hop = hop
        self.mel = LogMel(sample_rate, n_fft, hop, mels)

    def forward(self, output_NcS: Tensor, target_NcS: Tensor) -> Tensor:
        """Scalar; both [N, channels, S]."""
        output, target = (
            self.mel(_whole_frames(views(audio), self.hop)) for audio in (output_NcS, target_NcS)
        )
        return (output - target).abs().mean()


def kl_divergence(mean_NTC: Tensor, logvar_NTC: Tensor) -> Tensor:
    """KL(N(mean, var) || N(0, 1)) in nats, averaged over elements."""
    return 0.5 * (mean_NTC.square() + logvar_NTC.exp() - 1.0 - logvar_NTC).mean()


class Verdict(NamedTuple):
    """Logits and inner features of every discriminator for one batch."""

    logits: list[Tensor]
    features: list[list[Tensor]]


class StftDiscriminator(nn.Module):
    """2-D convolutions over (frame, bin) of one complex spectrum; real and imaginary parts are
    channels, so it hears phase too.
    """

    def __init__(self, n_fft: int, channels: int, *, width: int = 32) -> None:
        super().__init__()
        self.stft = Stft(n_fft, n_fft // 4)
        self.channels = channels
        self.layers = nn.ModuleList(
            [weight_norm(nn.Conv2d(2 * channels, width, (3, 9), padding=(1, 4)))]
        )
        # wider steps along time from layer to layer by dilation, halving the bins by stride
        for dilation in (1, 2, 4):
            self.layers.append(
                weight_norm(
                    nn.Conv2d(
                        width,
                        width,
                        (3, 9),
                        stride=(1, 2),
                        dilation=(dilation, 1),
                        padding=(dilation, 4),
                    )
                )
            )
        self.layers.append(weight_norm(nn.Conv2d(width, width, (3, 3), padding=(1, 1))))
        self.out = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))

    def forward(self, audio_NcS: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(logits [N, 1, F, bins], features of every layer) of audio [N, channels, S]."""
        real, imag = self.stft(_whole_frames(audio_NcS.flatten(0, 1), self.stft.hop))
        # |X|^0.3 with the phase kept: on linear magnitudes only the loudest bins would be judged
        squeeze = (real.square() + imag.square() + 1e-8).pow(-0.35)
        h = (
            torch.stack((real * squeeze, imag * squeeze), 1)
            .unflatten(0, (-1, self.channels))
            .flatten(1, 2)
        )
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.1)
            features.append(h)
        return self.out(h), features


class MultiResolutionDiscriminator(nn.Module):
    """One StftDiscriminator for each window size."""

    def __init__(
        self, channels: int, *, sizes: Sequence[int] = (512, 1024, 2048), width: int = 32
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            StftDiscriminator(size, channels, width=width) for size in sizes
        )

    def forward(self, audio_NcS: Tensor) -> Verdict:
        logits, features = [], []
        for discriminator in self.discriminators:
            logit, inner = discriminator(audio_NcS)
            logits.append(logit)
            features.append(inner)
        return Verdict(logits, features)


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()


def discriminator_loss(real: Verdict, fake: Verdict, *, kind: Adversary = "hinge") -> Tensor:
    """Loss of the discriminators on recordings and (detached) decodes."""
    pairs = zip(real.logits, fake.logits, strict=True)
    if kind == "hinge":
        return _mean([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in pairs])
    return _mean([(r - 1).square().mean() + f.square().mean() for r, f in pairs])


def generator_loss(fake: Verdict, *, kind: Adversary = "hinge") -> Tensor:
    """Loss of the VAE for being told from recordings."""
    return _mean([-f.mean() if kind == "hinge" else (f - 1).square().mean() for f in fake.logits])


def feature_matching(real: Verdict, fake: Verdict) -> Tensor:
    """L1 between the discriminators' inner features, each relative to the recording's mean level;
    no gradient flows into `real`.
    """
    losses = []
    for real_features, fake_features in zip(real.features, fake.features, strict=True):
        for r, f in zip(real_features, fake_features, strict=True):
            r = r.detach()
            losses.append((r - f).abs().mean() / (r.abs().mean() + 1e-6))
    return _mean(losses)
