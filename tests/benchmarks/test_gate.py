"""The gate: what can be counted is as committed, a planted tenth is found wherever it is planted,
and noise raises nothing.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from forked import run_compiling
from mudit_engine.benchmarks import figures, gate
from mudit_engine.benchmarks.compare import compare, flatten, ratio_interval
from mudit_engine.benchmarks.gate import (
    committed,
    counted,
    hold_figures,
    in_turns,
    interval,
    judged,
)
from mudit_engine.cli.main import run as mudit
from mudit_engine.errors import InputError
from mudit_engine.kernels import adaln
from mudit_engine.profiling.ledger import Ledger

QUICK = ("step", "prepare", "decode", "triton", "imports")


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return committed()


def test_what_can_be_counted_is_as_committed(known: dict[str, Any], tmp_path: Path) -> None:
    said = run_compiling("mudit_engine.benchmarks.figures", *QUICK, log=tmp_path / "log")
    found = json.loads(said.splitlines()[-1])
    report = hold_figures(found, {name: known[name] for name in QUICK})
    assert len(report.changes) > 100
    assert report.regressions == [], "if it is meant: mudit bench gate --update"


@pytest.mark.slow
def test_what_takes_longer_to_count_is_as_committed(known: dict[str, Any]) -> None:
    rest = [name for name in known if name not in QUICK]
    report = hold_figures(counted(only=rest), {name: known[name] for name in rest})
    assert report.regressions == [], "if it is meant: mudit bench gate --update"


@pytest.mark.parametrize(
    ("group", "figure"),
    [
        ("step", "flops"),
        ("step", "bytes"),
        ("step", "launches"),
        ("step", "allocations"),
        ("train", "parallel_flops"),
        ("triton", "sm_90/serial/launches"),
        ("triton", "sm_90/serial/programs"),
        ("batches", "variants"),
        ("graphs", "step/operators"),
        ("static", "attention_fwd_kernel/registers"),
    ],
)
def test_a_planted_tenth_is_found(known: dict[str, Any], group: str, figure: str) -> None:
    before = copy.deepcopy(known)
    before[group].setdefault(figure, 100.0)
    after = copy.deepcopy(before)
    after[group][figure] *= 1.1
    (found,) = hold_figures(after, before).regressions
    assert found.figure == figure and found.change == pytest.approx(0.1)
    # the other way it is an improvement, which stops nobody
    assert hold_figures(before, after).regressions == []


def test_a_fifth_more_imports_is_found(known: dict[str, Any]) -> None:
    after = copy.deepcopy(known)
    after["imports"]["help/own_modules"] *= 1.2
    assert [one.figure for one in hold_figures(after, known).regressions] == ["help/own_modules"]


def test_ten_null_runs_raise_nothing(known: dict[str, Any]) -> None:
    for _ in range(10):
        assert hold_figures(copy.deepcopy(known), known).regressions == []
    counts = [figures.decode() for _ in range(2)]
    assert counts[0] == counts[1]


def test_work_that_is_really_there_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = adaln.residual_norm_reference

    def wasteful(x: torch.Tensor, y: torch.Tensor, *rest: Any, **more: Any) -> Any:
        return plain(x, y.clone(), *rest, **more)

    before = {"step": figures.step()}
    monkeypatch.setattr(adaln, "residual_norm_reference", wasteful)
    report = hold_figures({"step": figures.step()}, before, fail_over=0.0)
    assert {"bytes", "launches", "allocations"} <= {one.figure for one in report.regressions}


def noisy(seed: int, *, count: int = 20) -> list[float]:
    """Seconds as a shared machine gives them: jitter, and now and then twice as long."""
    draw = random.Random(seed)
    return [
        (1 + abs(draw.gauss(0, 0.04))) * (2.0 if draw.random() < 0.15 else 1.0)
        for _ in range(count)
    ]


class Machine:
    """Processes on a machine that others use: each is `luck` faster or slower than the next for as
    long as it lives, all of them drift together, and a run may be hit by a burst.
    """

    def __init__(self, seed: int, *, slower: float = 1.0, luck: float = 0.04) -> None:
        self.draw, self.slower, self.luck = random.Random(seed), slower, luck
        self.started = 0

    def _process(self, factor: float) -> Callable[[str], dict[str, Any]]:
        own = factor * math.exp(self.draw.gauss(0, self.luck))

        def run(work: str) -> dict[str, Any]:
            burst = 1 + self.draw.expovariate(4) if self.draw.random() < 0.2 else 1.0
            return {"cpu": own * self.drift * burst * math.exp(self.draw.gauss(0, 0.04))}

        return run

    @contextlib.contextmanager
    def pair(self) -> Iterator[tuple[Any, Any]]:
        self.started += 1
        self.drift = math.exp(self.draw.gauss(0, 0.3))
        yield self._process(self.slower), self._process(1.0)


def found_worse(seed: int, **changes: float) -> int:
    machine = Machine(seed, **changes)
    ratios, _ = in_turns(machine.pair, gate.WORKS, fail_over=0.05)
    return sum(one.worse for one in ratios)


def test_noise_is_no_regression_and_a_tenth_is() -> None:
    """Ten runs of all works beside load, ten times; processes differ by 4 %."""
    assert sum(found_worse(seed) for seed in range(100)) == 0
    found = [found_worse(1000 + seed, slower=1.1) for seed in range(25)]
    assert sum(found) >= 0.96 * 25 * len(gate.WORKS)
    low, high = ratio_interval(noisy(1), noisy(2))
    assert low < 1 < high


def test_a_suspected_work_is_run_again() -> None:
    """By twice as many fresh processes, whose word counts: luck that held once is no regression."""
    speeds = itertools.chain([1.2] * 8, [1.0] * 16)

    @contextlib.contextmanager
    def pair() -> Iterator[tuple[Any, Any]]:
        speed = next(speeds)
        yield lambda work: {"cpu": speed if work == "step" else 1.0}, lambda work: {"cpu": 1.0}

    said: list[str] = []
    ratios, _ = in_turns(pair, ["step", "train"], fail_over=0.05, report=said.append)
    assert [(one.work, one.worse, one.confirmed) for one in ratios] == [
        ("step", False, True),
        ("train", False, False),
    ]
    assert (ratios[0].ratio, ratios[0].starts) == (
        1.0,
        16,
    ) and "step: slower, and run again to be sure" in said


def test_intervals_hold_what_they_promise() -> None:
    """49 of 50 hold the truth, of values with heavy tails too; few values promise nothing."""
    for tails in (False, True):
        draw, inside = random.Random(1), 0
        for _ in range(400):
            values = [draw.gauss(0.3, 1) / (draw.random() if tails else 1) for _ in range(8)]
            values = [0.3 + draw.choice((-1, 1)) * abs(value - 0.3) for value in values]
            low, high = interval(values)
            inside += low <= 0.3 <= high
        assert 0.96 <= inside / 400 < 1
    subsets = [c for n in range(1, 9) for c in itertools.combinations(range(8), n)]
    means = sorted(statistics.fmean(subset) for subset in subsets)
    assert interval([4, 0, 7, 2, 1, 6, 5, 3]) == pytest.approx((means[1], means[-2]))
    assert interval([1.0] * 6) == (-math.inf, math.inf)


def test_a_constant_difference_within_the_limit_is_none() -> None:
    starts = [([1.04] * 3, [1.0] * 3)] * 8
    one = judged("step", starts, fail_over=0.05)
    assert one.low > 1 and not one.worse
    assert judged("step", starts, fail_over=0.03).worse


def test_sides_take_turns_and_say_what_they_cannot_run() -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Any:
        def run(work: str) -> dict[str, Any]:
            order.append(name)
            return {"error": "no such work"} if work == "new" else {"cpu": seconds}

        return run

    def pair() -> Any:
        return contextlib.nullcontext((side("here", 1.2), side("there", 1.0)))

    ratios, left_out = in_turns(pair, ["new", "song"], starts=7, rounds=2, fail_over=0.05)
    warm, turn = ["here", "there"], ["here", "there", "there", "here"]
    assert order[:8] == warm + warm + turn
    assert order[8:14] == [
        "there",
        "here",
        "there",
        "here",
        "here",
        "there",
    ]  # "new" is not asked again
    assert [(one.work, one.worse, one.starts) for one in ratios] == [("song", True, 14)]
    assert left_out == {"new": "here: no such work; there: no such work"}


def document(path: Path, results: Any) -> str:
    path.write_text(json.dumps({"schema_version": 1, "env": {"cpu": "x"}, "results": results}))
    return str(path)


ROW = {
    "benchmark": "step",
    "case": "a",
    "provider": "mudit",
    "note": None,
    "ratio": 2.0,
    "threads": 1,
    "seconds_p50": 1.0,
    "samples": [1.0, 1.01, 0.99, 1.0, 1.02],
    "figures": {"launches": 100},
}


def test_compare_matches_rows_by_their_words() -> None:
    keys = dict(flatten([ROW]))
    assert set(keys) == {
        ("step · a · mudit", "ratio"),
        ("step · a · mudit", "seconds_p50"),
        ("step · a · mudit", "launches"),
    }
    other = [ROW | {"provider": "peer"}]
    report = compare([ROW], other)
    assert (report.changes, report.only_before) == ([], ["step · a · mudit"])


def test_compare_fails_over_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = document(tmp_path / "a.json", [ROW])
    after = document(tmp_path / "b.json", [ROW | {"figures": {"launches": 110}, "ratio": 1.97}])
    assert mudit(["bench", "compare", before, after, "--fail-over", "5%"]) == 4
    assert "launches (+10.0 %)" in capsys.readouterr().err
    assert mudit(["bench", "compare", before, after, "--fail-over", "20%", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert found["regressions"] == 0 and {c["figure"] for c in found["changes"]} == {
        "launches",
        "ratio",
    }


def test_a_time_is_worse_with_its_whole_interval_only() -> None:
    jitter = ROW | {"seconds_p50": 1.2, "samples": [0.9, 1.2, 2.0, 0.95, 1.3]}
    slower = ROW | {"seconds_p50": 1.2, "samples": [1.2, 1.21, 1.19, 1.2, 1.22]}
    assert compare([ROW], [jitter]).regressions == []
    assert [one.figure for one in compare([ROW], [slower]).regressions] == ["seconds_p50"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "{a}", "{a}", "--fail-over", "much"], "no share: write 5% or 0.05"),
        (["compare", "{a}", "nothing.json"], "no results file 'nothing.json'"),
        (["compare", "{a}", "{bad}"], "is no document of results"),
        (["gate", "no-such-commit"], "git cannot check out 'no-such-commit'"),
        (["gate", "main", "--update"], "leave BASE out"),
        (["gate", "main", "--starts", "3"], "3 is not in the range 7<=x<=10"),
    ],
    ids=["share", "missing", "foreign", "commit", "update", "starts"],
)
def test_refusals(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"a": document(tmp_path / "a.json", [ROW]), "bad": str(tmp_path / "bad.json")}
    Path(places["bad"]).write_text("{}")
    assert mudit(["bench", *(part.format(**places) for part in arguments)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_two_checkouts_of_one_commit_are_equal() -> None:
    found = gate.against("HEAD", starts=7, rounds=3, works=("step",), count=False)
    assert found["regressions"] == [] and found["left_out"] == {}
    assert 0.7 < found["ratios"][0]["ratio"] < 1.4
    with pytest.raises(InputError, match="6 starts of each side: an interval needs 7"):
        gate.against("HEAD", starts=6)


def test_the_ledger_is_off_outside_its_block() -> None:
    with Ledger() as ledger:
        torch.ones(2) + 1
    counts = ledger.launches
    torch.ones(2) + 1
    assert ledger.launches == counts
