"""Manifests: one broken line costs no other line its song, and nothing is written twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mudit_engine.cli.main import run


def write(path: Path, *lines: object) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def generate(micro: Path, *arguments: str) -> int:
    return run(["generate", "--model", str(micro), "--seconds", "1", *arguments])


GOOD = {"description": "piano", "seed": 1}
BROKEN = [
    "{oops",
    "5",
    {"descripton": "x"},
    {"description": "x", "seed": 1.5},
    {"description": None},
    {"description": "x", "sampler": []},
    {"description": "x", "seconds": True},
    {"description": "x", "lyrics": 5},
    {"description": "x", "lyrics_file": "missing.txt"},
    {"description": "x", "lyrics_file": 5},
    {"description": "x", "lyrics": "a", "lyrics_file": "b.txt"},
    {"description": "x", "out": 5},
    {"description": "x", "out": "song.xyz"},
    {"description": "x", "lyrics": "[choruss]\nla"},
    {"description": "x", "seconds": 1000},
    {"description": "x", "steps": "many"},
    {"description": "x", "reference": "missing.wav"},
    {"description": "x", "reference": "broken.wav"},
]


def test_keep_going_makes_every_other_song(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF....not audio")
    lines: list[object] = [GOOD]
    for line in BROKEN:
        lines += [line, {**GOOD, "seed": len(lines)}]
    manifest = write(tmp_path / "songs.jsonl", *lines)
    out = tmp_path / "out"
    arguments = ["--manifest", str(manifest), "--out", str(out), "--keep-going", "--json"]
    assert generate(micro, *arguments) == 1
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results["songs"]) == len(list(out.glob("*.wav"))) == len(BROKEN) + 1
    assert len(results["failures"]) == len(BROKEN)
    named = [int(row["where"].rsplit(" ", 1)[1]) for row in results["failures"]]
    assert sorted(named) == list(range(2, 2 * len(BROKEN) + 2, 2))


def test_without_it_nothing_is_made(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(tmp_path / "songs.jsonl", GOOD, {"description": "x", "seed": "one"})
    assert generate(micro, "--manifest", str(manifest), "--out", str(tmp_path / "out")) == 2
    assert "line 2: seed 'one'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("first", "second"), [("a.wav", "a.flac"), ("a.wav", "./a.wav"), ("b/../a.wav", "a.ogg")]
)
def test_two_songs_with_one_sidecar(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, second: str
) -> None:
    manifest = write(tmp_path / "songs.jsonl", {**GOOD, "out": first}, {**GOOD, "out": second})
    assert generate(micro, "--manifest", str(manifest), "--out", str(tmp_path / "out")) == 2
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--lyrics", "--reference"])
def test_options_of_one_song_are_refused(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    manifest = write(tmp_path / "songs.jsonl", GOOD)
    arguments = ["--manifest", str(manifest), "--out", str(tmp_path / "out"), option, "x"]
    assert generate(micro, *arguments) == 2
    assert f"{option} is of one song" in capsys.readouterr().err


def test_keep_going_is_for_manifests(micro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(micro, "--description", "x", "--keep-going") == 2
    assert "--manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--negative", "drums", "--guidance", "1"], "no effect at guidance 1"),
        (["--eta", "0.5", "--sampler", "ode-heun"], "eta has no effect"),
        (["--reference-kind", "drums"], "no effect without a reference"),
    ],
    ids=["negative", "eta", "reference kind"],
)
def test_options_that_change_nothing_are_named(
    micro: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    out = ["--dry-run", "--out", str(tmp_path / "a.wav")]
    assert generate(micro, "--description", "x", *arguments, *out) == 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--seconds", "inf"], 2, "not finite"),
        (["--guidance", "1e30"], 2, "guidance"),
        (["--device", "cuda"], 3, "no CUDA device"),
        (["--device", "gpu"], 2, "'gpu' is unknown"),
    ],
    ids=["seconds", "guidance", "cuda", "device"],
)
def test_values_out_of_range(
    micro: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    out = ["--out", str(tmp_path / "a.wav")]
    assert generate(micro, "--description", "x", *arguments, *out) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_finds_what_the_run_would(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "good.wav", np.zeros(8000), 8000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF....not audio")
    for name, code in (("good.wav", 0), ("bad.wav", 2), ("missing.wav", 2)):
        reference = str(tmp_path / name)
        out = ["--dry-run", "--out", str(tmp_path / "a.wav")]
        assert generate(micro, "--description", "x", "--reference", reference, *out) == code
        assert code == 0 or name in capsys.readouterr().err
    assert not (tmp_path / "a.wav").exists()
