"""`mudit export onnx`: graphs and manifest of a model, and the songs that prove them.

mudit export onnx models/mine deploy --flavour fp32 --flavour bf16
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import json_option, progress
from mudit_engine.cli._export_verify import FOLDER, runtimes_here, show
from mudit_engine.errors import GateError

FLAVOURS = ("fp32", "bf16", "fp16")


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("out", type=FOLDER)
@click.option(
    "--flavour",
    "flavours",
    multiple=True,
    type=click.Choice(FLAVOURS),
    help="fp32 (opset 20) is for ONNX Runtime and OpenVINO; bf16 and fp16 (opset 23) for TensorRT. Repeatable.  [default: fp32]",
)
@click.option("--random-weights", is_flag=True, help="MODEL is a preset or config.json: draw weights, to build and time that size.")
@click.option("--no-parity", is_flag=True, help="Leave out the songs through every runtime (needs fp32).")
@json_option
def command(model: str, out: Path, flavours: tuple[str, ...], random_weights: bool, no_parity: bool, as_json: bool) -> None:
    """Write graphs and manifest of MODEL (a name or folder) to the folder OUT. Fails when a runtime differs from PyTorch."""
    from mudit_engine.export.manifest import add_to_manifest
    from mudit_engine.export.onnx_export import export_onnx

    flavours = flavours or ("fp32",)
    with progress("exporting", total=6 * len(flavours), quiet=as_json) as advance:
        export_onnx(model, out, flavours=flavours, random_weights=random_weights, report=lambda text: advance(1, text=f"exporting {text}"))
    rows: list[dict[str, Any]] = []
    if not no_parity and "fp32" in flavours:
        rows = _parity(out)
        add_to_manifest(out, parity=rows)
    show(out, rows, as_json=as_json)


def _parity(folder: Path) -> list[dict[str, Any]]:
    """Measured rows. Raises GateError, and removes the manifest so that nothing runs the folder, when a limit is passed."""
    from mudit_engine.export.parity import faults, measure_parity

    rows = measure_parity(folder, runtimes=runtimes_here())
    if wrong := faults(rows):
        (folder / "manifest.json").unlink()
        raise GateError(f"'{folder}' is no faithful export and cannot be used: {'; '.join(wrong)}")
    return rows
