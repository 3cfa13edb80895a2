"""How long saving keeps the step's thread: two gloo ranks of this machine, a checkpoint every 50
steps, beside the steps and in their way.

    python -m mudit_engine.benchmarks.save_stall --out out/save_stall.json

The stall is the time that the step's thread spends in a save, over the time of the steps between
two of them. Ranks on one machine share its cores with the thread that writes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mudit_engine.files import write_json
from mudit_engine.hardware import environment
from mudit_engine.training.ranks import leave, local_world

EVERY = 50
CHANNELS = 16


def work(job: dict[str, Any]) -> None:
    """One rank: trains and leaves the seconds of its saves and steps in job['out'].<rank>."""
    import torch

    from mudit_engine.training.recipe import load_recipe
    from mudit_engine.training.trainer import Trainer

    torch.set_num_threads(1)
    overrides = [f"{name}={json.dumps(value)}" for name, value in job["fields"].items()]
    trainer = Trainer(
        load_recipe("tiny-dit-finetune", overrides=overrides), Path(job["run"]), quiet=True
    )
    saves: list[float] = []
    save = trainer._save

    def timed(*args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        save(*args, **kwargs)
        saves.append(time.perf_counter() - started)

    trainer._save = timed  # type: ignore[method-assign]
    started = time.perf_counter()
    trainer.run(resume="never")
    seconds = time.perf_counter() - started
    # without the first save, which makes the buffers, and the last, which the run waits for
    kept = {"saves": saves[1:-1], "seconds": seconds, "steps": trainer.progress.step}
    Path(f"{job['out']}.{trainer.ranks.rank}").write_text(json.dumps(kept))
    trainer.strategy.close()
    leave(0)


def measure(folder: Path, *, asynchronous: bool, world: int, steps: int) -> dict[str, Any]:
    """Stall and seconds of a run."""
    from mudit_engine.benchmarks.training_scaling import MODEL, write_data

    data = folder / "data"
    if not data.exists():
        write_data(data, CHANNELS)
    run = folder / ("beside" if asynchronous else "between")
    fields = {
        "data.folder": str(data),
        "data.pack_size": 512,
        "model_overrides.dit": {**MODEL, "latent_channels": CHANNELS},
        "model_overrides.vae.latent_channels": CHANNELS,
        "dit.reference": 0.0,
        "init": None,
        "device": "cpu",
        "strategy": "deepspeed",
        "steps": steps,
        "schedule.warmup": 1,
        "checkpoint.every": EVERY,
        "checkpoint.asynchronous": asynchronous,
        "log.validate_every": 0,
        "log.curve": False,
        "log.tensorboard": False,
        "data.packs_per_step": world,
    }
    job = json.dumps({"fields": fields, "run": str(run), "out": str(run / "out")})
    command = [sys.executable, "-m", "mudit_engine.benchmarks.save_stall", "--worker", job]
    run.mkdir()
    ranks = [
        subprocess.Popen(
            command, env={**os.environ, **place, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        )
        for place in local_world(world)
    ]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")
    told = [json.loads(Path(f"{run / 'out'}.{rank}").read_text()) for rank in range(world)]
    step = statistics.median(one["seconds"] / one["steps"] for one in told)
    stall = max(statistics.median(one["saves"]) for one in told)
    return {
        "asynchronous": asynchronous,
        "save_seconds": stall,
        "step_seconds": step,
        "stall_share": stall / (EVERY * step),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=4 * EVERY)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
    with tempfile.TemporaryDirectory(prefix="mudit-save-") as folder:
        rows = [
            measure(Path(folder), asynchronous=one, world=options.ranks, steps=options.steps)
            for one in (True, False)
        ]
    document = {"environment": environment(), "ranks": options.ranks, "rows": rows}
    print(json.dumps(rows, indent=1))
    if options.out:
        write_json(options.out, document)


if __name__ == "__main__":
    main()
