"""`mudit generate` with a melody, typed controls, no plan, and the plan as MIDI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from micro_model import save_micro
from mudit_engine.cli.main import run
from mudit_engine.text.composition.given import read_melody_file

LYRICS = "[verse]\n月亮升起来\n"


def test_plan_as_midi_controls_and_melody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    micro = save_micro(tmp_path / "micro")
    (tmp_path / "song.txt").write_text(LYRICS, encoding="utf-8")
    base = ["generate", "--model", str(micro), "--lyrics", str(tmp_path / "song.txt"), "--dry-run"]
    base += ["--description", "女声", "--seed", "3", "--seconds", "8", "--json"]
    midi = tmp_path / "plan.mid"
    said = ["--drums", "off", "--voice", "male", "--style", "metal"]
    assert run([*base, *said, "--melody", "C4 D4 E4 G4 E4", "--midi", str(midi)]) == 0
    [read] = json.loads(capsys.readouterr().out)["results"]["understood"]
    notes = read_melody_file(midi).notes
    assert [note.midi for note in notes] == [60, 62, 64, 67, 64]
    assert read["properties"]["voice"] == {"value": "male", "source": "request"}
    assert read["properties"]["drums"] == {"value": False, "source": "request"}
    told = " ".join(read["notes"])
    assert "contradicts voice 'male'" in told and "follows no melody" in told
    assert "planned as rock" in told

    # the file that was written is a melody that can be given
    assert run([*base, "--melody", str(midi)]) == 0
    assert run([*base, "--melody", "C4 D4", "--midi", str(midi)]) == 2
    assert "syllable 3" in capsys.readouterr().err
    # this model follows no melody, but a file that the user names is there or refused
    assert run([*base, "--melody", str(tmp_path / "none.mid")]) == 2
    assert "none.mid" in capsys.readouterr().err
    assert run([*base, "--unplanned"]) == 0
    properties = json.loads(capsys.readouterr().out)["results"]["understood"][0]["properties"]
    assert "key" not in properties and "seconds" in properties
    assert run([*base, "--unplanned", "--midi", str(midi)]) == 2
    assert run([*base, "--unplanned", "--key", "C major"]) == 2
