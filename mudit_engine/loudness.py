"""How loud a song is, whether it ends, and a song brought to one loudness: loudness, true peak, the
last half second, a limiter.

    loudness(audio, 44100)          # LUFS
    true_peak(audio, 44100)         # dB of full scale, between the samples too
    ending_level(audio, 44100)      # dB of the end below the song's own rms
    mastered(audio, 44100)          # the same song at -16 LUFS, no peak above -1 dB, faded out

Loudness weighs each channel by a shelf and a high-pass filter, takes mean squares of blocks of 400
ms every 100 ms, and averages those above -70 LUFS and then those above 10 LU below that average.

Source: ITU-R BS.1770-4, annexes 1 and 2. The filters are its analogue prototypes, made for the
audio's own rate by the bilinear transform and applied as a product of spectra.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mudit_engine.audio import resample

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_SECONDS, HOP_SECONDS = 0.4, 0.1
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0
OFFSET = -0.691
RING_SECONDS = 0.2  # the slower filter has fallen by e^-47 then
OVERSAMPLING = 4
ENDING_SECONDS = 0.5
# powers of the fade: a song that is as loud at its end as it was needs a steeper one
FALLS = (4, 6, 8, 12)
FADED_DB = (
    -32.0
)  # of the last half second below the song: -30 has faded, and limiters quieten songs
FADE_SECONDS = 1.0

TARGET_LUFS, CEILING_DB = -16.0, -1.0
MOST_GAIN_DB = 24.0  # what is quieter than this below the target is meant to be quiet, or is noise
REACH_SECONDS = 0.005  # of the limiter: of its least gain, and of the average over that
PIECE = 4096  # samples that the limiter looks at at once, its reach on both sides among them


def loudness(audio_cS: Tensor, sample_rate: int) -> float:
    """Integrated loudness in LUFS of audio [channels, samples]; -inf for silence. Audio shorter
    than a block is one block.
    """
    import torch

    block, hop = round(BLOCK_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    square_S = _weighted(audio_cS, sample_rate).square_().sum(0)
    squares = torch.cat([square_S.new_zeros(1), square_S.cumsum(0)]).numpy()
    samples = len(square_S)
    starts = np.arange(0, max(samples - block, 0) + 1, hop)
    ends = np.minimum(starts + block, samples)
    power = (squares[ends] - squares[starts]) / np.maximum(ends - starts, 1)
    heard = power[_lufs(power) > ABSOLUTE_GATE]
    if not len(heard):
        return -math.inf
    gate = float(_lufs(heard.mean())) + RELATIVE_GATE
    return float(_lufs(heard[_lufs(heard) > gate].mean()))


def _weighted(audio_cS: Tensor, rate: int) -> Tensor:
    """fp64 audio through both filters.

    They are recursive, and torch has no loop for that: their exact response is laid on the spectra
    of pieces, each of which begins RING_SECONDS early, after which nothing of a filter rings on.
    """
    import torch
    import torch.nn.functional as F

    ring = round(RING_SECONDS * rate)
    length = 1 << (8 * ring).bit_length()
    step, samples = length - ring, audio_cS.shape[1]
    pieces = max(1, -(-samples // step))
    padded_cS = F.pad(audio_cS.double(), (ring, pieces * step - samples))
    spectra_cNF = torch.fft.rfft(padded_cS.unfold(1, length, step))
    spectra_cNF *= torch.from_numpy(_response(length, rate))
    return torch.fft.irfft(spectra_cNF, length)[..., ring:].flatten(1)[:, :samples]


def _response(length: int, rate: int) -> np.ndarray:
    """Of both filters, at the frequencies of a transform of `length` samples."""
    z = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
    response = np.ones_like(z)
    for b, a in (_shelf(rate), _high_pass(rate)):
        response *= (b[0] + z * (b[1] + z * b[2])) / (a[0] + z * (a[1] + z * a[2]))
    return response


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


@dataclass(frozen=True)
class Mastering:
    """What was done to a song's level: the gain before the limiter (dB), and what came out."""

    gain_db: float
    loudness: float  # LUFS
    true_peak: float  # dB of full scale


def mastered(
    audio_cS: Tensor,
    sample_rate: int,
    *,
    target: float = TARGET_LUFS,
    ceiling: float = CEILING_DB,
) -> tuple[Tensor, Mastering | None]:
    """A song at one loudness, with no peak above a ceiling and an end that ends (`faded`).

    Args:
        audio_cS: fp32 [channels, samples]; its peaks may lie beyond full scale.
        sample_rate: Hz.
        target: integrated loudness, LUFS.
        ceiling: true peak, dB of full scale.

    Returns:
        (fp32 [channels, samples], what was done). Silence comes back as it is, with None. What a
        limiter takes away is given back by more gain, but a song of few loud moments stays below
        the target, as its gain is at most MOST_GAIN_DB.

    Examples:
        >>> import torch
        >>> tone = 2.0 * torch.sin(torch.arange(44100) * 0.1)[None]
        >>> quieter, done = mastered(tone, 44100)
        >>> round(done.loudness), done.true_peak <= -0.9
        (-16, True)
    """
    song_cS = faded(audio_cS, sample_rate)
    found = loudness(song_cS, sample_rate)
    if found == -math.inf:
        return audio_cS, None
    gain = min(target - found, MOST_GAIN_DB)
    peak_S = _peaks(song_cS, sample_rate)
    for _ in range(3):
        scale = 10 ** (gain / 20)
        out_cS = _turned_down(song_cS * scale, peak_S * scale, sample_rate, ceiling)
        found = loudness(out_cS, sample_rate)
        if abs(target - found) < 0.1 or gain == MOST_GAIN_DB:
            break
        gain = min(gain + target - found, MOST_GAIN_DB)
    return out_cS, Mastering(gain, found, true_peak(out_cS, sample_rate))


def faded(audio_cS: Tensor, sample_rate: int) -> Tensor:
    """The song with an end that ends: its last second falls to silence as a power of a quarter of a
    cosine does, the lowest of FALLS that leaves the last half second below FADED_DB; of a song
    below eight seconds, its last eighth.

    Examples:
        >>> import torch
        >>> out = faded(torch.ones(1, 441000), 44100)
        >>> float(out[0, -44101]), round(float(out[0, -22050]), 2), float(out[0, -1]) < 1e-6
        (1.0, 0.06, True)
    """
    samples = min(round(FADE_SECONDS * sample_rate), audio_cS.shape[1] // 8)
    if not samples:
        return audio_cS
    quarter = np.cos(np.arange(1, samples + 1) / samples * (math.pi / 2))
    for power in FALLS:
        out_cS = audio_cS.clone()
        out_cS[:, -samples:] *= out_cS.new_tensor(quarter**power)
        if ending_level(out_cS, sample_rate) <= FADED_DB:
            break
    return out_cS


def limited(audio_cS: Tensor, sample_rate: int, *, ceiling: float = CEILING_DB) -> Tensor:
    """Audio whose true peaks stay below `ceiling` (dB of full scale): all channels are turned down
    together around each peak, by a gain that begins to fall and has risen again within twice
    REACH_SECONDS of it. Farther from any peak samples stay as they are.
    """
    return _turned_down(audio_cS, _peaks(audio_cS, sample_rate), sample_rate, ceiling)


def _peaks(audio_cS: Tensor, sample_rate: int) -> Tensor:
    """The highest level at and around each sample, of all channels and between samples too, [S]."""
    import torch
    import torch.nn.functional as F

    over_cS = resample(audio_cS, sample_rate, OVERSAMPLING * sample_rate).abs().amax(0)[None]
    half = OVERSAMPLING // 2
    peak_S = F.max_pool1d(over_cS, 2 * half + 1, stride=OVERSAMPLING, padding=half)[0]
    return torch.maximum(peak_S[: audio_cS.shape[1]], audio_cS.abs().amax(0))


def _turned_down(audio_cS: Tensor, peak_S: Tensor, sample_rate: int, ceiling: float) -> Tensor:
    """`limited` of audio whose peaks are known."""
    import torch
    import torch.nn.functional as F

    reach = round(REACH_SECONDS * sample_rate)
    limit = 10 ** (ceiling / 20)
    if peak_S.max() <= limit:
        return audio_cS
    # the least gain wanted within reach, then averaged within reach: never above what is wanted
    wanted_S = limit / peak_S.clamp_min(limit)
    least_S = _least_within(wanted_S, reach)
    window = torch.hann_window(2 * reach + 3, periodic=False)[1:-1]
    # pieces in which all gains are 1 stay as they are, and most songs have few others
    step = PIECE - 2 * reach
    padded_1S = F.pad(least_S[None], (reach, reach + -len(least_S) % step), mode="replicate")
    pieces_NK = padded_1S[0].unfold(0, PIECE, step)
    low_N = pieces_NK.amin(1) < 1
    gain_NP = torch.ones(len(pieces_NK), step)
    gain_NP[low_N] = _averaged(pieces_NK[low_N], window / window.sum())
    gain_S = gain_NP.flatten()[: len(least_S)]
    return audio_cS * torch.where(gain_S > 1 - 1e-6, 1.0, gain_S)


def _averaged(rows_NK: Tensor, window_W: Tensor) -> Tensor:
    """Rows under a sliding symmetric window, as a product of spectra, [N, K - W + 1]."""
    import torch

    length, width = rows_NK.shape[1], len(window_W)
    spectra_NF = torch.fft.rfft(rows_NK) * torch.fft.rfft(window_W, length)
    return torch.fft.irfft(spectra_NF, length)[:, width - 1 :]


def _least_within(values_S: Tensor, reach: int) -> Tensor:
    """The least value within `reach` of each place, by windows that double."""
    import torch
    import torch.nn.functional as F

    least_S, length, whole = F.pad(values_S, (reach, reach), value=math.inf), 1, 2 * reach + 1
    while length < whole:
        step = min(length, whole - length)
        least_S = torch.minimum(least_S[:-step], least_S[step:])
        length += step
    return least_S
