"""The gate against slowdowns: what can be counted against a committed file, and two commits run in
turns.

    held = hold_figures(figures(), committed())                    # or: mudit bench gate
    report = against("main", rounds=20)                            # or: mudit bench gate main

Two commits: the other one is checked out beside this one; each side gets a process of its own that
loads once and then waits, so that both run the same work in turns, forth and back, and what slows
the machine slows both. A ratio of CPU seconds within each round, their median with a bootstrap
interval; a regression is a whole interval above the limit. Everything that can be counted is
counted on both sides as well, and judged without noise.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from mudit_engine.benchmarks.compare import CONFIDENCE, DRAWS, Report, compare
from mudit_engine.benchmarks.timing import turns
from mudit_engine.errors import InputError, MuditError
from mudit_engine.hardware import CHECKOUT

COMMITTED = Path(__file__).parent / "results" / "figures.json"
FIGURES_OVER = 0.05
"""A count may grow by this share: a feature costs something, a slip more."""
IMPORTS_OVER = 0.15
"""Modules that the help loads: a new command brings a few."""
WORKS = ("song", "batch", "step", "train")
WORKER = Path(__file__).parent / "gate_worker.py"


@dataclass(frozen=True)
class Ratio:
    """One work on both sides: CPU seconds here over CPU seconds there."""

    work: str
    ratio: float
    low: float
    high: float
    here_seconds: float
    there_seconds: float
    rounds: int
    worse: bool


def counted(checkout: Path = CHECKOUT, *, only: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of a checkout (or the groups named), counted in a process of its own, where
    kernels are not interpreted. Raises MuditError when counting fails.
    """
    env = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "mudit_engine.benchmarks.figures", *only],
        capture_output=True,
        text=True,
        env=env,
        cwd=checkout,
        check=False,
    )
    if done.returncode:
        raise MuditError(f"the figures of '{checkout}' cannot be counted: {done.stderr[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def committed(path: Path = COMMITTED) -> dict[str, Any]:
    """The figures that the repository holds."""
    from mudit_engine.benchmarks.documents import read_document

    results: dict[str, Any] = read_document(path)["results"]
    return results


def hold_figures(
    found: Mapping[str, Any], known: Mapping[str, Any], *, fail_over: float = FIGURES_OVER
) -> Report:
    """The figures against those known; one that grew by more than `fail_over` is a regression."""
    reports = [
        compare({name: known[name]}, {name: found.get(name, {})}, fail_over=limit)
        for name in known
        for limit in [max(fail_over, IMPORTS_OVER) if name == "imports" else fail_over]
    ]
    return Report(
        sorted((c for r in reports for c in r.changes), key=lambda c: (-c.worse, -c.change)),
        [row for report in reports for row in report.only_before],
        [row for report in reports for row in report.only_after],
    )


class Side:
    """A checkout's worker: a process that runs works when told to."""

    def __init__(self, checkout: Path, *, threads: int = 1) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "OMP_NUM_THREADS": str(threads),
            "TRITON_INTERPRET": "0",
        }
        # the worker is this checkout's on both sides: a commit from before it has none
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            env=env,
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, work: str) -> dict[str, Any]:
        """{"cpu": seconds, "wall": seconds}, or {"error": why it cannot be run here}."""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        try:
            self.process.stdin.write(work + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise MuditError(f"the worker ended: {self.process.stderr.read()[-800:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait(timeout=30)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def in_turns(
    here: Callable[[str], dict[str, Any]],
    there: Callable[[str], dict[str, Any]],
    works: Sequence[str],
    *,
    rounds: int,
    fail_over: float,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[list[Ratio], dict[str, str]]:
    """Ratios of every work that both sides can run, and why the others were left out."""
    sides = {"here": here, "there": there}
    ratios, left_out = [], {}
    for work in works:
        report(f"{work}: warming up")
        first = {name: side(work) for name, side in sides.items()}
        if errors := [f"{name}: {one['error']}" for name, one in first.items() if "error" in one]:
            left_out[work] = "; ".join(errors)
            continue
        times: dict[str, list[float]] = {"here": [], "there": []}
        for number, order in enumerate(turns(list(sides), rounds, aba=True)):
            report(f"{work}: round {number + 1} of {rounds}")
            for name in order:
                times[name].append(sides[name](work)["cpu"])
        ratios.append(paired(work, times["here"], times["there"], fail_over=fail_over))
    return ratios, left_out


def paired(work: str, here: Sequence[float], there: Sequence[float], *, fail_over: float) -> Ratio:
    """The median ratio of the rounds and its bootstrap interval."""
    found = [a / max(b, 1e-9) for a, b in zip(here, there, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(found, k=len(found))) for _ in range(DRAWS))
    edge = round((1 - CONFIDENCE) / 2 * DRAWS)
    low, high = medians[edge], medians[-1 - edge]
    return Ratio(
        work,
        statistics.median(found),
        low,
        high,
        statistics.median(here),
        statistics.median(there),
        len(found),
        low > 1 + fail_over,
    )


@contextlib.contextmanager
def checked_out(base: str) -> Iterator[Path]:
    """A checkout of another commit, in a folder that goes afterwards. Raises InputError for a name
    that git does not know, or outside a checkout.
    """
    if not (CHECKOUT / ".git").exists():
        raise InputError("this package is not in a git checkout: there is no commit to run beside")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "base"
        git = ["git", "-C", str(CHECKOUT), "worktree"]
        done = subprocess.run(
            [*git, "add", "--detach", str(folder), base],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise InputError(
                f"git cannot check out '{base}': {done.stderr.strip().splitlines()[-1]}"
            )
        try:
            yield folder
        finally:
            subprocess.run(
                [*git, "remove", "--force", str(folder)], capture_output=True, check=False
            )


def against(
    base: str,
    *,
    rounds: int = 20,
    fail_over: float = 0.05,
    works: Sequence[str] = WORKS,
    count: bool = True,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The document of this checkout against another commit."""
    with checked_out(base) as folder:
        figures: Report | None = None
        note = None
        if count and (folder / "benchmarks" / "figures.py").is_file():
            report("counting")
            figures = hold_figures(counted(), counted(folder))
        elif count:
            note = f"'{base}' has no figures to count"
        with Side(CHECKOUT) as here, Side(folder) as there:
            ratios, left_out = in_turns(
                here.run, there.run, works, rounds=rounds, fail_over=fail_over, report=report
            )
    regressions = [one.work for one in ratios if one.worse]
    if figures is not None:
        regressions += [f"{one.row} {one.figure}" for one in figures.regressions]
    return {
        "base": base,
        "fail_over": fail_over,
        "ratios": [asdict(one) for one in ratios],
        "left_out": left_out,
        "figures": figures.document() if figures is not None else None,
        "note": note,
        "regressions": regressions,
    }
