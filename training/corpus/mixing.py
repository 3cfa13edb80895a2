"""Stems -> a mix: levels, a light common reverb, loudness by ITU-R BS.1770, and headroom.

Every stem is scaled to its level by the RMS of the parts where it sounds, gets its share of one
short room, and one gain brings the sum to TARGET_LUFS, or less when a peak would pass PEAK. The mix
is the plain sum of the returned stems: no limiter, nothing to undo.

    stems = mix_stems({"vocals": v, "bass": b, ...}, 22050, style_gains={})
    mix = sum(stems.values())
"""

from __future__ import annotations

import numpy as np

TARGET_LUFS = -18.0
PEAK = 0.95
# Active RMS. The voice stands 5-6 dB above everything else together.
_LEVELS = {"vocals": 0.13, "chords": 0.05, "bass": 0.042, "drums": 0.042}
_WET = {"vocals": 0.16, "chords": 0.12, "bass": 0.0, "drums": 0.08}
_ROOM_SECONDS = 0.7


def room(rate: int) -> np.ndarray:
    """Impulse response of the room: decaying noise of unit energy, the same for every song."""
    from scipy import signal

    count = int(_ROOM_SECONDS * rate)
    noise = np.random.Generator(np.random.Philox(key=[7, 7])).standard_normal(count)
    response = noise * np.exp(-np.arange(count) / (0.15 * rate))
    # A room's floor and air take away the lows and the highs.
    response = signal.sosfilt(
        signal.butter(1, [200, min(5000, rate * 0.45)], "bandpass", fs=rate, output="sos"), response
    )
    return response / np.sqrt(np.sum(response**2))


def active_rms(audio: np.ndarray, rate: int) -> float:
    """RMS over the 50 ms frames within 30 dB of the loudest one; 0 for silence."""
    size = rate // 20
    frames = audio[: len(audio) // size * size].reshape(-1, size)
    power = np.mean(frames.astype(np.float64) ** 2, axis=1)
    if power.size == 0 or power.max() <= 1e-12:
        return 0.0
    return float(np.sqrt(power[power >= power.max() * 1e-3].mean()))


def loudness(audio: np.ndarray, rate: int) -> float:
    """Integrated loudness in LUFS of a mono signal (ITU-R BS.1770-4: K weighting, 400 ms blocks,
    gates at -70 LUFS and -10 LU).
    """
    from scipy import signal

    weighted = signal.sosfilt(_k_weighting(rate), audio)
    block, hop = int(0.4 * rate), int(0.1 * rate)
    if len(weighted) < block:
        weighted = np.pad(weighted, (0, block - len(weighted)))
    sums = np.concatenate([[0.0], np.cumsum(weighted.astype(np.float64) ** 2)])
    starts = np.arange(0, len(weighted) - block + 1, hop)
    power = np.maximum((sums[starts + block] - sums[starts]) / block, 1e-12)
    levels = -0.691 + 10 * np.log10(power)
    loud = power[levels > -70]
    if loud.size == 0:
        return -70.0
    gate = -0.691 + 10 * np.log10(loud.mean()) - 10
    return float(-0.691 + 10 * np.log10(power[(levels > -70) & (levels > gate)].mean()))


def _k_weighting(rate: int) -> np.ndarray:
    """High shelf (+4 dB above 1.7 kHz) and high pass (38 Hz) of BS.1770, for any sample rate by the
    bilinear transform.
    """
    sections = []
    gain, frequency, q = 3.999843853973347, 1681.974450955533, 0.7071752369554196
    k, v = np.tan(np.pi * frequency / rate), 10 ** (gain / 20)
    vb = v**0.4996667741545416
    a0 = 1 + k / q + k * k
    numerator = [(v + vb * k / q + k * k) / a0, 2 * (k * k - v) / a0, (v - vb * k / q + k * k) / a0]
    sections.append([*numerator, 1, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0])
    frequency, q = 38.13547087602444, 0.5003270373238773
    k = np.tan(np.pi * frequency / rate)
    a0 = 1 + k / q + k * k
    sections.append([1, -2, 1, 1, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0])
    return np.array(sections)


def resample(audio: np.ndarray, source: int, target: int, samples: int) -> np.ndarray:
    """Polyphase resampling to exactly `samples` samples."""
    from scipy import signal

    if source != target:
        divisor = int(np.gcd(source, target))
        audio = signal.resample_poly(audio, target // divisor, source // divisor)
    return np.pad(audio, (0, max(0, samples - len(audio))))[:samples]


def mix_stems(
    stems: dict[str, np.ndarray], rate: int, *, gains: dict[str, float]
) -> dict[str, np.ndarray]:
    """Levelled stems, float64 of equal length, whose sum is the mix. `gains` multiplies the
    standard level of a stem.
    """
    from scipy import signal

    response = room(rate)
    levelled: dict[str, np.ndarray] = {}
    for name, audio in stems.items():
        rms = active_rms(audio, rate)
        scaled = audio.astype(np.float64) * (
            _LEVELS[name] * gains.get(name, 1.0) / rms if rms else 0.0
        )
        if name == "drums":
            # Soft saturation as of tape: three times the stem's RMS is where it starts to bend.
            knee = 6 * _LEVELS[name]
            scaled = knee * np.tanh(scaled / knee)
        if _WET[name]:
            scaled = scaled + _WET[name] * signal.fftconvolve(scaled, response)[: len(scaled)]
        fade = int(0.05 * rate)
        scaled[-fade:] *= np.linspace(1, 0, fade)
        levelled[name] = scaled
    mix = np.sum(list(levelled.values()), axis=0)
    gain = 10 ** ((TARGET_LUFS - loudness(mix, rate)) / 20)
    gain = min(gain, PEAK / max(1e-9, float(np.abs(mix).max())))
    return {name: audio * gain for name, audio in levelled.items()}
