"""Loudness by the conformance points of ITU-R BS.1770 and EBU Tech 3341; peaks between samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mudit_engine.audio import resample
from mudit_engine.loudness import ending_level, faded, limited, loudness, mastered, true_peak


def sine(
    level_db: float,
    *,
    rate: int = 48000,
    seconds: float = 5.0,
    hz: float = 997.0,
    channels: int = 1,
) -> torch.Tensor:
    t = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return (10 ** (level_db / 20) * torch.sin(2 * math.pi * hz * t)).float().repeat(channels, 1)


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
@pytest.mark.parametrize(
    ("level", "channels", "expected"), [(0.0, 1, -3.01), (-20.0, 1, -23.01), (-23.0, 2, -23.0)]
)
def test_a_sine_at_1_khz(rate: int, level: float, channels: int, expected: float) -> None:
    """BS.1770: 0 dB of full scale in one channel reads -3.01; Tech 3341, case 1: -23 in both."""
    found = loudness(sine(level, rate=rate, channels=channels), rate)
    assert found == pytest.approx(expected, abs=0.1)


def test_quiet_parts_are_gated() -> None:
    """Tech 3341, case 3: -36, -23 and -36 dB for 10, 60 and 10 s read -23."""
    parts = [sine(level, seconds=s, channels=2) for level, s in ((-36, 10), (-23, 60), (-36, 10))]
    assert loudness(torch.cat(parts, 1), 48000) == pytest.approx(-23.0, abs=0.1)


def test_silence_has_no_loudness() -> None:
    assert loudness(torch.zeros(2, 48000), 48000) == -math.inf
    assert math.isfinite(loudness(sine(-20, seconds=0.1), 48000))


def test_a_peak_between_samples() -> None:
    """A sine of a quarter of the rate, sampled 45 degrees beside its peaks."""
    t = torch.arange(48000, dtype=torch.float64) / 4
    audio = torch.sin(2 * math.pi * t + math.pi / 4).float()[None]
    assert 20 * math.log10(float(audio.abs().max())) == pytest.approx(-3.01, abs=0.01)
    assert true_peak(audio, 48000) == pytest.approx(0.0, abs=0.3)


def test_what_is_mastered_fades_and_nothing_else_of_it() -> None:
    tone = sine(-30, seconds=10)
    out, done = mastered(tone, 48000)
    assert done is not None and ending_level(out, 48000) < -12 < -3 < ending_level(tone, 48000)
    ratio = out[0, 1000:-48000] / tone[0, 1000:-48000].clamp(min=1e-9)
    loud = tone[0, 1000:-48000] > 1e-3
    assert torch.allclose(ratio[loud], ratio[loud][:1], rtol=1e-3)
    assert float(out[0, -1].abs()) < 1e-6
    short = faded(torch.ones(1, 800), 48000)
    assert torch.equal(short[0, :700], torch.ones(700)) and float(short[0, -1]) < 1e-6
    assert torch.equal(faded(torch.ones(1, 4), 48000), torch.ones(1, 4))


@pytest.mark.parametrize("louder", [0.3, 1.0, 2.0, 4.0])
def test_a_song_that_is_loud_to_its_end_ends_too(louder: float) -> None:
    """By 30 dB below itself, behind the limiter; a song that has ended is faded gently."""
    song = noisy(20.0, 22050, 0.1)
    song[:, -44100:] *= louder
    out, _ = mastered(song, 22050)
    assert ending_level(out, 22050) <= -30
    quiet = song.clone()
    quiet[:, -44100:] *= 1e-3
    gentle = torch.cos(torch.arange(1, 22051) / 22050 * math.pi / 2) ** 4
    torch.testing.assert_close(
        faded(quiet, 22050)[:, -22050:], quiet[:, -22050:] * gentle, rtol=1e-3, atol=1e-9
    )


def test_an_ending_that_ends() -> None:
    tone = sine(-10, seconds=8)
    assert ending_level(tone, 48000) == pytest.approx(0.0, abs=0.1)
    faded = tone * torch.linspace(1, 0, tone.shape[1])
    assert ending_level(faded, 48000) < -20
    assert ending_level(torch.zeros(1, 48000), 48000) == 0.0


def noisy(seconds: float, rate: int, level: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(2, round(seconds * rate), generator=generator)


def test_loudness_is_that_of_the_filters_run_sample_by_sample() -> None:
    from scipy.signal import lfilter

    from mudit_engine.loudness import _high_pass, _shelf, _weighted

    audio = noisy(3, 22050, 0.2).numpy()
    expected = audio.astype("float64")
    for b, a in (_shelf(22050), _high_pass(22050)):
        expected = lfilter(b, a, expected, axis=-1)
    assert abs(_weighted(torch.from_numpy(audio), 22050).numpy() - expected).max() < 1e-9


def test_nothing_is_as_loud_as_silence() -> None:
    assert loudness(torch.zeros(1, 0), 22050) == -math.inf
    assert mastered(torch.zeros(1, 0), 22050)[1] is None


@pytest.mark.parametrize("rate", [22050, 44100])
@pytest.mark.parametrize("level", [0.02, 0.2, 2.0])
def test_songs_of_any_level_come_out_alike(rate: int, level: float) -> None:
    audio, done = mastered(noisy(4, rate, level), rate)
    assert done is not None
    assert done.loudness == pytest.approx(-16.0, abs=0.15) == loudness(audio, rate)
    assert true_peak(audio, rate) == done.true_peak <= -0.9


def test_a_limiter_leaves_what_is_far_from_a_peak() -> None:
    rate = 22050
    audio = 0.5 * sine(0, rate=rate, seconds=2.0)
    audio[:, rate : rate + 20] *= 4
    out = limited(audio, rate)
    near = slice(rate - 250, rate + 270)
    assert torch.equal(out[:, : near.start], audio[:, : near.start])
    assert torch.equal(out[:, near.stop :], audio[:, near.stop :])
    assert true_peak(audio, rate) > 3 and true_peak(out, rate) < -0.8
    # what is turned down keeps its sign and its shape
    gain = out[:, near] / audio[:, near].where(audio[:, near].abs() > 0.05, torch.nan)
    assert float(gain.nan_to_num(1).min()) > 0.3
    assert float(gain.nan_to_num(1).max()) <= 1.0


@pytest.mark.parametrize("place", [0, 100, 3870, 3876, 7751, 12000, 12287])
def test_the_gain_is_the_average_of_the_least_that_is_wanted(place: int) -> None:
    """By its definition, a sample at a time; pieces of 3,876 samples are no borders."""
    rate, reach = 22050, round(0.005 * 22050)
    audio = 0.5 * torch.sin(torch.arange(12288) * 0.05)[None]
    audio[0, place] = 3.0
    over = np.abs(resample(audio, rate, 4 * rate).numpy()[0])
    padded = np.pad(over, 2)
    peak = np.array([padded[4 * n : 4 * n + 5].max() for n in range(12288)])
    wanted = np.minimum(1, 10 ** (-1 / 20) / np.maximum(peak, np.abs(audio.numpy()[0])))
    least = np.array([wanted[max(0, n - reach) : n + reach + 1].min() for n in range(12288)])
    window = np.hanning(2 * reach + 3)[1:-1]
    gain = np.convolve(np.pad(least, reach, mode="edge"), window / window.sum(), mode="valid")
    found = limited(audio, rate)
    np.testing.assert_allclose(found.numpy()[0], audio.numpy()[0] * gain, atol=2e-6)
    assert true_peak(found, rate) < -0.9 < true_peak(audio, rate)


def test_channels_are_turned_down_together() -> None:
    left = 0.1 * sine(0, rate=22050, seconds=1.0)
    audio = torch.cat((left, 20 * left))
    out = limited(audio, 22050)
    torch.testing.assert_close(out[1], 20 * out[0])


def test_silence_and_whispers_are_not_blown_up() -> None:
    silent = torch.zeros(1, 22050)
    assert mastered(silent, 22050) == (silent, None)
    _, done = mastered(noisy(2, 22050, 1e-3), 22050)
    assert done is not None and done.gain_db == 24.0
