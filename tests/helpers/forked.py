"""Helper scripts in processes that are forked from one which has imported torch, DeepSpeed and the
trainer: a start costs a second, where a new interpreter takes six. And modules of ours in processes
forked from one whose kernels are compiled, where those of the tests are interpreted.

    process = start("run_and_die.py", str(data), str(out), "save", "8", log=tmp_path / "log")
    assert process.wait(300) == -signal.SIGKILL
    monkeypatch.setattr(step_memory, "multiprocessing", forking())
    said = run_compiling("mudit_engine.benchmarks.static_variants", "--arch", "sm_80", log=log)

The servers are the standard library's (multiprocessing's forkserver): one of a kind for each worker
of pytest, from the first start to the end of the tests. They run nothing but imports, so that no
thread is running when they fork.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.pool
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
# what is missing here is left out by the server; torch._dynamo is what optimisers import
IMPORTED = ["deepspeed", "torch._dynamo", "mudit_engine.training.trainer", "run_ranks"]
# read when a kernel module is first imported
COMPILING = {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
COMPILERS = ["torch._dynamo", "triton.compiler", "mudit_engine.benchmarks.figures"]


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
    environment = {**ENVIRONMENT, **(environment or {})}
    return _fork(_trainers(), script, (str(HERE / script), HERE, arguments, log, environment))


class forking:
    """Stands in for the modules subprocess and multiprocessing where what they start is a module
    of ours or a pool that needs torch.
    """

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str], **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """What subprocess.run does with python -m MODULE ARGUMENTS; all that is said is stderr."""
        assert command[1] == "-m", "a module is forked, no other program"
        assert options == {"capture_output": True, "text": True, "check": False}
        module, *arguments = command[2:]
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            run = (module, HERE.parents[1], tuple(arguments), log, {**env})
            code = _fork(_trainers(), module, run).wait()
            return subprocess.CompletedProcess(command, code, "", log.read_text())

    def get_context(self, method: str) -> forking:
        """Contexts of which a pool is all that is asked."""
        assert method == "spawn"
        return self

    @contextlib.contextmanager
    def Pool(self, processes: int) -> Iterator[multiprocessing.pool.Pool]:
        """The processes of multiprocessing's pool, forked when it is made."""
        with (
            mock.patch.object(
                forkserver, "connect_to_new_process", _trainers().connect_to_new_process
            ),
            multiprocessing.get_context("forkserver").Pool(processes) as pool,
        ):
            yield pool


def run_compiling(module: str, *arguments: str, log: Path, timeout: float = 600) -> str:
    """Runs a module of ours as __main__ with kernels that are compiled; returns what it wrote and
    said, which is in `log` too. Raises AssertionError with that when it fails.
    """
    root = HERE.parents[1]
    process = _fork(_compilers(), module, (module, root, arguments, log, COMPILING))
    code, said = process.wait(timeout), log.read_text()
    assert code == 0, f"{module} ended with {code}:\n{said[-3000:]}"
    return said


def _fork(server: forkserver.ForkServer, name: str, run: tuple[Any, ...]) -> Forked:
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=run, daemon=True)
    # of the two servers the one that is meant, where the library knows of one
    with mock.patch.object(forkserver, "connect_to_new_process", server.connect_to_new_process):
        process.start()
    return Forked(process, name)


@functools.cache
def _trainers() -> forkserver.ForkServer:
    return _server(IMPORTED, ENVIRONMENT)


@functools.cache
def _compilers() -> forkserver.ForkServer:
    return _server(COMPILERS, COMPILING)


def _server(imported: list[str], environment: dict[str, str]) -> forkserver.ForkServer:
    server = forkserver.ForkServer()
    server.set_forkserver_preload(imported)
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with mock.patch.dict(os.environ, {**environment, "PYTHONPATH": path}):
        server.ensure_running()
    return server


def _run(
    script: str, folder: Path, arguments: tuple[str, ...], log: Path, environment: dict[str, str]
) -> None:
    """In the fork: a file or a module."""
    with open(log, "wb", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [script, *arguments]
    run = runpy.run_path if script.endswith(".py") else runpy.run_module
    run(script, run_name="__main__")
