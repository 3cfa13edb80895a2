"""`mudit eval users`: what the label of who wrote a description does to a model's songs.

mudit eval users --requests requests.jsonl --seconds 10
"""

from __future__ import annotations

from pathlib import Path

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, tracked
from mudit_engine.cli._numbers import FiniteRange


@click.command()
@click.option("--model", default="tiny", show_default=True, metavar="NAME|FOLDER")
@click.option(
    "--requests",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON Lines: id, description, user_type, and lyrics or a reference song.",
)
@click.option(
    "--judge",
    metavar="NAME|FOLDER",
    help="The model whose ChinMu judges, best one of another seed.  [default: --model]",
)
@click.option(
    "--seconds", type=FiniteRange(1.0), default=10.0, show_default=True, help="Of each song."
)
@click.option("--steps", type=click.IntRange(1), help="Of the sampler.  [default: the model's]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
def command(
    model: str,
    requests: Path,
    judge: str | None,
    seconds: float,
    steps: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Sing each request as a professional's, as an amateur's and as nobody's, from the same noise:
    does the label change the song, and does the right one fit better?
    """
    from typing import cast

    from mudit_engine.evaluation.retrieval import Encoder
    from mudit_engine.evaluation.systems import load_requests
    from mudit_engine.evaluation.user_types import LABELS, lines, swap_user_types
    from mudit_engine.models.folder import load_config, load_part, model_folder
    from mudit_engine.pipeline import SongPipeline

    asked = load_requests(requests)
    folder = model_folder(judge or model)
    chinmu = cast(Encoder, load_part("chinmu", load_config(folder), folder).eval())

    track = tracked(quiet=as_json)

    report = swap_user_types(
        SongPipeline.from_pretrained(model),
        chinmu,
        asked,
        seconds=seconds,
        seed=seed,
        steps=steps,
        track=track,
    )
    if as_json:
        emit_json(report)
        return
    columns = ["request", "written by", *(f"cosine as {label}" for label in LABELS), "change"]
    print_table("The same request under each label", columns, lines(report), numeric=columns[2:])
    note(
        f"the label changes the log-mel spectrum by {report.change.value:.3f} "
        f"(the same request twice: {report.floor:.3f})"
    )
    note(
        f"the right label's song is nearer by {report.gain.value:+.4f} in cosine "
        f"(p = {report.p:.2g}, {len(report.swaps)} requests)"
    )
