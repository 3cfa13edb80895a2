"""How long saving keeps the step's thread: gloo ranks of this machine, a checkpoint every 50 steps,
written beside the steps and in their way.

    mudit bench run save-stall --out out/save_stall.json

The stall is the time that the step's thread spends in a save, over the time of the steps between
two of them, of the slowest rank: by the clock, and by the CPU seconds of that thread, which other
work disturbs little. Ranks on one machine share its cores with the threads that write. For 64 ranks
the share is modelled, not measured: `mudit plan` of musit-380m-pretrain on 8 x 8 A100.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mudit_engine.benchmarks.registry import Options, Row
from mudit_engine.training.ranks import leave

EVERY, CHANNELS, WORLD = 50, 16, 2
WAYS = {"beside the steps": True, "in their way": False}


def run(options: Options) -> list[Row]:
    """A row a way. `rounds`: saves of each that count; the first makes the buffers, the last is
    waited for, and neither counts.
    """
    saves = options.rounds or 2
    rows = []
    with tempfile.TemporaryDirectory(prefix="mudit-save-") as folder:
        for name, asynchronous in WAYS.items():
            options.report(f"{name}: {(saves + 1) * EVERY} steps on {WORLD} ranks")
            told = measure(Path(folder), asynchronous=asynchronous, saves=saves)
            rows.append(_row(name, told, ours=asynchronous))
    rows[0].figures["modelled"] = modelled()
    for row in rows:
        slowest = rows[-1].seconds_p50
        row.ratio = slowest / row.seconds_p50 if slowest and row.seconds_p50 else None
    return rows


def _row(name: str, told: list[dict[str, Any]], *, ours: bool) -> Row:
    walls = [max(rank["walls"][i] for rank in told) for i in range(len(told[0]["walls"]))]
    cpus = [max(rank["cpus"][i] for rank in told) for i in range(len(told[0]["cpus"]))]
    step = statistics.median(rank["step_seconds"] for rank in told)
    step_cpu = statistics.median(rank["step_cpu_seconds"] for rank in told)
    row = Row("save-stall", f"{WORLD} ranks, every {EVERY} steps", name, "ours" if ours else "peer")
    row.seconds_p50, row.cpu_seconds_p50 = statistics.median(walls), statistics.median(cpus)
    row.reference, row.rounds, row.threads, row.samples = "in their way", len(walls), 1, walls
    row.figures = {
        "step_seconds": step,
        "step_cpu_seconds": step_cpu,
        "stall_share": row.seconds_p50 / (EVERY * step),
        "stall_cpu_share": row.cpu_seconds_p50 / (EVERY * step_cpu),
        "state_bytes": sum(rank["state_bytes"] for rank in told),
    }
    return row


def modelled() -> dict[str, Any]:
    """What the plan says of saves every 50 steps on 64 ranks: share of a step, and its range."""
    from mudit_engine.training.dataset.lengths import read_lengths
    from mudit_engine.training.planning.clusters import make_cluster
    from mudit_engine.training.planning.plan import Request, make_plan, of_recipe
    from mudit_engine.training.planning.state_bytes import parameters_of
    from mudit_engine.training.recipe import load_recipe

    recipe = load_recipe("musit-380m-pretrain", overrides=[f"checkpoint.every={EVERY}"])
    config = recipe.model_config_resolved()
    cluster = make_cluster("a100-80g", nodes=8, gpus_per_node=8)
    request = of_recipe(Request(recipe.model, config, cluster), recipe)
    best = make_plan(request, read_lengths("songs", config)).best
    return {
        "ranks": cluster.world,
        "recipe": recipe.name,
        "gpu": cluster.gpu.name,
        "parameters": parameters_of(config.dit).count,
        "asynchronous": request.asynchronous,
        "stall_share": best.seconds["checkpoint"] / best.step_seconds,
        "kind": "modelled: copies at assumptions.copy_gbs, writes at assumptions.storage_gbs",
    }


def measure(folder: Path, *, asynchronous: bool, saves: int) -> list[dict[str, Any]]:
    """What every rank of a run of its own told."""
    from mudit_engine.benchmarks.training_scaling import MODEL, launch, write_data

    data = folder / "data"
    if not data.exists():
        write_data(data, CHANNELS)
    place = folder / ("beside" if asynchronous else "between")
    place.mkdir()
    fields = {
        "data.folder": str(data),
        "data.pack_size": 256,
        "data.packs_per_step": WORLD,
        "model_overrides.dit": {**MODEL, "latent_channels": CHANNELS},
        "model_overrides.vae.latent_channels": CHANNELS,
        "dit.reference": 0.0,
        "init": None,
        "device": "cpu",
        "strategy": "deepspeed",
        "steps": (saves + 1) * EVERY,
        "schedule.warmup": 1,
        "checkpoint.every": EVERY,
        "checkpoint.asynchronous": asynchronous,
        "log.validate_every": 0,
        "log.curve": False,
        "log.tensorboard": False,
    }
    job = {"fields": fields, "run": str(place), "out": str(place / "out")}
    return launch(WORLD, job, worker=("save_stall",))


def work(job: dict[str, Any]) -> None:
    """One rank: trains, and leaves the seconds of its saves and steps in job['out'].<rank>."""
    import torch

    from mudit_engine.training.recipe import load_recipe
    from mudit_engine.training.trainer import Trainer

    torch.set_num_threads(1)
    overrides = [f"{name}={json.dumps(value)}" for name, value in job["fields"].items()]
    recipe = load_recipe("tiny-dit-finetune", overrides=overrides)
    trainer = Trainer(recipe, Path(job["run"]), quiet=True)
    walls: list[float] = []
    cpus: list[float] = []
    save = trainer._save

    def timed(*args: Any, **kwargs: Any) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        save(*args, **kwargs)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.thread_time() - cpu)

    trainer._save = timed  # type: ignore[method-assign]
    wall, cpu = time.perf_counter(), time.thread_time()
    trainer.run(resume="never")
    steps = trainer.progress.step
    kept = {
        "walls": walls[1:-1],
        "cpus": cpus[1:-1],
        "step_seconds": (time.perf_counter() - wall - sum(walls)) / steps,
        "step_cpu_seconds": (time.thread_time() - cpu - sum(cpus)) / steps,
        "state_bytes": sum(trainer.strategy.memory().values()),
    }
    Path(f"{job['out']}.{trainer.ranks.rank}").write_text(json.dumps(kept))
    trainer.strategy.close()
    leave(0)


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
