"""Ranks leave in an order that cannot abort."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytest.importorskip("deepspeed")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/helpers")])
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )


def test_leaving_writes_what_was_said_and_runs_what_waits_for_the_end() -> None:
    program = """
import atexit, threading, time
from mudit_engine.training.ranks import leave
atexit.register(print, "at the end")
# joining it would take the interpreter a minute
threading.Thread(target=time.sleep, args=(60,)).start()
print("done")
leave(7)
"""
    done = run("-c", program)
    assert (done.returncode, done.stdout) == (7, "done\nat the end\n"), done.stderr


def test_the_command_line_leaves_so_on_many_ranks() -> None:
    program = """
import sys
import mudit_engine.training.ranks as ranks
from mudit_engine.cli import main
ranks.leave = lambda code: print("left with", code)
sys.argv = ["mudit", "--version"]
main.main()
"""
    assert run("-c", program, WORLD_SIZE="2").stdout.splitlines()[-1] == "left with 0"
    assert "left" not in run("-c", program, WORLD_SIZE="1").stdout


@pytest.mark.slow
def test_two_hundred_starts_on_a_busy_machine() -> None:
    done = run(str(ROOT / "tests/helpers/leave_often.py"), "200", "--busy", "2")
    assert json.loads(done.stdout or "null") == {"0": 400}, done.stderr[-3000:]
