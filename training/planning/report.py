"""A plan as a document: what was asked, what was assumed, the options, the best one in full.

    report(make_plan(request, lengths))["best"]["step_seconds_range"]

The paper says how many GPUs trained for how many days, not how often they went through the songs:
its GPU-days stand beside those of the plan's own number of epochs, which is named with them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mudit_engine.training.planning.clusters import BETTER, GIB, WORSE, Cluster
from mudit_engine.training.planning.plan import Option, Plan, message_seconds
from mudit_engine.training.planning.state_bytes import Message, Sharding, state_bytes

PAPER = {"gpus": 64, "days": 35, "gpu_hours": 64 * 35 * 24}


def report(plan: Plan, *, most: int = 12) -> dict[str, Any]:
    """The plan as JSON: what was asked, what was assumed, the options, the best one in full."""
    request, cluster = plan.request, plan.request.cluster
    best = plan.best
    return {
        "model": {
            "name": request.config.name,
            "parameters": plan.parameters.count,
            "precision": request.precision,
        },
        "cluster": dataclasses.asdict(cluster.gpu)
        | {"nodes": cluster.nodes, "gpus_per_node": cluster.gpus_per_node, "world": cluster.world},
        "lengths": plan.lengths.describe(),
        "assumptions": dataclasses.asdict(cluster.assumptions),
        "range_assumptions": {"better": BETTER, "worse": WORSE},
        "kind_of_figures": {
            "memory": "computed from the network run on fake tensors and DeepSpeed's partitioning",
            "packing": "the training sampler run on the sample of lengths",
            "time": "modelled; no GPU gave a figure",
        },
        "batch": {
            "songs": round(plan.frames_per_step / plan.lengths.frames.mean()),
            "frames": plan.frames_per_step,
        },
        "training": {"songs": request.songs, "epochs": plan.epochs, "steps": request.steps},
        "paper": PAPER
        | {
            "gpu_days": PAPER["gpus"] * PAPER["days"],
            "gpu_days_here": best.gpu_hours / 24,
            "under_epochs": plan.epochs,
            "epochs_for_as_many_gpu_hours": plan.epochs * PAPER["gpu_hours"] / best.gpu_hours,
        },
        "token_budget": {
            mode: cost.largest_rows(
                _budget(plan, best.stage),
                tokens_per_row=plan.lengths.tokens.sum() / plan.lengths.frames.sum(),
            )
            for mode, cost in plan.costs.items()
        },
        "activation_bytes_per_frame": {
            mode: round(cost.per_row("peak_bytes")) for mode, cost in plan.costs.items()
        },
        "best": option_row(best, cluster)
        | {"messages": [message_row(m, cluster) for m in best.messages], "set": best.overrides},
        "options": [option_row(option, cluster) for option in plan.options[:most]],
        "options_in_all": len(plan.options),
        "options_that_fit": sum(option.fits for option in plan.options),
    }


def _budget(plan: Plan, stage: int) -> float:
    """Bytes that a rank's state leaves to activations."""
    request, cluster = plan.request, plan.request.cluster
    parallel = request.parallel.model_copy(update={"zero_stage": stage})
    sharding = Sharding(
        stage, cluster.world, request.precision, request.average, stage > 0, parallel
    )
    state = sum(state_bytes(plan.parameters, sharding, micro_batches=2).values())
    assumed = cluster.assumptions
    return (cluster.gpu.memory_gib - assumed.context_gib) * GIB / (
        1 + assumed.fragmentation
    ) - state


def message_row(message: Message, cluster: Cluster) -> dict[str, Any]:
    return dataclasses.asdict(message) | {"seconds": message_seconds(message, cluster)}


def option_row(option: Option, cluster: Cluster) -> dict[str, Any]:
    """An option as JSON."""
    return {
        "zero_stage": option.stage,
        "checkpointing": option.checkpointing,
        "micro_batches": option.micro_batches,
        "pack_size": option.pack_size,
        "packs_per_step": option.packs_per_step,
        "packing_efficiency": option.efficiency,
        "memory": option.memory,
        "memory_bytes": option.peak_bytes,
        "memory_share": option.peak_bytes / (cluster.gpu.memory_gib * GIB),
        "fits": option.fits,
        "step_seconds_modelled": option.step_seconds,
        "step_seconds_range": list(option.seconds_range),
        "seconds_modelled": option.seconds,
        "frames_per_second_modelled": option.frames_per_second,
        "flops_share_modelled": option.flops_share,
        "gpu_hours_modelled": option.gpu_hours,
        "gpu_hours_range": [
            option.gpu_hours * end / option.step_seconds for end in option.seconds_range
        ],
    }
