"""The run on a GPU machine, rehearsed: rows stay, faults are rows, parts arrive whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from mudit_engine.benchmarks import gpu_carry, gpu_run
from mudit_engine.benchmarks.gpu_stage import StageRun
from mudit_engine.errors import InputError

ROOT = Path(__file__).parents[2]
NO_CPU = re.compile("CUDA device|it is interpreted here|on an NVIDIA H100|no gradients on a CPU")


def rows(folder: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]


def rehearse(folder: Path, *stages: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mudit_engine.benchmarks.gpu_run", *stages, "--dry"]
    return subprocess.run(
        [*command, "--out", str(folder), "--seconds", "3000"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def whole(folder: Path, stage: str) -> None:
    done = rehearse(folder, stage)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(folder, stage)
    assert not [r for r in found if isinstance(r.get("error"), str)]
    # what a rehearsal leaves out is what no CPU has, and never for want of time
    left_out = [r["skipped"] for r in found if "skipped" in r]
    assert not [why for why in left_out if not NO_CPU.search(why)]
    assert len(found) > len(left_out)
    summary = json.loads((folder / "summary.json").read_text())["results"]
    assert summary[0]["stage"] == stage and summary[0]["rows"] == len(found)
    assert "rehearsal" in json.loads((folder / "env.json").read_text())["device"]


def test_a_stage_on_kernels_is_rehearsed(tmp_path: Path) -> None:
    whole(tmp_path, "sweep")
    assert all(r["ok"] for r in rows(tmp_path, "sweep") if "ok" in r)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [name for name in gpu_run.STAGES if name != "sweep"])
def test_every_stage_is_rehearsed(stage: str, tmp_path: Path) -> None:
    whole(tmp_path, stage)


def test_a_song_is_rehearsed_and_rows_of_another_run_stay(tmp_path: Path) -> None:
    (tmp_path / "song.jsonl").write_text('{"stage": "song", "what": "of yesterday"}\n')
    done = rehearse(tmp_path, "song")
    assert done.returncode == 0, done.stdout + done.stderr
    first, *found = rows(tmp_path, "song")
    assert first["what"] == "of yesterday"
    songs = [r for r in found if r["what"] == "song"]
    assert {r["provider"] for r in songs} == {"eager", "triton", "triton+captured"}
    assert all(r["latents_against_eager"] < 0.02 for r in songs)


def test_a_failing_case_is_a_row_and_the_next_one_runs(tmp_path: Path) -> None:
    run = StageRun("step", tmp_path, seconds=100, dry=True)
    run.attempt("red", lambda: [][0])
    run.attempt("green", lambda: run.emit("green", ms=1.0))
    late = StageRun("step", tmp_path, seconds=-1, dry=True)
    late.attempt("too late", lambda: late.emit("never"))
    red, green, skipped = rows(tmp_path, "step")
    assert red["error"].startswith("IndexError") and "line" in red["trace"]
    assert green["ms"] == 1.0 and "out of time" in skipped["skipped"]


@pytest.mark.parametrize(
    ("fault", "says"), [("import os; os._exit(9)", "code 9"), ("while True: pass", "past its")]
)
def test_a_process_that_crashes_or_hangs_ends_its_stage_alone(
    fault: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numerics.jsonl").write_text('{"what": "known before the crash"}\n')
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{fault}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(gpu_run, "GRACE", 1)
    found = gpu_run.run_stage("numerics", tmp_path, seconds=0.5, dry=True, site=tmp_path)
    before, row = rows(tmp_path, "numerics")
    assert before["what"].startswith("known") and says in row["error"] and found["failed"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_works(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert gpu_run.main(["numerics", "--out", str(tmp_path)]) == 3
    assert "--dry" in capsys.readouterr().err
    assert gpu_run.main(["nothing", "--out", str(tmp_path)]) == 2


def test_the_summary_leads_with_what_counts() -> None:
    step = {"what": "step", "provider": "triton", "batch": "1x260", "gemm_peak_fraction": 0.612}
    assert gpu_run.best([step, {**step, "gemm_peak_fraction": 0.1}]) == (
        "triton 1x260: 61.2 % of the GEMM peak"
    )
    held = [{"ratio_to_bar": 0.2}, {"ratio_to_bar": 0.7}]
    assert gpu_run.best(held) == "worst error 0.70 of its bar"


def fake_wheel(folder: Path) -> Path:
    wheel = folder / "triton-9.9.9-cp312-cp312-linux.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, mode in (
            ("triton/__init__.py", 0o644),
            ("triton/backends/nvidia/bin/ptxas", 0o755),
            ("triton/backends/nvidia/bin/ptxas-blackwell", 0o755),
            ("triton/profiler/libproton.so", 0o755),
            ("triton/backends/amd/compiler.py", 0o644),
        ):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, os.urandom(3000))
    return wheel


def test_parts_are_unpacked_once_all_are_there_and_whole(tmp_path: Path) -> None:
    carried, site = tmp_path / "carried", tmp_path / "site"
    carried.mkdir()
    parts = gpu_carry.slim(fake_wheel(tmp_path), carried, part_bytes=2000)
    assert len(parts) >= 3
    manifest = gpu_carry.record(carried)
    assert set(manifest["files"]) == set(parts)
    held = (carried / parts[1]).read_bytes()
    (carried / parts[1]).unlink()
    assert gpu_run.unpack(carried, site) == [] and not (site / "triton").exists()
    (carried / parts[1]).write_bytes(held[:-1] + b"?")
    with pytest.raises(InputError, match="carry it again"):
        gpu_run.unpack(carried, site)
    assert not (site / "triton").exists()
    (carried / parts[1]).write_bytes(held)
    assert gpu_run.unpack(carried, site) == ["triton.tar.xz"]
    found = {str(p.relative_to(site)) for p in site.rglob("*") if p.is_file()}
    assert found >= {"triton/__init__.py", "triton/backends/nvidia/bin/ptxas"}
    assert not [name for name in found if "blackwell" in name or "proton" in name or "amd" in name]
    assert os.access(site / "triton/backends/nvidia/bin/ptxas", os.X_OK)


def test_wheels_are_unpacked_once(tmp_path: Path) -> None:
    carried, site = tmp_path / "carried", tmp_path / "site"
    carried.mkdir()
    with zipfile.ZipFile(carried / "thing-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("thing.py", "value = 1\n")
    assert gpu_run.unpack(carried, site) == ["thing-1.0-py3-none-any.whl"]
    (site / "thing.py").write_text("value = 2\n")
    gpu_run.unpack(carried, site)
    assert (site / "thing.py").read_text() == "value = 2\n"
