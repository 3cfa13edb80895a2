"""What is heard in a part, and what a plan takes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from mudit_engine.config import ModelConfig, load_config
from mudit_engine.errors import InputError
from mudit_engine.hearing import RATE, HeardPart, fine_tempo, hear_part, tempo
from mudit_engine.models.folder import model_folder
from mudit_engine.reading import TextReader, Understood
from mudit_engine.request import SongRequest

BPM = 96.4
CHORDS = ("Am", "F", "C", "G")
_TONES = {"Am": (57, 60, 64), "F": (53, 57, 60), "C": (48, 52, 55), "G": (55, 59, 62)}
LYRICS = "[verse]\n月光照在窗台上\n晚风吹过小巷\n[chorus]\n你的笑容还在身旁\n"


def played(notes: list[tuple[float, tuple[int, ...]]], seconds: float) -> Tensor:
    """Struck notes (beat, MIDI pitches) with five overtones, [1, samples]."""
    audio = np.zeros(round(RATE * seconds))
    beat = 60 / BPM
    for at, pitches in notes:
        start = round(at * beat * RATE)
        time = np.arange(min(round(beat * RATE), len(audio) - start)) / RATE
        for pitch in pitches:
            frequency = 440 * 2 ** ((pitch - 69) / 12)
            for overtone in range(1, 6):
                tone = np.sin(2 * np.pi * overtone * frequency * time) / overtone
                audio[start : start + len(time)] += tone * np.exp(-3 * time)
    return torch.from_numpy(0.1 * audio / max(1.0, np.abs(audio).max())).float()[None]


def part(*, low: bool, bars: int = 12) -> Tensor:
    """Chords, a strike a beat, or their roots two octaves down."""
    notes = []
    for bar in range(bars):
        tones = _TONES[CHORDS[bar % 4]]
        for beat in range(4):
            notes.append((4.0 * bar + beat, (tones[0] - 12,) if low else tones))
    return played(notes, bars * 4 * 60 / BPM)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return load_config(model_folder("tiny"))


def test_a_tempo_is_heard_finely():
    audio = part(low=False)
    assert abs(tempo(audio, RATE) - BPM) <= 0.5
    assert abs(fine_tempo(audio, RATE) - BPM) <= 0.1
    assert np.isnan(fine_tempo(torch.zeros(1, RATE * 8), RATE))


def test_the_octave_of_a_tempo_is_that_of_the_style():
    audio = part(low=False)
    heard = hear_part(audio, RATE, "drums", at_home=(150.0, 180.0)).bpm
    assert heard is None or abs(heard - BPM) < 0.2  # 193 beats a minute are none of ours
    slow = hear_part(audio, RATE, "drums", at_home=(60.0, 64.0)).bpm
    assert slow is not None and abs(slow - BPM) < 0.2  # half of it would be below 60
    assert hear_part(audio, RATE, "drums", at_home=(90.0, 100.0)).bpm == pytest.approx(BPM, abs=0.1)


def test_chords_and_key_are_heard():
    heard = hear_part(part(low=False), RATE, "chords")
    assert heard.key == "A minor" or heard.key == "C major"
    assert heard.chords == " | ".join(CHORDS * 3)
    bass = hear_part(part(low=True), RATE, "bass")
    assert bass.chords is not None
    assert [one[0] for one in bass.chords.split(" | ")] == [one[0] for one in CHORDS * 3]


@pytest.mark.parametrize("kind", ["mix", "vocals"])
def test_of_a_mix_and_of_vocals_nothing_is_planned(kind: str):
    assert hear_part(part(low=False), RATE, kind) == HeardPart()


def test_silence_and_moments_decide_nothing():
    for audio in (torch.zeros(1, RATE * 8), part(low=False)[:, : RATE * 2]):
        assert hear_part(audio, RATE, "chords") == HeardPart()


def rain(seconds: int = 12) -> Tensor:
    """Hiss and some hundred drops, each a falling tone of a few milliseconds."""
    draw = np.random.default_rng(3)
    audio = 0.05 * draw.standard_normal(RATE * seconds)
    time = np.arange(400) / RATE
    for at in draw.integers(0, len(audio) - 400, 40 * seconds):
        drop = np.sin(2 * np.pi * draw.uniform(1500, 4500) * time) * np.exp(-400 * time)
        audio[at : at + 400] += draw.uniform(0, 0.3) * drop
    return torch.from_numpy(audio).float()[None]


def crowd(seconds: int = 12) -> Tensor:
    """Thirty voices that swell and fade by themselves."""
    draw = np.random.default_rng(4)
    time = np.arange(RATE * seconds) / RATE
    audio = np.zeros(len(time))
    for _ in range(30):
        swell = np.interp(time, np.arange(4 * seconds) / 4, draw.uniform(0, 1, 4 * seconds)) ** 3
        phase = 2 * np.pi * draw.uniform(90, 240) * time
        audio += 0.02 * swell * sum(np.sin(k * phase) / k for k in range(1, 8))
    return torch.from_numpy(audio).float()[None]


def machine(bpm: float, seconds: int = 12) -> Tensor:
    """Clanking: a heavy stroke a beat, a lighter one between, some milliseconds off."""
    draw = np.random.default_rng(5)
    audio = 0.01 * draw.standard_normal(RATE * seconds)
    time = np.arange(2000) / RATE
    for number in range(int(2 * (seconds - 1) * bpm / 60)):
        at = max(0, round((number * 30 / bpm + draw.normal(0, 0.004)) * RATE))
        heavy = 0.6 if number % 2 == 0 else 0.25
        clank = draw.standard_normal(2000) * np.exp(-120 * time)
        audio[at : at + 2000] += heavy * clank
    return torch.from_numpy(audio).float()[None]


@pytest.mark.parametrize("kind", ["drums", "bass", "chords"])
def test_in_rain_and_in_a_crowd_nothing_is_heard(kind: str):
    for audio in (rain(), crowd(), torch.randn(1, 12 * RATE)):
        assert hear_part(audio, RATE, kind) == HeardPart()


@pytest.mark.parametrize("bpm", [75.0, 96.0, 132.0])
def test_a_machine_has_a_beat_and_no_chords(bpm: float):
    heard = hear_part(machine(bpm), RATE, "chords", at_home=(bpm * 0.8, bpm * 1.25))
    assert heard.bpm == pytest.approx(bpm, rel=0.01)
    assert heard.chords is None and heard.key is None


def test_a_reference_without_a_beat_is_named(config: ModelConfig, tmp_path: Path) -> None:
    file = tmp_path / "rain.wav"
    soundfile.write(file, rain()[0].numpy(), RATE)
    understood = read(config, file, "drums")
    assert understood.source["bpm"] != "reference"
    assert any("no beat is heard in the reference (drums)" in note for note in understood.notes)
    soundfile.write(file, machine(96)[0].numpy(), RATE)
    clanking = read(config, file, "chords")
    assert clanking.source["bpm"] == "reference" and clanking.source["chords"] == "planned"
    assert any("no chords are heard in the reference" in note for note in clanking.notes)


def read(config: ModelConfig, file: Path, kind: str, **fields: str | float) -> Understood:
    asked = {"description": "流行，女声", "lyrics": LYRICS, "seed": 3, **fields}
    return TextReader(config).read(
        SongRequest(**asked, reference=str(file), reference_kind=kind)  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def chords_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("part") / "chords.wav"
    soundfile.write(file, part(low=False)[0].numpy(), RATE)
    return file


def test_a_plan_takes_what_is_heard_and_says_so(config: ModelConfig, chords_file: Path) -> None:
    understood = read(config, chords_file, "chords")
    assert understood.outline.bpm == pytest.approx(BPM, abs=0.1)
    assert [chord.symbol.name for chord in understood.outline.chords[:4]] == list(CHORDS)
    assert understood.outline.melody  # sung over these chords
    assert {understood.read["properties"][name]["source"] for name in ("bpm", "key", "chords")} == {
        "reference"
    }
    assert any("heard in the reference (chords)" in note for note in understood.notes)
    drums = read(config, chords_file, "drums")
    assert drums.source["bpm"] == "reference" and drums.source["chords"] == "planned"


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"bpm": 120.0}, set()),
        ({"description": "流行，BPM 120"}, set()),
        ({"key": "D major"}, {"bpm"}),
        ({"chords": "D A Bm G"}, {"bpm"}),
        ({"melody": " ".join(["C4 D4 E4"] * 7)}, {"bpm"}),
        ({"planned": False}, set()),
    ],
)
def test_what_is_asked_for_goes_before(
    config: ModelConfig, chords_file: Path, fields: dict[str, str | float], kept: set[str]
) -> None:
    understood = read(config, chords_file, "chords", **fields)
    heard = {name for name, source in understood.source.items() if source == "reference"}
    assert heard == kept


def test_a_file_that_is_written_again_is_heard_again(config: ModelConfig, tmp_path: Path) -> None:
    import os

    file = tmp_path / "part.wav"
    soundfile.write(file, part(low=False)[0].numpy(), RATE)
    assert read(config, file, "chords").source["bpm"] == "reference"
    soundfile.write(file, np.zeros(RATE * 8), RATE)
    os.utime(file, ns=(1, 1))
    assert read(config, file, "chords").source["bpm"] == "drawn"
    with pytest.raises(InputError, match=r"gone\.wav"):
        read(config, tmp_path / "gone.wav", "drums")
