"""`mudit profile`: where the time of songs, of training steps or of a server goes, as one page.

mudit profile generate --seconds 30 --steps 4 --html profile.html --trace trace.json.gz
mudit profile train tiny-dit-pretrain --html training.html
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import Invocation, emit_json, json_option, note, print_table
from mudit_engine.cli._numbers import FiniteRange

LYRICS = "[verse]\n月亮升起来\n风吹过海面\n[chorus]\n我想和你看天亮\nSing me home tonight\n"


@click.group()
def command() -> None:
    """Where the time goes: stages, operations, memory, and what could be avoided, on one page."""


def watching(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every profile takes."""
    for option in reversed(
        (
            click.option(
                "--rounds",
                type=click.IntRange(1),
                default=3,
                show_default=True,
                help="Runs of each kind; stages and operations are shown at their fastest.",
            ),
            click.option(
                "--html",
                "page",
                type=click.Path(dir_okay=False, path_type=Path),
                help="Write the page here.  [default: profile.html, unless --json]",
            ),
            click.option(
                "--trace",
                type=click.Path(dir_okay=False, path_type=Path),
                help="Write torch.profiler's trace for Perfetto (.json or .json.gz).",
            ),
            click.option(
                "--proton",
                type=click.Path(dir_okay=False, path_type=Path),
                help="Write Triton's profile of the kernels (on a GPU).",
            ),
            click.option("--threads", type=click.IntRange(1), help="CPU threads of torch."),
            json_option,
        )
    ):
        function = option(function)
    return function


@command.command()
@click.option("--model", default="tiny", show_default=True, metavar="NAME|FOLDER")
@click.option(
    "--preset",
    metavar="NAME",
    help="A model of this preset's size with random weights, in place of --model.",
)
@click.option("--runtime", default="auto", show_default=True, help="As of `mudit generate`.")
@click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "bf16")),
    default="auto",
    show_default=True,
    help="Of the torch runtime.",
)
@click.option(
    "--seconds",
    "lengths",
    type=FiniteRange(1),
    multiple=True,
    help="Length of a song. Repeatable: a mixed batch.  [default: 10]",
)
@click.option(
    "--steps", type=click.IntRange(1), default=4, show_default=True, help="Of the sampler."
)
@click.option("--description", default="流行抒情，钢琴，女声", show_default=True)
@watching
def generate(
    model: str,
    preset: str | None,
    runtime: str,
    precision: str,
    lengths: tuple[float, ...],
    steps: int,
    description: str,
    rounds: int,
    page: Path | None,
    trace: Path | None,
    proton: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Songs, from reading the request to the written file."""
    import torch

    from mudit_engine.benchmarks.profile_models import random_pipeline
    from mudit_engine.benchmarks.profiles import Settings, profile_generate
    from mudit_engine.pipeline import SongPipeline
    from mudit_engine.request import SongRequest

    _use(threads)
    dtype = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    note("loading")
    pipeline = (
        random_pipeline(preset, dtype=dtype)
        if preset is not None
        else SongPipeline.from_pretrained(model, runtime=runtime, dtype=dtype)
    )
    requests = [
        SongRequest(
            description=description,
            lyrics=LYRICS,
            seconds=seconds,
            seed=number,
            sampler={"steps": steps},
        )
        for number, seconds in enumerate(lengths or (10.0,))
    ]
    settings = Settings(rounds=rounds, trace=trace, proton=proton, report=note)
    _show(profile_generate(pipeline, requests, settings), page, as_json)


@command.command()
@click.argument("recipe", default="tiny-dit-pretrain")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As of `mudit train`.")
@click.option("--steps", type=click.IntRange(1), default=2, show_default=True)
@watching
def train(
    recipe: str,
    overrides: tuple[str, ...],
    steps: int,
    rounds: int,
    page: Path | None,
    trace: Path | None,
    proton: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Steps of a training RECIPE: data, forward, backward, optimiser. A recipe whose data are not
    here runs on random songs.
    """
    from mudit_engine.benchmarks.profile_training import profile_train
    from mudit_engine.benchmarks.profiles import Settings

    _use(threads)
    settings = Settings(rounds=rounds, trace=trace, proton=proton, report=note)
    _show(profile_train(recipe, overrides, steps=steps, settings=settings), page, as_json)


@command.command()
@click.option("--model", default="tiny", show_default=True, metavar="NAME|FOLDER")
@click.option(
    "--seconds",
    "lengths",
    type=FiniteRange(1),
    multiple=True,
    help="Lengths of the songs that arrive together. Repeatable.  [default: 20 5 3]",
)
@click.option(
    "--steps", type=click.IntRange(1), default=4, show_default=True, help="Of the sampler."
)
@watching
def serve(
    model: str,
    lengths: tuple[float, ...],
    steps: int,
    rounds: int,
    page: Path | None,
    trace: Path | None,
    proton: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """A server's batch: songs that join and leave at the step, read and decoded beside it."""
    from mudit_engine.benchmarks.profile_serving import profile_serve
    from mudit_engine.benchmarks.profiles import Settings
    from mudit_engine.pipeline import SongPipeline

    _use(threads)
    note("loading")
    pipeline = SongPipeline.from_pretrained(model)
    settings = Settings(rounds=rounds, trace=trace, proton=proton, report=note)
    document = profile_serve(
        pipeline, lengths or (20.0, 5.0, 3.0), steps=steps, lyrics=LYRICS, settings=settings
    )
    _show(document, page, as_json)


def _use(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _show(document: dict[str, Any], page: Path | None, as_json: bool) -> None:
    from mudit_engine.hardware import environment

    invocation = click.get_current_context().find_object(Invocation)
    document["env"] = environment(invocation.arguments if invocation else None)
    if page is None and not as_json:
        page = Path("profile.html")
    if page is not None:
        from mudit_engine.files import write_text
        from mudit_engine.profiling.page import html

        write_text(page, html(document))
        note(f"page: {page}")
    if document["trace"]:
        note(f"trace: {document['trace']} (open it at ui.perfetto.dev)")
    if as_json:
        emit_json(document)
        return
    columns = ["stage", "seconds", "share", "operations", "GFLOP", "of GEMM rate", "host s"]
    cells = [
        [
            stage["name"],
            f"{stage['seconds']:.3g}",
            f"{100 * stage['share']:.1f} %",
            stage["operations"],
            f"{stage['flops'] / 1e9:.3g}",
            f"{100 * stage['gemm_fraction']:.0f} %",
            f"{stage['host_seconds']:.3g}",
        ]
        for stage in document["stages"]
    ]
    print_table(document["title"], columns, cells, numeric=columns[1:])
    for number, cost in enumerate(document["costs"][:3], 1):
        print_table(f"{number}. {cost['words']}", [], [])
