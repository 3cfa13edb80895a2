"""Answers drawn from operations: groups, least times, the costs in words, gaps of a GPU, and the
page that shows them.
"""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from mudit_engine.profiling import drawings, page
from mudit_engine.profiling.ledger import Moment, Op
from mudit_engine.profiling.summary import (
    Rates,
    Stage,
    avoidable_costs,
    captured_graph_bytes,
    fastest,
    group,
    host_seconds,
    ideal_to_actual,
    launch_gaps,
    memory_timeline,
    stage_documents,
)

RATES = Rates(flops=100.0, bytes=10.0, device="cpu")


def op(name: str, kind: str, place: str, seconds: float, **more: Any) -> Op:
    values = {"flops": 0.0, "bytes": 0, "cpu_seconds": seconds, "shapes": "2x2"} | more
    return Op(name, kind, place, 0.0, seconds, **values)


OPS = [
    op("mm", "product", "step/blocks/qkv", 2.0, flops=100.0),
    op("mm", "product", "step/blocks/qkv", 1.0, flops=100.0),
    op("cat", "copy", "step", 0.5, bytes=5),
    op("gelu", "pointwise", "step/blocks/up", 1.5, bytes=10),
    op("mul", "pointwise", "decode", 0.25, bytes=2),
]
STAGES = [Stage("step", 6.0, 6.0, 2), Stage("decode", 0.5, 0.5, 1)]


def test_groups_and_what_they_could_take() -> None:
    (product, gelu, *_) = found = group(OPS)
    assert (product.stage, product.place, product.calls) == ("step", "blocks/qkv", 2)
    assert product.least(RATES) == 2.0 and product.avoidable(RATES) == 1.0
    assert gelu.least(RATES) == 1.0 and gelu.avoidable(RATES) == 0.5
    assert [one.least(RATES) for one in found if one.kind == "copy"] == [0.0]
    assert host_seconds(found, STAGES) == {"step": 1.0, "decode": 0.25}


def test_costs_are_largest_first_and_say_why() -> None:
    costs = avoidable_costs(group(OPS), STAGES, RATES)
    assert [cost.seconds for cost in costs] == sorted((c.seconds for c in costs), reverse=True)
    first = {cost.what: cost for cost in costs}
    product, copies = first["products in step"], first["copies in step"]
    assert product.seconds == 1.0 and product.share == pytest.approx(1 / 6.5)
    assert "67 % of the measured GEMM rate: 3.00 s instead of 2.00 s" in product.words
    assert "blocks/qkv: mm of 2x2" in product.words
    assert copies.seconds == 0.5 and "1 copies" in copies.words
    assert "host's in step: 1.00 s" in first["host in step"].words


def test_the_waterfall_adds_up_to_the_run() -> None:
    steps = ideal_to_actual(group(OPS), STAGES, RATES)
    assert sum(seconds for _, seconds in steps) == pytest.approx(6.5)
    assert steps[0] == ("all FLOPs at the GEMM rate", 2.0)


def test_stages_carry_their_share_of_the_peak() -> None:
    (step, decode) = stage_documents(STAGES, group(OPS), RATES)
    assert step["flops"] == 200.0 and step["gemm_fraction"] == pytest.approx(200 / 6 / 100)
    assert step["operations"] == 4 and decode["host_seconds"] == 0.25


def test_each_operation_counts_at_its_fastest() -> None:
    slow = [op("mm", "product", "a", 2.0), op("add", "pointwise", "a", 1.0, cpu_seconds=0.25)]
    fast = [op("mm", "product", "a", 1.0), op("add", "pointwise", "a", 3.0, cpu_seconds=0.5)]
    other = [op("add", "pointwise", "a", 0.1)]
    assert [one.seconds for one in fastest([slow, fast, other])] == [1.0, 1.0]
    assert [one.seconds for one in fastest([slow, fast], by_cpu=True)] == [1.0, 0.25]


def test_the_memory_timeline_keeps_peaks() -> None:
    moments = [Moment(i / 1000, "x", {"activations": 1 + 99 * (i == 500)}) for i in range(1001)]
    kept = memory_timeline(moments, points=20)
    assert len(kept) == 20 and max(m["bytes"]["activations"] for m in kept) == 100
    assert memory_timeline([]) == []


def kernel(start: float, length: float, number: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "kernel",
        "ts": start,
        "dur": length,
        "args": {"correlation": number},
    }


def launch(start: float, length: float, number: int) -> dict[str, Any]:
    return kernel(start, length, number) | {"cat": "cuda_runtime"}


def test_gaps_are_the_hosts_only_when_the_launch_came_late() -> None:
    trace = {
        "traceEvents": [
            launch(0, 1, 1),
            kernel(10, 10, 1),
            launch(2, 1, 2),
            kernel(25, 5, 2),  # launched long before: the device's own gap
            launch(38, 2, 3),
            kernel(41, 9, 3),  # launched after the device ran dry
            {"ph": "M", "name": "process_name"},
        ]
    }
    found = launch_gaps(trace)
    assert found is not None and found["kernels"] == 3
    assert found["seconds"] == pytest.approx(40e-6) and found["busy_share"] == pytest.approx(0.6)
    assert found["gap_seconds"] == pytest.approx(16e-6)
    assert found["host_bound_seconds"] == pytest.approx(11e-6)
    assert launch_gaps({"traceEvents": []}) is None


def test_pools_of_captured_graphs_are_told_from_the_rest() -> None:
    segments = [
        {"total_size": 10, "segment_pool_id": (0, 0)},
        {"total_size": 7, "segment_pool_id": (0, 3)},
    ]
    assert captured_graph_bytes(segments) == 7


def document() -> dict[str, Any]:
    groups = group(OPS)
    return {
        "title": "a <song>",
        "env": {
            "versions": {"torch": "2"},
            "commit": "abc",
            "cpu": "x",
            "cores": 2,
            "gpus": [],
            "command": "mudit </script>",
        },
        "threads": 1,
        "load": 9.0,
        "busy": True,
        "rounds": 2,
        "audio_seconds": 10.0,
        "rates": {"flops": 100.0, "bytes": 10.0, "device": "cpu"},
        "stages": stage_documents(STAGES, groups, RATES),
        "spans": [{"stage": "step", "start": 0.0, "seconds": 6.0}],
        "waterfall": ideal_to_actual(groups, STAGES, RATES),
        "costs": [vars(cost) for cost in avoidable_costs(groups, STAGES, RATES)],
        "operations": [one.document(RATES) for one in groups],
        "memory": {
            "peak_bytes": 5 << 20,
            "peak": {"weights": 4 << 20, "activations": 1 << 20},
            "peak_place": "step",
            "captured_graph_bytes": 0,
            "timeline": [
                {"at": 0.0, "bytes": {"weights": 1}},
                {"at": 1.0, "bytes": {"weights": 2}},
            ],
        },
        "gpu": {
            "kernels": 3,
            "seconds": 1.0,
            "busy_share": 0.5,
            "host_bound_share": 0.25,
            "host_bound_seconds": 0.25,
            "gap_seconds": 0.5,
        },
        "trace": None,
    }


def test_the_page_stands_alone_and_holds_its_json() -> None:
    text = page.html(document())
    assert "a &lt;song&gt;" in text and "http" not in text and "<link" not in text
    found = re.search(r'<script id="profile" type="application/json">(.*?)</script>', text)
    assert found and text.count("<script") == 1
    assert json.loads(found[1])["env"]["command"] == "mudit </script>"
    assert text.count("<svg") == 4 and text.count("<li>") == 3
    assert "busy with other work" in text and "waited for the host in 25 %" in text


def test_drawings_are_well_formed() -> None:
    made = document()
    for svg in (
        drawings.timeline(made["spans"]),
        drawings.waterfall(made["waterfall"]),
        drawings.roofline(made["operations"], made["rates"]),
        drawings.memory(made["memory"]["timeline"]),
        drawings.roofline([], made["rates"]),
        drawings.memory([]),
    ):
        assert len(ElementTree.fromstring(svg)) or "memory" in svg
