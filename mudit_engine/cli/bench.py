"""`mudit bench`: measure the engine against strong peers, interleaved in the same run.

mudit bench list
mudit bench run step decode --size tiny
mudit bench e2e --workload published-1536 --rounds 3 --json
mudit bench kernels --static --arch sm_80,sm_90 --html kernels.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._bench_gate import compare_command, gate_command
from mudit_engine.cli._bench_registry import list_command, run_command, scale_command
from mudit_engine.cli._bench_tune import tune_command
from mudit_engine.cli._console import emit_json, json_option, note, print_table, progress
from mudit_engine.cli._numbers import FiniteRange


@click.group()
def command() -> None:
    """Measure against peers, interleaved: every benchmark by name (list, run), whole steps (e2e),
    kernels (kernels), CPU runtimes against torch (runtimes); find the fastest backends of this
    device (tune); and hold what was measured or counted to what was before (compare, gate).
    """


command.add_command(list_command)
command.add_command(run_command)
command.add_command(scale_command)
command.add_command(compare_command)
command.add_command(gate_command)
command.add_command(tune_command)


@command.command()
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME",
    help="published-1536, published-mixed; default all.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Interleaved rounds of engine and peer.",
)
@json_option
def e2e(workloads: tuple[str, ...], rounds: int, as_json: bool) -> None:
    """One denoising step of the published size against diffusers' StableAudioDiTModel."""
    from mudit_engine.benchmarks.end_to_end import as_documents, run
    from mudit_engine.benchmarks.workloads import WORKLOADS

    rows = as_documents(run(workloads or list(WORKLOADS), rounds=rounds, progress=note))
    if as_json:
        emit_json(rows)
        return
    columns = [
        "workload",
        "runtime",
        "seconds_p50",
        "peer_seconds_p50",
        "ratio_to_peer",
        "gemm_peak_fraction",
        "cpu_ratio_to_peer",
        "gemm_cpu_fraction",
        "peak_memory_mib",
    ]
    cells = [
        [f"{row[c]:.3g}" if isinstance(row[c], float) else row[c] for c in columns] for row in rows
    ]
    print_table("One denoising step", columns, cells, numeric=columns[2:])


@command.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=click.Choice(("onnxruntime", "openvino")),
    help="Beside torch; default both.",
)
@click.option(
    "--seconds",
    "lengths",
    multiple=True,
    type=FiniteRange(1),
    help="Length of the song. Repeatable.  [default: 30]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Interleaved rounds of all runtimes.",
)
@click.option(
    "--guidance/--no-guidance",
    default=True,
    show_default=True,
    help="Whether a step has an unconditional sequence.",
)
@click.option(
    "--work",
    "works",
    multiple=True,
    type=click.Choice(("step", "decode", "song")),
    help="Repeatable; default all.",
)
@click.option(
    "--threads", type=click.IntRange(1), help="Of every runtime.  [default: torch's own choice]"
)
@json_option
def runtimes(
    folder: Path,
    runtimes: tuple[str, ...],
    lengths: tuple[float, ...],
    rounds: int,
    guidance: bool,
    works: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Steps, decodes and whole songs of a deployment FOLDER (mudit export onnx) on the CPU, by
    every runtime.
    """
    import torch

    from mudit_engine.benchmarks.cpu_runtimes import WORKS, as_documents, run
    from mudit_engine.names import GRAPH_RUNTIMES

    if threads:
        torch.set_num_threads(threads)
    names = runtimes or GRAPH_RUNTIMES
    works = works or WORKS
    rows = run(
        folder,
        runtimes=names,
        lengths=lengths or (30.0,),
        rounds=rounds,
        guided=guidance,
        works=works,
        report=note,
    )
    document = as_documents(rows)
    if as_json:
        emit_json(document)
        return
    columns = [
        "work",
        "song_seconds",
        "runtime",
        "seconds_p50",
        "cpu_seconds_p50",
        "ratio_to_torch",
        "cpu_ratio_to_torch",
        "difference",
    ]
    cells = [
        [f"{row[c]:.3g}" if isinstance(row[c], float) else row[c] for c in columns]
        for row in document["rows"]
    ]
    print_table(
        f"CPU runtimes, {rows[0].model}",
        columns,
        cells,
        numeric=[c for c in columns if c not in ("work", "runtime")],
    )


class Names(click.ParamType):
    """A comma-separated list of at least one name."""

    name = "NAME,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        parts = (
            value
            if isinstance(value, tuple)
            else tuple(part.strip() for part in value.split(",") if part.strip())
        )
        if not parts:
            self.fail(f"{value!r} names nothing: leave the option out for its default", param, ctx)
        return parts


class Widths(Names):
    """A comma-separated list of integers."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return tuple(int(part) for part in super().convert(value, param, ctx))
        except ValueError:
            self.fail(f"{value!r} is no list of integers such as 64,96,128", param, ctx)


STATIC_COLUMNS = {
    "arch": "arch", "op": "op", "variant": "variant", "head_dim": "head", "dtype": "dtype",
    "registers": "regs", "spill_bytes": "spill B", "loop_local_accesses": "local",
    "shared_bytes": "shared B", "blocks_per_sm": "blocks", "mma_useful_ratio": "exec/useful",
    "ceiling_overlap": "overlap", "ceiling_serial": "serial", "ceiling_of": "of",
    "ratio": "bytes/min",
}  # fmt: skip


@command.command()
@click.option(
    "--static",
    is_flag=True,
    help="Compile and read the machine code: no GPU is needed, nothing is timed.",
)
@click.option(
    "--interpret",
    is_flag=True,
    help="Run the measurement in Triton's interpreter at tiny sizes: results are checked, no "
    "speeds.",
)
@click.option(
    "--arch",
    "arches",
    type=Names(),
    default="sm_80,sm_90",
    show_default=True,
    help="Of --static; sm_80 86 89 90 100 120.",
)
@click.option(
    "--ops",
    type=Names(),
    default=None,
    help="attention, pack, norm, gelu, guided_step; default all.",
)
@click.option(
    "--head-dims", type=Widths(), default="64,96,128", show_default=True, help="Head widths."
)
@click.option("--dtypes", type=Names(), default="bf16", show_default=True, help="bf16, fp16, fp32.")
@click.option(
    "--peers/--no-peers",
    default=True,
    show_default=True,
    help="Other packages' kernels beside ours.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Of --static: compilers (and interpreters) at once.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Of a measurement: interleaved launches of each provider.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Also write the report, one file.",
)
@json_option
def kernels(
    static: bool,
    interpret: bool,
    arches: tuple[str, ...],
    ops: tuple[str, ...] | None,
    head_dims: tuple[int, ...],
    dtypes: tuple[str, ...],
    peers: bool,
    processes: int,
    rounds: int,
    page: Path | None,
    as_json: bool,
) -> None:
    """Every kernel against its peers: timed on this machine's GPU, or with --static compiled for
    any GPU and read.

    \b
    mudit bench kernels                                on a CUDA device
    mudit bench kernels --static --arch sm_80,sm_100 --html kernels.html
    mudit bench kernels --interpret --ops attention    no GPU: checks numerics and the benchmark
    """
    if static and interpret:
        raise click.UsageError("--static compiles and --interpret runs: pass one of them")
    if static:
        rows = _static(
            arches=arches,
            ops=ops,
            head_dims=head_dims,
            dtypes=dtypes,
            peers=peers,
            processes=processes,
            quiet=as_json,
        )
        if page is not None:
            _write_page(page, static=rows, measured=[])
        if as_json:
            emit_json(rows)
        else:
            _print_static(rows)
        return
    rows = _measure(
        interpret=interpret,
        ops=ops,
        head_dims=head_dims,
        dtypes=dtypes,
        peers=peers,
        rounds=rounds,
        quiet=as_json,
    )
    if page is not None:
        _write_page(page, static=[], measured=rows)
    if as_json:
        emit_json(rows)
    else:
        _print_measured(rows)


def _static(*, ops: tuple[str, ...] | None, quiet: bool, **options: Any) -> list[dict[str, Any]]:
    from contextlib import ExitStack

    from mudit_engine.benchmarks.static_kernels import OPS, run

    with ExitStack() as stack:

        def started(jobs: int) -> Any:
            advance = stack.enter_context(progress("compiling", total=jobs, quiet=quiet))
            return lambda text: advance(text=text)

        return run(ops=ops or tuple(OPS), started=started, **options)


def _measure(
    *, interpret: bool, ops: tuple[str, ...] | None, quiet: bool, **options: Any
) -> list[dict[str, Any]]:
    import os

    if interpret:
        # read when a kernel module is first imported, which is below
        os.environ["TRITON_INTERPRET"] = "1"
    from mudit_engine.benchmarks.measure_kernels import run

    return run(
        interpret=interpret, ops=ops, progress=(lambda text: None) if quiet else note, **options
    )


def _write_page(path: Path, **rows: list[dict[str, Any]]) -> None:
    from mudit_engine.benchmarks.report_kernels import write

    write(path, **rows)
    note(f"report: {path}")


def _print_static(rows: list[dict[str, Any]]) -> None:
    from mudit_engine.benchmarks.report_kernels import cells

    found = [cells(row) for row in rows if "skipped" not in row]
    table = [[row[key] for key in STATIC_COLUMNS] for row in found]
    numeric = list(STATIC_COLUMNS.values())[5:]
    print_table(
        "Compiled, not measured: ceilings are bounds, not speeds",
        list(STATIC_COLUMNS.values()),
        table,
        numeric=numeric,
    )
    for row in rows:
        for warning in row.get("ptxas_warnings") or ():
            note(f"{row['op']} {row['variant']} {row['arch']}: {warning}")
    for reason in dict.fromkeys(
        f"{row['variant']} {row['op']}: {row['skipped']}" for row in rows if "skipped" in row
    ):
        note(f"left out: {reason}")


def _print_measured(rows: list[dict[str, Any]]) -> None:
    from mudit_engine.benchmarks.measure_kernels import columns

    shown = columns(rows)
    cells = [
        [f"{row[key]:.4g}" if isinstance(row[key], float) else row[key] for key in shown]
        for row in rows
    ]
    title = (
        "Kernels"
        if all(row["measured"] for row in rows)
        else "Kernels, interpreted: results are checked, nothing is timed"
    )
    print_table(
        title,
        list(shown.values()),
        cells,
        numeric=[
            title for title in shown.values() if title not in ("op", "dtype", "provider", "note")
        ],
    )
