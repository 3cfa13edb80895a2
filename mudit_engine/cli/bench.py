"""`mudit bench`: measure the engine against strong peers, interleaved in the same run.

mudit bench e2e --workload published-1536 --rounds 3 --json
"""

from __future__ import annotations

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table


@click.group()
def command() -> None:
    """Measure against peers: whole steps (e2e)."""


@command.command()
@click.option("--workload", "workloads", multiple=True, metavar="NAME", help="published-1536, published-mixed; default all.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Interleaved rounds of engine and peer.")
@json_option
def e2e(workloads: tuple[str, ...], rounds: int, as_json: bool) -> None:
    """One denoising step of the published size against diffusers' StableAudioDiTModel."""
    from mudit_engine.benchmarks.end_to_end import as_documents, run
    from mudit_engine.benchmarks.workloads import WORKLOADS

    rows = as_documents(run(workloads or list(WORKLOADS), rounds=rounds, progress=note))
    if as_json:
        emit_json(rows)
        return
    columns = ["workload", "runtime", "seconds_p50", "peer_seconds_p50", "ratio_to_peer", "gemm_peak_fraction", "peak_memory_mib"]
    cells = [[f"{row[c]:.3g}" if isinstance(row[c], float) else row[c] for c in columns] for row in rows]
    print_table("One denoising step", columns, cells, numeric=columns[2:])
