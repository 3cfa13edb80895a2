"""Requests: every field is checked by type and range in one place, wherever it comes from."""

from __future__ import annotations

import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mudit_engine.errors import InputError
from mudit_engine.request import FIELDS, SongRequest, request_from_fields

WRONG: dict[str, list[Any]] = {
    "description": [None, 5, b"x", ["x"], True, "\ud83d"],
    "lyrics": [5, ["x"], b"x", "\ud83d"],
    "seconds": ["30", True, None.__class__, [30], 0, -1, math.nan, math.inf, 10**400, 1 + 2j],
    "user_type": [None, 1, "Amateur", ["amateur"], ""],
    "reference": [5, True, "", ["a.wav"]],
    "reference_kind": [None, 0, "guitar", ""],
    "negative": [None, 5, "\udc00"],
    "seed": [1.5, "1", True, -1, 2**63, 1e3, np.float64(3)],
    "bpm": ["84", True, 0, 19, 401, math.nan, math.inf, [84]],
    "key": [5, "", "H major", "C", ["C major"]],
    "chords": [5, ["C"], "C H", "C || G"],
    "ignore_times": [None, 1, 0, "yes", []],
    "sampler": [[], "ddim", None, 5, {1: 2}],
    "melody": [5, ["C4"], "", "H4", "C4 ||| X"],
    "melody_file": [5, True, "", ["a.mid"]],
    "drums": ["on", 1, 0, []],
    "voice": [5, "Female", "", ["female"]],
    "style": [5, "no such style", "", ["pop"]],
    "planned": [None, 1, 0, "yes"],
    "edit": [5, True, "", ["a.wav"]],
    "repaint": [5, True, "", "30", "5-3", "1-4,2-3", "1-2"],
    "extend": ["3", True, 0, -1, math.nan, math.inf, [3], 3.0],
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_value_is_refused_by_name(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(InputError, match=name if name != "chords" else "chord|bar"):
            SongRequest(**{"description": "x", "seed": 1, name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    request = SongRequest(
        description="x",
        seconds=np.float32(2.5),  # type: ignore[arg-type]
        seed=np.int64(7),  # type: ignore[arg-type]
        bpm=np.int32(90),  # type: ignore[arg-type]
        sampler={"steps": np.int64(4), "guidance": np.float32(2.0)},
    )
    assert (request.seconds, request.seed, request.bpm) == (2.5, 7, 90.0)
    plain = (request.seconds, request.seed, request.bpm, *request.sampler.values())
    assert [type(value) for value in plain] == [float, int, float, int, float]


def test_a_request_keeps_its_own_sampler() -> None:
    fields = {"steps": 4}
    request = SongRequest(description="x", sampler=fields)
    fields["steps"] = 5
    assert request.sampler == {"steps": 4}


def test_other_numbers() -> None:
    assert SongRequest(description="x", seconds=3).seconds == 3.0
    with pytest.raises(InputError, match="seconds"):
        SongRequest(description="x", seconds=Decimal(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "holds a list"),
        ("x", "holds a str"),
        ({"descripton": "x"}, "did you mean 'description'"),
        ({"description": "x", "qqq": 1}, "known are description, lyrics"),
        ({"description": "x", "seed": 1.5}, "a.json: seed 1.5"),
        ({}, "empty"),
    ],
    ids=["list", "text", "near", "unknown", "type", "empty"],
)
def test_fields_of_json(fields: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        request_from_fields(fields, where="a.json")


def test_null_is_the_default() -> None:
    request = request_from_fields({"description": "x", "lyrics": None, "bpm": None}, where="a")
    assert request == SongRequest(description="x")


def test_a_path_is_a_reference(tmp_path: Path) -> None:
    assert SongRequest(description="x", reference=tmp_path / "a.wav").reference is not None
    assert SongRequest(description="x", reference="a.wav").reference == "a.wav"


def test_requests_are_checked_before_torch_is_imported() -> None:
    code = "import sys; from mudit_engine.request import SongRequest; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
