"""Ways to train the song transformer against each other, at small scale: equal tokens, the same
songs, noise and noise levels in every step, held-out loss by noise level, two seeds.

    mudit data synth --out data/methods/corpus --songs 72 --seed 7 --no-stems
    mudit data encode data/methods/corpus --model tiny --no-stems --out data/methods/latents
    python -m mudit_engine.benchmarks.training_methods --data data/methods/latents \\
      --work data/methods/runs --out benchmarks/results/training_methods.json

A run that is in the results is not made again, and one that was stopped goes on: the same command
continues. What is compared is the mean squared error of the velocity (whatever the loss that was
trained) of the averaged weights on every held-out song at LEVELS even noise levels, with noise of
its own seed. `ratio` is to the baseline of the same seed. `--table` prints what is there,
`--plot` draws it.

Averages made after training (`after the end`) are of the baseline's own checkpoints: the mean of
the raw weights of the last K.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from mudit_engine.benchmarks.documents import read_document, write_document

MODEL = {
    "dit": {"width": 128, "blocks": 4, "heads": 2, "lyric_width": 64, "lyric_head_dim": 32},
    "path": {"kind": "bezier", "prediction": "velocity"},
}
METHODS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "parallel": {"model_overrides": {"dit": {"cross_attention": "parallel"}}},
    "muon": {"optimizer": {"kind": "muon"}},
    "contrastive": {"dit": {"contrastive": 0.05}},
    "min-snr": {"dit": {"min_snr_gamma": 5.0}},
}
LEVELS = 8
SNAPSHOTS = 10  # checkpoints of a run
LAST = (2, 3, 5)  # checkpoints that an average after the end is of
Row = dict[str, Any]


def recipe_fields(method: str, *, seed: int, data: Path, steps: int, pack: int) -> dict[str, Any]:
    """The recipe of one run, as load_recipe reads it from a file."""
    from mudit_engine.training.recipe import merge

    base = {
        "name": f"method-{method}-{seed}",
        "base": "tiny-dit-finetune",
        "model_overrides": MODEL,
        "init": None,
        "data": {"folder": str(data), "pack_size": pack, "packs_per_step": 1},
        "steps": steps,
        "seed": seed,
        "schedule": {"kind": "wsd", "warmup": min(20, steps // 4), "decay": 0.3},
        "ema": {"decay": 0.98},
        "checkpoint": {"every": max(steps // SNAPSHOTS, 1), "keep": SNAPSHOTS},
        "log": {"validate_every": 0, "tensorboard": False, "curve": False},
        "dit": {"reference": 0.0},
    }
    return merge(base, METHODS[method])


def held_out(task: Any, songs: np.ndarray, *, pack: int) -> list[float]:
    """Mean squared error per frame at each of LEVELS noise levels, over these songs."""
    import torch

    from mudit_engine.training.dataset.batching import plan_packs
    from mudit_engine.training.tasks.task import Moment

    module, totals, frames = task.modules["model"], [0.0] * LEVELS, 0.0
    plan = plan_packs(songs, task.costs(), pack)
    moment = Moment(seed=1234, epoch=0, step=0, training=False)
    module.eval()
    with torch.no_grad():
        for number in range(len(plan)):
            batch = task.load(plan.pack(number), moment)
            frames += batch.weight
            for level in range(LEVELS):
                even = task.path.t_min + (1 - task.path.t_min) * (level + 0.5) / LEVELS
                times = torch.full_like(batch.inputs.times_B, even)
                _, logs = module(replace(batch.inputs, times_B=times))
                totals[level] += float(logs["mse"][0])
    return [total / frames for total in totals]


def run_one(
    method: str, *, seed: int, data: Path, work: Path, steps: int, pack: int
) -> Iterator[Row]:
    """Trains one method with one seed and measures it; the baseline also its averages."""
    from mudit_engine.files import write_json
    from mudit_engine.training.recipe import load_recipe
    from mudit_engine.training.trainer import Trainer

    folder = work / f"{method}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "asked.json"
    write_json(file, recipe_fields(method, seed=seed, data=data, steps=steps, pack=pack))
    trainer = Trainer(load_recipe(file), folder, quiet=True)
    start = time.process_time()
    trainer.run()
    cpu = time.process_time() - start
    songs = trainer.shards.numbers("test")
    row = {"seed": seed, "steps": steps, "frames": trainer.progress.weight}
    row |= {"train_songs": len(trainer.shards.numbers("train")), "test_songs": len(songs)}
    with trainer.strategy.averaged():
        losses = held_out(trainer.task, songs, pack=pack)
    yield {"method": method, **row, "cpu_seconds": round(cpu, 1), **_figures(losses)}
    if method == "baseline":
        yield from (
            {"method": name, **row, "cpu_seconds": 0.0, **_figures(found)}
            for name, found in _averages(trainer, songs, folder, pack=pack)
        )


def _averages(
    trainer: Any, songs: np.ndarray, folder: Path, *, pack: int
) -> Iterator[tuple[str, list[float]]]:
    from safetensors.torch import load_file

    tags = sorted((folder / "checkpoints").glob("step-*"))
    states = [load_file(tag / "model.safetensors") for tag in tags[-max(LAST) :]]
    module = trainer.task.modules["model"]
    for last in (1, *LAST):
        mean = {
            name: sum(state[name].float() for state in states[-last:]) / last for name in states[0]
        }
        module.load_state_dict(mean, strict=False)
        name = "last weights" if last == 1 else f"mean of last {last} checkpoints"
        yield name, held_out(trainer.task, songs, pack=pack)


def _figures(losses: list[float]) -> Row:
    return {
        "loss": round(sum(losses) / len(losses), 5),
        "loss_by_noise": [round(loss, 5) for loss in losses],
    }


def table(rows: list[Row]) -> list[Row]:
    """A row a method: mean over the seeds, ratio to the baseline of the same seed, and the spread
    of that ratio (largest less smallest).
    """
    base = {row["seed"]: row for row in rows if row["method"] == "baseline"}
    out = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method and row["seed"] in base]
        if not own:
            continue
        ratios = [row["loss"] / base[row["seed"]]["loss"] for row in own]
        levels = [
            sum(row["loss_by_noise"][i] / base[row["seed"]]["loss_by_noise"][i] for row in own)
            / len(own)
            for i in range(LEVELS)
        ]
        out.append(
            {
                "method": method,
                "seeds": len(own),
                "loss": round(sum(row["loss"] for row in own) / len(own), 4),
                "ratio": round(sum(ratios) / len(ratios), 4),
                "spread": round(max(ratios) - min(ratios), 4),
                "ratio_by_noise": [round(level, 4) for level in levels],
                "cpu_seconds": round(sum(row["cpu_seconds"] for row in own) / len(own), 1),
            }
        )
    return out


def plot(rows: list[Row], path: Path) -> None:
    """Ratio to the baseline by noise level, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    levels = [(i + 0.5) / LEVELS for i in range(LEVELS)]
    for row in table(rows):
        label = f"{row['method']} (mean {row['ratio']:.3f})"
        axes.plot(levels, row["ratio_by_noise"], marker="o", markersize=3, label=label)
    axes.set_xlabel("noise level t (0 clean, 1 noise)")
    axes.set_ylabel("held-out error / baseline's")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Data set of latents.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of the runs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Results, JSON.")
@click.option("--steps", type=click.IntRange(2), default=300, show_default=True)
@click.option("--pack", type=click.IntRange(1), default=1024, show_default=True, help="Frames.")
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--seeds", default="0,1", show_default=True)
@click.option("--until", help="Begin no run after this time of day, HH:MM.")
@click.option(
    "--table", "only_table", is_flag=True, help="Print the table of --out, train nothing."
)
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw it.")
def main(
    data: Path | None,
    work: Path | None,
    out: Path,
    steps: int,
    pack: int,
    methods: str,
    seeds: str,
    until: str | None,
    only_table: bool,
    picture: Path | None,
) -> None:
    """Compare ways to train the song transformer."""
    rows: list[Row] = read_document(out)["results"] if out.is_file() else []
    if not only_table:
        if data is None or work is None:
            raise click.UsageError("--data and --work are needed to train")
        wanted = [(m, int(seed)) for seed in seeds.split(",") for m in methods.split(",")]
        for method, seed in wanted:
            if any(
                (row["method"], row["seed"], row["steps"]) == (method, seed, steps) for row in rows
            ):
                continue
            if until is not None and time.strftime("%H:%M") >= until:
                break
            for row in run_one(method, seed=seed, data=data, work=work, steps=steps, pack=pack):
                rows.append(row)
                click.echo(json.dumps(row), err=True)
            write_document(out, rows)
    for line in table(rows):
        click.echo(json.dumps(line))
    if picture is not None:
        plot(rows, picture)


if __name__ == "__main__":
    main()
