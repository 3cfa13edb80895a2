"""mudit train: runs a training recipe, resumes it, and writes what it learned into a model folder.

mudit train tiny-dit-pretrain --set steps=2000 --set optimizer.lr=5e-4 --out runs/a
# again: resumes from the newest good checkpoint
mudit train tiny-dit-pretrain --out runs/a
mudit train tiny-dit-finetune --out runs/b --export models/mine --export-dtype float16
# writes OUT/launch: sbatch file, environment, command
mudit train RECIPE --launch slurm --nodes 8 --gpus-per-node 8
mudit train RECIPE --launch local --gpus-per-node 8              # torchrun on this machine
"""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table


@click.command()
@click.argument("recipe", required=False)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a field of the recipe (dots go into sections). Repeatable.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/RECIPE]"
)
@click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|TAG",
    help="Continue from the newest good checkpoint, or from a named one.",
)
@click.option(
    "--threads", type=click.IntRange(1), help="CPU threads of torch.  [default: torch's own choice]"
)
@click.option(
    "--export",
    "export_to",
    type=click.Path(path_type=Path),
    help="Model folder to write the trained part into.  [default: OUT/model] Without RECIPE: the "
    "run whose weights are written, into --out or RUN/model.",
)
@click.option(
    "--weights",
    type=click.Choice(["ema", "raw"]),
    default="ema",
    show_default=True,
    help="What is exported: the average, or the newest weights.",
)
@click.option(
    "--export-dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="How the weights are stored.",
)
@click.option(
    "--launch",
    "launcher",
    type=click.Choice(["local", "slurm", "deepspeed", "torchrun"]),
    help="Train on many ranks.",
)
@click.option(
    "--nodes", type=click.IntRange(1), default=1, show_default=True, help="With --launch."
)
@click.option(
    "--gpus-per-node",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Ranks of a node, with --launch.",
)
@click.option(
    "--hosts",
    metavar="A,B,...|FILE",
    help="Names of the nodes, for the deepspeed launcher and torchrun's meeting point.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=29500,
    show_default=True,
    help="Where ranks meet.",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="After a rank died (not by deepspeed).",
)
@click.option(
    "--env",
    "network",
    multiple=True,
    metavar="NAME=VALUE",
    help="For every rank, e.g. NCCL_IB_HCA=mlx5. Repeatable.",
)
@click.option(
    "--sbatch",
    "slurm",
    multiple=True,
    metavar="NAME=VALUE",
    help="A line of the sbatch file, e.g. partition=a100. Repeatable.",
)
@click.option(
    "--minutes",
    type=click.IntRange(10),
    default=1440,
    show_default=True,
    help="Time limit of a slurm job; it requeues itself.",
)
@click.option(
    "--profile",
    metavar="FIRST:END",
    help="Trace these steps by torch's profiler into OUT/profile (10:13: steps 10, 11 and 12).",
)
@click.option("--write-only", is_flag=True, help="Write the launch files and start nothing.")
@json_option
def command(
    recipe: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: str,
    threads: int | None,
    export_to: Path | None,
    weights: str,
    export_dtype: str,
    launcher: str | None,
    nodes: int,
    gpus_per_node: int,
    hosts: str | None,
    port: int,
    max_restarts: int,
    network: tuple[str, ...],
    slurm: tuple[str, ...],
    minutes: int,
    profile: str | None,
    write_only: bool,
    as_json: bool,
) -> None:
    """Train a part of a model by RECIPE (a name or a .json file).

    Ctrl-C, SIGTERM and SIGUSR1 save after the running step; the same command resumes. `mudit train
    --export RUN` writes what a stopped run has learned so far, as a whole model folder.
    """
    if recipe is None:
        if export_to is None:
            raise click.UsageError(
                "give RECIPE to train, or --export RUN to write what a run has learned"
            )
        if profile is not None:
            raise click.UsageError("--profile goes with a RECIPE to train")
        _export(export_to, out, resume, weights, export_dtype, as_json=as_json)
        return
    from mudit_engine.training.recipe import load_recipe

    if profile is not None:
        overrides = (*overrides, f"log.profile={json.dumps(profile)}")
    # before torch is imported: a wrong field is told at once
    resolved = load_recipe(recipe, overrides=overrides)
    out = out or Path("runs") / resolved.name
    if launcher is not None:
        from mudit_engine.training.parallel.launch import (
            Launch,
            check_launch,
            read_hosts,
            read_network,
            run_here,
            write_launch,
        )

        arguments = [
            "--resume",
            resume,
            "--export-dtype",
            export_dtype,
            *(("--weights", weights) if weights != "ema" else ()),
            *(("--threads", str(threads)) if threads else ()),
        ]
        arguments += [
            *(("--export", str(export_to)) if export_to else ()),
            *(("--json",) if as_json else ()),
        ]
        launch = Launch(
            launcher,  # type: ignore[arg-type]
            recipe,
            out,
            nodes,
            gpus_per_node,
            overrides,
            tuple(arguments),
            read_hosts(hosts) if hosts else (),
            port,
            max_restarts,
            read_network(network),
            slurm,
            minutes,
            threads,
        )
        files = write_launch(check_launch(launch, resolved))
        runs = files.runs_here and not write_only
        if as_json and not runs:
            emit_json(
                {
                    "command": list(files.command),
                    "environment": files.environment,
                    "written": [str(path) for path in files.written],
                }
            )
        elif not as_json:
            for path in files.written:
                note(f"written: {path}")
            note(f"{'running' if runs else 'to run'}: {shlex.join(files.command)}")
        if runs:  # with --json, rank 0 prints the document
            raise click.exceptions.Exit(run_here(files))
        return
    if nodes > 1 or gpus_per_node > 1 or hosts or network or slurm or write_only:
        raise click.UsageError(
            "--nodes, --gpus-per-node, --hosts, --env, --sbatch and --write-only go with --launch"
        )

    import torch

    from mudit_engine.training.checkpoints.export_part import export_part
    from mudit_engine.training.stopping import InterruptedRun
    from mudit_engine.training.trainer import Trainer

    logging.getLogger("mudit_engine.training").setLevel(logging.INFO)
    if threads is not None:
        torch.set_num_threads(threads)
    trainer = Trainer(resolved, out, quiet=as_json)
    main = trainer.ranks.main
    try:
        summary = trainer.run(resume=resume)
    except InterruptedRun as stop:
        if main:
            raise
        raise SystemExit(stop.exit_code) from None
    trainer.strategy.close()
    if not main:  # of many ranks one reports
        return
    file = export_part(
        out,
        export_to or out / "model",
        weights="raw" if weights == "raw" else "ema",
        dtype="float16" if export_dtype == "float16" else "float32",
    )
    summary["exported"] = str(file)
    if as_json:
        emit_json(summary)
        return
    final = summary["final"]
    rows = [
        [name, f"{value:.6g}" if isinstance(value, float) else value]
        for name, value in summary.items()
        if name != "final"
    ]
    rows += [
        [f"final {name}", f"{value:.6g}" if isinstance(value, float) else value]
        for name, value in final.items()
    ]
    print_table(f"Trained {summary['recipe']}", ["", "value"], rows)
    note(f"the loss curve is in {summary['loss_curve']}, every step in {out / 'metrics.jsonl'}")


def _export(
    run: Path, out: Path | None, tag: str, weights: str, dtype: str, *, as_json: bool
) -> None:
    """Writes a checkpoint of a run as a model folder: the newest good one, or `tag`."""
    from mudit_engine.training.checkpoints.export_part import export_part

    file = export_part(
        run,
        out or run / "model",
        tag=None if tag in ("auto", "never") else tag,
        weights="raw" if weights == "raw" else "ema",
        dtype="float16" if dtype == "float16" else "float32",
    )
    if as_json:
        emit_json({"exported": str(file), "run": str(run), "weights": weights})
    else:
        note(f"written: {file}")
