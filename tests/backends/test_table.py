"""Tables of backends: made by measurement, followed where they were made, ignored with a reason."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_cases import make_case
from mudit_engine import ops
from mudit_engine.backends import epilogues, table
from mudit_engine.backends.registry import ATTENTION
from mudit_engine.backends.table import Table
from mudit_engine.benchmarks import tune
from mudit_engine.benchmarks.tune import Tuning
from mudit_engine.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user without tables."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(table.VARIABLE, raising=False)
    monkeypatch.setattr(ops, "_told", set())
    table.forget()
    yield tmp_path
    monkeypatch.undo()
    table.forget()


def make(
    op: str = "attention", order: tuple[str, ...] = ("sdpa", "eager"), **changes: Any
) -> Table:
    row = {"op": op, "width": 64, "dtype": "float32", "bucket": 0, "order": list(order)}
    key = (row["op"], 64, "float32", 0)
    device = replace(table.this_device("cpu"), **changes)
    return Table(device, {key: order}, [row])


def ran(monkeypatch: pytest.MonkeyPatch, **case: Any) -> list[str]:
    """Which of the foreign backends an unnamed call takes; none is our own."""
    seen: list[str] = []
    given = make_case([5, 5], head_dim=64, **case)
    with monkeypatch.context() as patch, torch.no_grad():
        for name in ("sdpa", "flex"):

            def attend(q: torch.Tensor, *_: Any, name: str = name, **options: Any) -> torch.Tensor:
                seen.append(name)
                return q

            patch.setitem(ATTENTION, name, replace(ATTENTION[name], attend=attend))
        ops.attention(given.q, given.k, given.v, given.segments, given.cos, given.sin)
    return seen


def test_nothing_changes_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ran(monkeypatch) == []
    assert "mudit bench tune makes one" in table.in_force("cpu").reason


def test_the_users_table_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()
    table.write(made, table.path_of(made.device))
    assert table.in_force("cpu").table is not None
    assert ran(monkeypatch) == ["sdpa"]
    assert ran(monkeypatch, dtype=torch.bfloat16) == []  # no row
    with ops.use("eager"):
        assert ran(monkeypatch) == []
    monkeypatch.setenv(table.VARIABLE, "off")
    table.forget()
    assert ran(monkeypatch) == []


def test_falls_back_with_the_reason_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(order=("flash3", "nobody", "flex", "eager"))
    table.write(made, table.path_of(made.device))
    with caplog.at_level(logging.WARNING):
        assert ran(monkeypatch) == ran(monkeypatch) == ["flex"]
    assert [record.message for record in caplog.records] == [
        "attention does not run on 'flash3', the fastest measured: backend 'flash3' needs a CUDA "
        "device: use 'eager' here",
        "attention does not run on 'nobody', the fastest measured: it is unknown here",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"torch": "2.0.0"}, "made with torch 2.0.0"),
        ({"triton": "1.0"}, "made with triton 1.0"),
    ],
)
def test_another_version_is_ignored(
    change: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(**change)
    table.write(made, table.path_of(made.device))
    assert ran(monkeypatch) == [] and reason in table.in_force("cpu").reason


def test_another_device_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(name="another card")
    table.write(made, table.path_of(made.device))
    assert "no table of this device" in table.in_force("cpu").reason
    monkeypatch.setenv(table.VARIABLE, str(table.path_of(made.device)))
    table.forget()
    assert ran(monkeypatch) == [] and "name another card" in table.in_force("cpu").reason


def test_a_broken_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table.path_of(table.this_device("cpu"))
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert ran(monkeypatch) == [] and "is no table of backends" in table.in_force("cpu").reason
    monkeypatch.setenv(table.VARIABLE, str(path))  # one that was named is an error
    table.forget()
    with pytest.raises(InputError, match="mudit bench tune"):
        table.in_force("cpu")


def test_the_products_epilogue_is_followed_in_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("linear_gelu", ("cublaslt", "eager"))
    table.write(made, table.path_of(made.device))
    called: list[int] = []
    monkeypatch.setitem(
        epilogues.LINEAR_GELU,
        "cublaslt",
        lambda x, w, b: called.append(1) or epilogues.eager(x, w, b),  # type: ignore[func-returns-value]
    )
    x, w, b = torch.randn(3, 64), torch.randn(8, 64), torch.randn(8)
    with torch.no_grad():
        ops.linear_gelu(x, w, b)
    assert called == [1]
    ops.linear_gelu(x.requires_grad_(), w, b).sum().backward()
    assert called == [1]


@pytest.fixture
def no_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement of a moment; flex_attention takes seconds a call without a compiler."""
    monkeypatch.delitem(ATTENTION, "flex")


def small(**changes: Any) -> Tuning:
    return replace(
        Tuning(head_dims=(64,), widths=(64,), songs={0: (20, 9)}, heads=1, rounds=2), **changes
    )


@pytest.mark.usefixtures("no_flex")
def test_a_measurement_gives_a_table() -> None:
    made = tune.tune(small())
    table.write(made, table.path_of(made.device))
    again = table.read(table.path_of(made.device))
    assert again.orders == made.orders and again.device == made.device
    assert {row["op"] for row in made.details} == set(table.OPS)
    row = made.details[0]
    assert set(row["order"]) == {"eager", "sdpa"} == set(row["backends"])
    assert "CUDA" in row["left_out"]["flash3"]
    assert all(0 < one["error"] < 1e-5 for one in row["backends"].values())
    json.dumps(made.document())
    assert table.in_force("cpu").table is not None


@pytest.mark.usefixtures("no_flex")
def test_a_backend_that_is_wrong_gets_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    sdpa = ATTENTION["sdpa"]
    wrong = replace(sdpa, attend=lambda *a, **o: sdpa.attend(*a, **o) * 1.001)
    monkeypatch.setitem(ATTENTION, "sdpa", wrong)
    (row,) = tune.tune(small(ops=("attention",))).details
    assert "sdpa" not in row["order"] and "is the bar" in row["left_out"]["sdpa"]


@pytest.mark.usefixtures("no_flex")
def test_the_usual_one_stays_unless_another_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for gain, first in ((1.02, "eager"), (1.5, "sdpa")):
        monkeypatch.setattr(
            tune, "ratio", lambda times, name, usual, gain=gain: gain if name == "sdpa" else 1.0
        )
        (row,) = tune.tune(small(ops=("attention",))).details
        assert row["order"][0] == first


@pytest.mark.usefixtures("no_flex")
def test_cases_beyond_the_time_are_left_out() -> None:
    told: list[str] = []
    assert tune.tune(small(seconds=-1.0, report=told.append)).details == []
    assert len(told) == 3 and all("left out" in line for line in told)
