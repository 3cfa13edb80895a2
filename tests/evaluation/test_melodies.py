"""Judging melodies: planned notes and their sections, returns, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.evaluation.melodies import _returns, judge_melodies, sung_notes
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest

pytestmark = pytest.mark.usefixtures("one_thread")
LYRICS = "[verse]\n月亮升起来\n[chorus]\n我们一起唱\n[verse]\n星星落下去\n[chorus]\n我们一起唱\n"


def test_the_notes_of_a_plan_are_those_of_its_syllables():
    pipeline = SongPipeline.from_pretrained("tiny", dtype=torch.float32)
    request = SongRequest(description="钢琴，女声，BPM 90", lyrics=LYRICS, seed=2)
    understood = pipeline.understand(request, compose=True)
    notes, sections = sung_notes(understood)
    assert len(notes) == len(sections) == understood.phonemes.syllables == 20
    assert [kind for kind, _ in sections] == ["verse"] * 5 + ["chorus"] * 5 + ["verse"] * 5 + [
        "chorus"
    ] * 5
    by_kind: dict[str, list[float]] = {}
    _returns(by_kind, "plan", np.array([pitch for _, _, pitch in notes]), sections)
    assert by_kind["plan: chorus and chorus"][0] >= 0.8
    assert by_kind["plan: chorus and verse"][0] < 0.8


def test_equal_notes_are_counted_between_sections():
    sections = [("verse", 0)] * 2 + [("chorus", 1)] * 4 + [("chorus", 2)] * 4
    heard = np.array([60, 62, 60, 64, 65, 67, 60, 64, 65, 60])
    found: dict[str, list[float]] = {}
    _returns(found, "x", heard, sections)
    assert found == {"x: chorus and chorus": [0.75], "x: chorus and verse": [0.5]}


def test_choruses_of_unlike_length_are_not_compared():
    sections = [("chorus", 0)] * 2 + [("chorus", 1)] * 3
    found: dict[str, list[float]] = {}
    _returns(found, "x", np.array([60, 62, 60, 62, 64]), sections)
    assert found == {}


def test_a_model_that_follows_no_melody_is_refused(micro):
    pipeline = SongPipeline.from_pretrained(micro, dtype=torch.float32)
    with pytest.raises(InputError, match="follows no melody"):
        judge_melodies(pipeline, None, [], [])  # type: ignore[arg-type]
