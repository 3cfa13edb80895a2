"""mudit doctor --cluster: the preflight of a training on many ranks
(training/parallel/preflight.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mudit_engine.cli._console import emit_json, note, print_table, progress
from mudit_engine.errors import GateError

F = TypeVar("F", bound=Callable[..., Any])

COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}
OPTIONS = (
    click.option(
        "--cluster",
        is_flag=True,
        help="Examine the ranks of a launcher (torchrun, srun), or --ranks on this machine.",
    ),
    click.option(
        "--ranks",
        type=click.IntRange(1),
        help="Processes to start here, without a launcher.  [default: GPUs, at least 2]",
    ),
    click.option("--nodes", type=click.IntRange(1), help="Nodes that there should be."),
    click.option(
        "--gpus-per-node", type=click.IntRange(1), help="Ranks that each node should have."
    ),
    click.option(
        "--folder",
        type=click.Path(path_type=Path),
        help="Where checkpoints will lie.  [default: here]",
    ),
    click.option(
        "--min-bandwidth",
        type=float,
        metavar="GB/S",
        help="Fail below this bus bandwidth of the largest all-reduce.",
    ),
    click.option(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="How long to wait for ranks.  [default: 120]",
    ),
)


def cluster_options(function: F) -> F:
    """Adds the options of the cluster part to a command."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def examine_cluster(options: dict[str, Any], *, as_json: bool) -> bool:
    """Runs the preflight when it was asked for and prints it on rank 0; False when it was not. Exit
    4 when the cluster is not fit.
    """
    given = [name for name, value in options.items() if name != "cluster" and value is not None]
    if not options["cluster"]:
        if given:
            raise click.UsageError(f"--{given[0].replace('_', '-')} goes with --cluster")
        return False
    from mudit_engine.training.parallel.preflight import preflight, preflight_here
    from mudit_engine.training.parallel.verdicts import Wanted

    wanted = Wanted(
        folder=options["folder"] or Path.cwd(),
        nodes=options["nodes"],
        gpus_per_node=options["gpus_per_node"],
        min_bandwidth_gbs=options["min_bandwidth"],
        timeout=120.0 if options["timeout"] is None else options["timeout"],
    )
    if "RANK" in os.environ:
        if options["ranks"] is not None:
            raise click.UsageError(
                f"--ranks starts processes here, but a launcher did already "
                f"(RANK={os.environ['RANK']})"
            )
        report = preflight(wanted)
        if report is None:  # rank 0 speaks for all
            return True
    else:
        from mudit_engine.hardware import machine

        ranks = options["ranks"] or max(2, len(machine().gpus))
        with progress(f"examining {ranks} ranks", total=None, quiet=as_json):
            report = preflight_here(ranks, wanted)
    if as_json:
        emit_json(report)
    else:
        _print(report)
    if not report["passed"]:
        failed = ", ".join(
            check["name"] for check in report["checks"] if check["status"] == "failed"
        )
        note(f"mudit: not fit to train: {failed}")
        raise click.exceptions.Exit(GateError.exit_code)
    return True


def _print(report: dict[str, Any]) -> None:
    rows = [
        [check["name"], (check["status"], COLOURS[check["status"]]), check["found"], check["mend"]]
        for check in report["checks"]
    ]
    print_table(
        f"Cluster: {report['world']} ranks on {len(report['hosts'])} host(s), {report['backend']}",
        ["", "", "found", "mend"],
        rows,
    )
    rows = [
        [row["collective"], row["mib"], f"{row['ms_p50']:.2f}", f"{row['bus_gbs']:.3f}"]
        for row in report["collectives"]
    ]
    columns = ["collective", "MiB", "ms p50", "bus GB/s"]
    print_table("Collectives (the slowest rank)", columns, rows, numeric=columns[1:])
