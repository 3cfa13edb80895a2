"""`mudit bench compare` and `mudit bench gate`: whether something got slower.

mudit bench compare before.json after.json --fail-over 5%
mudit bench gate                                  # what can be counted, against the committed file
mudit bench gate main --starts 10                 # and two commits in turns
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table
from mudit_engine.errors import GateError

SHOWN = 40


class Share(click.ParamType):
    """A share: 5% or 0.05."""

    name = "SHARE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            text = str(value).strip()
            found = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"'{value}' is no share: write 5% or 0.05", param, ctx)
        if not 0 <= found < 10:
            self.fail(f"'{value}' is out of range: write a share such as 5% or 0.05", param, ctx)
        return found


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("after", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--fail-over",
    type=Share(),
    default="5%",
    show_default=True,
    help="How much worse a figure may be. A time with samples must be so with its whole interval.",
)
@json_option
def compare_command(before: Path, after: Path, fail_over: float, as_json: bool) -> None:
    """Two documents of results, figure by figure; exit 4 when one got worse."""
    from mudit_engine.benchmarks.compare import compare
    from mudit_engine.benchmarks.documents import read_document

    documents = [read_document(path) for path in (before, after)]
    report = compare(*(one["results"] for one in documents), fail_over=fail_over)
    machines = [one.get("env", {}).get("cpu") for one in documents]
    if machines[0] != machines[1]:
        note(
            f"measured on different processors ({machines[0]}, {machines[1]}): times say little, "
            f"ratios and counts hold"
        )
    if not report.changes:
        note("the documents share no figure: are they of the same benchmark?")
    if as_json:
        emit_json(report.document())
    else:
        _print_changes(f"{before} -> {after}", report.document())
    if report.regressions:
        raise GateError(
            f"{len(report.regressions)} figures are worse by more than {fail_over:.3g}, the worst: "
            f"{_named(vars(report.regressions[0]))}"
        )


@click.command("gate")
@click.argument("base", required=False)
@click.option(
    "--starts",
    type=click.IntRange(7, 10),
    default=8,
    show_default=True,
    help="How often both commits start anew; intervals are over these. Needs BASE.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Turns of both commits in a start. Needs BASE.",
)
@click.option(
    "--fail-over",
    type=Share(),
    default="5%",
    show_default=True,
    help="What a count or the ratio of a time must exceed; a time's interval also leaves out 1.",
)
@click.option(
    "--work",
    "works",
    multiple=True,
    type=click.Choice(("song", "batch", "step", "train")),
    help="What both commits run. Repeatable; default all.",
)
@click.option("--count/--no-count", default=True, show_default=True, help="Count as well.")
@click.option(
    "--update", is_flag=True, help="Write what is counted now into the committed file, and stop."
)
@json_option
def gate_command(
    base: str | None,
    starts: int,
    rounds: int,
    fail_over: float,
    works: tuple[str, ...],
    count: bool,
    update: bool,
    as_json: bool,
) -> None:
    """What can be counted (FLOPs, bytes, launches, variants, operators, registers, imports) against
    the committed figures; with BASE, another commit, both also run in turns. Exit 4 on a
    regression.
    """
    from mudit_engine.benchmarks import gate
    from mudit_engine.benchmarks.documents import write_document

    if update:
        if base is not None:
            raise click.UsageError("--update writes this checkout's figures: leave BASE out")
        write_document(gate.COMMITTED, gate.counted())
        note(f"written: {gate.COMMITTED}")
        return
    if base is None:
        report = gate.hold_figures(gate.counted(), gate.committed())
        document: dict[str, Any] = report.document()
        regressions = [f"{one.row} {one.figure}" for one in report.regressions]
        if as_json:
            emit_json(document)
        else:
            _print_changes("Counted, against the committed figures", document)
            if not document["changes"]:
                note(f"all {document['equal']} figures are as committed")
    else:
        document = gate.against(
            base,
            starts=starts,
            rounds=rounds,
            fail_over=fail_over,
            works=works or gate.WORKS,
            count=count,
            report=note,
        )
        regressions = document["regressions"]
        if as_json:
            emit_json(document)
        else:
            _print_ratios(document)
    if regressions:
        how = "" if base else " (if it is meant: mudit bench gate --update)"
        raise GateError(f"{len(regressions)} regressions: {', '.join(regressions[:5])}{how}")


def _print_changes(title: str, document: dict[str, Any]) -> None:
    columns = ["", "row", "figure", "before", "after", "worse by"]
    cells = [
        [
            "worse" if one["worse"] else "better" if one["change"] < 0 else "",
            one["row"],
            one["figure"],
            f"{one['before']:.6g}",
            f"{one['after']:.6g}",
            f"{100 * one['change']:+.1f} %",
        ]
        for one in document["changes"][:SHOWN]
    ]
    print_table(title, columns, cells, numeric=columns[3:])
    note(f"{document['equal']} figures are equal, {len(document['changes'])} changed")
    for where, rows in (("before", document["only_before"]), ("after", document["only_after"])):
        if rows:
            note(f"only {where}: {', '.join(rows[:5])}{' ...' if len(rows) > 5 else ''}")


def _print_ratios(document: dict[str, Any]) -> None:
    columns = ["", "work", "here / there", "interval", "here s", "there s"]
    cells = [
        [
            "slower" if one["worse"] else "",
            one["work"],
            f"{one['ratio']:.3f}",
            f"{one['low']:.3f} to {one['high']:.3f}",
            f"{one['here_seconds']:.3g}",
            f"{one['there_seconds']:.3g}",
        ]
        for one in document["ratios"]
    ]
    print_table(
        f"CPU seconds against {document['base']}, in turns", columns, cells, numeric=columns[2:]
    )
    for work, reason in document["left_out"].items():
        note(f"left out: {work} ({reason})")
    if document["note"]:
        note(document["note"])
    if document["figures"]:
        _print_changes("Counted on both sides", document["figures"])


def _named(change: dict[str, Any]) -> str:
    return f"{change['row']} {change['figure']} ({100 * change['change']:+.1f} %)"
