"""Documents of benchmarks as files: {schema_version, env, results}, what `--json` prints.

write_document(Path("bench.json"), rows)
rows = read_document(Path("bench.json"))["results"]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError
from mudit_engine.files import read_text, write_json
from mudit_engine.hardware import environment

SCHEMA_VERSION = 1


def write_document(path: Path, results: Any) -> None:
    """Writes results with this process's environment."""
    write_json(path, {"schema_version": SCHEMA_VERSION, "env": environment(), "results": results})


def read_document(path: Path) -> dict[str, Any]:
    """A document of this or an earlier run. Raises InputError for anything else."""
    try:
        found = json.loads(read_text(path, "results"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"'{path}' is not JSON (line {error.lineno}): give a file that a benchmark wrote with "
            f"--out, or its --json output"
        ) from None
    if not isinstance(found, dict) or "results" not in found:
        raise InputError(
            f"'{path}' is no document of results: it needs the keys env and results, as `--json` "
            f"prints them"
        )
    return found
