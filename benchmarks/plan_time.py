"""The plan's time against measured steps: a small song transformer on ranks of this machine's CPU.

    mudit bench run plan-time --out out/plan_time.json

The machine takes a GPU's place in the plan: one thread is a device, its peak that of a large
product of matrices, its bandwidth that of copies of about what a block keeps for its backward
pass, its link that of gloo's all-reduce between two processes, all measured here. A GPU's peak is
its data sheet's: of a measured one products reach more (`GEMM`: 80 to 89 % were measured of
networks of 373 M and 428 M parameters). All other shares, and their ranges, are those of every plan
(training/planning/clusters.py). Seconds are CPU seconds of a rank, in steps and peaks alike, which
other work disturbs little. Held is that the measured step lies within the plan's range.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import torch

from mudit_engine.benchmarks.registry import Options, Row
from mudit_engine.benchmarks.training_scaling import MODEL, launch, write_data
from mudit_engine.errors import MuditError
from mudit_engine.training.dataset.lengths import Lengths
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.planning import step_cost
from mudit_engine.training.planning.clusters import (
    BETTER,
    WORSE,
    Assumptions,
    Cluster,
    Gpu,
    within,
)
from mudit_engine.training.planning.plan import Option, Request, make_plan, of_recipe
from mudit_engine.training.ranks import local_world
from mudit_engine.training.recipe import load_recipe

CHANNELS, PACK, PACKS = 16, 512, 4
KEPT = 16 << 20  # bytes of a copy
SENT = 32 << 20  # bytes of an all-reduce
GEMM = (0.75, 0.85, 0.95)  # of the measured peak, in products: worse, assumed, better
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
    between = link()
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
            tflops, gbs = ((a + b) / 2 for a, b in zip(before, after, strict=True))
            plan = planned(data, fields, ranks, tflops, gbs, between)
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
    rows = torch.randn(KEPT // 4)
    other = torch.empty_like(rows)
    product, copy = _fastest(lambda: a @ b), _fastest(lambda: other.copy_(rows), 31)
    return 2 * 1024**3 / product / 1e12, 2 * rows.nbytes / copy / 1e9


def link() -> float:
    """GB/s that a rank of two gets through gloo, one way, by its CPU seconds."""
    command = [sys.executable, "-m", "mudit_engine.benchmarks.plan_time", "link"]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **at, "OMP_NUM_THREADS": "1"}, stdout=PIPE)
        for at in local_world(2)
    ]
    told = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise MuditError("a rank of the all-reduce failed: its own error stands above")
    return min(float(text) for text in told)


def _link() -> None:
    """One rank: an all-reduce is two passes, each of half the bytes."""
    from torch import distributed as dist

    dist.init_process_group("gloo")
    sent = torch.ones(SENT // 4)
    took = []
    for _ in range(8):
        started = time.process_time()
        dist.all_reduce(sent)
        took.append(time.process_time() - started)
    print(SENT / statistics.median(took) / 1e9, flush=True)
    dist.destroy_process_group()


def _fastest(call: Callable[[], Any], rounds: int = 7) -> float:
    took = []
    for _ in range(rounds):
        started = time.thread_time()
        call()
        took.append(time.thread_time() - started)
    return min(took)


def planned(
    folder: Path, fields: dict[str, Any], ranks: int, tflops: float, gbs: float, sent_gbs: float
) -> dict[str, Any]:
    """The plan of the recipe that is measured."""
    overrides = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    recipe = load_recipe("tiny-dit-finetune", overrides=overrides)
    shards = Shards(folder)
    frames, tokens = (np.asarray(shards.rows(n)).astype(np.int64) for n in ("latents", "phonemes"))
    lengths = Lengths(str(folder), frames, tokens, len(frames), 10.77)
    gpu = Gpu("this CPU", 16.0, tflops, tflops, gbs, sent_gbs, sent_gbs, 1)
    config = recipe.model_config_resolved()

    @cache
    def eager(checkpointing: str) -> step_cost.CostModel:
        """The operations that a CPU runs, not the kernels of a GPU."""
        given: Any = {"precision": recipe.precision, "checkpointing": checkpointing}
        return step_cost.fit(config, **given, backend="eager")

    def best(assumed: Assumptions) -> Option:
        cluster = Cluster(gpu, 1, ranks, assumed)
        request = of_recipe(Request("tiny", config, cluster, recipe.precision), recipe)
        request = replace(request, asynchronous=False)  # as on CPUs, where nothing is saved here
        find = lambda config, *, precision, checkpointing: eager(checkpointing)  # noqa: E731
        return make_plan(request, lengths, find=find).best

    base = Assumptions(gemm=GEMM[1], context_gib=0.0)
    ends = [
        best(replace(within(base, kind), gemm=share)).step_seconds
        for kind, share in ((BETTER, GEMM[2]), (WORSE, GEMM[0]))
    ]
    found = best(base)
    return {
        "planned_seconds": found.step_seconds,
        "seconds_range": ends,
        "parts": found.seconds,
        "product_tflops": tflops,
        "copy_gbs": gbs,
        "link_gbs": sent_gbs,
    }


if __name__ == "__main__":
    _link()
