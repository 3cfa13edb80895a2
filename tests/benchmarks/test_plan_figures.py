"""What the benchmarks of plans and saves found is what they are for; slowly, it is found anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mudit_engine.benchmarks import save_stall
from mudit_engine.benchmarks.registry import Options, run

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def rows(name: str) -> dict[str, Any]:
    document = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return {row["case"] + " " + row["provider"]: row for row in document["results"]}


def test_measured_steps_lie_within_the_plans_range() -> None:
    found = rows("plan_time").values()
    assert {row["case"] for row in found} == {"single", "zero-1, 2 ranks"}
    for row in found:
        low, high = row["figures"]["seconds_range"]
        assert low <= row["cpu_seconds_p50"] <= high and row["figures"]["within"]
        assert high < 1.6 * low, "a range that holds anything says nothing"


def test_a_lora_takes_a_part_of_the_memory() -> None:
    lora, whole = rows("lora_memory").values()
    assert lora["memory_bytes"] < 0.5 * whole["memory_bytes"]
    for row in (lora, whole):
        # allocators and peft's layers on the one hand; on the other, activations are gone when the
        # optimiser works
        assert abs(row["figures"]["planned_error"]) < 0.2


def test_saving_beside_the_steps_stalls_them_less_than_a_hundredth() -> None:
    beside, between = (row["figures"] for row in rows("save_stall").values())
    for name in ("stall_share", "stall_cpu_share"):
        assert beside[name] < 0.01 and beside[name] < 0.5 * between[name]
    assert beside["modelled"]["ranks"] == 64 and beside["modelled"]["stall_share"] < 0.01


def test_shares_are_of_the_slowest_rank() -> None:
    rank = {"walls": [1.0, 3.0], "cpus": [0.5, 0.5], "step_seconds": 0.2, "state_bytes": 10}
    other = {**rank, "walls": [2.0, 1.0], "step_cpu_seconds": 0.1}
    row = save_stall._row("x", [{**rank, "step_cpu_seconds": 0.1}, other], ours=True)
    assert row.samples == [2.0, 3.0] and row.seconds_p50 == 2.5
    assert row.figures["stall_share"] == pytest.approx(2.5 / (50 * 0.2))
    assert row.figures["stall_cpu_share"] == pytest.approx(0.5 / (50 * 0.1))
    assert row.figures["state_bytes"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plan-time", "lora-memory"])
def test_found_anew(name: str) -> None:
    found = run(name, Options(rounds=4))
    assert len(found) == 2
    if name == "plan-time":
        assert all(row.figures["within"] for row in found), [row.figures for row in found]
