"""Loudness by the conformance points of ITU-R BS.1770 and EBU Tech 3341; peaks between samples."""

from __future__ import annotations

import math

import pytest
import torch

from mudit_engine.metrics.loudness import ending_level, loudness, true_peak


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


def test_an_ending_that_ends() -> None:
    tone = sine(-10, seconds=8)
    assert ending_level(tone, 48000) == pytest.approx(0.0, abs=0.1)
    faded = tone * torch.linspace(1, 0, tone.shape[1])
    assert ending_level(faded, 48000) < -20
    assert ending_level(torch.zeros(1, 48000), 48000) == 0.0
