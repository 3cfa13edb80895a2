"""The plan's time against measured steps: a small song transformer on ranks of this machine's CPU.

    mudit bench run plan-time --out out/plan_time.json

The machine takes a GPU's place in the plan: one thread is a device, its peak that of a large
product of matrices, its bandwidth that of a large copy, both measured here; what loopback carries
is stated (`LOOPBACK`), and little of a step. Seconds are CPU seconds of a rank, in steps and peaks
alike, which other work disturbs little. Held is that the measured step lies within the plan's
range; the ranges are those of every plan (WORSE and BETTER in training/planning/clusters.py).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mudit_engine.benchmarks.registry import Options, Row
from mudit_engine.benchmarks.training_scaling import MODEL, launch, write_data
from mudit_engine.training.dataset.lengths import Lengths
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.planning import step_cost
from mudit_engine.training.planning.clusters import Assumptions, Cluster, Gpu
from mudit_engine.training.planning.plan import Request, make_plan, of_recipe
from mudit_engine.training.recipe import load_recipe

CHANNELS, PACK, PACKS = 16, 512, 4
LOOPBACK = 2.0  # GB/s, one way
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "zero-1, 2 ranks": (2, {"strategy": "deepspeed", "parallel.zero_stage": 1}),
}


def run(options: Options) -> list[Row]:
    """A row a case; figures: the planned seconds, their range, and whether the measured ones lie
    within it. `rounds`: steps that count, after two.
    """
    steps = 2 + (options.rounds or 6)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mudit-plan-") as folder:
        data = Path(folder) / "songs"
        write_data(data, CHANNELS)
        for name, (ranks, changes) in CASES.items():
            options.report(f"{name}: {steps} steps")
            fields = {**_fields(data, steps), **changes}
            place = f"{folder}/{ranks}"
            before = machine()
            told = launch(ranks, {"fields": fields, "run": place, "out": f"{place}.json"})
            after = machine()
            took = [max(rank[step]["cpu"] for rank in told) for step in range(2, steps)]
            # peaks of the time around the steps: a machine is not as fast every minute
            peaks = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
            plan = planned(data, fields, ranks, *peaks)
            low, high = plan["seconds_range"]
            row = Row("plan-time", name, "plan", "ours", rounds=len(took), threads=1)
            row.cpu_seconds_p50, row.samples = statistics.median(took), took
            row.figures = {**plan, "within": low <= row.cpu_seconds_p50 <= high}
            row.ratio = plan["planned_seconds"] / row.cpu_seconds_p50
            row.reference = "measured"
            rows.append(row)
    return rows


def _fields(data: Path, steps: int) -> dict[str, Any]:
    return {
        "data.folder": str(data),
        "data.pack_size": PACK,
        "data.packs_per_step": PACKS,
        "init": None,
        "device": "cpu",
        "steps": steps,
        "schedule.warmup": 2,
        "model_overrides.dit": {**MODEL, "latent_channels": CHANNELS},
        "model_overrides.vae.latent_channels": CHANNELS,
        "log.validate_every": 0,
        "log.tensorboard": False,
        "dit.reference": 0.0,
    }


def machine() -> tuple[float, float]:
    """(TFLOP/s of fp32 products, GB/s of a copy) of one thread, by its CPU seconds."""
    torch.set_num_threads(1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    big = torch.randn(1 << 24)
    product, copy = _fastest(lambda: a @ b), _fastest(lambda: big.clone())
    return 2 * 1024**3 / product / 1e12, 2 * big.nbytes / copy / 1e9


def _fastest(call: Callable[[], Any], rounds: int = 7) -> float:
    took = []
    for _ in range(rounds):
        started = time.thread_time()
        call()
        took.append(time.thread_time() - started)
    return min(took)


def planned(
    folder: Path, fields: dict[str, Any], ranks: int, tflops: float, gbs: float
) -> dict[str, Any]:
    """The plan of the recipe that is measured."""
    overrides = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    recipe = load_recipe("tiny-dit-finetune", overrides=overrides)
    shards = Shards(folder)
    frames, tokens = (np.asarray(shards.rows(n)).astype(np.int64) for n in ("latents", "phonemes"))
    lengths = Lengths(str(folder), frames, tokens, len(frames), 10.77)
    gpu = Gpu("this CPU", 16.0, tflops, tflops, gbs, LOOPBACK, LOOPBACK, 1)
    cluster = Cluster(gpu, 1, ranks, Assumptions(context_gib=0.0))
    config = recipe.model_config_resolved()
    request = of_recipe(Request("tiny", config, cluster, recipe.precision), recipe)

    def eager(*args: Any, **given: Any) -> step_cost.CostModel:
        """The operations that a CPU runs, not the kernels of a GPU."""
        return step_cost.fit(*args, **given, backend="eager")

    best = make_plan(request, lengths, find=eager).best
    return {
        "planned_seconds": best.step_seconds,
        "seconds_range": list(best.seconds_range),
        "parts": best.seconds,
        "product_tflops": tflops,
        "copy_gbs": gbs,
    }
