"""The DeepSpeed document follows from the recipe, and what does not fit is refused before anything
is started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mudit_engine.errors import ConfigError
from mudit_engine.training.parallel.deepspeed_config import (
    bucket_sizes,
    check_heads,
    deepspeed_config,
    micro_batches,
)
from small_songs import small_recipe


def recipe(**changes: Any) -> Any:
    return small_recipe(Path("x"), strategy="deepspeed", **changes)


def test_batches_follow_the_ranks() -> None:
    for packs, world, sp, expected in ((8, 4, 1, 2), (8, 3, 1, 3), (8, 4, 2, 4), (1, 4, 1, 1)):
        one = recipe(data__packs_per_step=packs, parallel__sequence_parallel=sp)
        config = deepspeed_config(one, parameters=1000, world=world)
        assert micro_batches(one, world) == config["gradient_accumulation_steps"] == expected
        assert config["train_batch_size"] == expected * world


def test_buckets_let_communication_hide() -> None:
    assert (
        bucket_sizes(380_000_000)["reduce"] == 47_500_000
        and bucket_sizes(3_000_000_000)["reduce"] == 50_000_000
    )
    assert bucket_sizes(3)["reduce"] == 1
    zero = deepspeed_config(recipe(parallel__reduce_bucket=7), parameters=380_000_000, world=64)[
        "zero_optimization"
    ]
    assert (
        zero["reduce_bucket_size"] == 7
        and zero["allgather_bucket_size"] == 47_500_000
        and zero["overlap_comm"] is True
    )
    assert (
        deepspeed_config(recipe(), parameters=8, world=2, device="cpu")["zero_optimization"][
            "overlap_comm"
        ]
        is False
    )


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"parallel__zero_stage": 2, "parallel__offload": "optimizer"},
            {"offload_optimizer": {"device": "cpu", "pin_memory": True}},
        ),
        (
            {"parallel__zero_stage": 3, "parallel__offload": "all"},
            {"offload_param": {"device": "cpu", "pin_memory": True}},
        ),
        (
            {"parallel__zero_stage": 3, "parallel__hpz_partition_size": 8},
            {"zero_hpz_partition_size": 8},
        ),
        (
            {"parallel__zero_stage": 3, "parallel__quantized_weights": True},
            {"zero_quantized_weights": True},
        ),
        (
            {"parallel__zero_stage": 3, "parallel__persistence_threshold": 0},
            {"stage3_param_persistence_threshold": 0},
        ),
    ],
    ids=["offload", "offload-all", "hpz", "quantized", "persistence"],
)
def test_fields_arrive(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    zero = deepspeed_config(recipe(**changes), parameters=10_000, world=64)["zero_optimization"]
    assert {name: zero[name] for name in expected} == expected


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"parallel__hpz_partition_size": 8},
            "hpz_partition_size=8 has an effect with zero_stage=3 only, not 1",
        ),
        ({"parallel__offload": "all"}, "offload=all moves weights"),
        ({"parallel__zero_stage": 0, "precision": "bf16"}, "bf16 with zero_stage=0 drifts"),
        (
            {"strategy": "single", "parallel__zero_stage": 2},
            "section 'parallel' has no effect on strategy 'single'",
        ),
        (
            {"parallel__zero_stage": 3, "parallel__mics_shard_size": 8},
            "took MiCS out before 0.19.8; parallel.hpz_partition_size",
        ),
    ],
    ids=["hpz", "offload", "bf16-0", "single", "mics"],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_recipe(Path("x"), **{"strategy": "deepspeed", **changes})


def test_sequence_parallel_must_divide() -> None:
    with pytest.raises(ConfigError, match="sequence_parallel=2 does not divide the 3 ranks"):
        deepspeed_config(recipe(parallel__sequence_parallel=2), parameters=8, world=3)
    with pytest.raises(
        ConfigError, match="must divide the model's 12 heads: use one of 1, 2, 3, 4, 6, 12"
    ):
        check_heads(12, 8)


def test_the_switch_of_old_recipes_is_read() -> None:
    assert small_recipe(Path("x"), dit__checkpointing=True).dit.checkpointing == "full"
    assert small_recipe(Path("x"), dit__checkpointing=False).dit.checkpointing == "none"
