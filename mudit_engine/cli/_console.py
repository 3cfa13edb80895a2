"""How commands speak: results on stdout (a table, or one JSON document with --json), everything
else on stderr.

    @click.command()
    @json_option
    def command(as_json: bool) -> None:
        with progress("decoding", total=12, quiet=as_json) as step:
            step()
        if as_json:
            emit_json(rows)
        else:
            print_table("Decoding", ["part", "ms"], [["attention", 1.2]])

The document is {"schema_version": 1, "env": {...}, "results": ...}, with "error" in place of
results that a command did not live to print.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import click

SCHEMA_VERSION = 1

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of a table."
)


@dataclass
class Invocation:
    """One run of `mudit`: the root context's `obj`."""

    arguments: tuple[str, ...]
    emitted: bool = False

    @property
    def wants_json(self) -> bool:
        # read from the raw arguments, so that an error in parsing them is JSON too
        return "--json" in self.arguments


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around imports and weights: Python's cycle collector waits, and what was loaded is left out
    of its later rounds. It would otherwise walk through torch again and again while torch grows,
    for a fifth of the time that a command takes to start.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.freeze()
            gc.enable()


def emit_json(results: Any) -> None:
    """The command's one document on stdout. Takes JSON values, dataclasses and paths; NaN is a bug
    (a figure that is missing is None).
    """
    _emit(click.get_current_context().find_object(Invocation), "results", results)


def emit_error(invocation: Invocation, error: BaseException, exit_code: int, message: str) -> None:
    """The document of a command that failed. Silent when the results are out already: stdout stays
    one document.
    """
    if not invocation.emitted:
        _emit(
            invocation,
            "error",
            {"type": type(error).__name__, "message": message, "exit_code": exit_code},
        )


def _emit(invocation: Invocation | None, key: str, value: Any) -> None:
    assert invocation is not None and not invocation.emitted, "one JSON document a command"
    from mudit_engine.hardware import environment

    document = {
        "schema_version": SCHEMA_VERSION,
        "env": environment(invocation.arguments),
        key: value,
    }
    text = json.dumps(
        document, indent=2, ensure_ascii=not _speaks_utf8(), allow_nan=False, default=_plain
    )
    invocation.emitted = True
    click.echo(text)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"{type(value).__name__} has no JSON form: emit_json takes JSON values, dataclasses and "
        f"paths"
    )


def _speaks_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def note(message: str) -> None:
    """A line for the person at the terminal, on stderr."""
    click.echo(message, err=True)


def refuse_idle(names: Sequence[str], when: str) -> None:
    """Raises click's UsageError when one of these options of the running command was typed."""
    context = click.get_current_context()
    for option in context.command.params:
        typed = context.get_parameter_source(option.name or "")
        if option.name in names and typed is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} has no effect {when}: leave it out")


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    numeric: Sequence[str] = (),
) -> None:
    """A table on stdout: drawn on a terminal, plain aligned columns (never cut) in a pipe. Columns
    in `numeric` are right-aligned.

    A cell is a value, None for nothing, or (text, rich style).
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=1_000_000)
    drawn = console.is_terminal and any(columns)
    table = Table(box=box.SIMPLE_HEAD if drawn else None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(
                Text(*cell) if isinstance(cell, tuple) else Text("" if cell is None else str(cell))
                for cell in row
            )
        )
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


class Advance(Protocol):
    def __call__(self, amount: float = 1, *, text: str | None = None) -> None: ...


@contextlib.contextmanager
def progress(description: str, *, total: float | None, quiet: bool = False) -> Iterator[Advance]:
    """A bar with the time left, on stderr; nothing if stderr is no terminal or `quiet`. Yields
    advance(amount=1, text=new description).
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    times = (
        (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        if total is not None
        else (TimeElapsedColumn(),)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), *times)
    with Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=total)

        def advance(amount: float = 1, *, text: str | None = None) -> None:
            bar.update(task, advance=amount, description=text)

        yield advance


def tracked(*, quiet: bool = False) -> Any:
    """What passes items through under a bar, `track(items, text)`, as the evaluation's functions
    take it (evaluation/songs.py, `Track`).
    """

    def track(items: Sequence[Any], text: str) -> Iterator[Any]:
        with progress(text, total=len(items), quiet=quiet) as advance:
            for item in items:
                yield item
                advance()

    return track


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the work as Ctrl-C does: what is finished is kept (exit code 130)."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = None
    with contextlib.suppress(ValueError):  # not the main thread: no handlers there
        before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
