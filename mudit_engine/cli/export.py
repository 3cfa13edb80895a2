"""`mudit export`: a trained model folder becomes a deployment folder that its user can check.

mudit export onnx models/mine deploy --flavour fp32 --flavour bf16
mudit export verify deploy

A subcommand is listed when mudit_engine/cli/_export_<name>.py exists; only the one asked for is
imported.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from mudit_engine.cli._console import stop_on_sigterm

# the order of `mudit export --help`: from a model to a server
SUBCOMMANDS = ("onnx", "quantize", "tensorrt", "triton-server", "verify")


class _Subcommands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        here = Path(__file__).parent
        return [name for name in SUBCOMMANDS if (here / f"{_module(name)}.py").is_file()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(
            f"mudit_engine.cli.{_module(cmd_name)}"
        ).command
        return command


def _module(name: str) -> str:
    return f"_export_{name.replace('-', '_')}"


@click.group(cls=_Subcommands)
@click.pass_context
def command(context: click.Context) -> None:
    """Export a model to ONNX, and check what was exported."""
    # what is written aside, as large as the model, is gone when the command is stopped
    context.with_resource(stop_on_sigterm())
