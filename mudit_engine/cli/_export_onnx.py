"""`mudit export onnx`: graphs and manifest of a model, and the songs that prove them.

mudit export onnx models/mine deploy --flavour fp32 --flavour bf16
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import json_option, progress
from mudit_engine.cli._export_verify import FOLDER, runtimes_here, show

FLAVOURS = ("fp32", "bf16", "fp16")


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("out", type=FOLDER)
@click.option(
    "--flavour",
    "flavours",
    multiple=True,
    type=click.Choice(FLAVOURS),
    help="fp32 (opset 20) is for ONNX Runtime and OpenVINO; bf16 and fp16 (opset 23) for TensorRT. "
    "Repeatable.  [default: fp32]",
)
@click.option(
    "--random-weights",
    is_flag=True,
    help="MODEL is a preset or config.json: draw weights, to build and time that size.",
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FOLDER[:SCALE]",
    help="A LoRA that is merged into the weights that are exported. Repeatable.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Merge the model's few-step student into the weights, and export its sampler with them.",
)
@click.option(
    "--no-parity", is_flag=True, help="Leave out the songs through every runtime (needs fp32)."
)
@json_option
def command(
    model: str,
    out: Path,
    flavours: tuple[str, ...],
    random_weights: bool,
    loras: tuple[str, ...],
    fast: bool,
    no_parity: bool,
    as_json: bool,
) -> None:
    """Write graphs and manifest of MODEL (a name or folder) to the folder OUT. Fails when a runtime
    differs from PyTorch.
    """
    from mudit_engine.export.onnx_export import export_onnx
    from mudit_engine.runtime.manifest import read_manifest

    if loras and random_weights:
        raise click.UsageError("--lora adds to trained weights: leave --random-weights out")
    if fast and random_weights:
        raise click.UsageError("--fast takes a trained student: leave --random-weights out")
    flavours = flavours or ("fp32",)
    runtimes = runtimes_here() if "fp32" in flavours and not no_parity else ()
    with (
        tempfile.TemporaryDirectory(prefix="mudit-merged-") as work,
        progress("exporting", total=7 * len(flavours), quiet=as_json) as advance,
    ):
        if loras or fast:
            model = _merged(model, Path(work), loras, fast=fast)
        report = partial(_advance, advance)
        export_onnx(
            model,
            out,
            flavours=flavours,
            random_weights=random_weights,
            runtimes=runtimes,
            report=report,
        )
    show(out, read_manifest(out)["parity"] or [], as_json=as_json)


def _merged(model: str, work: Path, loras: tuple[str, ...], *, fast: bool) -> str:
    """A copy of the model, under its own name, with the LoRAs and its few-step student in its
    weights.
    """
    import torch

    from mudit_engine.models.complete import save_model
    from mudit_engine.models.fewstep import student_of
    from mudit_engine.models.folder import model_folder
    from mudit_engine.models.lora import parse_lora

    specs, source = [parse_lora(text) for text in loras], model_folder(model)
    student = student_of(source) if fast else None
    out = work / source.resolve().name
    return str(save_model(source, out, loras=specs, dtype=torch.float32, student=student))


def _advance(advance: Any, text: str) -> None:
    advance(1, text=f"exporting {text}")
