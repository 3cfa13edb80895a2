"""Starts a script on N gloo ranks of this machine, as torchrun would, and waits for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked
from mudit_engine.training.ranks import local_world


def start(world: int, script: str, *arguments: str, log: Path) -> list[forked.Forked]:
    """The processes of the ranks; rank r writes into `log`.r."""
    return [
        forked.start(
            script, *arguments, log=log.with_suffix(f".{place['RANK']}"), environment=place
        )
        for place in local_world(world)
    ]


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
