"""The gate against slowdowns: what can be counted against a committed file, and two commits run in
turns.

    held = hold_figures(figures(), committed())                    # or: mudit bench gate
    report = against("main", starts=8)                             # or: mudit bench gate main

Two commits: the other one is checked out beside this one; each side gets a process of its own, and
both run the same work in turns, forth and back, so that what slows the machine slows both. One
process is as fast as its memory happens to lie, and no number of rounds averages that out: so both
sides start anew several times. A start's figure is the median over its rounds of the logarithm of
the ratio of CPU seconds; starts are independent, and the interval is exact for them: endpoints are
order statistics of the means of all subsets of starts, right for any distribution that is symmetric
about the truth, as a pair of equal sides is. A work whose ratio exceeds half the limit is run again
by twice as many fresh processes, and is a regression when these find a ratio above the limit and
an interval that leaves out 1.
Everything that can be counted is counted on both sides as well, and judged without noise.

Source: Hartigan 1969, Using subsample values as typical values (JASA 64).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from mudit_engine.benchmarks.compare import Report, compare
from mudit_engine.benchmarks.timing import turns
from mudit_engine.errors import InputError, MuditError
from mudit_engine.hardware import CHECKOUT

COMMITTED = Path(__file__).parent / "results" / "figures.json"
FIGURES_OVER = 0.05
"""A count may grow by this share: a feature costs something, a slip more."""
IMPORTS_OVER = 0.15
"""Modules that the help loads: a new command brings a few."""
WORKS = ("song", "batch", "step", "train")
STARTS, FEWEST_STARTS, MOST_STARTS = 8, 7, 10
ROUNDS = 6
CONFIDENCE = 0.98
WORKER = Path(__file__).parent / "gate_worker.py"


@dataclass(frozen=True)
class Ratio:
    """One work on both sides: CPU seconds here over CPU seconds there, and its interval over
    `starts` pairs of processes. `confirmed`: this is what fresh processes said of a suspected work.
    """

    work: str
    ratio: float
    low: float
    high: float
    here_seconds: float
    there_seconds: float
    starts: int
    worse: bool
    confirmed: bool = False


Run = Callable[[str], dict[str, Any]]
"""Runs a work: {"cpu": seconds} or {"error": why it cannot be run}."""
Start = tuple[list[float], list[float]]
"""CPU seconds of the rounds of one pair of processes, here and there."""


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
    pair: Callable[[], AbstractContextManager[tuple[Run, Run]]],
    works: Sequence[str],
    *,
    starts: int = STARTS,
    rounds: int = ROUNDS,
    fail_over: float,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[list[Ratio], dict[str, str]]:
    """Ratios of every work that both sides can run, and why the others were left out. `pair` starts
    a process of each side, (here, there). Of works that are run again, what the second run found is
    given: what chose them has no say in it.
    """
    times, left_out = _timed(pair, works, starts=starts, rounds=rounds, report=report)
    ratios = {work: judged(work, found, fail_over=fail_over) for work, found in times.items()}
    for work, ratio in ratios.items():
        ratios[work] = replace(ratio, worse=False)
    if suspected := [one.work for one in ratios.values() if one.ratio > 1 + fail_over / 2]:
        report(f"{', '.join(suspected)}: slower, and run again to be sure")
        again, _ = _timed(pair, suspected, starts=2 * starts, rounds=rounds, report=report)
        for work, found in again.items():
            ratios[work] = judged(work, found, fail_over=fail_over, confirmed=True)
    return list(ratios.values()), left_out


def _timed(
    pair: Callable[[], AbstractContextManager[tuple[Run, Run]]],
    works: Sequence[str],
    *,
    starts: int,
    rounds: int,
    report: Callable[[str], None],
) -> tuple[dict[str, list[Start]], dict[str, str]]:
    times: dict[str, list[Start]] = {}
    left_out: dict[str, str] = {}
    for start in range(starts):
        with pair() as (here, there):
            # who is asked first alternates over the starts as well
            sides = dict([("here", here), ("there", there)][:: 1 if start % 2 == 0 else -1])
            for work in (one for one in works if one not in left_out):
                report(f"{work}: start {start + 1} of {starts}")
                first = {name: side(work) for name, side in sides.items()}
                errors = [f"{n}: {first[n]['error']}" for n in sorted(first) if "error" in first[n]]
                if errors:
                    left_out[work] = "; ".join(errors)
                    times.pop(work, None)
                    continue
                found: dict[str, list[float]] = {"here": [], "there": []}
                for order in turns(list(sides), rounds, aba=True):
                    for name in order:
                        found[name].append(sides[name](work)["cpu"])
                times.setdefault(work, []).append((found["here"], found["there"]))
    return times, left_out


def judged(
    work: str, starts: Sequence[Start], *, fail_over: float, confirmed: bool = False
) -> Ratio:
    """The ratio of a work and its interval. Worse: above the limit, and certainly above 1."""
    differences = [
        statistics.median(
            math.log(max(a, 1e-9) / max(b, 1e-9)) for a, b in zip(here, there, strict=True)
        )
        for here, there in starts
    ]
    ratio = math.exp(statistics.fmean(differences))
    low, high = (math.exp(end) for end in interval(differences))
    here_s, there_s = (statistics.median(t for one in starts for t in one[side]) for side in (0, 1))
    worse = low > 1 and ratio > 1 + fail_over
    return Ratio(work, ratio, low, high, here_s, there_s, len(starts), worse, confirmed)


def interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of what independent values are symmetric about: of the sorted means of all
    their 2^n - 1 subsets, as many as the confidence allows are left out at each end. Fewer than
    FEWEST_STARTS values have no such interval: all that is known is infinite.
    """
    means = np.zeros(1)
    counts = np.zeros(1)
    for value in values:
        means = np.concatenate((means, means + value))
        counts = np.concatenate((counts, counts + 1))
    ordered = np.sort(means[1:] / counts[1:])
    out = int((1 - confidence) / 2 * len(means))  # of 2^n gaps that are equally likely
    if not out:
        return -math.inf, math.inf
    return float(ordered[out - 1]), float(ordered[-out])


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
    starts: int = STARTS,
    rounds: int = ROUNDS,
    fail_over: float = 0.05,
    works: Sequence[str] = WORKS,
    count: bool = True,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The document of this checkout against another commit. Raises InputError for a commit that
    git does not know, and for a number of starts of which no interval follows.
    """
    if not FEWEST_STARTS <= starts <= MOST_STARTS:
        raise InputError(
            f"{starts} starts of each side: an interval needs {FEWEST_STARTS}, and {MOST_STARTS} "
            f"are the most"
        )
    with checked_out(base) as folder:
        figures: Report | None = None
        note = None
        if count and (folder / "benchmarks" / "figures.py").is_file():
            report("counting")
            figures = hold_figures(counted(), counted(folder))
        elif count:
            note = f"'{base}' has no figures to count"

        @contextlib.contextmanager
        def pair() -> Iterator[tuple[Run, Run]]:
            with Side(CHECKOUT) as here, Side(folder) as there:
                yield here.run, there.run

        ratios, left_out = in_turns(
            pair, works, starts=starts, rounds=rounds, fail_over=fail_over, report=report
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
