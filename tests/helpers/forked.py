"""Helper scripts in processes that are forked from one which has imported torch, DeepSpeed and the
trainer: a start costs a second, where a new interpreter takes six.

    process = start("run_and_die.py", str(data), str(out), "save", "8", log=tmp_path / "log")
    assert process.wait(300) == -signal.SIGKILL

The server is the standard library's (multiprocessing's forkserver): one for each worker of pytest,
from the first start to the end of the tests. It runs nothing but imports, so that no thread is
running when it forks.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

HERE = Path(__file__).parent
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
# what is missing here is left out by the server; torch._dynamo is what optimisers import
IMPORTED = ["deepspeed", "torch._dynamo", "mudit_engine.training.trainer", "run_ranks"]


class Forked:
    """A running script. It is killed with the tests when nobody waits for it."""

    def __init__(self, process: multiprocessing.process.BaseProcess, name: str) -> None:
        self._process, self._name = process, name

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, -N after signal N. Raises subprocess.TimeoutExpired after `timeout`
        seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._name, timeout)
        return self._process.exitcode

    def kill(self) -> None:
        """Ends the process by SIGKILL, where it still runs."""
        self._process.kill()


def start(
    script: str, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
) -> Forked:
    """Runs a script of this folder as __main__; what it writes and says goes into `log`."""
    process = _server().Process(
        target=_run,
        args=(script, arguments, str(log), {**ENVIRONMENT, **(environment or {})}),
        daemon=True,
    )
    process.start()
    return Forked(process, script)


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with mock.patch.dict(os.environ, {**ENVIRONMENT, "PYTHONPATH": path}):
        forkserver.ensure_running()
    return context


def _run(script: str, arguments: tuple[str, ...], log: str, environment: dict[str, str]) -> None:
    """In the fork."""
    with open(log, "wb", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environment)
    os.chdir(HERE)
    sys.argv = [script, *arguments]
    runpy.run_path(str(HERE / script), run_name="__main__")
