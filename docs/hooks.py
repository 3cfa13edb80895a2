"""What the documentation's build does beside mkdocs: shows the reader of docstrings whole packages,
and writes the help of every command and the fields of a recipe into their pages.

The folders kernels, training, export and benchmarks reach the package through links and have no
__init__.py, which the static reader (griffe) does not follow. It reads a copy in which they are
plain packages.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
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


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts what the code says of itself in the place of a mark."""
    for mark, write in (("<!-- commands -->", _commands), ("<!-- recipe -->", _recipe)):
        if mark in markdown:
            markdown = markdown.replace(mark, write())
    return markdown


def _commands() -> str:
    from mudit_engine.cli.main import cli

    return "\n\n".join(_help(cli, click.Context(cli, info_name="mudit"), level=2))


def _help(command: click.Command, context: click.Context, *, level: int) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            within = click.Context(
                inner, info_name=name, parent=context, terminal_width=90, max_content_width=90
            )
            yield f"{'#' * level} `{within.command_path}`"
            if not isinstance(inner, click.Group):
                yield f"```text\n{inner.get_help(within)}\n```"
            yield from _help(inner, within, level=level + 1)


def _recipe() -> str:
    from mudit_engine.training.recipe import Recipe

    return "\n".join(["| field | default | meaning |", "| --- | --- | --- |", *_fields(Recipe, "")])


def _fields(model: Any, before: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            yield from _fields(inner, f"{before}{name}.")
            continue
        default = (
            "required"
            if field.is_required()
            else f"`{field.get_default(call_default_factory=True)!r}`"
        )
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{before}{name}` | {default} | {meaning} |"


def on_post_build(config: Any) -> None:
    """Removes the copy."""
    while _copies:
        _copies.pop().cleanup()
