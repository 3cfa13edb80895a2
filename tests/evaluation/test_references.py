"""Following a reference: what the correlations tell, and what is judged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from labelled_song import labelled
from mudit_engine.audio import load_audio
from mudit_engine.errors import InputError
from mudit_engine.evaluation.references import (
    Stems,
    chroma_correlation,
    judge_edits,
    judge_references,
    onset_correlation,
    smooth_at,
)
from mudit_engine.request import SongRequest

RATE = 22050


def clicks(period: float, *, seconds: float = 10.0, first: float = 0.1) -> Tensor:
    audio = 1e-3 * torch.randn(1, round(RATE * seconds), generator=torch.Generator().manual_seed(1))
    burst = torch.randn(600, generator=torch.Generator().manual_seed(2))
    at = first
    while at < seconds - 0.1:
        start = round(at * RATE)
        audio[0, start : start + 600] += burst
        at += period
    return audio


def chord(*midi: int, seconds: float = 10.0) -> Tensor:
    time = torch.arange(round(RATE * seconds)) / RATE
    return sum(
        (torch.sin(2 * torch.pi * 440 * 2 ** ((note - 69) / 12) * time) for note in midi),
        torch.zeros(len(time)),
    )[None]


def test_onsets_are_followed_or_not():
    beat = clicks(0.5)
    assert onset_correlation(beat, RATE, beat, RATE) == pytest.approx(1.0)
    assert onset_correlation(beat, RATE, 0.1 * clicks(0.5, first=0.14), RATE) > 0.7
    assert onset_correlation(beat, RATE, clicks(0.37), RATE) < 0.3
    assert onset_correlation(beat, RATE, torch.zeros(1, RATE * 10), RATE) == 0.0


def test_pitch_classes_are_followed_or_not():
    c, f_sharp = chord(60, 64, 67), chord(66, 70, 73)
    assert chroma_correlation(c, RATE, chord(48, 52, 55), RATE) > 0.9  # an octave below
    assert chroma_correlation(c, RATE, f_sharp, RATE) < 0.1
    assert chroma_correlation(c, RATE, torch.zeros(1, RATE * 10), RATE) == 0.0


def test_a_seam_is_heard_where_it_is_abrupt():
    tone = 0.3 * chord(60) + 0.01 * torch.randn(
        1, RATE * 10, generator=torch.Generator().manual_seed(0)
    )
    cut = tone.clone()
    cut[:, RATE * 5 : RATE * 5 + 400] += torch.randn(
        400, generator=torch.Generator().manual_seed(3)
    )
    assert smooth_at(cut, RATE, 5.0) == 0.0
    assert smooth_at(cut, RATE, 2.0) == 1.0


class Follower:
    """Stands in for a pipeline: plays its reference, or another rhythm where it has none."""

    def __init__(self) -> None:
        self.config: Any = SimpleNamespace(name="follower", max_seconds=60.0)
        self.config.dit = SimpleNamespace(edits=False)
        self.asked: list[SongRequest] = []

    def generate(self, requests: list[SongRequest]) -> list[Any]:
        self.asked += requests
        [request] = requests
        audio = clicks(0.61)
        if request.reference is not None:
            audio, _ = load_audio(request.reference)
        return [SimpleNamespace(audio=audio.numpy(), sample_rate=RATE)]


def song(folder: Path, number: int, audio: Tensor) -> Stems:
    file = folder / f"{number}.wav"
    soundfile.write(file, np.asarray(0.2 * audio[0]), RATE)
    return Stems(
        labelled(file, name=str(number), seconds=10.0),
        {"drums": file},
    )


def test_a_perfect_follower_is_told_from_one_that_does_not_listen(tmp_path: Path) -> None:
    songs = [song(tmp_path, 0, clicks(0.5)), song(tmp_path, 1, clicks(0.37))]
    follower = Follower()
    row = judge_references(follower, songs, kinds=("drums",))["drums"]  # type: ignore[arg-type]
    assert row.own.value == pytest.approx(1.0, abs=1e-3)
    assert row.another.value is not None and row.another.value < 0.4
    assert row.above_without.value is not None and row.above_without.value > 0.6
    # neither tempo nor key is asked for beside the reference
    assert not any("BPM" in one.description or one.bpm or one.key for one in follower.asked)
    assert [one.reference for one in follower.asked[:3]] == [
        str(tmp_path / "0.wav"),
        None,
        str(tmp_path / "1.wav"),
    ]


def test_too_few_stems_and_models_without_edits_are_refused(tmp_path: Path) -> None:
    one = song(tmp_path, 0, clicks(0.5))
    with pytest.raises(InputError, match="1 of the held-out songs have a stem of drums"):
        judge_references(Follower(), [one], kinds=("drums",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not trained on edits"):
        judge_edits(Follower(), [one.song])  # type: ignore[arg-type]
