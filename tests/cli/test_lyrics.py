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


def test_every_character_is_accounted_for_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "[verse]\n[00:02.00]地球围着谁 (啦) 🎸\n我把它背着\n[soft rain]\n"
    path = tmp_path / "song.lrc"
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert run(["lyrics", "check", str(path), "--json", "--bpm", "100"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert "".join(row["text"] for row in results["accounting"]) == text
    counts = results["characters"]
    assert counts.pop("characters") == len(text) == sum(counts.values())
    assert results["seconds"] == 13  # from 2 s on two lines of two bars of 2.4 s, and a tail
    assert run(["lyrics", "check", str(path), "--json", "--bpm", "100", "--ignore-times"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["seconds"] == 11


def test_guesses_are_named_with_their_other_readings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "song.txt"
    path.write_text("[verse]\n他倒了\n转来的学生\n", encoding="utf-8")
    assert run(["lyrics", "check", str(path), "--phonemes"]) == 0
    captured = capsys.readouterr()
    assert "line 3: 转 in '转来的学生' is read zhuan3 and may be zhuan4" in captured.err
    assert "转{zhuan4}" in captured.err
    assert "学/x ve2" in captured.out and "characters:" in captured.out
