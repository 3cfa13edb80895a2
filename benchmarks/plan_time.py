"""The plan's time against measured steps: small song transformers on ranks of this machine's CPU.

    python -m mudit_engine.benchmarks.plan_time --out out/plan_time.json

The machine takes a GPU's place in the plan: its peak is that of a large product of matrices, its
bandwidth that of a large copy, both measured here by one thread, and shared by the ranks where
there are more of them than cores. Gloo's bandwidth is that of an all-reduce over the loopback,
taken as stated (`LOOPBACK`). Held is that the measured step lies within the plan's range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mudit_engine.benchmarks.training_scaling import MODEL, launch, write_data
from mudit_engine.files import write_json
from mudit_engine.hardware import environment
from mudit_engine.training.dataset.lengths import Lengths
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.planning import plan as planning
from mudit_engine.training.planning import step_cost
from mudit_engine.training.planning.clusters import Assumptions, Cluster, Gpu
from mudit_engine.training.planning.plan import Request, make_plan, of_recipe
from mudit_engine.training.recipe import load_recipe

CHANNELS, PACK, PACKS = 16, 512, 4
LOOPBACK = 2.0  # GB/s, one way
CASES = {"single": (1, {}), "zero-1 on 2 ranks": (2, {"strategy": "deepspeed"})}


def machine(ranks: int) -> Gpu:
    """This machine as one accelerator a rank: one thread each."""
    torch.set_num_threads(1)
    share = min(1.0, (os.cpu_count() or 1) / ranks)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    product = _fastest(lambda: a @ b)
    big = torch.randn(1 << 24)
    copy = _fastest(lambda: big.clone())
    tflops, bandwidth = 2 * 1024**3 / product / 1e12, 2 * big.nbytes / copy / 1e9
    return Gpu("this CPU", 16.0, tflops * share, tflops * share, bandwidth * share, LOOPBACK, 1, 1)


def _fastest(work: Any, rounds: int = 7) -> float:
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return min(took)


def planned(folder: Path, fields: dict[str, Any], ranks: int) -> dict[str, Any]:
    """The plan of the recipe that is measured."""
    overrides = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    recipe = load_recipe("tiny-dit-finetune", overrides=overrides)
    shards = Shards(folder)
    frames, tokens = (np.asarray(shards.rows(n)).astype(np.int64) for n in ("latents", "phonemes"))
    lengths = Lengths(str(folder), frames, tokens, len(frames), 10.77)
    cluster = Cluster(machine(ranks), 1, ranks, Assumptions(host_us=30.0, context_gib=0.0))
    config = recipe.model_config_resolved()
    request = of_recipe(Request("tiny", config, cluster, recipe.precision), recipe)
    # the operations that a CPU runs, not the kernels of a GPU
    kept = planning.fit
    planning.fit = lambda config, *, precision, checkpointing: step_cost.fit(  # type: ignore[assignment]
        config, precision=precision, checkpointing=checkpointing, backend="eager"
    )
    try:
        best = make_plan(request, lengths).best
    finally:
        planning.fit = kept
    return {
        "planned_seconds": best.step_seconds,
        "range": list(best.seconds_range),
        "parts": best.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="mudit-plan-") as folder:
        data = Path(folder) / "songs"
        write_data(data, CHANNELS)
        for name, (ranks, changes) in CASES.items():
            fields = {
                "data.folder": str(data),
                "data.pack_size": PACK,
                "data.packs_per_step": PACKS,
                "init": None,
                "device": "cpu",
                "steps": options.steps,
                "schedule.warmup": 2,
                "model_overrides.dit": {**MODEL, "latent_channels": CHANNELS},
                "model_overrides.vae.latent_channels": CHANNELS,
                "log.validate_every": 0,
                "log.tensorboard": False,
                "dit.reference": 0.0,
                **changes,
            }
            place = f"{folder}/{ranks}"
            told = launch(ranks, {"fields": fields, "run": place, "out": f"{place}.json"})
            walls = [max(rank[step]["wall"] for rank in told) for step in range(2, options.steps)]
            plan = planned(data, fields, ranks)
            low, high = plan["range"]
            measured = statistics.median(walls)
            rows.append(
                {"case": name, "measured_seconds": measured, **plan}
                | {"within": low <= measured <= high}
            )
    document = {
        "environment": environment(),
        "load_average": os.getloadavg()[0],
        "rows": rows,
        "all_within": all(row["within"] for row in rows),
    }
    print(json.dumps(document["rows"], indent=1))
    if options.out:
        write_json(options.out, document)
    raise SystemExit(0 if document["all_within"] else 4)


if __name__ == "__main__":
    main()
