"""What was asked of a song and what is measured of it: parts, stems, what is said of the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mudit_engine.audio import save_audio
from mudit_engine.errors import InputError
from mudit_engine.evaluation.adherence import adherence
from mudit_engine.evaluation.listening import Listener
from mudit_engine.evaluation.stems import stem_levels
from mudit_engine.evaluation.systems import (
    Asked,
    Separation,
    System,
    compare,
    load_requests,
)

RATE = 22050
pytestmark = pytest.mark.usefixtures("one_thread")


def tone(hertz: float, *, level: float = 0.2, seconds: float = 4.0) -> Tensor:
    t = torch.arange(round(seconds * RATE)) / RATE
    edge = (torch.minimum(t, t.flip(0)) * 100).clamp(max=1)  # a cut would be heard as a click
    return level * (torch.sin(2 * math.pi * hertz * t) * edge)[None]


def triads(*roots: int, seconds: float = 2.0) -> Tensor:
    return torch.cat(
        [
            sum(
                tone(261.63 * 2 ** ((root + step) / 12), level=0.1, seconds=seconds)
                for step in (0, 4, 7)
            )
            for root in roots
        ],
        1,
    )


def test_requests_say_chords_drums_voice_and_sections(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    lines = [
        {"id": "a", "chords": "C G", "drums": False, "voice": "female", "lyrics": "[verse]\nla"},
        {"id": "b", "description": "rock, drums, male voice", "lyrics": "[verse]\n[00:03.00]la"},
        {"id": "c", "description": "piano"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    asked = load_requests(file)
    assert (asked["a"].chords, asked["a"].drums, asked["a"].voice) == ("C G", False, "female")
    assert (asked["b"].drums, asked["b"].voice, asked["b"].sections) == (
        True,
        "male",
        [("verse", 3.0)],
    )
    assert (asked["c"].chords, asked["c"].drums, asked["c"].sections) == (None, None, [])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"chords": "H"}, "line 1: chord 'H' is unknown"),
        ({"drums": "yes"}, "drums 'yes' is of a wrong type"),
        ({"voice": "choir"}, "voice 'choir' is unknown"),
    ],
)
def test_what_nobody_can_ask_for_is_refused(
    tmp_path: Path, field: dict[str, object], message: str
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps({"id": "a", **field}))
    with pytest.raises(InputError, match=message):
        load_requests(file)


def test_parts_of_what_was_asked() -> None:
    song = triads(0, 7, 0, 7)  # C G C G, two seconds each
    asked = Asked("s", bpm=120.0, chords="C G", drums=False)
    done = adherence(song, RATE, asked)
    assert done["chords"] > 0.9 and done["drums"] == 1.0 and "sections" not in done
    other = adherence(song, RATE, Asked("s", bpm=120.0, chords="F#m B", drums=True))
    assert other["chords"] < 0.1 and other["drums"] == 0.0


def test_balance_of_stems_is_what_was_mixed() -> None:
    voice, rest = tone(440.0, level=0.2), tone(440.0, level=0.1)
    found = stem_levels({"vocals": voice, "chords": rest}, voice + rest, RATE)
    assert found["voice"] == 1.0 and found["vocal_balance"] == pytest.approx(6.02, abs=0.1)
    # without other stems the accompaniment is the mix less the voice
    found = stem_levels({"vocals": voice}, voice + rest, RATE)
    assert found["vocal_balance"] == pytest.approx(6.02, abs=0.1)
    assert stem_levels({"vocals": 0.01 * rest}, rest, RATE) == {"voice": 0.0}
    assert stem_levels({"vocals": 0 * rest, "bass": rest}, rest, RATE) == {"voice": 0.0}
    assert stem_levels({"drums": rest}, rest, RATE) == {}
    with pytest.raises(InputError, match="the vocals last 2.00 s, the mix 4.00 s"):
        stem_levels({"vocals": voice[:, : 2 * RATE]}, rest, RATE)


def test_stems_beside_songs_are_no_songs_and_tell_of_the_voice(tmp_path: Path) -> None:
    voice, rest = tone(440.0), tone(220.0)
    for name, sung in (("a", voice), ("b", 0 * voice)):
        save_audio(tmp_path / f"x/{name}.wav", sung + rest, RATE)
        save_audio(tmp_path / f"x/{name}.vocals.wav", sung, RATE)
        save_audio(tmp_path / f"y/{name}.wav", sung + rest, RATE)
    systems = [System.of(tmp_path / name) for name in ("x", "y")]
    assert list(systems[0].songs) == ["a", "b"] and not systems[1].stems
    asked = {name: Asked(name, voice="female") for name in ("a", "b")}
    real = System.of(tmp_path / "y", name="reference")

    def compared(separator: Separation | None = None) -> tuple[Mapping[str, dict], list[str]]:
        found = compare(
            systems,
            real,
            asked,
            Listener(tmp_path / "work"),
            embedders=[],
            separator=separator,
        )
        return found.songs, found.facts["not_measured"]

    songs, silent = compared()
    assert [songs["x"][name]["voice"] for name in ("a", "b")] == [1.0, 0.0]
    assert "vocal_balance" in songs["x"]["a"] and "voice" not in songs["y"]["a"]
    assert len(silent) == 1 and "songs of y without stems" in silent[0]
    songs, silent = compared(Separation("half", lambda audio, rate: {"vocals": 0.5 * audio}))
    assert songs["y"]["b"]["voice"] == 1.0 and not silent
    assert songs["y"]["b"]["vocal_balance"] == pytest.approx(0.0, abs=0.1)
    assert songs["x"]["b"]["voice"] == 0.0, "stems that are there are taken"
