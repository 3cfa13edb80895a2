"""The paper's Table 3, trained and tested by `mudit eval retrieval --train DATA`.

mudit eval retrieval --train data/audio --recipe tiny-chinmu --set steps=300 --clap SOURCE
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from mudit_engine.cli._console import emit_json, note, print_table

FOLDER = click.Path(path_type=Path, file_okay=False)
F = TypeVar("F", bound=Callable[..., Any])


def table_options(function: F) -> F:
    """Options of the table, which all need --train."""
    for option in reversed(
        (
            click.option(
                "--train",
                type=FOLDER,
                metavar="DATA",
                help="Instead of judging --model: train a ChinMu on each length of texts and each "
                "mix in DATA (audio shards of `mudit data encode`), and test them all.",
            ),
            click.option(
                "--recipe",
                default="tiny-chinmu",
                show_default=True,
                help="With --train: a chinmu recipe.",
            ),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="With --train: change a field of the recipe, for all settings. Repeatable.",
            ),
            click.option(
                "--setting",
                "names",
                multiple=True,
                metavar="NAME",
                help="With --train: short, medium, long, A+B/batch, A+B/minibatch, mix, all.  "
                "[default: the three lengths and the mix of all, in both regimes]",
            ),
            click.option(
                "--clap",
                metavar="SOURCE",
                help="With --train: a CLAP, by folder or hub id, as the baseline row.",
            ),
            click.option(
                "--split",
                default="test",
                show_default=True,
                help="With --train: the songs of DATA that are searched.",
            ),
            click.option(
                "--work",
                default="runs/retrieval",
                show_default=True,
                type=FOLDER,
                help="With --train: where settings are trained; a stopped run goes on.",
            ),
            click.option(
                "--out", type=FOLDER, help="With --train: a folder for table3.json and table3.tex."
            ),
        )
    ):
        function = option(function)
    return function


def table(
    data: Path,
    *,
    recipe: str,
    overrides: Sequence[str],
    names: Sequence[str],
    clap: str | None,
    split: str,
    songs: int,
    work: Path,
    out: Path | None,
    track: Any,
    as_json: bool,
) -> None:
    """Trains, tests and prints."""
    import dataclasses

    from mudit_engine.files import write_json, write_text
    from mudit_engine.hardware import environment
    from mudit_engine.training.retrieval_table import DEFAULT, chosen, retrieval_table

    rows = retrieval_table(
        data,
        chosen(names or DEFAULT),
        work,
        recipe=recipe,
        overrides=overrides,
        split=split,
        most=songs,
        clap=clap,
        quiet=as_json,
        track=track,
        on_setting=lambda name: note(f"setting {name}"),
    )
    columns, tables = layout(rows)
    if out is not None:
        document = [dataclasses.asdict(row) for row in rows]
        write_json(out / "table3.json", {"env": environment(), "rows": document})
        write_text(out / "table3.tex", latex_table(columns, tables))
    if as_json:
        emit_json({"rows": rows})
        return
    for direction, cells in tables.items():
        print_table(f"RA@K, {direction}", ["training", *columns], cells, numeric=columns)
    note(f"{rows[0].cells[0].songs} songs; 'chance' is what answers drawn at random would have")


def layout(rows: Any) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Columns (level and K), and the rows of each direction's table, chance last."""
    keys = list(dict.fromkeys((cell.level, cell.k) for cell in rows[0].cells))
    columns = [f"{level}@{k}" for level, k in keys]
    tables: dict[str, list[list[str]]] = {}
    for direction in dict.fromkeys(cell.direction for cell in rows[0].cells):
        lines = []
        for row in rows:
            held = {(c.level, c.k): c for c in row.cells if c.direction == direction}
            lines.append([row.setting, *(f"{held[key].accuracy.value:.3f}" for key in keys)])
        held = {(c.level, c.k): c for c in rows[0].cells if c.direction == direction}
        lines.append(["chance", *(f"{held[key].chance:.3f}" for key in keys)])
        tables[direction] = lines
    return columns, tables


def latex_table(columns: list[str], tables: dict[str, list[list[str]]]) -> str:
    """A tabular (booktabs) with both directions."""
    from mudit_engine.evaluation.system_report import latex

    lines = [f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", "\\toprule"]
    lines.append(" & ".join(["Training", *map(latex, columns)]) + " \\\\")
    for direction, rows in tables.items():
        head = f"\\multicolumn{{{len(columns) + 1}}}{{l}}{{{latex(direction)}}} \\\\"
        lines += ["\\midrule", head, "\\midrule"]
        lines += [" & ".join(map(latex, row)) + " \\\\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"
