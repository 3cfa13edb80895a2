"""mudit finetune: a folder of songs becomes a model that `mudit generate` plays.

mudit finetune songs/ --out mine                       # a LoRA of the embedded model
mudit generate --model mine --description "..." --lyrics song.txt
mudit finetune songs/ --out mine --model models/base --full --steps 3000 --gpus-per-node 8
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import (
    emit_json,
    json_option,
    note,
    print_table,
    progress,
    stop_on_sigterm,
)
from mudit_engine.cli._numbers import FiniteRange

SHOWN = 10


@click.command()
@click.argument("songs", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Model folder; what is finished in it is kept, so the same command resumes.",
)
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    metavar="NAME|FOLDER|ORG/NAME",
    help="What to start from.",
)
@click.option("--full", is_flag=True, help="Train all weights instead of a LoRA.")
@click.option("--steps", type=click.IntRange(1), default=400, show_default=True)
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Of the LoRA.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Songs made with the new model at the end, for texts of the first songs.",
)
@click.option(
    "--max-seconds",
    type=FiniteRange(min=0, min_open=True),
    default=1200.0,
    show_default=True,
    help="Longer files are left out, by name.",
)
@click.option(
    "--leave-out",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Songs that are not taken: copies.jsonl of `mudit data dedupe`.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a field of the recipe (dots go into sections). Repeatable.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of torch.")
@click.option(
    "--gpus-per-node",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Ranks on this machine, by torchrun and DeepSpeed.",
)
@click.option(
    "--prepare-only",
    is_flag=True,
    help="Encode and write OUT/work/recipe.json, for `mudit train` on a cluster; the command "
    "without this option then puts the model together.",
)
@json_option
def command(
    songs: Path,
    out: Path,
    model: str,
    full: bool,
    steps: int,
    rank: int,
    seed: int,
    device: str,
    samples: int,
    max_seconds: float,
    leave_out: Path | None,
    overrides: tuple[str, ...],
    threads: int | None,
    gpus_per_node: int,
    prepare_only: bool,
    as_json: bool,
) -> None:
    """Make a model of your own from SONGS (a folder, a .jsonl manifest, a corpus).

    In a folder, x.txt or x.lrc beside x.ogg are its lyrics, and x.json holds its descriptions:
    {"descriptions": {"professional": "...", "amateur": "..."}}. Encodes, trains (a LoRA, or with
    --full all weights), validates on a tenth of the songs, writes a whole model folder and plays
    samples. Ctrl-C or SIGTERM save; the same command goes on.
    """
    import torch

    from mudit_engine.files import write_json
    from mudit_engine.training import finetune
    from mudit_engine.training.dataset.leave_out import read_leave_out

    logging.getLogger("mudit_engine.training").setLevel(logging.INFO)
    if threads is not None:
        torch.set_num_threads(threads)
    plan = finetune.Plan(
        songs,
        out,
        model,
        full,
        steps,
        rank,
        seed,
        device,
        samples,
        max_seconds,
        overrides,
        read_leave_out(leave_out) if leave_out else {},
    )
    with progress("encoding", total=None, quiet=as_json) as step, stop_on_sigterm():
        encoded = finetune.encode(
            plan, on_song=lambda song_id, seconds: step(text=f"encoding {song_id}")
        )
    told = [("left out", encoded.refused), ("look at", encoded.flagged)]
    for what, named in told if not as_json else []:
        for song_id, reason in list(named.items())[:SHOWN]:
            note(f"{what} {song_id}: {reason}")
    recipe = finetune.make_recipe(plan)
    if prepare_only:
        command_line = f"mudit train {plan.recipe} --out {plan.run} --launch slurm --nodes N ..."
        if as_json:
            emit_json({"recipe": str(plan.recipe), "run": str(plan.run), "command": command_line})
        else:
            note(f"to train: {command_line}")
            note("then the same command without --prepare-only")
        return
    trained = _train(plan, recipe, gpus_per_node, quiet=as_json)
    finetune.assemble(plan)
    with progress("samples", total=samples, quiet=as_json) as step, stop_on_sigterm():
        made = finetune.make_samples(plan, on_song=lambda path: step(text=f"made {path.name}"))
    results: dict[str, Any] = finetune.summary(plan, encoded, trained)
    results["samples"] = [str(path) for path in made]
    write_json(out / "finetune.json", results)
    if as_json:
        emit_json(results)
        return
    rows = [
        [name, f"{value:.4g}" if isinstance(value, float) else value]
        for name, value in results.items()
        if not isinstance(value, (dict, list))
    ]
    for name in ("held_out_losses", "samples"):
        shown = [f"{value:.4g}" if isinstance(value, float) else value for value in results[name]]
        rows.append([name, ", ".join(shown)])
    print_table(f"A model of {results['songs']} songs", ["", "value"], rows)
    note(f"play it: mudit generate --model {out} --description '...' --lyrics song.txt")


def _train(plan: Any, recipe: Any, ranks: int, *, quiet: bool) -> dict[str, Any]:
    """Runs the recipe here, or on several ranks of this machine. Returns the trainer's summary."""
    import json

    from mudit_engine.training.trainer import Trainer

    if ranks > 1:
        from mudit_engine.training.parallel.launch import (
            Launch,
            check_launch,
            run_here,
            write_launch,
        )

        launch = Launch(
            "local",
            str(plan.recipe),
            plan.run,
            gpus_per_node=ranks,
            arguments=("--resume", "auto"),
        )
        code = run_here(write_launch(check_launch(launch, recipe)))
        if code:
            raise click.exceptions.Exit(code)
        summary = plan.run / "summary.json"
        with contextlib.suppress(OSError):
            found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
            return found
        return {}
    trainer = Trainer(recipe, plan.run, quiet=quiet)
    trained = trainer.run(resume="auto")
    trainer.strategy.close()
    return trained
