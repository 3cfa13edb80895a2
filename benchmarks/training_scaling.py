"""What DeepSpeed costs beside plain torch, and what a second rank brings, on one machine: tokens/s
of the song transformer's training.

    python -m mudit_engine.benchmarks.training_scaling --steps 10 \\
      --out benchmarks/results/training_scaling.json

Every case trains the same recipe on the same songs (steps of 4 packs), each rank with one thread;
the losses must agree first. The cases take turns in several rounds, and of each step the fastest
round counts, since whatever else runs only adds. `wall` needs as many idle cores as ranks. `cpu`
divides by the CPU seconds of all ranks together, which other work disturbs little: its ratio to
`single` is what the engine leaves of the speed, and for two ranks the share of the work that is
neither duplicated nor spent on exchanging.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from mudit_engine.errors import MuditError
from mudit_engine.training.ranks import local_world

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "deepspeed zero-0, 1 rank": (1, {"strategy": "deepspeed", "parallel.zero_stage": 0}),
    "deepspeed zero-1, 1 rank": (1, {"strategy": "deepspeed", "parallel.zero_stage": 1}),
    "deepspeed zero-1, 2 ranks": (2, {"strategy": "deepspeed", "parallel.zero_stage": 1}),
    "deepspeed zero-2, 2 ranks": (2, {"strategy": "deepspeed", "parallel.zero_stage": 2}),
    "deepspeed zero-3, 2 ranks": (2, {"strategy": "deepspeed", "parallel.zero_stage": 3}),
}
MODEL = {
    "width": 256,
    "heads": 4,
    "blocks": 6,
    "lyric_width": 128,
    **dict.fromkeys(("outline", "melody", "arrangement", "controls", "edits"), False),
}


def write_data(folder: Path, channels: int, songs: int = 60) -> None:
    import numpy as np

    from mudit_engine.training.dataset.shard_writer import ShardWriter
    from mudit_engine.training.dataset.shards import song_fields

    rng = np.random.default_rng(0)
    with ShardWriter(folder, song_fields(latent_channels=channels)) as writer:
        for number in range(songs):
            frames = int(rng.integers(80, 240))
            kinds = np.stack(
                [rng.integers(0, 3, 4), np.zeros(4), np.ones(4), np.zeros(4), np.ones(4)], 1
            )
            arrays = {
                "latents": rng.normal(size=(frames, channels)),
                "phonemes": rng.integers(4, 100, frames // 3),
                "fragments": rng.normal(size=(4, 512)),
                "fragment_kinds": kinds,
            }
            writer.add(f"song-{number:03d}", arrays, metadata={"seconds": frames / 10.77})


def work(job: dict[str, Any]) -> None:
    """One rank: runs the steps and leaves their seconds and losses in job['out'].<rank>."""
    import torch

    from mudit_engine.training.recipe import load_recipe
    from mudit_engine.training.trainer import Trainer

    torch.set_num_threads(1)
    recipe = load_recipe(
        "tiny-dit-finetune",
        overrides=[f"{name}={json.dumps(value)}" for name, value in job["fields"].items()],
    )
    trainer = Trainer(recipe, Path(job["run"]), quiet=True)
    rows = []
    for item in trainer._works():
        wall, cpu = time.perf_counter(), time.process_time()
        metrics = trainer._step(item)
        trainer.progress.step = metrics["step"] + 1
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        rows.append({**took, "loss": metrics["loss"], "frames": metrics["weight"]})
    Path(f"{job['out']}.{trainer.ranks.rank}").write_text(json.dumps(rows))
    trainer.strategy.close()


def launch(
    world: int, job: dict[str, Any], *, worker: tuple[str, ...] = ("training_scaling", "--worker")
) -> list[Any]:
    """What every rank of a training left in job['out'].<rank>. `worker` is a benchmark's module and
    the arguments before the job, by which it is a rank. Raises MuditError when a rank failed, after
    all have ended.
    """
    module, *arguments = worker
    command = [sys.executable, "-m", f"mudit_engine.benchmarks.{module}", *arguments]
    ranks = []
    for place in local_world(world):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            **(place if "strategy" in job["fields"] else {}),
        }
        ranks.append(
            subprocess.Popen(
                [*command, json.dumps(job)],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    ends = [rank.communicate()[1].decode(errors="replace") for rank in ranks]
    for rank, end in zip(ranks, ends, strict=True):
        if rank.returncode:
            raise MuditError(f"a rank failed: {end[-3000:]}")
    return [json.loads(Path(f"{job['out']}.{rank}").read_text()) for rank in range(world)]


@click.command(help=__doc__)
@click.option("--steps", default=8, show_default=True)
@click.option("--rounds", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document here too.")
@click.option("--worker", hidden=True)
def main(steps: int, rounds: int, out: Path | None, worker: str | None) -> None:
    if worker is not None:
        work(json.loads(worker))
        return
    from mudit_engine.files import write_json
    from mudit_engine.hardware import environment

    found: dict[str, list[list[list[dict[str, float]]]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "songs", 16)
        common = {
            "data.folder": f"{folder}/songs", "data.pack_size": 512, "data.packs_per_step": 4,
            "init": None, "steps": steps, "schedule.warmup": 2,
            "model_overrides.dit": {**MODEL, "latent_channels": 16},
            "model_overrides.vae.latent_channels": 16, "log.validate_every": 0,
            "log.tensorboard": False, "dit.reference": 0.0,
        }  # fmt: skip
        for turn in range(rounds):
            for number, (name, (world, fields)) in enumerate(CASES.items()):
                place = f"{folder}/{turn}-{number}"
                found[name].append(
                    launch(
                        world,
                        {"fields": {**common, **fields}, "run": place, "out": f"{place}.json"},
                    )
                )
    losses = [row["loss"] for row in found["single"][0][0]]
    rows: list[dict[str, Any]] = []
    for name, (world, _) in CASES.items():
        worst = max(
            abs(row["loss"] - loss) / loss
            for ranks in found[name]
            for row, loss in zip(ranks[0], losses, strict=True)
        )
        # the fastest of the same step over the rounds, then the mean over the steps after the first
        wall = frames = cpu = 0.0
        for step in range(1, steps):
            wall += min(max(rank[step]["wall"] for rank in ranks) for ranks in found[name])
            cpu += min(sum(rank[step]["cpu"] for rank in ranks) for ranks in found[name])
            frames += found[name][0][0][step]["frames"]
        rates = {
            "frames_per_s": round(frames / wall, 1),
            "frames_per_cpu_s": round(frames / cpu, 1),
        }
        rows.append({"case": name, "ranks": world, "worst_loss_error": worst, **rates})
    for row in rows:
        row["wall_ratio_to_single"] = round(row["frames_per_s"] / rows[0]["frames_per_s"], 3)
        row["cpu_ratio_to_single"] = round(row["frames_per_cpu_s"] / rows[0]["frames_per_cpu_s"], 3)
    agree = all(row["worst_loss_error"] <= 1e-5 for row in rows)
    load = os.getloadavg()[1]
    document = {
        "env": environment(),
        "results": {"load_average_5_min": round(load, 1), "losses_agree": agree, "cases": rows},
    }
    if out is not None:
        write_json(out, document)
    click.echo(json.dumps(document, indent=2))
    raise SystemExit(0 if agree else 4)


if __name__ == "__main__":
    main()
