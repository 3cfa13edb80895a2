"""Songs that are not to be encoded, by id: what `mudit data dedupe` writes, or a list of one's own.

    reasons = read_leave_out(Path("dedupe/copies.jsonl"))       # {"a": "a copy of 'b' (...)"}

A line is a JSON object with `id`; `reason` is told when the song is left out.
"""

from __future__ import annotations

import json
from pathlib import Path

from mudit_engine.errors import InputError
from mudit_engine.files import read_text


def read_leave_out(path: Path) -> dict[str, str]:
    """Reasons by id. Raises InputError that names the line."""
    reasons: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "list").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            reasons[str(row["id"])] = str(row.get("reason", f"it is named in '{path}'"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f'\'{path}\' line {number} is no JSON object with an id: write {{"id": "a"}}'
            ) from None
    return reasons
