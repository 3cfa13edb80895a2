"""Tempo of click tracks and key of scales, where the answer is known by construction."""

from __future__ import annotations

import math

import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.metrics.rhythm_and_key import (
    chroma,
    key_rank,
    octave_error,
    parse_key,
    tempo,
    tempo_error,
)
from mudit_engine.text.harmony import SCALES, TONIC_NAMES

RATE = 22050


def clicks(
    bpm: float, seconds: float = 12.0, *, noise: float = 0.0, rate: int = RATE
) -> torch.Tensor:
    """Decaying bursts on the beat, every fourth louder."""
    generator = torch.Generator().manual_seed(round(bpm))
    audio = noise * torch.randn(round(seconds * rate), generator=generator)
    burst = torch.randn(rate // 20, generator=generator) * torch.exp(
        -torch.arange(rate // 20) / (rate / 100)
    )
    for beat in range(int(seconds * bpm / 60)):
        start = round(beat * 60 / bpm * rate)
        piece = audio[start : start + len(burst)]
        piece += (1.0 if beat % 4 else 1.6) * burst[: len(piece)]
    return audio


def scale(tonic: int, mode: str, seconds: float = 0.3) -> torch.Tensor:
    """Two octaves up the scale by tones with five harmonics, the tonic twice as long."""
    time = torch.arange(round(seconds * RATE)) / RATE
    tones = []
    for octave in (0, 12):
        for step in SCALES[mode]:
            f = 440 * 2 ** ((48 + tonic + step + octave - 69) / 12)  # from C3 up
            tone = sum(
                torch.sin(2 * math.pi * f * h * time) / h**2 for h in range(1, 6)
            ) * torch.exp(-2 * time)
            tones += [tone] * (2 if step == 0 else 1)
    return torch.cat(tones)


@pytest.mark.parametrize("noise", [0.0, 0.1], ids=["clean", "noisy"])
@pytest.mark.parametrize("bpm", [62, 75, 88.5, 96, 113, 120, 138, 151, 178])
def test_tempo_of_clicks(bpm: float, noise: float) -> None:
    assert tempo_error(clicks(bpm, noise=noise), RATE, bpm) <= 0.02


@pytest.mark.parametrize("rate", [16000, 44100])
def test_tempo_at_other_sample_rates_and_in_stereo(rate: int) -> None:
    assert tempo_error(clicks(104, rate=rate).expand(2, -1), rate, 104) <= 0.02


def test_a_wrong_tempo_is_told() -> None:
    assert tempo_error(clicks(120), RATE, 97) > 0.04


def test_octaves_count_as_right_and_thirds_do_not() -> None:
    assert octave_error(60, 120) == octave_error(120, 60) == octave_error(90, 90) == 0
    assert octave_error(80, 120) == pytest.approx(1 / 3)


def test_silence_has_neither_tempo_nor_key() -> None:
    silence = torch.zeros(1, 5 * RATE)
    assert math.isnan(tempo(silence, RATE)) and not tempo_error(silence, RATE, 120) <= 0.04
    assert key_rank(silence, RATE, "C major") == 12


@pytest.mark.parametrize("mode", SCALES)
@pytest.mark.parametrize("tonic", range(12), ids=TONIC_NAMES)
def test_key_of_a_scale(tonic: int, mode: str) -> None:
    audio = scale(tonic, mode)
    assert key_rank(audio, RATE, f"{TONIC_NAMES[tonic]} {mode}") == 1
    assert key_rank(audio, RATE, f"{TONIC_NAMES[(tonic + 6) % 12]} {mode}") >= 10, (
        "six semitones off shares two notes of seven"
    )


def test_key_is_heard_through_drums() -> None:
    audio = scale(4, "major")
    assert key_rank(audio + clicks(120, len(audio) / RATE)[: len(audio)], RATE, "E major") <= 2


def test_chroma_of_one_tone_is_its_pitch_class() -> None:
    time = torch.arange(2 * RATE) / RATE
    shares = chroma(torch.sin(2 * math.pi * 440 * time), RATE)
    assert (
        int(shares.argmax()) == 9
        and float(shares[9]) > 0.9
        and float(shares.sum()) == pytest.approx(1)
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A minor", (9, "minor")),
        ("Eb major", (3, "major")),
        ("Cb major", (11, "major")),
        (" F# minor ", (6, "minor")),
    ],
)
def test_names_of_keys(name: str, expected: tuple[int, str]) -> None:
    assert parse_key(name) == expected


@pytest.mark.parametrize("name", ["H minor", "A", "A dorian", ""])
def test_unknown_keys_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="A minor"):
        parse_key(name)
