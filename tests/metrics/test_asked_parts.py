"""Chords, drums and sections of constructed sounds, whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from mudit_engine.metrics.chord_following import chords_followed
from mudit_engine.metrics.drum_presence import has_drums, noisiness
from mudit_engine.metrics.structure import boundaries, sections_followed
from mudit_engine.text.harmony import chord_symbol, parse_chords

RATE = 22050
pytestmark = pytest.mark.usefixtures("one_thread")


def chord(name: str, seconds: float, *, octave: int = 4) -> torch.Tensor:
    """A triad with three partials a note."""
    t = torch.arange(round(seconds * RATE)) / RATE
    wave = torch.zeros(len(t))
    for pitch_class in chord_symbol(name).pitch_classes:
        hertz = 440 * 2 ** ((pitch_class - 9) / 12 + octave - 4)
        for partial in (1, 2, 3):
            wave += torch.sin(2 * math.pi * hertz * partial * t) / partial
    edge = torch.minimum(t, t.flip(0)) * 100  # a cut would be heard as a click
    return 0.1 * wave * edge.clamp(max=1)


def played(names: str, *, bpm: float, rounds: int = 3, silence: float = 0.0) -> torch.Tensor:
    bars = [chord(name, 240 / bpm) for name in names.split()] * rounds
    return torch.cat([torch.zeros(round(silence * RATE)), *bars])[None]


def hits(bpm: float, seconds: float, seed: int = 0) -> torch.Tensor:
    """Bursts of noise on the beat."""
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(round(seconds * RATE)) / RATE
    return 0.3 * torch.randn(len(t), generator=g) * torch.exp(-40 * (t % (60 / bpm)))


def test_chords_as_asked_and_others() -> None:
    song = played("C G Am F", bpm=120)
    assert chords_followed(song, RATE, parse_chords("C G Am F"), bpm=120) > 0.9
    # wherever their round begins, and behind a rest of half a beat
    assert chords_followed(song, RATE, parse_chords("Am F C G"), bpm=120) > 0.9
    late = played("C G Am F", bpm=120, silence=0.25)
    assert chords_followed(late, RATE, parse_chords("C G Am F"), bpm=120) > 0.85
    assert chords_followed(song, RATE, parse_chords("C#m B E F#"), bpm=120) < 0.2
    half = chords_followed(song, RATE, parse_chords("C G C#m F#"), bpm=120)
    assert half == pytest.approx(0.5, abs=0.08)
    # seventh chords are told by their triads, two chords share a bar
    assert chords_followed(song, RATE, parse_chords("Cmaj7 G7 Am7 Fmaj7"), bpm=120) > 0.9
    assert chords_followed(song, RATE, parse_chords("C G | Am F"), bpm=60) > 0.85


def test_silence_and_no_beat_play_no_chord() -> None:
    asked = parse_chords("C")
    assert chords_followed(torch.zeros(1, RATE * 3), RATE, asked, bpm=120) == 0.0
    assert chords_followed(torch.zeros(1, 10), RATE, asked, bpm=40) == 0.0


@pytest.mark.parametrize("bpm", [70, 120, 170])
def test_drums_are_noise_where_something_begins(bpm: float) -> None:
    music = played("C G Am F", bpm=bpm, rounds=1)
    since = (torch.arange(music.shape[1]) / RATE) % (60 / bpm)
    edges = torch.minimum(since, 60 / bpm - since) * 100
    struck = music * torch.exp(-4 * since) * edges.clamp(max=1)
    drums = hits(bpm, music.shape[1] / RATE)[: music.shape[1]]
    assert not has_drums(music, RATE) and not has_drums(struck, RATE)
    assert has_drums(music + drums, RATE) and has_drums(drums[None], RATE)
    assert noisiness(struck, RATE) < noisiness(struck + drums, RATE)


def test_silence_has_no_drums() -> None:
    assert noisiness(torch.zeros(2, RATE), RATE) == 0.0
    assert not has_drums(torch.zeros(1, 5), RATE)


def song_of(parts: list[tuple[str, float]]) -> torch.Tensor:
    """A: a low C chord; B: a high one of F# with hits."""
    sounds = {
        "A": lambda s: chord("C", s),
        "B": lambda s: chord("F#", s, octave=5) + hits(120, s),
        "C": lambda s: chord("D#m", s, octave=3),
    }
    return torch.cat([sounds[name](seconds) for name, seconds in parts])[None]


def test_boundaries_are_where_the_sound_changes() -> None:
    song = song_of([("A", 8.0), ("B", 10.0), ("A", 7.0)])
    assert boundaries(song, RATE, count=2) == pytest.approx([8.0, 18.0], abs=0.5)
    assert boundaries(torch.zeros(1, RATE * 10), RATE, count=3) == []


def test_sections_with_times_and_by_their_tags() -> None:
    song = song_of([("A", 8.0), ("B", 10.0), ("A", 7.0), ("B", 9.0)])
    timed = [("verse", 0.0), ("chorus", 8.5), ("verse", 17.0), ("chorus", 25.0)]
    assert sections_followed(song, RATE, timed) == 1.0
    late = [(name, start + 4.5) for name, start in timed]
    assert sections_followed(song, RATE, late) == 0.0
    tags = [(name, None) for name, _ in timed]
    assert sections_followed(song, RATE, tags) == 1.0
    # the verse returns as the chorus: no section is like its namesake
    other = [("verse", None), ("chorus", None), ("chorus", None), ("verse", None)]
    assert sections_followed(song, RATE, other) == 0.0
    assert sections_followed(song, RATE, [("verse", None), ("chorus", None)]) is None
    assert sections_followed(song, RATE, [("verse", 0.0)]) is None
    flat = song_of([("A", 20.0)])
    assert sections_followed(flat, RATE, tags) == 0.0
