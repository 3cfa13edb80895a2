"""`mudit lyrics check`: sections, the budget, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mudit_engine.cli.main import run

EXAMPLES = Path(__file__).parents[2] / "mudit_engine" / "assets" / "examples"


@pytest.mark.parametrize("name", ["yueliang", "harbor", "mixed"])
def test_shipped_examples_are_clean(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lyrics", "check", str(EXAMPLES / f"{name}.txt"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert (
        results["fits"]
        and results["syllables"]
        == sum(section["syllables"] for section in results["sections"])
        > 150
    )
    assert results["tokens"] == sum(len(section["phonemes"]) for section in results["sections"])


def test_a_song_too_short_for_its_lyrics_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lyrics", "check", str(EXAMPLES / "yueliang.txt"), "--seconds", "20"]) == 0
    captured = capsys.readouterr()
    assert "do not fit into 20 s" in captured.err and "228 syllables in 20 s" in captured.out


def test_unknown_tag_names_line_and_near_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "song.txt"
    path.write_text("[verse]\nla\n[bridgee]\nla\n", encoding="utf-8")
    assert run(["lyrics", "check", str(path)]) == 2
    error = capsys.readouterr().err
    assert "line 3" in error and "bridge" in error
