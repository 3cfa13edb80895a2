"""What `mudit generate` tells of the songs that it made: a row each, a table or one document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mudit_engine.cli._console import emit_json, print_table
from mudit_engine.cli._understood import print_understood
from mudit_engine.errors import MuditError


def row_of(
    info: dict[str, Any], seconds: float, rate: int, files: Sequence[str | Path]
) -> dict[str, Any]:
    """What is told of a song that was written, from its sidecar."""
    return {
        "files": [str(file) for file in files],
        "seconds": seconds,
        "sample_rate": rate,
        "frames": info["frames"],
        "seed": info["request"]["seed"],
        "notes": info["notes"],
        "timings_seconds": info["timings_seconds"],
    }


def print_songs(rows: list[dict[str, Any]]) -> None:
    """A table of the songs, with the seconds of each stage."""
    stages = list(rows[0]["timings_seconds"])
    columns = ["file", "seconds", "seed", *(f"{stage} s" for stage in stages)]
    cells = [
        [
            row["files"][0],
            f"{row['seconds']:.1f}",
            row["seed"],
            *(f"{row['timings_seconds'][stage]:.2f}" for stage in stages),
        ]
        for row in rows
    ]
    print_table("Songs", columns, cells, numeric=columns[1:])


def show_made(
    options: dict[str, Any],
    *,
    rows: list[dict[str, Any]],
    read: list[dict[str, Any]],
    failures: list[dict[str, str]],
    made: int,
    timed: dict[str, Any],
) -> None:
    """Prints what became of the songs. Raises MuditError when some could not be made."""
    if options["as_json"]:
        emit_json({**timed, "songs": rows, "understood": read, "failures": failures})
    elif options["dry_run"]:
        print_understood(read)
    elif rows:
        print_songs(rows)
    if failures:
        if not options["as_json"]:
            cells = [[row["where"], row["error"]] for row in failures]
            print_table("Not made", ["request", "reason"], cells)
        raise MuditError(
            f"{len(failures)} of {len(failures) + made} songs could not be made: mend their lines "
            "and run the command again with --skip-existing"
        )
