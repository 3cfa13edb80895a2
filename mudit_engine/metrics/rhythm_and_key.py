"""Tempo and key of audio, judged against what was requested.

    tempo_error(audio, rate, 92.0)  # share by which the nearest octave of the estimate is off
    key_rank(audio, rate, "A minor")             # 1 is the best of the 12 transpositions

Tempo is heard by hearing.py. Key: the share of tonal energy inside the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mudit_engine.hearing import RATE, mono_at_rate, spectrum, tempo
from mudit_engine.text.harmony import SCALES, key_parts


def tempo_error(audio: Tensor, sample_rate: int, bpm: float) -> float:
    """Relative error of the estimate, octave errors (half, double) allowed; NaN for silence."""
    return octave_error(tempo(audio, sample_rate), bpm)


def octave_error(estimate: float, bpm: float) -> float:
    """Relative error of a tempo, with half and double counted as right."""
    return min(abs(estimate * factor / bpm - 1) for factor in (0.5, 1.0, 2.0))


def parse_key(key: str) -> tuple[int, str]:
    """('A minor') -> (9, 'minor'). Raises InputError."""
    return key_parts(key.strip())


def chroma(audio: Tensor, sample_rate: int) -> Tensor:
    """Share of the energy of spectral peaks (100 to 2,000 Hz) in each pitch class, [12]: peaks, so
    that drums count little.
    """
    n_fft = 8192
    magnitude = spectrum(mono_at_rate(audio, sample_rate), n_fft, 2048)
    peaks = magnitude[1:-1] * (
        (magnitude[1:-1] > magnitude[:-2]) & (magnitude[1:-1] > magnitude[2:])
    )
    frequency = torch.arange(1, n_fft // 2) * RATE / n_fft
    keep = (frequency > 100) & (frequency < 2000)
    pitch_class = (12 * torch.log2(frequency / 440) + 69).round().long() % 12
    energy = torch.zeros(12).index_add_(0, pitch_class[keep], peaks[keep].mean(1))
    return energy / energy.sum().clamp_min(1e-12)


def key_rank(audio: Tensor, sample_rate: int, key: str) -> int:
    """Rank (1 = best) of the key among the 12 transpositions of its mode, by the share of tonal
    energy inside the scale.
    """
    return rank_in_chroma(chroma(audio, sample_rate), key)


def rank_in_chroma(energy: Tensor, key: str) -> int:
    """`key_rank` of a chroma vector [12]; silence is in no key and ranks last."""
    tonic, mode = parse_key(key)
    if not bool(energy.any()):
        return 12
    share = torch.stack(
        [energy[[(k + step) % 12 for step in SCALES[mode]]].sum() for k in range(12)]
    )
    return int((share > share[tonic] + 1e-9).sum()) + 1
