"""The DeepSpeed configuration of a recipe: derived, saved beside the run, never written by hand.

    elements of a bucket = min(5e7, max(parameters / 8, 1))
    micro-batches of a rank = ceil(packs_per_step / (world / sequence_parallel))

so that eight reductions can hide behind the backward pass.

    config = deepspeed_config(recipe, parameters=380_000_000, world=64, device="cuda")
    save_deepspeed_config(config, Path("runs/a"))

Gradients: the trainer divides each loss by the weight of the *global* batch and wants a sum,
DeepSpeed averages over ranks: the strategy multiplies each loss by the number of ranks and calls
engine.backward(loss, scale_wrt_gas=False).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mudit_engine.errors import ConfigError
from mudit_engine.files import write_json

if TYPE_CHECKING:
    from mudit_engine.training.recipe import Recipe

FILE = "deepspeed.json"
# above it a reduction takes longer than what is left of the backward pass to hide it
LARGEST_BUCKET = 50_000_000
BUCKETS = 8
NEVER = 2**31 - 1  # DeepSpeed's own progress lines


def data_ranks(recipe: Recipe, world: int) -> int:
    """Ranks that take different songs. Raises ConfigError when sequence_parallel does not divide
    the world.
    """
    share = recipe.parallel.sequence_parallel
    if world % share:
        raise ConfigError(
            f"parallel.sequence_parallel={share} does not divide the {world} ranks: use a divisor, "
            f"or other ranks"
        )
    return world // share


def micro_batches(recipe: Recipe, world: int) -> int:
    """Forward and backward passes of a rank in a full step."""
    return math.ceil(recipe.data.packs_per_step / data_ranks(recipe, world))


def check_heads(heads: int, ranks: int, *, what: str = "heads") -> None:
    """Raises ConfigError when Ulysses cannot deal the heads out evenly."""
    if heads % ranks:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ConfigError(
            f"parallel.sequence_parallel={ranks} must divide the model's {heads} {what}: use one "
            f"of {fitting}"
        )


def bucket_sizes(parameters: int) -> dict[str, int]:
    """Elements of a gradient bucket, of a gather, and below which a tensor stays whole (stage 3),
    for a model of so many parameters.
    """
    bucket = int(min(LARGEST_BUCKET, max(parameters // BUCKETS, 1)))
    return {
        "reduce": bucket,
        "gather": bucket,
        "persistence": int(min(100_000, parameters // 2000)),
    }


def reduce_op(stage: int) -> str:
    """How DeepSpeed reduces gradients over the ranks. Our losses are divided by the weight of the
    global batch, so a sum is what is wanted; 0.19.8 refuses it at stage 3.
    """
    return "mean" if stage == 3 else "sum"


def deepspeed_config(
    recipe: Recipe,
    *,
    parameters: int,
    world: int,
    device: str = "cuda",
    zero_stage: int | None = None,
) -> dict[str, Any]:
    """The document that deepspeed.initialize takes.

    parameters: trained parameters of the network (of the phase, for a task with several); world:
    all ranks; device: "cuda" or "cpu". zero_stage replaces the recipe's, for a phase that cannot
    take it. Raises ConfigError where recipe and world do not fit.
    """
    parallel, sizes = recipe.parallel, bucket_sizes(parameters)
    stage = parallel.zero_stage if zero_stage is None else zero_stage
    accumulation = micro_batches(recipe, world)
    reduce_bucket = parallel.reduce_bucket or sizes["reduce"]
    gather_bucket = parallel.gather_bucket or sizes["gather"]
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": reduce_bucket,
        "allgather_bucket_size": gather_bucket,
        # streams: a CPU has none
        "overlap_comm": device != "cpu" and stage > 0
        if parallel.overlap_comm is None
        else parallel.overlap_comm,
        "contiguous_gradients": True,
    }
    if parallel.offload != "none" and stage > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device != "cpu"}
    if stage == 3:
        persistence = (
            sizes["persistence"]
            if parallel.persistence_threshold is None
            else parallel.persistence_threshold
        )
        zero |= {
            "stage3_prefetch_bucket_size": gather_bucket,
            "stage3_param_persistence_threshold": persistence,
            "stage3_max_live_parameters": parallel.max_live_parameters,
            "stage3_max_reuse_distance": parallel.max_live_parameters,
            "zero_hpz_partition_size": parallel.hpz_partition_size,
            "zero_quantized_weights": parallel.quantized_weights,
            "zero_quantized_gradients": parallel.quantized_gradients,
        }
        if parallel.offload == "all":
            zero["offload_param"] = {"device": "cpu", "pin_memory": device != "cpu"}
    config: dict[str, Any] = {
        # a micro-batch is one pack, whatever the number of its songs
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * world,
        "gradient_clipping": recipe.optimizer.clip,
        "gradient_allreduce_op": reduce_op(stage),
        "steps_per_print": NEVER,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    if recipe.precision == "bf16":
        config["bf16"] = {"enabled": True}
        # DeepSpeed's own defaults are bf16, whose rounding grows with the ranks
        config["communication_data_type"] = parallel.reduce_dtype
        config["data_types"] = {"grad_accum_dtype": parallel.accumulate_dtype}
    return config


def save_deepspeed_config(
    config: dict[str, Any], folder: Path, *, phase: str | None = None
) -> Path:
    """Writes deepspeed.json (deepspeed.PHASE.json for a task with several phases)."""
    path = folder / (FILE if phase is None else f"deepspeed.{phase}.json")
    write_json(path, config)
    return path
