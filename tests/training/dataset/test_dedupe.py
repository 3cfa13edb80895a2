"""Copies are found whatever happened to the recording on its way, and songs that share their sounds
are not taken for copies.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mudit_engine.cli.main import run
from mudit_engine.training.dataset.dedupe import Copy, find_copies, fingerprint_songs
from mudit_engine.training.dataset.encode_ray import FingerprintJob, encode_part
from mudit_engine.training.dataset.shards import Shards, build_index
from mudit_engine.training.dataset.sources import SourceSong
from tunes import CHANGES, RATE, changed, tune


def write(folder: Path, name: str, audio: np.ndarray, rate: int = RATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.flac"
    soundfile.write(path, np.clip(audio, -1, 1), rate)
    return path


def found(folder: Path, songs: list[SourceSong]) -> list[Copy]:
    fingerprint_songs(songs, folder)
    return find_copies(Shards(folder), folder)


def test_every_change_is_heard_through(tmp_path: Path) -> None:
    songs = []
    for number in range(7):
        how = CHANGES[number]
        audio = tune(number, seconds=10)
        for name, (sound, rate) in (
            (f"{number}", (audio, RATE)),
            (f"{number}-{how}", changed(audio, how, number)),
        ):
            songs.append(SourceSong(name, write(tmp_path / "songs", name, sound, rate)))
    copies = found(tmp_path / "out", songs)
    pairs = {tuple(sorted((copy.id, copy.copy_of))) for copy in copies}
    assert pairs == {(f"{number}", f"{number}-{CHANGES[number]}") for number in range(7)}
    assert {copy.kind for copy in copies} == {"near"}
    trimmed = next(copy for copy in copies if "trimmed" in copy.id)
    assert 0.15 < trimmed.offset_seconds < 2.6


def test_what_is_kept(tmp_path: Path) -> None:
    """Held-out songs before training songs, then the one of which more is known; chains of copies
    leave one.
    """
    audio, other = tune(1, seconds=10), tune(2, seconds=10)
    place = tmp_path / "songs"
    songs = [
        SourceSong("a", write(place, "a", audio)),
        SourceSong("b", write(place, "b", audio), split="test"),
        SourceSong("c", write(place, "c", audio * 0.5)),
        SourceSong("x", write(place, "x", other)),
        SourceSong("y", write(place, "y", other), lyrics="la"),
        SourceSong("z", write(place, "z", tune(3, seconds=10))),
    ]
    copies = {copy.id: copy for copy in found(tmp_path / "out", songs)}
    assert {name: copy.copy_of for name, copy in copies.items()} == {"a": "b", "c": "b", "x": "y"}
    assert copies["a"].kind == copies["x"].kind == "exact" and copies["c"].kind == "near"
    assert copies["a"].reason == "a copy of 'b' (the same samples), which is in 'test'"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, out = tmp_path / "songs", tmp_path / "out"
    for number in range(3):
        write(place, str(number), tune(number, seconds=6))
    write(place, "copy", changed(tune(1, seconds=6), "ogg", 0)[0])
    assert run(["data", "dedupe", str(place), "--out", str(out), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert (results["songs"], results["near"], results["exact"]) == (4, 1, 0)
    assert [copy["id"] for copy in results["copies"]] in (["copy"], ["1"])
    assert not list(out.glob(".postings*"))
    data = ["data", "encode", str(place), "--out", str(tmp_path / "audio"), "--audio-only"]
    assert run([*data, "--leave-out", str(out / "copies.jsonl"), "--json"]) == 0
    encoded = json.loads(capsys.readouterr().out)["results"]
    assert encoded["songs"] == 3 and "a copy of" in next(iter(encoded["refused"].values()))
    # in parts, as machines do it, and once more from what is there
    job = FingerprintJob(place, tmp_path / "parts")
    assert not any(encode_part({"part": n, "parts": 2}, job)["error"] for n in range(2))
    build_index(tmp_path / "parts")
    assert run(["data", "dedupe", str(place), "--out", str(tmp_path / "parts"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["copies"] == results["copies"]


@pytest.mark.slow
def test_hundreds_of_copies_and_thousands_of_pairs(tmp_path: Path) -> None:
    """At least 99 % of planted copies are found, and at most one of 10,000 other pairs is taken for
    one.
    """
    songs, count = [], 150
    for number in range(count):
        audio, how = tune(number), CHANGES[number % len(CHANGES)]
        for name, (sound, rate) in (
            (f"{number}", (audio, RATE)),
            (f"{number}-{how}", changed(audio, how, number)),
        ):
            songs.append(SourceSong(name, write(tmp_path / "songs", name, sound, rate)))
    copies = found(tmp_path / "out", songs)
    right = [c for c in copies if c.id.split("-")[0] == c.copy_of.split("-")[0]]
    pairs = len(songs) * (len(songs) - 1) // 2 - count
    print(f"{len(right)} of {count} copies, {len(copies) - len(right)} false of {pairs} pairs")
    assert len(right) >= 0.99 * count and len(copies) - len(right) <= pairs / 10_000
