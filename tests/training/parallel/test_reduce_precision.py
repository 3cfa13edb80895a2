"""Gradients cross the ranks and are added up in fp32 unless a recipe says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

from launch_ranks import start
from mudit_engine.training.parallel.deepspeed_config import deepspeed_config
from small_songs import small_recipe, write_songs


def test_configuration(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, strategy="deepspeed", precision="bf16")
    config = deepspeed_config(recipe, parameters=1000, world=2)
    assert config["communication_data_type"] == "fp32"
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    exact = small_recipe(tmp_path, strategy="deepspeed")
    assert "data_types" not in deepspeed_config(exact, parameters=1000, world=2)


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_what_two_ranks_send_and_add_up(tmp_path: Path, stage: int) -> None:
    """Stage 1, where DeepSpeed would change its optimiser, and stage 3, which scatters what it
    reduces, with eight micro-batches a step.
    """
    write_songs(tmp_path / "data")
    arguments = (str(tmp_path / "data"), str(tmp_path), str(stage))
    ranks = start(2, "reduce_precision.py", *arguments, log=tmp_path / "log")
    codes = [rank.wait(300) for rank in ranks]
    assert codes == [0, 0], (tmp_path / "log.0").read_text()[-2000:]
    found = json.loads((tmp_path / f"stage-{stage}.json").read_text())
    assert found["fp32"]["sent"] == ["float32"] and found["fp32"]["added"] == "float32"
    assert found["bf16"]["sent"] == ["bfloat16"] and found["bf16"]["added"] == "bfloat16"
    # the rest of the step is in bf16 either way
    assert found["fp32"]["norms"] == pytest.approx(found["exact"]["norms"], rel=3e-3)
