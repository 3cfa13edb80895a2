"""From Enter to the first result: a new process each time.

    rows = run(Options(rounds=3))                                # or: mudit bench run cold-start

`first song` is one second of the embedded model with two
sampler steps, so that what it takes is starting, loading and warming up. The peers are imports that
nothing built on them can avoid. CPU seconds are the child's.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from mudit_engine.availability import available
from mudit_engine.benchmarks.registry import Options, Row, rows_of
from mudit_engine.benchmarks.timing import interleave
from mudit_engine.errors import GateError
from mudit_engine.hardware import CHECKOUT

MUDIT = ("-m", "mudit_engine")
REFERENCE = "import torch"


def run(options: Options) -> list[Row]:
    """Rows of commands and imports. Raises GateError when one of them fails."""
    with tempfile.TemporaryDirectory() as folder:
        song = [
            "generate",
            "--description",
            "piano",
            "--seconds",
            "1",
            "--steps",
            "2",
            "--seed",
            "1",
            "--out",
        ]
        ours = {
            "mudit --help": (*MUDIT, "--help"),
            "import mudit_engine": ("-c", "import mudit_engine; mudit_engine.SongPipeline"),
            "first song": (*MUDIT, *song, str(Path(folder) / "song.wav")),
        }
        peers = {REFERENCE: ("-c", "import torch")}
        if options.peers and available("diffusers"):
            peers["import StableAudioPipeline"] = (
                "-c",
                "from diffusers import StableAudioPipeline",
            )
        calls = {name: _process(name, arguments) for name, arguments in {**ours, **peers}.items()}
        times = interleave(calls, rounds=options.rounds or 3, cpu=children_seconds)
    return rows_of(
        "cold-start",
        "a new process",
        times,
        reference=REFERENCE,
        roles=dict.fromkeys(ours, "ours"),
    )


def children_seconds() -> float:
    """CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _process(name: str, arguments: tuple[str, ...]) -> Callable[[], None]:
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}

    def call() -> None:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, env=env, check=False
        )
        if done.returncode:
            raise GateError(
                f"'{name}' failed ({done.returncode}): {done.stderr.decode()[-500:].strip()}"
            )

    return call
