"""The probe of sung pitches: tones with harmonics over other tones, pitches that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.metrics.sung_pitch import LOWEST, PITCHES, excerpts, train_probe

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 22050


def mix(pitches: list[int], *, seed: int) -> torch.Tensor:
    """Notes of .3 s with ten harmonics over a chord of sines and some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(0.3 * RATE)) / RATE
    notes = []
    for pitch in pitches:
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        sound = 0.02 * rng.normal(size=len(time))
        for harmonic in range(1, 11):
            loud = rng.uniform(0.5, 1.5) / harmonic
            sound += loud * np.sin(2 * np.pi * harmonic * frequency * time)
        for low in rng.integers(45, 76, 3):
            sound += 0.3 * np.sin(2 * np.pi * 440 * 2 ** ((low - 69) / 12) * time)
        notes.append(sound)
    return torch.from_numpy(np.concatenate(notes)).float()[None]


def spans(count: int) -> list[tuple[float, float]]:
    return [(0.3 * n, 0.3 * (n + 1)) for n in range(count)]


@pytest.fixture(scope="module")
def probe():
    rng = np.random.default_rng(0)
    songs = []
    for seed in range(6):
        # no pitch above 70 is ever shown: one filter serves all
        pitches = [int(p) for p in rng.integers(LOWEST + 4, 71, 60)]
        songs.append((excerpts(mix(pitches, seed=seed), RATE, spans(60)), pitches))
    return train_probe(songs, epochs=15)


@pytest.mark.parametrize("rate", [22050, 44100], ids=str)
def test_known_pitches_are_heard_also_those_never_shown(probe, rate):
    pitches = [*range(46, 80)]
    sound = mix(pitches, seed=99)
    if rate != RATE:
        sound = sound.repeat_interleave(rate // RATE, dim=1)
    heard = probe.pitches(excerpts(sound, rate, spans(len(pitches))))
    assert np.mean(heard == pitches) > 0.9
    assert heard.dtype.kind == "i" and heard.min() >= LOWEST and heard.max() < LOWEST + PITCHES


def test_noise_is_heard_as_no_melody(probe):
    pitches = [*range(46, 80)]
    noise = torch.randn(1, round(0.3 * RATE * len(pitches)))
    assert np.mean(probe.pitches(excerpts(noise, RATE, spans(len(pitches)))) == pitches) < 0.3


def test_spans_outside_the_sound_and_none_at_all():
    sound = torch.randn(2, RATE)
    assert torch.isfinite(excerpts(sound, RATE, [(-1.0, 0.0), (5.0, 6.0)])).all()
    assert excerpts(sound, RATE, []).shape[0] == 0


def test_the_same_seed_gives_the_same_probe():
    pitches = [50, 60, 55, 65] * 3
    data = [(excerpts(mix(pitches, seed=1), RATE, spans(12)), pitches)]
    first, again = (train_probe(data, seed=3, epochs=2) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )


def test_songs_without_a_pitch_in_range_are_refused():
    with pytest.raises(InputError, match="between MIDI 40 and 83"):
        train_probe([(torch.randn(2, 297), [20, 100])])
    with pytest.raises(InputError, match="between MIDI 40 and 83"):
        train_probe([])
