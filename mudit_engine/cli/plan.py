"""mudit plan: what training on a cluster takes, before it is rented: memory by kind, token budget,
messages, a model of the time.

    mudit plan musit-380m-pretrain --nodes 8 --gpus-per-node 8 --gpu h200
    mudit plan --preset musit-380m --nodes 8 --gpus-per-node 8 --gpu a100-80g
    mudit plan --preset musit-1b --nodes 8 --gpus-per-node 8 --gpu h100-80g --nics 1 --lengths \\
      data/latents --plots plan --json
    # and runs the real engine at 64 ranks
    mudit plan --preset musit-380m --nodes 8 --gpus-per-node 8 --gpu a100-80g --rehearse
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mudit_engine.cli._console import emit_json, json_option, loading, note, print_table, progress

if TYPE_CHECKING:
    from mudit_engine.training.planning.plan import Option, Plan

MODES: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")


@click.command()
@click.argument("recipe", required=False)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a field of RECIPE, as in `mudit train`. Repeatable.",
)
@click.option(
    "--preset",
    help="Without RECIPE: a preset, a config.json or a model folder.  [default: musit-380m]",
)
@click.option(
    "--lyrics",
    metavar="qwen-14b|qwen3-8b|qwen3-14b|FILE",
    help="Plan the tuning of a lyric model instead: a known one, or a config.json of transformers.",
)
@click.option("--nodes", type=click.IntRange(1), default=8, show_default=True)
@click.option("--gpus-per-node", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--gpu",
    default="a100-80g",
    show_default=True,
    metavar="a100-80g|h100-80g|h200|b200|rtx-5090|l40s|NAME",
    help="GPU, links and NICs of a node. Of another GPU give every figure that follows.",
)
@click.option(
    "--bf16-tflops", type=float, metavar="TFLOP/S", help="Dense, in place of the preset's."
)
@click.option(
    "--fp32-tflops",
    type=float,
    metavar="TFLOP/S",
    help="Of fp32 matrix products (TF32), in place of the preset's.",
)
@click.option(
    "--hbm", type=float, metavar="GB/S", help="Memory bandwidth, in place of the preset's."
)
@click.option(
    "--nvlink", type=float, metavar="GB/S", help="Of a GPU, one way, in place of the preset's."
)
@click.option(
    "--nic", type=float, metavar="GB/S", help="Of one NIC, one way, in place of the preset's."
)
@click.option("--nics", type=click.IntRange(1), help="NICs of a node, in place of the preset's.")
@click.option("--memory", type=float, metavar="GIB", help="Of a GPU, in place of the preset's.")
@click.option(
    "--precision", type=click.Choice(["bf16", "fp32"]), help="[default: bf16, or RECIPE's]"
)
@click.option(
    "--lengths",
    metavar="songs|FOLDER|FILE",
    help="A stated mix, an encoded data set, or seconds.  [default: RECIPE's data set where it is, "
    "or songs]",
)
@click.option(
    "--songs",
    type=click.IntRange(1),
    help="Songs of the data set.  [default: 1,500,000, or what --lengths holds]",
)
@click.option("--epochs", type=float, help="[default: 10, or what RECIPE's steps come to]")
@click.option(
    "--batch-songs",
    type=click.IntRange(1),
    help="Songs of a global batch, for all options.  [default: 512, or RECIPE's packs]",
)
@click.option(
    "--zero-stage",
    "stages",
    type=click.IntRange(0, 3),
    multiple=True,
    help="Consider only this stage. Repeatable.",
)
@click.option(
    "--checkpointing",
    "modes",
    type=click.Choice(MODES),
    multiple=True,
    help="Consider only this. Repeatable.",
)
@click.option("--no-ema", is_flag=True, help="Keep no average of the weights.")
@click.option(
    "--assume",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change an assumption (an unknown key lists them). Repeatable.",
)
@click.option(
    "--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder for PNG pictures."
)
@click.option(
    "--rehearse",
    is_flag=True,
    help="Run the real DeepSpeed engine at this number of ranks in one process and compare.",
)
@json_option
def command(
    recipe: str | None,
    overrides: tuple[str, ...],
    preset: str | None,
    lyrics: str | None,
    nodes: int,
    gpus_per_node: int,
    gpu: str,
    bf16_tflops: float | None,
    fp32_tflops: float | None,
    hbm: float | None,
    nvlink: float | None,
    nic: float | None,
    nics: int | None,
    memory: float | None,
    precision: str | None,
    lengths: str | None,
    songs: int | None,
    epochs: float | None,
    batch_songs: int | None,
    stages: tuple[int, ...],
    modes: tuple[str, ...],
    no_ema: bool,
    assume: tuple[str, ...],
    plots: Path | None,
    rehearse: bool,
    as_json: bool,
) -> None:
    """Plan the training of RECIPE on NODES x GPUS_PER_NODE: its checkpointing, steps and batch.

    Without RECIPE, ways to train the song transformer of --preset (or a lyric model) are compared.
    Memory and packing are computed; time is a model with stated assumptions and a range. Options
    share one global batch and are ranked by GPU-hours.
    """
    from mudit_engine.config import load_config
    from mudit_engine.errors import InputError
    from mudit_engine.training.planning.clusters import assume as assumed
    from mudit_engine.training.planning.clusters import make_cluster
    from mudit_engine.training.recipe import load_recipe

    # before torch is imported: a wrong name is told at once
    given = load_recipe(recipe, overrides=overrides) if recipe is not None else None
    if given is None and overrides:
        raise click.UsageError("--set changes a RECIPE: name one")
    if given is not None and (preset or lyrics):
        raise click.UsageError("RECIPE says what is trained: leave --preset and --lyrics out")
    preset = given.model if given is not None else preset or "musit-380m"
    config = given.model_config_resolved() if given is not None else load_config(preset)
    cluster = make_cluster(
        gpu,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        assumptions=assumed(assume),
        bf16_tflops=bf16_tflops,
        fp32_tflops=fp32_tflops,
        hbm_gbs=hbm,
        nvlink_gbs=nvlink,
        nic_gbs=nic,
        nics=nics,
        memory_gib=memory,
    )
    if epochs is not None and not epochs > 0:
        raise InputError(f"--epochs {epochs} must be positive")
    if lyrics is not None:
        from mudit_engine.cli._plan_lyrics import show

        show(lyrics, cluster, songs=songs, epochs=epochs or 10.0, as_json=as_json)
        return
    if given is not None and not given.task.startswith("dit"):
        from mudit_engine.cli._plan_stage import show_stage

        show_stage(given, cluster, as_json=as_json)
        return
    precision = precision or (given.precision if given is not None else "bf16")
    if precision == "bf16" and 0 in stages:
        raise InputError(
            "--zero-stage 0 with bf16 drifts (DeepSpeed adds gradients up in bf16 there): use 1, 2 "
            "or 3, or --precision fp32"
        )

    with loading():
        from mudit_engine.training.dataset.lengths import read_lengths
        from mudit_engine.training.planning.plan import Request, make_plan, of_recipe
        from mudit_engine.training.planning.report import report

    if lengths is None:
        there = given is not None and (Path(given.data.folder) / "index.safetensors").exists()
        lengths = given.data.folder if given is not None and there else "songs"
    sample = read_lengths(lengths, config)
    considered: Any = tuple(mode for mode in MODES if mode in modes)
    request = Request(
        preset,
        config,
        cluster,
        precision,
        songs or sample.songs or 1_500_000,
        epochs or 10.0,
        batch_songs or 512,
        not no_ema,
        stages=tuple(dict.fromkeys(stages)) or ((1, 2, 3) if precision == "bf16" else (0, 1, 2, 3)),
        modes=considered or MODES,
    )
    if given is not None:
        request = of_recipe(request, given)
        changed: dict[str, Any] = {
            "stages": tuple(dict.fromkeys(stages)),
            "modes": considered,
            # fields that were said replace the recipe's
            **({"steps": None} if epochs is not None else {}),
            **({"batch": None, "steps": None} if batch_songs is not None else {}),
        }
        kept = {name: value for name, value in changed.items() if value != ()}
        request = dataclasses.replace(request, **kept)
    with progress("planning", total=None, quiet=as_json) as step:
        with loading():  # of torch's compiler, which fake tensors import
            plan = make_plan(request, sample, on_step=lambda text: step(text=text))
        document = report(plan)
        if plots is not None:
            from mudit_engine.training.planning.plots import save_plots

            step(text="drawing")
            document["plots"] = [str(path) for path in save_plots(plan, plots)]
        if rehearse:
            step(text=f"rehearsing {cluster.world} ranks")
            document["rehearsal"] = _rehearse(plan)
    if as_json:
        emit_json(document)
        return
    _print(plan, document)
    if not plan.best.fits:
        note(
            "no option fits: more nodes, more checkpointing, a smaller --batch-songs or "
            "parallel.sequence_parallel would make room"
        )


def _rehearse(plan: Plan) -> dict[str, Any]:
    """The best option's stage in the real engine, its state against the plan's."""
    from mudit_engine.training.planning.rehearse import Rehearsal, compare, rehearse

    rehearsal = Rehearsal(
        preset=str(plan.request.preset),
        world=plan.request.cluster.world,
        parallel={"zero_stage": plan.best.stage},
        precision=plan.request.precision,
        average=plan.request.average,
        checkpointing=plan.best.checkpointing,
    )
    return compare(rehearsal, rehearse(rehearsal))


def _between(value: float, option: Option) -> str:
    """The range of a figure that goes with the step's time."""
    low, high = (value * end / option.step_seconds for end in option.seconds_range)
    return f"{low:,.0f} to {high:,.0f}"


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.2f}"


def _print(plan: Plan, document: dict[str, Any]) -> None:
    request, best, cluster = plan.request, plan.best, plan.request.cluster
    lengths, gpu = document["lengths"], cluster.gpu
    rows = [
        (
            "model",
            f"{request.config.name}, {plan.parameters.count:,} parameters, {request.precision}",
        ),
        ("cluster", f"{cluster.nodes} x {cluster.gpus_per_node} {gpu.name}"),
        (
            "links",
            f"NVLink {gpu.nvlink_gbs:g} GB/s, {gpu.nics} NICs of {gpu.nic_gbs:g} GB/s (one way)",
        ),
        ("songs", f"{request.songs:,} x {plan.epochs:.3g} epochs"),
        (
            "lengths",
            f"{lengths['source']}: median {lengths['seconds_p50']:g} s, longest "
            f"{lengths['longest_frames']:,} frames",
        ),
        ("global batch", f"{document['batch']['songs']} songs, {plan.frames_per_step:,.0f} frames"),
    ]
    print_table("Plan", ["", ""], rows)
    table = [
        [
            f"ZeRO-{option.stage}",
            option.checkpointing,
            f"{option.micro_batches} x {option.pack_size:,}",
            f"{100 * option.efficiency:.1f}",
            (_gib(option.peak_bytes), "" if option.fits else "red"),
            f"{1e3 * option.step_seconds:.0f}",
            f"{option.frames_per_second / cluster.world:,.0f}",
            f"{option.gpu_hours:,.0f}" if option.fits else "does not fit",
        ]
        for option in plan.options[:12]
    ]
    columns = [
        "stage",
        "checkpointing",
        "packs",
        "filled %",
        "GiB a rank",
        "step ms*",
        "frames/s/GPU*",
        "GPU-hours*",
    ]
    title = (
        f"Options, best first ({document['options_that_fit']} of {document['options_in_all']} fit)"
    )
    print_table(title, columns, table, numeric=columns[3:])
    share = "% of the GPU"
    memory = [
        [kind, _gib(size), f"{100 * size / (gpu.memory_gib * (1 << 30)):.1f}"]
        for kind, size in best.memory.items()
    ]
    print_table(
        "Memory of the fullest rank (best option; computed)",
        ["kind", "GiB", share],
        memory,
        numeric=["GiB", share],
    )
    sent = [
        [
            m["kind"],
            m["what"],
            f"{m['size'] / 1e6:,.0f}",
            f"{m['calls']:.0f}",
            f"{1e3 * m['seconds']:.1f}",
            "yes" if m["hidden"] else "no",
        ]
        for m in document["best"]["messages"]
    ]
    if sent:
        columns = ["collective", "of", "MB", "calls", "ms*", "behind compute"]
        print_table("Messages of a step (best option)", columns, sent, numeric=columns[2:5])
    parts = [
        [part, f"{1e3 * value:.1f}", f"{100 * value / best.step_seconds:.1f}"]
        for part, value in best.seconds.items()
    ]
    print_table("Time of a step*", ["part", "ms", "%"], parts, numeric=["ms", "%"])
    paper = document["paper"]
    facts: list[tuple[str, str]] = [
        (
            "GPU-hours*",
            f"{best.gpu_hours:,.0f} ({_between(best.gpu_hours, best)}), "
            f"{best.gpu_hours / cluster.world:,.1f} hours of the cluster",
        ),
        (
            "a step*",
            f"{1e3 * best.step_seconds:.0f} ms ({_between(1e3 * best.step_seconds, best)})",
        ),
        (
            f"{plan.epochs:.3g} epochs*",
            f"{paper['gpu_days_here']:,.0f} GPU-days; the paper: {paper['gpu_days']:,} "
            f"({paper['gpus']} GPUs x {paper['days']} days), without saying of how many epochs",
        ),
        (
            "rows that fit beside the state",
            ", ".join(f"{rows:,} ({mode})" for mode, rows in document["token_budget"].items()),
        ),
        ("run it", "mudit train RECIPE " + " ".join(f"--set {one}" for one in best.overrides)),
        ("", f"  --launch slurm --nodes {cluster.nodes} --gpus-per-node {cluster.gpus_per_node}"),
        (
            "* modelled, assuming",
            ", ".join(f"{name} {value:g}" for name, value in document["assumptions"].items()),
        ),
    ]
    print_table("In all", ["", ""], facts)
    if "rehearsal" in document:
        print_rehearsal(document["rehearsal"])
    for path in document.get("plots", []):
        note(f"drawn: {path}")


def print_rehearsal(result: dict[str, Any]) -> None:
    """A rehearsal beside its plan."""
    columns = ["kind", "planned GiB", "measured GiB", "error %"]
    rows = [
        [
            kind,
            _gib(row["planned"]),
            _gib(row["measured"]),
            f"{100 * row['error']:+.2f}" if row["error"] is not None else None,
        ]
        for kind, row in result["state"].items()
    ]
    what = (
        f"rank 0 of {result['world']} in one process, ZeRO-{result['zero_stage']}, "
        f"{result['precision']}"
    )
    print_table(
        f"Rehearsal: {what} ({result['seconds']:.0f} s)", columns, rows, numeric=columns[1:]
    )
    sent = [
        [kind, f"{row['planned'] / 1e6:,.0f}", f"{row['measured'] / 1e6:,.0f}"]
        for kind, row in result["sent"].items()
    ]
    columns = ["collective", "planned MB", "measured MB"]
    print_table("Sent in a step of two micro-batches", columns, sent, numeric=columns[1:])
