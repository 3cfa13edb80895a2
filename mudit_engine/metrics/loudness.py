"""How loud a song is, and whether it ends: integrated loudness, true peak, the last half second.

    loudness(audio, 44100)          # LUFS
    true_peak(audio, 44100)         # dB of full scale, between the samples too
    ending_level(audio, 44100)      # dB of the end below the song's own rms

Loudness weighs each channel by a shelf and a high-pass filter, takes mean squares of blocks of 400
ms every 100 ms, and averages those above -70 LUFS and then those above 10 LU below that average.

Source: ITU-R BS.1770-4, annexes 1 and 2. The filters are its analogue prototypes, made for the
audio's own rate by the bilinear transform.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from mudit_engine.audio import resample
from mudit_engine.availability import require

BLOCK_SECONDS, HOP_SECONDS = 0.4, 0.1
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0
OFFSET = -0.691
OVERSAMPLING = 4
ENDING_SECONDS = 0.5


def loudness(audio_cS: Tensor, sample_rate: int) -> float:
    """Integrated loudness in LUFS of audio [channels, samples]; -inf for silence. Audio shorter
    than a block is one block. Raises MissingError without scipy.
    """
    require("scipy", "loudness")
    from scipy.signal import lfilter

    filtered = audio_cS.double().numpy()
    for b, a in (_shelf(sample_rate), _high_pass(sample_rate)):
        filtered = lfilter(b, a, filtered, axis=-1)
    block, hop = round(BLOCK_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    squares = np.concatenate([[0.0], np.cumsum((filtered**2).sum(0))])
    samples = filtered.shape[1]
    starts = np.arange(0, max(samples - block, 0) + 1, hop)
    ends = np.minimum(starts + block, samples)
    power = (squares[ends] - squares[starts]) / np.maximum(ends - starts, 1)
    heard = power[_lufs(power) > ABSOLUTE_GATE]
    if not len(heard):
        return -math.inf
    gate = float(_lufs(heard.mean())) + RELATIVE_GATE
    return float(_lufs(heard[_lufs(heard) > gate].mean()))


def _lufs(power: np.ndarray | float) -> np.ndarray:
    return OFFSET + 10 * np.log10(np.maximum(power, 1e-30))


def _shelf(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Stage 1: the head's shelf, +4 dB above 1.7 kHz."""
    f0, gain, q = 1681.974450955533, 3.999843853973347, 0.7071752369554196
    k = math.tan(math.pi * f0 / rate)
    vh = 10 ** (gain / 20)
    vb = vh**0.4996667741545416
    a0 = 1 + k / q + k * k
    b = np.array([vh + vb * k / q + k * k, 2 * (k * k - vh), vh - vb * k / q + k * k]) / a0
    return b, np.array([1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0])


def _high_pass(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Stage 2: a high-pass at 38 Hz."""
    f0, q = 38.13547087602444, 0.5003270373238773
    k = math.tan(math.pi * f0 / rate)
    a0 = 1 + k / q + k * k
    a = np.array([1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0])
    return np.array([1.0, -2.0, 1.0]), a


def true_peak(audio_cS: Tensor, sample_rate: int) -> float:
    """The highest level between samples as well, in dB of full scale, at four times the rate."""
    peak = float(resample(audio_cS.float(), sample_rate, OVERSAMPLING * sample_rate).abs().max())
    peak = max(peak, float(audio_cS.abs().max()))
    return 20 * math.log10(max(peak, 1e-9))


def ending_level(audio_cS: Tensor, sample_rate: int) -> float:
    """Level of the last half second against the whole song's rms, in dB: 0 is cut off in the
    middle, -30 has faded.
    """
    mono = audio_cS.double().mean(0)
    end = mono[-round(ENDING_SECONDS * sample_rate) :]
    whole, last = (float(x.square().mean().sqrt()) for x in (mono, end))
    if whole == 0:
        return 0.0
    return 20 * math.log10(max(last, 1e-9) / whole)
