"""Peak memory, time and sizes of `mudit export onnx` on a preset with random weights: the graphs of
a size that nobody has trained yet.

    python -m mudit_engine.benchmarks.export_memory musit-3b --flavour bf16 \\
      --out benchmarks/results/onnx_export_musit-3b.json

The command runs as it is, in a process of its own, into a folder that is removed afterwards
(`--folder` where /tmp is small: the weights and the graphs lie side by side in it). `peak_mib` is
the peak of that process' resident memory (getrusage), mapped files included. No runtime runs:
parity is measured on models that fit one (`mudit export onnx` without `--no-parity`). Exit code 4
when the peak is not below `--limit-gib`.
"""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mudit_engine.errors import GateError
from mudit_engine.files import write_json


def measure(preset: str, flavours: Sequence[str], folder: Path) -> dict[str, Any]:
    """What the export of a preset into `folder` took, and the graphs it left. Raises GateError when
    it fails.
    """
    from mudit_engine.runtime.manifest import read_manifest

    chosen = [word for flavour in flavours for word in ("--flavour", flavour)]
    arguments = ["export", "onnx", preset, str(folder), "--random-weights", "--no-parity", *chosen]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "mudit_engine", *arguments], stdout=subprocess.DEVNULL, check=False
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise GateError(
            f"the export of '{preset}' ended with code {done.returncode}: no figure is reported"
        )
    graphs = [
        {
            "flavour": flavour,
            "graph": name,
            "mib": _mib(folder, f"graphs/{flavour}/{name}.onnx*"),
            "nodes": graph["nodes"],
        }
        for flavour, one in read_manifest(folder)["flavours"].items()
        for name, graph in one["graphs"].items()
    ]
    return {
        "preset": preset,
        "flavours": list(flavours),
        "peak_mib": round(after.ru_maxrss / 1024),
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "weights_mib": _mib(folder, "*.safetensors"),
        "graphs_mib": _mib(folder, "graphs/*/*"),
        "graphs": graphs,
    }


def _mib(folder: Path, pattern: str) -> float:
    return round(sum(file.stat().st_size for file in folder.glob(pattern)) / 2**20, 1)


@click.command(help=__doc__)
@click.argument("preset")
@click.option(
    "--flavour",
    "flavours",
    multiple=True,
    type=click.Choice(("fp32", "bf16", "fp16")),
    default=("bf16",),
    show_default=True,
)
@click.option(
    "--limit-gib", type=click.FloatRange(0), default=24.0, show_default=True, help="Of the peak."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where to export to.  [default: a temporary one]",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the JSON document."
)
def main(
    preset: str, flavours: tuple[str, ...], limit_gib: float, folder: Path | None, out: Path | None
) -> None:
    from mudit_engine.hardware import environment

    named = environment()
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        results = measure(preset, flavours, Path(aside) / "deploy")
    passed = results["peak_mib"] < limit_gib * 1024
    words = [word for flavour in flavours for word in ("--flavour", flavour)]
    # no folder of this machine
    named["command"] = shlex.join(
        ["python", "-m", "mudit_engine.benchmarks.export_memory", preset, *words]
    )
    document = {
        "schema_version": 1,
        "env": named,
        "results": results | {"limit_gib": limit_gib, "passed": passed},
    }
    if out is not None:
        write_json(out, document)
    click.echo(json.dumps(document, indent=2))
    if not passed:
        raise SystemExit(GateError.exit_code)


if __name__ == "__main__":
    main()
