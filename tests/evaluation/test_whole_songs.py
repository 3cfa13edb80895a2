"""Whole songs: windows, boundaries, ends."""

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
from mudit_engine.evaluation.whole_songs import (
    WholeSong,
    judge_whole_songs,
    sections_found,
    windows,
)

RATE = 22050


def two_parts(*, fades: bool) -> Tensor:
    """A low C major over a beat for 20 s, then a high F sharp major."""
    time = torch.arange(RATE * 40) / RATE
    audio = torch.zeros(RATE * 40)
    for notes, start in (((48, 52, 55), 0), ((78, 82, 85), 20)):
        part = slice(RATE * start, RATE * (start + 20))
        for note in notes:
            audio[part] += torch.sin(2 * torch.pi * 440 * 2 ** ((note - 69) / 12) * time[part])
    for beat in range(80):
        audio[beat * RATE // 2 : beat * RATE // 2 + 300] *= 3.0
    if fades:
        audio[-RATE:] *= 1e-3
    return 0.1 * audio[None]


def test_windows_hold_the_whole_song():
    parts = list(windows(torch.arange(95 * 100.0)[None], 100))
    assert [part.shape[1] for part in parts] == [3000, 3000, 3500]
    assert len(list(windows(torch.zeros(1, 500), 100))) == 1


def test_boundaries_are_where_the_song_changes():
    audio = two_parts(fades=False)
    assert sections_found(audio, RATE, [0.0, 20.0]) == 1.0
    assert sections_found(audio, RATE, [0.0, 9.0]) == 0.0
    assert sections_found(audio, RATE, [0.0]) is None


class Player:
    """Stands in for a pipeline: plays a file, as planned."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.config = SimpleNamespace(name="player", max_seconds=60.0)

    def understand(self, request: Any) -> Any:
        parts = (SimpleNamespace(start=0.0), SimpleNamespace(start=20.0))
        return SimpleNamespace(outline=SimpleNamespace(arrangement=parts))

    def generate(self, requests: list[Any]) -> list[Any]:
        audio, rate = load_audio(self.file)
        return [SimpleNamespace(audio=audio.numpy(), sample_rate=rate)]


def test_rows_of_originals_codec_and_songs(tmp_path: Path) -> None:
    songs = []
    for number, (fades, start) in enumerate(((True, 20.0), (False, 9.0))):
        file = tmp_path / f"{number}.wav"
        soundfile.write(file, np.asarray(two_parts(fades=fades)[0]), RATE)
        songs.append(
            WholeSong(
                labelled(file, name=str(number), seconds=40.0),
                (0.0, start),
            )
        )
    rows = judge_whole_songs(
        Player(songs[0].song.audio),  # type: ignore[arg-type]
        lambda audio, rate: (audio, rate),  # type: ignore[arg-type]
        songs,
    )
    assert rows["original"]["ends"].value == 0.5 == rows["original"]["sections"].value
    assert rows["codec"] == rows["original"]
    # what is written fades, whatever was decoded
    assert rows["generated"]["ends"].value == 1.0 == rows["generated"]["sections"].value
    assert rows["original"]["end_level"].value > -40 > rows["generated"]["end_level"].value
    assert rows["another song's request"]["sections"].value == 0.5
    assert rows["generated"]["tempo"].value == 1.0


def test_without_songs_it_is_refused() -> None:
    with pytest.raises(InputError, match="make a corpus of longer songs"):
        judge_whole_songs(None, None, [])  # type: ignore[arg-type]
