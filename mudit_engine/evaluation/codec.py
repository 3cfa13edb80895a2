"""The VAE as a codec, and what it must beat: Griffin-Lim from a mel spectrogram of the same number
of values a second.

    codec = Codec.load(Path("model"))
    decoded, rate = codec(audio, 44100)
    values = codec.values_per_second
    baseline, rate = mel_griffin_lim(audio, 44100, values_per_second=values, frame_rate=21.5)
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from mudit_engine.audio import resample, to_channels
from mudit_engine.evaluation.listening import source_digest
from mudit_engine.models.folder import load_config, load_part
from mudit_engine.models.spectral import Stft, magnitude, mel_filters
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.runtime.decode import decode_chunked

CHUNK_FRAMES = 128
BASELINE_FRAME_RATES = (43.0, 21.5)  # at equal rate: few bands often, or more bands more seldom
INVERSION_STEPS = 50
DISTANCE_FFTS = (512, 2048)


class Codec:
    """encode, then decode."""

    def __init__(self, vae: SpectralVAE) -> None:
        self.vae = vae
        digest = hashlib.sha256(
            source_digest(
                "models.vae", "models.spectral", "runtime.decode", "evaluation.codec"
            ).encode()
        )
        digest.update(repr(vae.config).encode())
        for name, weight in sorted(vae.state_dict().items()):
            digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        self.id = digest.hexdigest()[:32]

    @classmethod
    def load(cls, folder: Path) -> Codec:
        """The VAE of a model folder, which needs no other part. Raises ModelError."""
        vae = load_part("vae", load_config(folder), folder)
        assert isinstance(vae, SpectralVAE)
        return cls(vae)

    @property
    def values_per_second(self) -> float:
        return self.vae.config.latent_channels * self.vae.config.frame_rate

    @torch.inference_mode()
    def __call__(self, audio_cS: Tensor, rate: int) -> tuple[Tensor, int]:
        """(audio [channels, samples] that went through the latents, the VAE's sample rate), as long
        as the original.
        """
        c = self.vae.config
        audio_cS = to_channels(resample(audio_cS, rate, c.sample_rate), c.channels)
        mean, _ = self.vae.encode(audio_cS[None])
        return decode_chunked(self.vae, mean[0], chunk_frames=CHUNK_FRAMES)[
            :, : audio_cS.shape[1]
        ].clamp(-1, 1), c.sample_rate


@torch.inference_mode()
def mel_griffin_lim(
    audio_cS: Tensor,
    rate: int,
    *,
    values_per_second: float,
    frame_rate: float,
    steps: int = 32,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """(mono audio made from nothing but a mel spectrogram, rate).

    The mel has values_per_second / frames per second bands; the magnitudes are its least-squares
    inverse under non-negativity (multiplicative updates of Lee and Seung 2001), the phases
    Griffin-Lim's from a random start.
    """
    mono_1S = audio_cS.mean(0, keepdim=True)
    hop = 2 ** round(torch.log2(torch.tensor(rate / frame_rate)).item())
    bands = max(2, round(values_per_second * hop / rate))
    stft = Stft(4 * hop, hop)
    padded = torch.nn.functional.pad(mono_1S, (0, -mono_1S.shape[1] % hop))
    filters_KM = mel_filters(rate, 4 * hop, bands)
    mel_1FM = magnitude(*stft(padded)) @ filters_KM
    estimate_1FK = mel_1FM @ (filters_KM / filters_KM.square().sum(0)).T + 1e-8
    for _ in range(INVERSION_STEPS):
        estimate_1FK = (
            estimate_1FK
            * (mel_1FM @ filters_KM.T)
            / (estimate_1FK @ filters_KM @ filters_KM.T + 1e-10)
        )
    angle = (
        2 * torch.pi * torch.rand(estimate_1FK.shape, generator=torch.Generator().manual_seed(seed))
    )
    spectrum = stft.griffin_lim(
        estimate_1FK, estimate_1FK * angle.cos(), estimate_1FK * angle.sin(), steps=steps
    )
    return stft.inverse(*spectrum)[:, : mono_1S.shape[1]].clamp(-1, 1), rate


@torch.inference_mode()
def spectral_distance(a_cS: Tensor, b_cS: Tensor, *, floor: float = 1e-3) -> float:
    """Mean |log magnitude| difference (nepers, floor -60 dB of full scale) over windows of 512 and
    2048 samples of audio at one rate.
    """
    samples = min(a_cS.shape[1], b_cS.shape[1])
    a, b = (x.mean(0, keepdim=True)[:, :samples] for x in (a_cS, b_cS))
    total = 0.0
    for n_fft in DISTANCE_FFTS:
        stft = Stft(n_fft, n_fft // 4)
        pad = -samples % (n_fft // 4)
        spectra = [
            (magnitude(*stft(torch.nn.functional.pad(x, (0, pad)))) + floor).log() for x in (a, b)
        ]
        total += float((spectra[0] - spectra[1]).abs().mean())
    return total / len(DISTANCE_FFTS)
