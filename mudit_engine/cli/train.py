"""mudit train: runs a training recipe, resumes it, and writes what it learned into a model folder.

mudit train tiny-dit-pretrain --set steps=2000 --set optimizer.lr=5e-4 --out runs/a
mudit train tiny-dit-pretrain --out runs/a                       # again: resumes from the newest good checkpoint
mudit train tiny-dit-finetune --out runs/b --export models/mine --export-dtype float16
"""

from __future__ import annotations

import logging
from pathlib import Path

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table


@click.command()
@click.argument("recipe")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a field of the recipe (dots go into sections). Repeatable."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/RECIPE]")
@click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|TAG",
    help="Continue from the newest good checkpoint, or from a named one.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of torch.  [default: torch's own choice]")
@click.option(
    "--export", "export_to", type=click.Path(path_type=Path), help="Model folder to write the trained part into.  [default: OUT/model]"
)
@click.option(
    "--export-dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="How the weights are stored."
)
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: str,
    threads: int | None,
    export_to: Path | None,
    export_dtype: str,
    as_json: bool,
) -> None:
    """Train a part of a model by RECIPE (a name or a .json file).

    Ctrl-C, SIGTERM and SIGUSR1 save after the running step; the same command resumes.
    """
    from mudit_engine.training.recipe import load_recipe

    resolved = load_recipe(recipe, overrides=overrides)  # before torch is imported: a wrong field is told at once

    import torch

    from mudit_engine.training.export_part import export_part
    from mudit_engine.training.trainer import Trainer

    logging.getLogger("mudit_engine.training").setLevel(logging.INFO)
    if threads is not None:
        torch.set_num_threads(threads)
    out = out or Path("runs") / resolved.name
    trainer = Trainer(resolved, out, quiet=as_json)
    summary = trainer.run(resume=resume)
    main = trainer.ranks.main
    trainer.strategy.close()
    if not main:  # of many ranks one reports
        return
    file = export_part(out, export_to or out / "model", dtype="float16" if export_dtype == "float16" else "float32")
    summary["exported"] = str(file)
    if as_json:
        emit_json(summary)
        return
    final = summary["final"]
    rows = [[name, f"{value:.6g}" if isinstance(value, float) else value] for name, value in summary.items() if name != "final"]
    rows += [[f"final {name}", f"{value:.6g}" if isinstance(value, float) else value] for name, value in final.items()]
    print_table(f"Trained {summary['recipe']}", ["", "value"], rows)
    note(f"the loss curve is in {summary['loss_curve']}, every step in {out / 'metrics.jsonl'}")
