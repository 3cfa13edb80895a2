"""`mudit export quantize`: the products of `step` in 8 bits, measured on recorded songs and judged
by whole ones.

mudit export quantize deploy --to fp8 --python env/bin/python
mudit export tensorrt deploy --target h100 --quantize fp8
"""

from __future__ import annotations

from pathlib import Path

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, progress
from mudit_engine.cli._export_verify import FOLDER


@click.command("quantize")
@click.argument("folder", metavar="OUT", type=FOLDER)
@click.option(
    "--to",
    "kind",
    type=click.Choice(("fp8", "int8")),
    required=True,
    help="fp8 (e4m3) for sm_89 and later, int8 for all.",
)
@click.option(
    "--flavour",
    type=click.Choice(("bf16", "fp16")),
    default="bf16",
    show_default=True,
    help="Precision of everything else, as exported.",
)
@click.option(
    "--songs", type=click.IntRange(1, 64), default=8, show_default=True, help="That are recorded."
)
@click.option(
    "--most-kept",
    type=click.IntRange(0),
    help="Products that may stay in half precision.  [default: half of them]",
)
@click.option(
    "--python",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An interpreter that has nvidia-modelopt[onnx].  [default: this one]",
)
@json_option
def command(
    folder: Path,
    kind: str,
    flavour: str,
    songs: int,
    most_kept: int | None,
    python: Path | None,
    as_json: bool,
) -> None:
    """Put the products of `step` of the deployment folder OUT into 8 bits.

    Attention stays as it is, and so do the products that cost most in 8 bits, as few as the limits
    need. Ranges are measured by NVIDIA's ModelOpt on recorded songs; two other songs are made with
    both graphs, and a difference beyond the limits is exit code 4.
    """
    from mudit_engine.export.quantize import PHASES, Options, quantize

    options = Options(flavour=flavour, songs=songs, python=python, most_kept=most_kept)
    with progress("quantising", total=len(PHASES), quiet=as_json) as advance:
        found = quantize(
            folder,
            kind,
            options=options,
            report=lambda text: advance(1 if text in PHASES else 0, text=text),
        )
    if as_json:
        emit_json({"folder": str(folder), **found})
        return
    columns = ["seconds", "steps", "cosine", "distance", "deviation", "clipping", "spectrum_db"]
    rows = [[f"{row[name]:.4g}" for name in columns] for row in found["measured"]["songs"]]
    print_table(
        f"{found['products']} products in {kind}: songs against those of {flavour}",
        columns,
        rows,
        numeric=columns,
    )
    note(f"{len(found['kept'])} stay in {flavour}: {', '.join(found['kept']) or 'none'}")
    note(f"mudit export tensorrt {folder} --target ... --quantize {kind} builds its engines")
