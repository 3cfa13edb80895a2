"""`mudit bench list` and `mudit bench run`: the registry of benchmarks (benchmarks/registry.py).

mudit bench run step decode --size tiny --rounds 5 --out bench.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import Invocation, emit_json, json_option, note, print_table
from mudit_engine.cli._numbers import FiniteRange

COLUMNS = {
    "case": "case",
    "provider": "provider",
    "seconds_p50": "s p50",
    "seconds_p90": "p90",
    "seconds_p99": "p99",
    "cpu_seconds_p50": "CPU s",
    "ratio": "x reference",
    "cpu_ratio": "x by CPU",
    "gemm_peak_fraction": "of GEMM",
    "gemm_cpu_fraction": "by CPU",
    "real_time_factor": "RTF",
    "memory_mib": "MiB",
    "error": "error",
    "joules": "J",
    "note": "note",
}


@click.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """Every benchmark: what it measures, beside what, and what is missing here."""
    from mudit_engine.benchmarks.registry import BENCHMARKS

    rows = [entry.document() for entry in BENCHMARKS.values()]
    if as_json:
        emit_json(rows)
        return
    cells = [
        [
            row["name"],
            row["about"],
            row["peers"],
            f"{row['minutes']} min",
            "a CUDA device" if row["gpu"] else ", ".join(row["missing"]) or None,
        ]
        for row in rows
    ]
    print_table("Benchmarks", ["name", "measures", "beside", "about", "needs"], cells)
    note("one of them: mudit bench run NAME --size tiny|small|published")


@click.command("run")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--size",
    type=click.Choice(("tiny", "small", "published")),
    default="small",
    show_default=True,
    help="Of the network and its songs: seconds a step at tiny, minutes at published.",
)
@click.option("--rounds", type=click.IntRange(1), help="Turns of every provider.")
@click.option("--seconds", type=FiniteRange(1), help="Of audio, where a benchmark makes some.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A deployment folder (mudit export onnx): of runtimes and waterfall.",
)
@click.option(
    "--dtype",
    type=click.Choice(("fp32", "bf16")),
    default="fp32",
    show_default=True,
    help="Of every network.",
)
@click.option("--peers/--no-peers", default=True, show_default=True, help="Others beside ours.")
@click.option("--compile", "compiled", is_flag=True, help="Peers through torch.compile as well.")
@click.option("--threads", type=click.IntRange(1), help="Of torch.  [default: torch's own choice]")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The JSON, as a file.")
@json_option
@click.pass_context
def run_command(
    ctx: click.Context,
    names: tuple[str, ...],
    size: str,
    rounds: int | None,
    seconds: float | None,
    folder: Path | None,
    dtype: str,
    peers: bool,
    compiled: bool,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run benchmarks by NAME: results are held to a reference first, then ours and peers take
    turns.
    """
    from mudit_engine.benchmarks import registry

    for name in names:
        registry.known(name)
    if threads:
        import torch

        torch.set_num_threads(threads)
    options = registry.Options(
        size=size,
        rounds=rounds,
        seconds=seconds,
        folder=folder,
        peers=peers,
        dtype=dtype,
        compile=compiled,
        report=note,
    )
    documents: list[dict[str, Any]] = []
    for name in names:
        found = [row.document() for row in registry.run(name, options)]
        documents += found
        if not as_json:
            print_rows(name, found)
    if out is not None:
        from mudit_engine.benchmarks.documents import write_document

        write_document(out, documents)
        note(f"written: {out}")
    if as_json:
        emit_json(documents)


@click.command("scale")
@click.option(
    "--size",
    type=click.Choice(("tiny", "small", "published")),
    default="tiny",
    show_default=True,
    help="Of the network that is timed; the presets up to 3 B are counted.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--longest",
    type=FiniteRange(30),
    help="Seconds of the longest song that is timed.  [default: by size]",
)
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page here.  [default: scale.html, unless --json]",
)
@click.option("--threads", type=click.IntRange(1), help="Of torch.")
@json_option
def scale_command(
    size: str,
    rounds: int,
    longest: float | None,
    page: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """What a step costs against the song's length (a T + b T^2), the batch and the model's size:
    one page with plots.
    """
    import torch

    from mudit_engine.benchmarks.registry import Options
    from mudit_engine.benchmarks.scaling import scale
    from mudit_engine.benchmarks.scaling_page import html, in_words
    from mudit_engine.files import write_text
    from mudit_engine.hardware import environment

    if threads:
        torch.set_num_threads(threads)
    document = scale(Options(size=size, rounds=rounds, seconds=longest, report=note))
    invocation = click.get_current_context().find_object(Invocation)
    document["env"] = environment(invocation.arguments if invocation else None)
    if page is None and not as_json:
        page = Path("scale.html")
    if page is not None:
        write_text(page, html(document))
        note(f"page: {page}")
    if as_json:
        emit_json(document)
        return
    rows = document["length"]["rows"]
    columns = ["seconds", "frames", "GFLOP", "CPU s", "MiB"]
    cells = [
        [
            row["seconds_of_song"],
            row["frames"],
            _cell(row["flops"] / 1e9),
            _cell(row.get("cpu_seconds_least")),
            _cell(_mib(row.get("memory_bytes"))),
        ]
        for row in rows
    ]
    print_table(f"A guided step, size {size}", columns, cells, numeric=columns)
    laws = document["length"]["laws"]
    for name, unit in (("flops", "FLOP"), ("cpu_seconds", "s"), ("memory_bytes", "B")):
        click.echo(f"{in_words(name, laws[name], unit)}   (T in frames)")


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """The columns in which any row says something; the figures that only one benchmark has come
    last.
    """
    table = [row | {"memory_mib": _mib(row["memory_bytes"])} for row in rows]
    shown = {
        key: text for key, text in COLUMNS.items() if any(row[key] is not None for row in table)
    }
    extra = list(dict.fromkeys(key for row in rows for key in row["figures"]))[:6]
    cells = [
        [_cell(row[key]) for key in shown] + [_cell(row["figures"].get(key)) for key in extra]
        for row in table
    ]
    text = {"case", "provider", "note"}
    print_table(
        title,
        [*shown.values(), *extra],
        cells,
        numeric=[label for key, label in shown.items() if key not in text] + extra,
    )


def _mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _cell(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value
