"""The record that every result carries: the command as somebody else would type it, no folders of
whoever ran it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mudit_engine.benchmarks import gate
from mudit_engine.cli.main import run as mudit
from mudit_engine.hardware import CHECKOUT, command_line, environment

HOME = str(Path.home())


@pytest.mark.parametrize(
    ("started", "argv", "says"),
    [
        (["/a/bin/python"], ["/a/bin/mudit", "bench", "gate"], "mudit bench gate"),
        (
            ["/a/bin/python", "-X", "dev", "-m", "mudit_engine.benchmarks.readings"],
            [f"{CHECKOUT}/benchmarks/readings.py", "--out", f"{CHECKOUT}/out/a.json"],
            "python -m mudit_engine.benchmarks.readings --out out/a.json",
        ),
        (
            ["/a/bin/python"],
            [f"{CHECKOUT}/benchmarks/host_cost.py", f"--base={HOME}/other"],
            "python benchmarks/host_cost.py '--base=~/other'",
        ),
        (["/a/bin/python", "-c"], ["-c"], "-c"),
    ],
    ids=["installed", "module", "file", "code"],
)
def test_commands_are_written_as_they_are_typed(
    started: list[str], argv: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = argv[:1] if started[-2:-1] != ["-m"] else []
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", [*started, *program, *argv[1:]])
    assert command_line() == environment()["command"] == says


def test_arguments_of_mudit_name_no_folder_either() -> None:
    given = ["generate", "--out", f"{HOME}/songs/a.wav"]
    assert environment(given)["command"] == "mudit generate --out '~/songs/a.wav'"


def test_updated_figures_name_nobodys_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever called `mudit bench gate --update`, from wherever."""
    target = tmp_path / "figures.json"
    monkeypatch.setattr(gate, "COMMITTED", target)
    monkeypatch.setattr(gate, "counted", lambda: {"step": {"flops": 1.0}})
    program = str(CHECKOUT / ".venv" / "bin" / "mudit")
    monkeypatch.setattr(sys, "argv", [program, "bench", "gate", "--update"])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *sys.argv])
    assert mudit(["bench", "gate", "--update"]) == 0
    text = target.read_text()
    assert json.loads(text)["env"]["command"] == "mudit bench gate --update"
    assert str(CHECKOUT) not in text and HOME not in text
