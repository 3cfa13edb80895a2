"""`mudit generate` as a user runs it: songs, manifests, seeds, and every kind of bad input with a
message and an exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from micro_model import save_micro
from mudit_engine.cli.main import run
from mudit_engine.files import atomic_path
from mudit_engine.loudness import loudness
from mudit_engine.metrics.rhythm_and_key import chroma
from mudit_engine.text.harmony import ChordSymbol

LYRICS = "[verse]\n月亮升起来\n照着小河流\n[chorus]\nhold me 到天亮\n"


@pytest.fixture
def lyrics(tmp_path: Path) -> Path:
    path = tmp_path / "lyrics.txt"
    path.write_text(LYRICS, encoding="utf-8")
    return path


def generate(micro: Path, *arguments: object) -> int:
    return run(["generate", "--model", str(micro), *map(str, arguments)])


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_song_sidecar_and_picture(
    micro: Path, lyrics: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"song.{suffix}"
    code = generate(
        micro,
        "--description",
        "流行抒情，钢琴",
        "--lyrics",
        lyrics,
        "--seconds",
        6,
        "--seed",
        7,
        "--out",
        out,
        "--spectrogram",
        "--json",
    )
    document = json.loads(capsys.readouterr().out)
    assert code == 0 and document["schema_version"] == 1
    (row,) = document["results"]["songs"]
    assert row["seed"] == 7 and set(row["timings_seconds"]) == {"text", "denoise", "decode"}
    audio, rate = soundfile.read(out)
    assert rate == 8000 and abs(len(audio) / rate - 6) < 0.3
    sidecar = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert (
        sidecar["request"]["seed"] == 7
        and sidecar["sampler"]["steps"] == 2
        and sidecar["model"]["name"] == "micro"
    )
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert {p.name for p in tmp_path.iterdir()} == {
        "lyrics.txt",
        f"song.{suffix}",
        "song.json",
        "song.png",
    }, "nothing else is left behind"


def test_songs_are_written_at_one_loudness(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = {}
    for wanted in ("-16", "-23", "off"):
        out = tmp_path / f"{wanted}.wav"
        options = [] if wanted == "-16" else ["--loudness", wanted]
        words = ["--description", "钢琴", "--seconds", 4, "--seed", 3]
        assert generate(micro, *words, "--out", out, *options) == 0
        audio, rate = soundfile.read(out, always_2d=True)
        sidecar = json.loads(out.with_suffix(".json").read_text("utf-8"))
        heard[wanted] = loudness(torch.from_numpy(audio.T.copy()), rate)
        if wanted == "off":
            assert sidecar["mastering"] is None
        else:
            assert sidecar["mastering"]["loudness"] == pytest.approx(heard[wanted], abs=0.05)
            assert heard[wanted] == pytest.approx(float(wanted), abs=0.2)
            assert np.abs(audio).max() <= 10 ** (-0.9 / 20)
    assert abs(heard["off"] - -16) > 1, "the model does not do this by itself"
    capsys.readouterr()
    for wrong in ("loud", "0", "-70", "nan"):
        assert generate(micro, "--description", "钢琴", f"--loudness={wrong}", "--dry-run") == 2
        assert "LUFS from -60 to -5" in capsys.readouterr().err


def test_same_seed_same_file_other_seed_other_file(
    micro: Path, lyrics: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            generate(
                micro,
                "--description",
                "rock",
                "--lyrics",
                lyrics,
                "--seconds",
                3,
                "--seed",
                seed,
                "--out",
                tmp_path / f"{name}.wav",
            )
            == 0
        )
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b != c


def test_length_follows_the_lyrics_and_standard_input_works(
    micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("[verse]\n" + "月亮升起来\n" * 3))
    assert generate(micro, "--lyrics", "-", "--out", tmp_path / "s.wav", "--seed", 1) == 0
    seconds = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["request"]["seconds"]
    assert 6 < seconds <= 20


def test_a_length_that_was_planned_is_not_called_too_short(
    micro: Path, lyrics: Path, tmp_path: Path
) -> None:
    def notes(*arguments: str) -> list[str]:
        out = tmp_path / "s.wav"
        assert (
            generate(
                micro,
                "--description",
                "rock",
                "--bpm",
                100,
                "--lyrics",
                lyrics,
                "--seed",
                1,
                *arguments,
                "--out",
                out,
            )
            == 0
        )
        return list(json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["notes"])

    assert not any("hurried" in note for note in notes())
    assert any("hurried" in note for note in notes("--seconds", "8"))


def test_manifest_equals_single_songs(micro: Path, lyrics: Path, tmp_path: Path) -> None:
    lines = [
        {
            "description": "rock",
            "lyrics_file": "lyrics.txt",
            "seconds": 4,
            "seed": 3,
            "out": "a.wav",
        },
        {
            "description": "慢歌",
            "seconds": 9,
            "seed": 4,
            "steps": 3,
            "sampler": "sde-euler",
            "out": "b.wav",
        },
        {
            "lyrics": "[chorus]\n啊啊啊啊",
            "seconds": 2,
            "seed": 5,
            "user_type": "amateur",
            "guidance": 1,
            "out": "c.wav",
        },
    ]
    manifest = tmp_path / "songs.jsonl"
    manifest.write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8"
    )
    assert generate(micro, "--manifest", manifest, "--out", tmp_path / "songs") == 0
    assert (
        generate(
            micro,
            "--description",
            "慢歌",
            "--seconds",
            9,
            "--seed",
            4,
            "--steps",
            3,
            "--sampler",
            "sde-euler",
            "--out",
            tmp_path / "alone.wav",
        )
        == 0
    )
    together, alone = (
        soundfile.read(tmp_path / "songs/b.wav")[0],
        soundfile.read(tmp_path / "alone.wav")[0],
    )
    assert abs(together - alone).max() < 1e-3
    assert sorted(p.name for p in (tmp_path / "songs").iterdir()) == [
        "a.json",
        "a.wav",
        "b.json",
        "b.wav",
        "c.json",
        "c.wav",
    ]


def test_every_option_reaches_the_song(micro: Path, lyrics: Path, tmp_path: Path) -> None:
    """Each changes the audio of one base request: an ignored option would not."""
    base = ["--description", "rock", "--lyrics", str(lyrics), "--seconds", "4", "--seed", "1"]
    reference = tmp_path / "reference.wav"
    assert (
        generate(micro, "--description", "other", "--seconds", 4, "--seed", 9, "--out", reference)
        == 0
    )
    changes = {
        "base": [], "description": ["--description", "jazz"],
        "user": ["--user-type", "professional"], "negative": ["--negative", "noise"],
        "guidance": ["--guidance", "5"], "interval": ["--guidance-interval", "0.0", "0.4"],
        "steps": ["--steps", "4"], "sampler": ["--sampler", "ode-heun"],
        "shift": ["--set", "shift=3"], "reference": ["--reference", str(reference)],
        "kind": ["--reference", str(reference), "--reference-kind", "drums"],
        "bpm": ["--bpm", "140"], "key": ["--key", "C minor"],
        "chords": ["--chords", "C | Am F | G7"],
    }  # fmt: skip
    files = {}
    for name, arguments in changes.items():
        assert generate(micro, *base, *arguments, "--out", tmp_path / f"{name}.wav") == 0
        files[name] = (tmp_path / f"{name}.wav").read_bytes()
    assert len(set(files.values())) == len(files), "two different requests gave the same song"


def test_chords_are_planned_in_the_key_and_can_be_asked_for_again(
    micro: Path, lyrics: Path, tmp_path: Path
) -> None:
    base = [
        "--description",
        "rock in A minor",
        "--lyrics",
        str(lyrics),
        "--seconds",
        "6",
        "--seed",
        "3",
    ]
    assert generate(micro, *base, "--out", tmp_path / "planned.wav") == 0
    outline = json.loads((tmp_path / "planned.json").read_text(encoding="utf-8"))["outline"]
    assert outline["key"] == "A minor" and outline["chords"].split()[-1] == "Am"
    assert (
        generate(micro, *base, "--chords", outline["chords"], "--out", tmp_path / "asked.wav") == 0
    )
    assert (tmp_path / "planned.wav").read_bytes() == (tmp_path / "asked.wav").read_bytes()
    assert (
        generate(
            micro,
            "--description",
            "rock",
            "--seconds",
            2,
            "--seed",
            3,
            "--out",
            tmp_path / "free.wav",
        )
        == 0
    )
    free = json.loads((tmp_path / "free.json").read_text(encoding="utf-8"))
    key = free["understood"]["properties"]["key"]
    assert key == {"value": free["outline"]["key"], "source": "drawn"}
    assert free["understood"]["properties"]["chords"]["source"] == "planned"


def test_a_model_without_an_outline_says_what_it_does_not_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_micro(tmp_path / "plain", outline=False)
    assert (
        generate(
            model,
            "--description",
            "rock",
            "--seconds",
            2,
            "--chords",
            "C G",
            "--bpm",
            90,
            "--out",
            tmp_path / "s.wav",
        )
        == 0
    )
    assert "bpm and chords are not followed" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "empty: give a description, lyrics, or both"),
        (["--lyrics", "missing.txt"], 2, "no lyrics file 'missing.txt'"),
        (["--lyrics", "empty.txt"], 2, "are empty"),
        (["--lyrics", "binary.txt"], 2, "not UTF-8"),
        (["--lyrics", "tag.txt"], 2, "(?s)line 2.*chorus"),
        (["--description", "x", "--seconds", "0"], 2, "too short"),
        (["--description", "x", "--seconds", "nan"], 2, "too short"),
        (["--description", "x", "--seconds", "1e9"], 2, "at most 20 s"),
        (["--description", "x", "--seconds", "many"], 2, "neither a number nor 'auto'"),
        (["--description", "x", "--steps", "0"], 2, "0"),
        (["--description", "x", "--sampler", "dim"], 2, "ddim"),
        (["--description", "x", "--set", "shfit=2"], 2, "did you mean 'shift'"),
        (["--description", "x", "--set", "shift"], 2, "KEY=VALUE"),
        (["--description", "x", "--guidance-interval", "0.9", "0.1"], 2, "low <= high"),
        (["--description", "x", "--chords", "C || H"], 2, "empty bar"),
        (["--description", "x", "--chords", "C H"], 2, "chord 'H' is unknown"),
        (["--description", "x", "--model", "nowhere"], 1, "no model folder 'nowhere'"),
        (["--description", "x", "--model", "musit-380m"], 1, "is a preset"),
        (["--description", "x", "--out", "song.xyz"], 2, r"\.wav"),
        (["--description", "x", "--reference", "missing.wav"], 2, "missing.wav"),
        (["--description", "x", "--reference", "broken.wav"], 2, "broken.wav"),
        (["--description", "@missing.txt"], 2, "no description file"),
        (["--manifest", "missing.jsonl", "--out", "o"], 2, "no manifest file"),
        (["--manifest", "bad.jsonl", "--out", "o"], 2, "line 2: not JSON"),
        (["--manifest", "field.jsonl", "--out", "o"], 2, "did you mean 'description'"),
        (["--manifest", "twice.jsonl", "--out", "o"], 2, "written by an earlier line"),
        (
            ["--manifest", "chords.jsonl", "--out", "o"],
            2,
            "line 1: chords .*write them as one text",
        ),
        (["--manifest", "empty.txt", "--out", "o"], 2, "has no songs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(
    micro: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    Path("tag.txt").write_text("[verse]\n[choruss]\nla\n")
    Path("broken.wav").write_bytes(b"RIFF....not audio")
    Path("bad.jsonl").write_text('{"description": "x"}\n{oops\n')
    Path("field.jsonl").write_text('{"desciption": "x"}\n')
    Path("twice.jsonl").write_text(
        '{"description": "x", "out": "a.wav"}\n{"description": "y", "out": "a.wav"}\n'
    )
    Path("chords.jsonl").write_text('{"description": "x", "chords": ["C", "G"]}\n')
    before = set(tmp_path.iterdir())
    assert run(["generate", "--model", str(micro), *arguments]) == code
    captured = capsys.readouterr()
    import re

    assert re.search(message, captured.err), captured.err
    assert "Traceback" not in captured.err and captured.out == ""
    assert set(tmp_path.iterdir()) == before, "a failed run leaves nothing behind"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "vae.safetensors").unlink(), "has no vae.safetensors"),
        (
            lambda folder: (folder / "dit.safetensors").write_bytes(
                (folder / "dit.safetensors").read_bytes()[:1000]
            ),
            "not a whole safetensors file",
        ),
        (
            lambda folder: (folder / "dit.safetensors").write_bytes(
                (folder / "vae.safetensors").read_bytes()
            ),
            "does not fit its config.json",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    ],
    ids=["missing", "truncated", "other part", "config"],
)
def test_damaged_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, message: str
) -> None:
    folder = save_micro(tmp_path / "model")
    damage(folder)  # type: ignore[operator]
    assert generate(folder, "--description", "x", "--seconds", 2, "--out", tmp_path / "s.wav") in (
        1,
        2,
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s.wav").exists()


def test_nan_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_micro(tmp_path / "model", final__weight=float("nan"))
    assert generate(folder, "--description", "x", "--seconds", 2, "--out", tmp_path / "s.wav") == 1
    assert "NaN or infinite weights in final.weight" in capsys.readouterr().err


def test_full_disk_keeps_the_old_file(
    micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "song.wav"
    out.write_bytes(b"precious")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert generate(micro, "--description", "x", "--seconds", 2, "--out", out) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert out.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [out]


def test_interrupt_exits_130_and_leaves_nothing(micro: Path, tmp_path: Path) -> None:
    code = (
        "import sys, threading, os, signal\n"
        "import mudit_engine.runtime.denoiser as d\n"
        "step = d.Denoiser.step\n"
        "def slow(self, states):\n"
        "    print('stepping', flush=True); import time; time.sleep(30)\n"
        "d.Denoiser.step = slow\n"
        "from mudit_engine.cli.main import run\n"
        f"arguments = ['generate', '--model', {str(micro)!r}, '--description', 'x', '--out', "
        f"{str(tmp_path / 's.wav')!r}]\n"
        "sys.exit(run(arguments))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "stepping\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_atomic_path_cleans_up_when_the_writer_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.wav") as aside:
        aside.write_bytes(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_dry_run_writes_nothing_and_warns_about_the_budget(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lyrics = tmp_path / "long.txt"
    lyrics.write_text("[verse]\n" + "月亮升起来照着小河流\n" * 30, encoding="utf-8")
    assert (
        generate(
            micro, "--lyrics", lyrics, "--seconds", 10, "--dry-run", "--out", tmp_path / "s.wav"
        )
        == 0
    )
    assert "song" not in {p.stem for p in tmp_path.iterdir()}
    assert "300" in capsys.readouterr().err


def test_the_embedded_model_plays_the_chords_that_were_asked_for(tmp_path: Path) -> None:
    asked = "F# D# B C#"
    request = [
        "--description",
        "a calm pop song, piano, bass and drums",
        "--bpm",
        "120",
        "--seconds",
        "8.8",
        "--seed",
        "1",
    ]
    assert run(["generate", *request, "--chords", asked, "--out", str(tmp_path / "song.wav")]) == 0
    samples, rate = soundfile.read(tmp_path / "song.wav", dtype="float32", always_2d=True)
    triads = [ChordSymbol(root, quality) for root in range(12) for quality in ("maj", "min")]
    heard = []
    for bar in torch.from_numpy(samples.T).split(2 * rate, 1)[:4]:
        energy = chroma(bar, rate)
        heard.append(
            max(triads, key=lambda triad: float(energy[list(triad.pitch_classes)].sum())).name
        )
    assert " ".join(heard) == asked
