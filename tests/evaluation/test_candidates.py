"""Several songs for one request: the one that does best what was asked for comes first."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from mudit_engine.cli.main import run
from mudit_engine.evaluation import adherence, candidates
from mudit_engine.evaluation.candidates import rank_candidates
from mudit_engine.models.chinmu import ChinMu
from mudit_engine.pipeline import Song

RATE = 22050


class Oracle:
    """Texts point along the first axis; audio by what its first sample says."""

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]] * len(texts))

    def encode_audio(self, songs: list[torch.Tensor], rate: int) -> torch.Tensor:
        angle = float(songs[0][0, 0])
        return torch.tensor([[math.cos(angle), math.sin(angle)]])


def song(seed: int, *, angle: float, bpm: float, tonic: float, asked: dict[str, Any]) -> Song:
    """Tonic, subdominant and dominant, two seconds each, struck at a tempo."""
    t = np.arange(8 * RATE) / RATE
    root = tonic * np.array([1.0, 4 / 3, 3 / 2, 1.0])[(t // 2).astype(int)]
    chord = sum(np.sin(2 * np.pi * root * r * t) for r in (1.0, 5 / 4, 3 / 2))
    audio = (0.2 * chord * np.exp(-10 * (t % (60 / bpm)))).astype(np.float32)
    audio[0] = angle
    info = {"request": {"seed": seed}, "outline": asked}
    return Song(audio[None], RATE, np.zeros((1, 1), np.float32), info)


ASKED = {"bpm": 100.0, "key": "C major", "chords": None}


def order(songs: list[Song], description: str = "x") -> list[int]:
    ranked = rank_candidates(songs, chinmu=cast(ChinMu, Oracle()), description=description)
    return [one.seed for one in ranked]


def test_each_figure_decides_where_the_others_are_equal() -> None:
    good = {"angle": 0.1, "bpm": 100.0, "tonic": 261.63, "asked": ASKED}
    for worse in ({"angle": 0.9}, {"bpm": 117.0}, {"tonic": 277.18}):
        songs = [song(1, **{**good, **worse}), song(2, **good)]
        assert order(songs) == [2, 1], worse


def test_a_named_drum_kit_and_the_words_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drums count where the request names them, words where some candidate's are understood."""
    struck = song(1, angle=0.1, bpm=100.0, tonic=261.63, asked=ASKED)
    held = song(2, angle=0.1, bpm=100.0, tonic=261.63, asked=ASKED)
    monkeypatch.setattr(adherence, "has_drums", lambda audio, rate: float(audio[0, 1]) > 0)
    struck.audio[0, 1], held.audio[0, 1] = 0.1, -0.1
    for source, first in (("words", 2), ("request", 2), ("drawn", 1), ("default", 1)):
        drums = {"drums": {"value": False, "source": source}}
        for one in (struck, held):
            one.info["understood"] = {"properties": drums}
        assert order([struck, held])[0] == first, source
    said = {1: ["h", "e"], 2: ["ve", "l", "iang"]}
    monkeypatch.setattr(candidates, "log_mel", lambda audio, rate: float(audio[0, 1]) > 0)
    monkeypatch.setattr(candidates.Recogniser, "read", lambda _, mel: said[1 if mel else 2])
    for one in (struck, held):
        one.info["request"]["lyrics"] = "[verse]\n月亮"
    assert order([struck, held]) == [2, 1]
    said[2] = ["h"]
    said[1] = []
    assert order([struck, held]) == [1, 2], "nothing was understood of either"


def test_a_candidate_is_judged_as_it_would_be_written() -> None:
    """Half as loud is the same song."""
    loud = song(1, angle=0.1, bpm=100.0, tonic=261.63, asked=ASKED)
    soft = song(2, angle=0.1, bpm=100.0, tonic=261.63, asked=ASKED)
    soft.audio[:] *= 0.25

    class Loudness(Oracle):
        def encode_audio(self, songs: list[torch.Tensor], rate: int) -> torch.Tensor:
            level = float(songs[0].square().mean().sqrt())
            return torch.tensor([[level, 1.0]])

    ranked = rank_candidates([loud, soft], chinmu=cast(ChinMu, Loudness()), description="x")
    assert [one.seed for one in ranked] == [1, 2]
    assert ranked[0].parts["similarity"] == pytest.approx(ranked[1].parts["similarity"], abs=1e-3)


def test_equal_songs_keep_their_order() -> None:
    good = {"angle": 0.1, "bpm": 100.0, "tonic": 261.63, "asked": ASKED}
    assert order([song(seed, **good) for seed in (5, 4, 6)]) == [5, 4, 6]


def test_what_nobody_asked_for_does_not_count() -> None:
    free = {"angle": 0.1, "bpm": 90.0, "tonic": 300.0}
    nothing = {"bpm": None, "key": None, "chords": None}
    songs = [song(1, **{**free, "angle": 0.5}, asked=nothing), song(2, **free, asked=nothing)]
    assert order(songs) == [2, 1]
    assert order(songs, description="") == [1, 2], "nothing to rank by"


def test_the_command_keeps_the_best(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "song.wav"
    arguments = ["generate", "--model", str(micro), "--description", "piano", "--seconds", "2"]
    arguments += ["--seed", "10", "--out", str(out), "--json"]
    assert run([*arguments, "--best-of", "3"]) == 0
    capsys.readouterr()
    sidecar = json.loads(out.with_suffix(".json").read_text())
    tried = sidecar["candidates"]
    assert sorted(one["seed"] for one in tried) == [10, 11, 12]
    assert tried[0]["seed"] == sidecar["request"]["seed"]
    assert [one["score"] for one in tried] == sorted(one["score"] for one in tried)
    best = out.read_bytes()
    again = [*arguments[:-5], "--seed", str(tried[0]["seed"]), "--out", str(out)]
    assert run(again) == 0
    assert out.read_bytes() == best, "the seed alone makes the same song"
