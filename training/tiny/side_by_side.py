"""Steps that need each other's results, each in a process of its own, as many at a time as asked.

    seconds = side_by_side(
        {"vae": (), "latents": ("vae",), "decoder": ("vae",)}, command_of, jobs=2, logs=Path("logs")
    )

What a step says goes to logs/STEP.log; what begins, ends and goes on is told here. Ctrl-C and
SIGTERM stop every step as they would stop it alone, so that what it has saved is gone on from.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mudit_engine.errors import MuditError
from mudit_engine.training.stopping import InterruptedRun, Stop

log = logging.getLogger(__name__)

POLL = 0.2  # seconds between looks at the processes
TELL = 60.0  # seconds between words of where each step is
TAIL = 4096  # bytes at a log's end in which its last line is looked for


class StepFailed(MuditError):
    """A step's process ended with an error; `exit_code` is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    log: Path
    begun: float = field(default_factory=time.monotonic)

    def last_line(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing yet")


def side_by_side(
    needs: Mapping[str, tuple[str, ...]],
    command: Callable[[str], list[str]],
    *,
    jobs: int,
    logs: Path,
) -> dict[str, float]:
    """Runs every step once those are done that it needs; returns the seconds of each.

    Args:
        needs: the steps that a step needs, in the order in which they are begun where they may
            be. Needed steps that are no keys are taken as done.
        command: what runs a step.
        jobs: processes at a time.
        logs: folder of what the steps say, which is added to.

    Raises:
        StepFailed: when a step fails; the others are stopped and have saved.
        InterruptedRun: after Ctrl-C or SIGTERM, likewise.
    """
    logs.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    running: dict[str, _Running] = {}
    waiting, told, stop = list(needs), time.monotonic(), Stop()
    with stop.noting():
        try:
            while waiting or running:
                if stop.signal is not None:
                    raise InterruptedRun(
                        f"{signal.Signals(stop.signal).name}: stopped during {', '.join(running)}. "
                        "The same command goes on",
                        signal_number=stop.signal,
                    )
                for step in _ready(waiting, needs, seconds)[: jobs - len(running)]:
                    waiting.remove(step)
                    running[step] = _start(command(step), logs / f"{step}.log")
                    log.info("step %s: begun", step)
                time.sleep(POLL)
                for step, one in list(running.items()):
                    if (code := one.process.poll()) is None:
                        continue
                    del running[step]
                    if code:
                        raise StepFailed(
                            f"step {step} ended with {code}: {one.last_line()} ('{one.log}')",
                            code if code > 0 else 128 - code,
                        )
                    seconds[step] = round(time.monotonic() - one.begun, 1)
                    log.info("step %s: done in %.0f s", step, seconds[step])
                if time.monotonic() - told >= TELL:
                    told = time.monotonic()
                    for step, one in running.items():
                        log.info("step %s: %s", step, one.last_line())
        finally:
            _stop(running)
    return seconds


def _ready(
    waiting: list[str], needs: Mapping[str, tuple[str, ...]], done: Container[str]
) -> list[str]:
    return [step for step in waiting if all(n in done or n not in needs for n in needs[step])]


def _start(command: list[str], said: Path) -> _Running:
    with said.open("ab") as file:
        # a session of its own: a terminal's Ctrl-C reaches the steps from here, once
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    return _Running(process, said)


def _stop(running: Mapping[str, _Running]) -> None:
    """Asks the steps to save and end, and waits until they have."""
    for one in running.values():
        with contextlib.suppress(ProcessLookupError):
            one.process.terminate()
    for step, one in running.items():
        log.info("step %s: saves and ends", step)
        one.process.wait()
