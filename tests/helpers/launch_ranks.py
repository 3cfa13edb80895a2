"""Starts a script on N gloo ranks of this machine, as torchrun would, and waits for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mudit_engine.training.ranks import local_world

HERE = Path(__file__).parent


def start(world: int, script: str, *arguments: str, log: Path) -> list[subprocess.Popen[bytes]]:
    """The processes of the ranks; rank r writes into `log`.r."""
    processes = []
    for place in local_world(world):
        env = {**os.environ, **place, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        with log.with_suffix(f".{place['RANK']}").open("wb") as output:
            command = [sys.executable, str(HERE / script), *arguments]
            processes.append(
                subprocess.Popen(
                    command, env=env, stdout=output, stderr=subprocess.STDOUT, cwd=HERE
                )
            )
    return processes


def run_jobs(
    world: int, jobs: list[dict[str, Any]], folder: Path, *, timeout: float = 1800
) -> None:
    """Runs the jobs of run_ranks.py. Raises AssertionError with the end of a log when a rank
    fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    log = folder / "rank.log"
    processes = start(world, "run_ranks.py", str(folder / "jobs.json"), log=log)
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, code in enumerate(codes):
        assert code == 0, (
            f"rank {rank} of {world} ended with {code}:\n"
            + log.with_suffix(f".{rank}").read_text()[-3000:]
        )
