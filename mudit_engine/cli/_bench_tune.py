"""`mudit bench tune`: which backend is fastest on this device, kept for `auto` to follow.

mudit bench tune --seconds 120
mudit bench tune --out table.json          # MUDIT_BACKENDS=table.json mudit generate ...
mudit bench tune --forget
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import Invocation, emit_json, json_option, note, print_table
from mudit_engine.cli._numbers import FiniteRange

DTYPES = ("fp32", "bf16", "fp16")


@click.command("tune")
@click.option("--seconds", type=FiniteRange(1), default=120, show_default=True, help="About.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--op",
    "ops",
    multiple=True,
    type=click.Choice(("attention", "attention_grad", "linear_gelu")),
    help="Repeatable; default all.",
)
@click.option(
    "--head-dim", "head_dims", multiple=True, type=click.Choice(("64", "96", "128")),
    help="Of attention. Repeatable; default all.",
)  # fmt: skip
@click.option(
    "--width", "widths", multiple=True, type=click.IntRange(8),
    help="Of linear_gelu. Repeatable.  [default: 1536]",
)  # fmt: skip
@click.option(
    "--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES),
    help="Repeatable.  [default: bf16 on a CUDA device, fp32 elsewhere]",
)  # fmt: skip
@click.option(
    "--longest",
    type=click.IntRange(1),
    help="Rows of the longest songs, at most.  [default: 2048 on a CPU, none on a CUDA device]",
)
@click.option("--heads", type=click.IntRange(1), help="Of attention.  [default: 1536 columns]")
@click.option(
    "--device", type=click.Choice(("cpu", "cuda")), help="[default: cuda if there is one]"
)
@click.option("--threads", type=click.IntRange(1), help="Of torch.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the table here.  [default: this user's cache, where it is in force from then on]",
)
@click.option("--forget", is_flag=True, help="Delete this device's table from the cache.")
@json_option
def tune_command(
    seconds: float,
    rounds: int,
    ops: tuple[str, ...],
    head_dims: tuple[str, ...],
    widths: tuple[int, ...],
    dtypes: tuple[str, ...],
    longest: int | None,
    heads: int | None,
    device: str | None,
    threads: int | None,
    out: Path | None,
    forget: bool,
    as_json: bool,
) -> None:
    """Measure which backend is fastest on this device, and keep the table: attention and the MLP's
    first product follow it from then on, wherever no backend is named.
    """
    import torch

    from mudit_engine.backends import table as tables
    from mudit_engine.benchmarks.tune import SONGS, WIDTH, Tuning, tune
    from mudit_engine.errors import MissingError
    from mudit_engine.hardware import environment

    if threads:
        torch.set_num_threads(threads)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if place == "cuda" and not torch.cuda.is_available():
        raise MissingError("--device cuda: torch finds no CUDA device; leave the option out")
    path = tables.path_of(tables.this_device(place))
    if forget:
        known = path.exists()
        path.unlink(missing_ok=True)
        note(f"deleted: {path}" if known else f"there is none: {path}")
        return
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    usual = ("bf16",) if place == "cuda" else ("fp32",)
    limit = longest or (2048 if place == "cpu" else 1 << 30)
    found = tune(
        Tuning(
            device=place,
            ops=ops or tables.OPS,
            head_dims=tuple(int(one) for one in head_dims) or (64, 96, 128),
            widths=widths or (WIDTH,),
            dtypes=tuple(named[one] for one in dtypes or usual),
            songs={one: frames for one, frames in SONGS.items() if max(frames) <= limit},
            heads=heads,
            rounds=rounds,
            seconds=seconds,
            report=note,
        )
    )
    invocation = click.get_current_context().find_object(Invocation)
    found.env.update(environment(invocation.arguments if invocation else None))
    tables.write(found, out or path)
    note(f"table: {out or path}")
    if as_json:
        emit_json(found.details)
        return
    columns = ["op", "width", "dtype", "rows", "backend", "ms", "x usual", "error"]
    print_table("Backends", columns, _cells(found.details), numeric=["width", *columns[5:]])


def _cells(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """A line a backend, in the order in which `auto` tries them; then those that were left out."""
    cells: list[list[Any]] = []
    for row in rows:
        up_to = row["rows_up_to"]
        head = [row["op"], str(row["width"]), row["dtype"], f"to {up_to}" if up_to else "longer"]
        for name in row["order"]:
            one = row["backends"][name]
            cells.append(
                [
                    *head,
                    name,
                    f"{1e3 * one['seconds_p50']:.3g}",
                    f"{one['ratio_to_usual']:.2f}",
                    f"{one['error']:.1e}",
                ]
            )
            head = ["", "", "", ""]
    return cells
