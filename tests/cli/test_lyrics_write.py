"""`mudit lyrics write | score | convert | train`, and plans of the lyric model."""

from __future__ import annotations

import json

import pytest

from mudit_engine.cli.main import run
from mudit_engine.lyric_model.small import SHIPPED

WRITE = ("lyrics", "write", "--model", "grammar")


def told(capsys, *arguments, code=0):
    assert run([*arguments]) == code
    return capsys.readouterr()


def document(capsys, *arguments, code=0):
    return json.loads(told(capsys, *arguments, "--json", code=code).out)["results"]


def test_lyrics_come_out_in_the_form_that_was_asked_for(capsys):
    asked = ("--description", "夏夜，海边", "--structure", "verse:2x7,chorus:2x5", "--rhyme", "AA")
    out = told(capsys, *WRITE, *asked)
    lines = out.out.splitlines()
    assert [line for line in lines if line.startswith("[")] == ["[verse]", "[chorus]"]
    assert [len(line) for line in lines if line and not line.startswith("[")] == [7, 7, 5, 5]
    assert "without a model" in out.err


def test_candidates_files_and_the_document(capsys, tmp_path):
    found = document(
        capsys, *WRITE, "--description", "a road", "--seconds", "20", "--candidates", "2",
        "--out", str(tmp_path / "song.txt"),
    )  # fmt: skip
    assert found["language"] == "en"
    assert [one["author"] for one in found["candidates"]] == ["grammar", "grammar"]
    assert (tmp_path / "song.txt").read_text() == found["candidates"][0]["text"]
    assert (tmp_path / "song-2.txt").read_text() == found["candidates"][1]["text"]


def test_one_line_is_written_anew(capsys, tmp_path):
    file = tmp_path / "song.txt"
    asked = ("--description", "月亮", "--structure", "verse:4x7", "--out", str(file))
    told(capsys, *WRITE, *asked)
    before = file.read_text().splitlines()
    again = ("--description", "月亮", "--from", str(file), "--again", "verse.2", "--seed", "5")
    after = told(capsys, *WRITE, *again).out.splitlines()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--description", " "), "--description is empty"),
        (("--description", "x", "--structure", "verse:4"), "NAME:LINESxSYLLABLES"),
        (("--description", "x", "--structure", "verse:2x7", "--seconds", "9"), "leave out"),
        (("--description", "x", "--again", "2"), "--from"),
        (("--description", "月", "--rhyme-class", "xyz"), "one of a, o, e"),
        (("--description", "月", "--rhyme", "free", "--rhyme-class", "ang"), "no effect"),
    ],
)
def test_what_cannot_be_written_is_said(capsys, arguments, said):
    assert said in told(capsys, *WRITE, *arguments, code=2).err


@pytest.mark.skipif(not (SHIPPED / "model.safetensors").is_file(), reason="the model is not built")
def test_the_model_that_ships_writes_out_of_the_box(capsys):
    found = document(capsys, "lyrics", "write", "--description", "夏夜", "--structure", "verse:4x7")
    [one] = found["candidates"]
    assert one["author"] == "small"
    assert one["score"]["total"] == 110


def test_files_and_folders_are_scored_and_a_bad_one_costs_no_other(capsys, tmp_path):
    good = "[verse]\n晚风吹过旧时光\n月亮落在河岸上\n有人慢慢走过来\n灯火照着那扇窗\n"
    (tmp_path / "good.txt").write_text(good, encoding="utf-8")
    (tmp_path / "bad.txt").write_text("[vorse]\n晚风\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\x00")
    found = document(capsys, "lyrics", "score", str(tmp_path), "--structure", "verse:4x7", code=1)
    scores = {row["source"].rsplit("/", 1)[-1]: row["score"]["total"] for row in found["scores"]}
    assert scores == {"good.txt": 110, "bad.txt": 0}
    assert "latin.txt" in found["failed"][0]
    assert "good.txt" in told(capsys, "lyrics", "score", str(tmp_path / "good.txt")).out


def test_tagged_lyrics_become_training_data(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("theme: rain\n[verse]\nthe rain is falling\n")
    (tmp_path / "b.txt").write_text("[verse]\nno theme here\n")
    out = tmp_path / "songs.jsonl"
    found = document(capsys, "lyrics", "convert", str(tmp_path), "--out", str(out), code=1)
    assert found["songs"] == 1 and "says no theme" in found["failed"][0]
    assert json.loads(out.read_text())["theme"] == "rain"
    found = document(capsys, "lyrics", "convert", str(tmp_path), "--theme", "x", "--out", str(out))
    assert found["songs"] == 2


def test_the_papers_base_is_refused_with_todays_equal(capsys):
    err = told(capsys, "lyrics", "train", "builtin", "--base", "Qwen/Qwen-14B-Chat-Int4", code=2)
    assert "Qwen/Qwen3-14B" in err.err


def test_a_plan_of_the_lyric_model_says_that_it_is_modelled(capsys):
    cluster = ("--nodes", "1", "--gpus-per-node", "8")
    found = document(capsys, "plan", "--lyrics", "qwen-14b", *cluster)
    assert found["model"]["weights"] == 14_166_676_480
    assert found["kind"].startswith("modelled")
    peaks = {(o["method"], o["zero_stage"]): o["peak_bytes"] / 2**30 for o in found["options"]}
    assert peaks["qlora", 2] < peaks["lora", 2] and ("qlora", 3) not in peaks
    assert "neither one of" in told(capsys, "plan", "--lyrics", "qwen9", code=2).err


GENERATE = ("generate", "--description", "夏夜，海边，钢琴", "--dry-run", "--seconds", "20")


def test_a_song_is_made_of_lyrics_that_are_written_first(capsys):
    out = told(capsys, *GENERATE, "--write-lyrics", "grammar", "--json")
    [song] = json.loads(out.out)["results"]["understood"]
    assert song["properties"]["seconds"]["value"] == 20
    assert "lyrics by grammar:\n[verse]\n" in out.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--write-lyrics", "grammar", "--lyrics", "x.txt"), "keep one"),
        (("--structure", "verse:4x7"), "add --write-lyrics"),
        (("--write-lyrics", "grammar", "--manifest", "x.jsonl"), "is for one song"),
    ],
)
def test_what_does_not_go_with_written_lyrics_is_said(capsys, arguments, said):
    assert said in told(capsys, *GENERATE, *arguments, code=2).err
