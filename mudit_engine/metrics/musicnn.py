"""musicnn features of music audio: a small convolutional tagger whose penultimate layer serves FAD
and probes.

    features = Musicnn.load()
    embedding = features(audio, 22050)  # penultimate [patches, 200], pooled timbre [patches, 753]

The weights are those of the MTT_musicnn model of the musicnn package (ISC licence,
assets/musicnn/NOTICE.md), stored in half precision. The network reads log10(1 + 10000 mel) of 96
bands at 16 kHz, hop 256, in patches of 187 frames (3 s).

Source: Pons and Serra 2019, "musicnn: pre-trained convolutional neural networks for music audio
tagging".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.audio import resample

WEIGHTS = Path(__file__).parent.parent / "assets" / "musicnn" / "mtt.safetensors"
SAMPLE_RATE, N_FFT, HOP, MELS, PATCH = 16000, 512, 256, 96, 187
BN_EPS = 1e-3
# patches at once: the activations of more leave the CPU's caches, and 32 take three times as long
CHUNK = 2


@dataclass(frozen=True)
class Features:
    """One row a patch of 3 s."""

    penultimate: Tensor  # [P, 200]
    timbre: Tensor  # [P, 753], the mean over time of all convolutional features

    @property
    def song(self) -> Tensor:
        """The mean timbre [753] of the whole song: what linear probes read."""
        return self.timbre.mean(0)


class Musicnn:
    """The frozen network."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w = {name: tensor.float() for name, tensor in weights.items()}
        self.filters = _slaney_mel()
        self.window = torch.hann_window(N_FFT)

    @classmethod
    def load(cls) -> Musicnn:
        return cls(load_file(WEIGHTS))

    @torch.inference_mode()
    def __call__(self, audio: Tensor, sample_rate: int, *, hop: int = PATCH // 2) -> Features:
        """Features of audio [channels, samples] or [samples]; `hop` is the step between patches in
        mel frames. Short audio is repeated.
        """
        mono = audio.mean(0) if audio.dim() == 2 else audio
        patches = self.patches(resample(mono[None].float(), sample_rate, SAMPLE_RATE)[0], hop)
        parts = [self._network(chunk) for chunk in patches.split(CHUNK)]
        return Features(torch.cat([p for p, _ in parts]), torch.cat([t for _, t in parts]))

    def patches(self, mono: Tensor, hop: int) -> Tensor:
        """Log-mel patches [P, 187, 96]."""
        need = PATCH * HOP
        if len(mono) < need:
            mono = mono.repeat(-(-need // max(len(mono), 1)))[:need]
        x = F.pad(mono[None], (N_FFT // 2, N_FFT // 2), mode="constant")[0]
        power = (
            torch.stft(x, N_FFT, HOP, window=self.window, center=False, return_complex=True)
            .abs()
            .square()
        )
        mel = torch.log10(10000 * (power.T @ self.filters) + 1)
        return torch.stack([mel[i : i + PATCH] for i in range(0, len(mel) - PATCH + 1, hop)])

    def _norm(self, x: Tensor, index: int) -> Tensor:
        name = f"batch_normalization_{index}" if index else "batch_normalization"
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean, variance, gamma, beta = (
            self.w[f"{name}/{k}"].view(shape)
            for k in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return (x - mean) * torch.rsqrt(variance + BN_EPS) * gamma + beta

    def _conv(self, x: Tensor, index: int) -> Tensor:
        name = f"conv2d_{index}" if index else "conv2d"
        return F.relu(
            F.conv2d(x, self.w[f"{name}/kernel"].permute(3, 2, 0, 1), self.w[f"{name}/bias"])
        )

    def _network(self, mel_PTM: Tensor) -> tuple[Tensor, Tensor]:
        x = self._norm(mel_PTM[:, None], 0)
        timbral = F.pad(x, (0, 0, 3, 3))
        front = [self._norm(self._conv(timbral, i), i + 1).amax(3) for i in (0, 1)]
        for i, width in ((2, 128), (3, 64), (4, 32)):
            front.append(
                self._norm(
                    self._conv(F.pad(x, (0, 0, (width - 1) // 2, width // 2)), i), i + 1
                ).amax(3)
            )
        z = torch.cat(front, 1).transpose(1, 2)[:, None]  # [P, 1, T, channels]
        layers = [z]
        y = z
        for i in (5, 6, 7):
            out = self._norm(self._conv(F.pad(y, (0, 0, 3, 3)), i), i + 1).permute(0, 3, 2, 1)
            y = out if i == 5 else out + y
            layers.append(y)
        everything = torch.cat(layers, 3)[:, 0]  # [P, T, 753]
        pooled = torch.stack((everything.amax(1), everything.mean(1)), 2).flatten(1)
        hidden = F.relu(self._norm(pooled, 9) @ self.w["dense/kernel"] + self.w["dense/bias"])
        return self._norm(hidden, 10), everything.mean(1)


def _slaney_mel() -> Tensor:
    """Area-normalised triangular filters [257, 96] on the Slaney scale (linear below 1 kHz,
    logarithmic above).
    """
    step, corner = 200.0 / 3, 1000.0
    log_step = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27

    def to_mel(f: Tensor) -> Tensor:
        return torch.where(
            f < corner, f / step, corner / step + torch.log(f.clamp_min(1e-9) / corner) / log_step
        )

    def to_hz(m: Tensor) -> Tensor:
        return torch.where(
            m < corner / step, m * step, corner * torch.exp(log_step * (m - corner / step))
        )

    top = to_mel(torch.tensor(SAMPLE_RATE / 2, dtype=torch.float64))
    edges = to_hz(torch.linspace(0, float(top), MELS + 2, dtype=torch.float64))
    bins = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return (torch.minimum(rise, fall).clamp_min(0) * 2 / (edges[2:] - edges[:-2])).float()
