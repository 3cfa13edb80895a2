"""Every example runs as a reader would run it, on a model folder small enough for a test."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A shell in which `mudit` and `python` are those of this checkout."""
    programs = tmp_path_factory.mktemp("programs")
    for name, what in (("mudit", "-m mudit_engine "), ("python", "")):
        command = programs / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {what}"$@"\n')
        command.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest as docs/training.md describes it."""
    folder = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(10):
        wave = 0.2 * np.sin(np.arange(8000 * 3) * (0.1 + 0.05 * number)) + 0.01 * rng.normal(
            size=24000
        )
        soundfile.write(folder / f"{number}.wav", wave, 8000)
        rows.append(
            {
                "audio": f"{number}.wav",
                "lyrics": "[verse]\n月亮升起来",
                "descriptions": [{"language": "zh", "user": "amateur", "text": "民谣，吉他"}],
                "metadata": {"bpm": 84, "key": 9, "mode": "minor"},
            }
        )
    manifest = folder / "songs.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def run(*command: object, environment: dict[str, str], folder: Path, **variables: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**environment, **{name: str(value) for name, value in variables.items()}},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def generate_songs(environment: dict[str, str], micro: Path, songs: Path, tmp: Path) -> None:
    script = EXAMPLES / "generate_songs.py"
    run(sys.executable, script, "--model", micro, environment=environment, folder=tmp)
    written = {path.name for path in (tmp / "songs").iterdir()}
    assert {"song-1.wav", "song-1.json", "song-1.png", "song-2.wav", "song-2-sde.wav"} <= written
    plain, sde = (
        soundfile.read(tmp / "songs" / f"{name}.wav")[0] for name in ("song-2", "song-2-sde")
    )
    assert len(plain) == len(sde) and not np.array_equal(plain, sde)


def manifest_of_songs(environment: dict[str, str], micro: Path, songs: Path, tmp: Path) -> None:
    script = EXAMPLES / "manifest_of_songs.sh"
    run(script, "album", environment=environment, folder=tmp, MODEL=micro)
    written = {path.name for path in (tmp / "album").iterdir()}
    assert {"lantern.wav", "folk.flac", "dance.wav"} <= written
    assert json.loads((tmp / "album/folk.json").read_text())["outline"]["key"] == "D minor"


def finetune(environment: dict[str, str], micro: Path, songs: Path, tmp: Path) -> None:
    script = EXAMPLES / "finetune.sh"
    run(script, songs, "mine", environment=environment, folder=tmp, MODEL=micro, STEPS=2)
    audio, rate = soundfile.read(tmp / "mine.wav")
    assert len(audio) / rate == pytest.approx(6, abs=0.3)
    trained, before = (
        (folder / "dit.safetensors").read_bytes() for folder in (tmp / "mine", micro)
    )
    assert trained != before


def add_sampler(environment: dict[str, str], micro: Path, songs: Path, tmp: Path) -> None:
    script = EXAMPLES / "add_sampler.py"
    said = run(
        *(sys.executable, script, "--model", micro, "--steps", 3, "--seconds", 2),
        environment=environment,
        folder=tmp,
    )
    assert "3 steps of the new sampler" in said
    audio, rate = soundfile.read(tmp / "pingpong.wav")
    assert len(audio) == 2 * rate and np.abs(audio).max() > 0


def add_kernel(environment: dict[str, str], micro: Path, songs: Path, tmp: Path) -> None:
    script = EXAMPLES / "add_kernel.py"
    said = run(sys.executable, script, environment=environment, folder=tmp)
    assert "numerics hold" in said
    assert said.count("no spills") == 4, "two kernels on two architectures"


def export_and_serve(environment: dict[str, str], micro: Path, songs: Path, tmp: Path) -> None:
    for package in ("onnxruntime", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = EXAMPLES / "export_and_serve.sh"
    run(script, "out", "--no-parity", environment=environment, folder=tmp, MODEL=micro, PORT=port)
    graph, served = (soundfile.read(tmp / f"out/{name}.wav")[0] for name in ("graph", "served"))
    assert len(graph) == len(served) and np.abs(graph - served).max() < 1e-3, "the same song"
    models = {path.name for path in (tmp / "out/repository/models").iterdir()}
    assert models == {"mudit_song", "mudit_whole"}


def draw_song(environment: dict[str, str], micro: Path, songs: Path, tmp: Path) -> None:
    script = EXAMPLES / "draw_song.py"
    run(
        *(sys.executable, script, "--model", micro, "--seconds", 12, "--out", "drawn.png"),
        environment=environment,
        folder=tmp,
    )
    assert (tmp / "drawn.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp / "drawn.json").is_file()


CHECKS = (
    generate_songs,
    manifest_of_songs,
    finetune,
    add_sampler,
    add_kernel,
    export_and_serve,
    draw_song,
)


# the commands of docs/deployment.md, which tests/house/test_docs.py runs, are those of the export's
SLOW = {export_and_serve, finetune}


@pytest.mark.parametrize(
    "check",
    [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in CHECKS],
    ids=lambda check: check.__name__,
)
def test_example(check, environment, micro, songs, tmp_path) -> None:
    check(environment, micro, songs, tmp_path)


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")} == {
        check.__name__ for check in CHECKS
    }
