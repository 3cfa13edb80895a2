"""What the documentation's build does beside mkdocs: shows the reader of docstrings whole packages.

The folders kernels, training, export and benchmarks reach the package through links and have no
__init__.py, which the static reader (griffe) does not follow. It reads a copy in which they are
plain packages.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[1]
LINKED = ("kernels", "training", "export", "benchmarks")
_copies: list[tempfile.TemporaryDirectory[str]] = []


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: Any) -> Any:
    """Copies the sources and points the reader at the copy."""
    copy = tempfile.TemporaryDirectory(prefix="mudit-docs-")
    _copies.append(copy)
    package = Path(copy.name, "mudit_engine")
    only_sources = shutil.ignore_patterns("__pycache__", "*.safetensors", "assets", *LINKED)
    shutil.copytree(ROOT / "mudit_engine", package, ignore=only_sources)
    for name in LINKED:
        folder = package / name
        shutil.copytree(ROOT / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            (inner / "__init__.py").touch()
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [copy.name]
    return config


def on_post_build(config: Any) -> None:
    """Removes the copy."""
    while _copies:
        _copies.pop().cleanup()
