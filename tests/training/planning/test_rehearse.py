"""State and messages of ZeRO: closed forms against the real engine, on a fake world and on real
ranks.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from forked import forking
from launch_ranks import start
from mudit_engine.config import load_config
from mudit_engine.errors import MuditError
from mudit_engine.training.planning import rehearse as rehearsing
from mudit_engine.training.planning.rehearse import Rehearsal, compare, rehearse, rehearse_all
from mudit_engine.training.planning.state_bytes import (
    Parameters,
    Sharding,
    messages,
    parameters_of,
    state_bytes,
)
from mudit_engine.training.recipe import ParallelConfig

SMALL = {"dit": {"width": 256, "heads": 2, "blocks": 3, "lyric_width": 128, "lyric_blocks": 1}}
GIB = 1 << 30


def check(result: dict[str, Any]) -> None:
    assert result["state"]["all"]["measured"] > 1 << 20
    for kind, row in result["state"].items():
        assert abs(row["error"]) < 0.01, (kind, row)
    for kind, row in result["sent"].items():
        assert row["measured"] and abs(row["error"]) < 0.01, (kind, row)


def test_rehearsals_at_64_ranks_keep_and_send_what_the_closed_forms_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stage 2 keeps whole tensors of its part, stage 3 has persistent ones: the two closed forms
    with most to get wrong.
    """
    pytest.importorskip("deepspeed")
    monkeypatch.setattr(rehearsing, "subprocess", forking())
    wanted = ((2, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16"))
    cases = [
        Rehearsal("musit-380m", 64, {"zero_stage": stage}, precision, overrides=SMALL)
        for stage, precision in wanted
    ]
    for rehearsal, measured in zip(cases, rehearse_all(cases), strict=True):
        check(compare(rehearsal, measured))


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_real_ranks_keep_and_send_what_the_closed_forms_say(world: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    cases = [
        Rehearsal("musit-380m", world, {"zero_stage": stage}, overrides=SMALL) for stage in range(4)
    ]
    specs, out, log = tmp_path / "specs.json", tmp_path / "out.json", tmp_path / "log"
    specs.write_text(json.dumps([asdict(case) for case in cases]))
    script = str(Path(__file__).parents[3] / "training/planning/rehearse.py")
    processes = start(world, script, str(specs), str(out), log=log)
    assert [process.wait(600) for process in processes] == [0] * world, log.with_suffix(
        ".0"
    ).read_text()[-2000:]
    for rank in range(world):
        for case, measured in zip(
            cases, json.loads((tmp_path / f"out.json.{rank}").read_text()), strict=True
        ):
            check(compare(case, measured))


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "stage"), [("musit-380m", 1), ("musit-1b", 3)])
def test_full_size_rehearsals(preset: str, stage: int) -> None:
    pytest.importorskip("deepspeed")
    rehearsal = Rehearsal(preset, 64, {"zero_stage": stage}, "bf16" if stage == 1 else "fp32")
    check(compare(rehearsal, rehearse(rehearsal)))


def test_a_rehearsal_that_fails_says_why() -> None:
    pytest.importorskip("deepspeed")
    with pytest.raises(MuditError, match="at 8 ranks failed.*zero_stage"):
        rehearse(Rehearsal("musit-380m", 8, {"zero_stage": 7}))


@pytest.mark.parametrize(("stage", "gib"), [(1, 1.5), (2, 0.8), (3, 0.1)])
def test_state_of_380m_on_64_ranks(stage: int, gib: float) -> None:
    """Between micro-batches, all in bf16, without an average: the figures that other tools give
    too. Gradients that are added up in fp32 cost two bytes more a weight at stage 1.
    """
    parameters = parameters_of(load_config("musit-380m").dit)
    half = ParallelConfig(zero_stage=stage, reduce_dtype="bf16", accumulate_dtype="bf16")
    kept = {}
    for name, parallel in (("half", half), ("default", ParallelConfig(zero_stage=stage))):
        sharding = Sharding(stage, 64, average=False, parallel=parallel)
        state = state_bytes(parameters, sharding, rank=0)
        kept[name] = sum(v for kind, v in state.items() if kind not in ("buckets", "gathered"))
    assert kept["half"] / GIB == pytest.approx(gib, abs=0.06)
    if stage == 1:
        assert kept["default"] - kept["half"] == 2 * parameters.count


def test_more_ranks_share_the_optimiser_and_nothing_more() -> None:
    parameters = parameters_of(load_config("tiny").dit)
    two, eight = (state_bytes(parameters, Sharding(1, world)) for world in (2, 8))
    assert two["weights"] == pytest.approx(eight["weights"], rel=1e-4)
    assert two["gradients"] == eight["gradients"]
    for kind in ("master", "moments", "average"):
        assert two[kind] == pytest.approx(4 * eight[kind], rel=1e-3)


def test_stage_two_counts_whole_tensors_of_a_part() -> None:
    parameters = Parameters(((10, 20, 10),))
    given: dict[str, Any] = {"precision": "fp32", "average": False, "overlap": False}
    sharding = Sharding(2, 2, **given)
    # 20 elements each: the middle tensor reaches into both parts
    assert [state_bytes(parameters, sharding, rank=rank)["gradients"] for rank in (0, 1)] == [
        4 * 30,
        4 * 30,
    ]
    assert state_bytes(parameters, sharding, micro_batches=2)["gradients"] == 2 * 4 * 30


def test_less_live_weight_is_gathered_twice() -> None:
    parameters = parameters_of(load_config("tiny").dit)
    for live, times in ((1_000_000_000, 1), (1000, 2)):
        sharding = Sharding(3, 4, parallel=ParallelConfig(zero_stage=3, max_live_parameters=live))
        gather = next(
            m for m in messages(parameters, sharding, micro_batches=2) if m.kind == "all-gather"
        )
        assert gather.size == pytest.approx(2 * 2 * times * parameters.count, rel=0.05)
        assert state_bytes(parameters, sharding)["gathered"] <= 2 * live
    assert messages(parameters, Sharding(1, 1), micro_batches=1) == []
