"""Tempo and key of audio, judged against what was requested.

    tempo_error(audio, rate, 92.0)  # share by which the nearest octave of the estimate is off
    key_rank(audio, rate, "A minor")             # 1 is the best of the 12 transpositions

Tempo: the peak of a comb over the autocorrelation of the spectral flux. Key: the share of tonal
energy inside the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mudit_engine.audio import resample
from mudit_engine.text.harmony import SCALES, key_parts

RATE = 22050


def _mono(audio: Tensor, sample_rate: int) -> Tensor:
    mono = audio.mean(0) if audio.dim() == 2 else audio
    return resample(mono[None].float(), sample_rate, RATE)[0]


def _spectrum(mono: Tensor, n_fft: int, hop: int) -> Tensor:
    if len(mono) < n_fft:
        mono = torch.nn.functional.pad(mono, (0, n_fft - len(mono)))
    return torch.stft(mono, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True).abs()


def tempo(audio: Tensor, sample_rate: int) -> float:
    """Beats a minute between 60 and 180; NaN where nothing ever begins, as in silence."""
    hop = 256
    log = torch.log1p(100 * _spectrum(_mono(audio, sample_rate), 1024, hop))
    flux = (log[:, 1:] - log[:, :-1]).clamp_min(0).sum(0)
    # the slow trend of loudness is no rhythm
    kernel = 2 * round(0.5 * RATE / hop) + 1
    flux = (
        flux
        - torch.nn.functional.avg_pool1d(
            flux[None, None], kernel, 1, kernel // 2, count_include_pad=False
        )[0, 0]
    )
    n = len(flux)
    if not bool((flux.abs() > 1e-6).any()):
        return float("nan")
    correlation = torch.fft.irfft(torch.fft.rfft(flux, 4 * n).abs().square())[:n] / torch.arange(
        n, 0, -1
    )
    candidates = torch.arange(60, 180.25, 0.25)
    period = 60 / candidates * RATE / hop
    score = torch.zeros(len(candidates))
    for multiple, weight in ((1, 1.0), (2, 1.0), (3, 0.7), (4, 1.3)):
        at = (multiple * period).clamp(max=n - 2)
        low = at.floor().long()
        score += weight * torch.lerp(correlation[low], correlation[low + 1], at - low)
    return float(candidates[score.argmax()])


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
    magnitude = _spectrum(_mono(audio, sample_rate), n_fft, 2048)
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
