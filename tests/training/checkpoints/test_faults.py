"""Nothing is lost by kills, damaged files and full disks at random moments, on changing numbers of
ranks (fault_runs.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed")

import forked
from fault_runs import last_loss, recipe_for, songs_of
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.trainer import Trainer
from run_worlds import LEGS, leg
from small_songs import write_songs

SCRIPT = Path(__file__).parents[2] / "helpers" / "fault_runs.py"


def fault_runs(out: Path, *arguments: str) -> dict[str, Any]:
    log = out.with_suffix(".log")
    code = forked.start(SCRIPT.name, "--out", str(out), *arguments, log=log).wait()
    assert code == 0, log.read_text()[-3000:]
    results: dict[str, Any] = json.loads(out.read_text())["results"]
    return results


def test_a_few_faults(tmp_path: Path) -> None:
    results = fault_runs(tmp_path / "faults.json", "--faults", "4", "--worlds", "2", "--seed", "3")
    assert (
        results["losses"] == 0
        and results["faults"] >= 4
        and results["starts"] > results["trainings"]
    )


@pytest.mark.slow
def test_two_hundred_faults(tmp_path: Path) -> None:
    """Ranks come and go too: every start has another world and another ZeRO stage."""
    results = fault_runs(tmp_path / "faults.json", "--faults", "200")
    assert results["losses"] == 0 and results["faults"] >= 200
    assert (
        len(results["by_kind"]) >= 10 and results["worst_relative_error_of_the_last_loss"] <= 1e-6
    )


@pytest.mark.slow
def test_torchrun_restarts_the_ranks(tmp_path: Path) -> None:
    """--max-restarts: a rank dies in step 6, torchrun starts all of them again, and the run ends as
    one that nothing disturbed.
    """
    data = write_songs(tmp_path / "songs")
    # torch 2.13 hangs in a restart over gloo while agent and workers share one store
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "--max-restarts",
        "1",
    ]
    script = str(SCRIPT.with_name("run_restarts.py"))
    done = subprocess.run(
        [*command, script, str(data), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=env,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["resumed_from"] == "step-00000004"
    )
    Trainer(recipe_for(data, stage=None), tmp_path / "single", quiet=True).run()
    assert songs_of(tmp_path / "run") == songs_of(tmp_path / "single")
    assert last_loss(tmp_path / "run") == pytest.approx(last_loss(tmp_path / "single"), rel=1e-6)


@pytest.mark.slow
def test_another_world_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """4 ranks, then 2, then 3: every song of the epoch is seen exactly once, in the steps of one
    device, and the losses are its losses.
    """
    data, run = write_songs(tmp_path / "songs", 60), tmp_path / "run"
    command = [sys.executable, str(SCRIPT.with_name("run_worlds.py")), str(data), str(run)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    single = Trainer(leg(data, None, LEGS[-1][2]), tmp_path / "single", quiet=True)
    single.run()
    epoch = single.sampler.steps(0)
    assert LEGS[1][2] < epoch < LEGS[2][2], "the ranks change twice within an epoch, and it ends"
    seen = [song for step in songs_of(run)[:epoch] for song in step]
    assert len(seen) == len(set(seen)) == 60
    assert songs_of(run) == songs_of(tmp_path / "single")
    losses, expected = (
        [row["loss"] for row in read_metrics(folder)[0]] for folder in (run, tmp_path / "single")
    )
    assert losses == pytest.approx(expected, rel=1e-6)
