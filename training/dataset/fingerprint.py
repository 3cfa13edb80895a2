"""What a recording sounds like as a few hundred numbers that re-encoding, trimming, another level
or another sample rate change little: landmarks of the spectrogram.

Peaks of the log spectrogram (8 kHz mono, 128 ms windows every 16 ms) are joined in threes. A
landmark is the three frequencies and the two gaps in time between them, as one 64-bit hash, at the
time of its first peak:

    hash = mix(f1, f2, f3, (t2 - t1) / 4, (t3 - t1) / 4)

Of all landmarks (about 300 a second) those with the smallest hashes are kept, `FEWEST` of a song
and `RATE` a second of long ones: which ones are kept depends on the hash alone, so that two copies
keep the same. `limit` says up to which hash a song's are kept. After Wang, "An industrial-strength
audio search algorithm" (ISMIR 2003), with threes of peaks in place of pairs and Broder's min-wise
sampling.

    hashes, times, limit = fingerprint(audio_cS, 44100)      # uint64 [N], int32 [N] of 16 ms
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_RATE = 8000
N_FFT, HOP = 1024, 128
LOWEST, HIGHEST = 12, 420  # bins: 94 Hz to 3.3 kHz, what every codec keeps
NEAR_BINS, NEAR_FRAMES = 12, 10  # a peak is the largest within these on each side
AHEAD = 96  # frames that the second and third peak follow the first within
FAN_OUT = 5  # peaks after the first that are joined with it
TIME_STEP = 4  # frames: gaps in time are rounded to it
FLOOR = 60.0  # dB below the song's loudest peak
RATE = 5.0  # landmarks kept a second
FEWEST = 1500  # landmarks kept of a song, where it has so many
LARGEST = 2**64 - 1


def fingerprint(audio_cS: Tensor, sample_rate: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(hashes uint64 [N], times int32 [N] in frames of 16 ms, limit) of a recording, by time.

    All landmarks with a hash up to `limit` are there. Silence and pure noise floors have none.
    """
    from mudit_engine.audio import resample, to_channels

    mono = resample(to_channels(audio_cS, 1), sample_rate, SAMPLE_RATE)
    times, bins = _peaks(mono)
    hashes, at = _landmarks(times, bins)
    wanted = max(FEWEST, round(RATE * mono.shape[-1] / SAMPLE_RATE))
    if len(hashes) <= wanted:
        return hashes, at, LARGEST
    limit = np.partition(hashes, wanted - 1)[wanted - 1]
    kept = hashes <= limit
    return hashes[kept], at[kept], int(limit)


def exact_digest(audio_cS: Tensor) -> bytes:
    """16 bytes that two files share which decode to the same 16-bit samples."""
    from mudit_engine.audio import to_int16

    samples = to_int16(audio_cS)[0]
    return hashlib.blake2b(samples.tobytes(), digest_size=16).digest()


def _peaks(mono_1S: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Times and bins of the peaks, by time and then loudness."""
    import torch
    import torch.nn.functional as F

    if mono_1S.shape[-1] < N_FFT:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    window = torch.hann_window(N_FFT)
    spectrum_FT = torch.stft(
        mono_1S[0], N_FFT, HOP, window=window, center=False, return_complex=True
    ).abs()[LOWEST:HIGHEST]
    level_FT = 20 * spectrum_FT.clamp_min(1e-10).log10()
    # one direction after the other: the largest of the largest, for a tenth of the work
    wide = F.max_pool2d(level_FT[None], (2 * NEAR_BINS + 1, 1), stride=1, padding=(NEAR_BINS, 0))
    wide = F.max_pool2d(wide, (1, 2 * NEAR_FRAMES + 1), stride=1, padding=(0, NEAR_FRAMES))[0]
    peaks = (level_FT == wide) & (level_FT > level_FT.max() - FLOOR) & (spectrum_FT > 1e-6)
    bins, times = (index.numpy() for index in peaks.nonzero(as_tuple=True))
    order = np.lexsort((bins, times))
    return times[order].astype(np.int64), bins[order].astype(np.int64)


def _landmarks(times: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hashes, at = [], []
    for second in range(1, FAN_OUT):
        for third in range(second + 1, FAN_OUT + 1):
            if len(times) <= third:
                continue
            n = len(times) - third
            t1, t2, t3 = times[:n], times[second : second + n], times[third:]
            f1, f2, f3 = bins[:n], bins[second : second + n], bins[third:]
            fits = t3 - t1 <= AHEAD
            key = f1
            for part, size in (
                (f2, 512),
                (f3, 512),
                ((t2 - t1) // TIME_STEP, 64),
                ((t3 - t1) // TIME_STEP, 64),
            ):
                key = key * size + part
            hashes.append(_mix(key[fits].astype(np.uint64)))
            at.append(t1[fits])
    if not hashes:
        return np.empty(0, np.uint64), np.empty(0, np.int32)
    found, when = np.concatenate(hashes), np.concatenate(at).astype(np.int32)
    order = np.lexsort((found, when))
    return found[order], when[order]


def _mix(key: np.ndarray) -> np.ndarray:
    """splitmix64: every bit of the key moves every bit of the hash."""
    with np.errstate(over="ignore"):
        key = key + np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = key ^ (key >> np.uint64(31))
    return mixed
