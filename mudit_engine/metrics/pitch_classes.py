"""Which pitch classes sound in each frame of a song: energy of spectral peaks, as `chroma` has it
for the whole (metrics/rhythm_and_key.py).

    energy_F12, hop = pitch_class_frames(audio_cS, 44100)       # a frame each `hop` samples of RATE
"""

from __future__ import annotations

import torch
from torch import Tensor

from mudit_engine.audio import resample
from mudit_engine.metrics.rhythm_and_key import RATE

N_FFT, HOP = 8192, 1024
LOW, HIGH = 100.0, 2000.0


def mono_at_rate(audio_cS: Tensor, sample_rate: int) -> Tensor:
    """fp32 [samples] at RATE of audio [channels, samples]."""
    return resample(audio_cS.mean(0, keepdim=True).float(), sample_rate, RATE)[0]


def pitch_class_frames(audio_cS: Tensor, sample_rate: int) -> tuple[Tensor, int]:
    """(energy [frames, 12], hop in samples at RATE) of audio [channels, samples]; C is 0.

    Examples:
        >>> import math
        >>> a = torch.sin(2 * math.pi * 440 * torch.arange(22050) / 22050)[None]
        >>> int(pitch_class_frames(a, 22050)[0][10].argmax())
        9
    """
    mono = mono_at_rate(audio_cS, sample_rate)
    mono = torch.nn.functional.pad(mono, (0, max(0, N_FFT - len(mono))))
    window = torch.hann_window(N_FFT)
    magnitude = torch.stft(mono, N_FFT, HOP, window=window, return_complex=True).abs()
    inner = magnitude[1:-1]
    peaks = inner * ((inner > magnitude[:-2]) & (inner > magnitude[2:]))
    frequency = torch.arange(1, N_FFT // 2) * RATE / N_FFT
    keep = (frequency > LOW) & (frequency < HIGH)
    pitch_class = (12 * torch.log2(frequency / 440) + 69).round().long() % 12
    energy = torch.zeros(12, magnitude.shape[1]).index_add_(0, pitch_class[keep], peaks[keep])
    return energy.T, HOP


__all__ = ["mono_at_rate", "pitch_class_frames"]
