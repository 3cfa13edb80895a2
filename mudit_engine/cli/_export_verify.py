"""`mudit export verify`: a deployment folder against its manifest, and its songs against PyTorch
once more.

mudit export verify deploy
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table
from mudit_engine.errors import GateError, MissingError, ModelError
from mudit_engine.names import GRAPH_RUNTIMES

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--no-parity", is_flag=True, help="Check files and graphs alone.")
@json_option
def command(folder: Path, no_parity: bool, as_json: bool) -> None:
    """Check a deployment FOLDER against its manifest: hashes, graphs, and parity with PyTorch
    measured again.
    """
    from mudit_engine.export.parity import faults
    from mudit_engine.export.verify import verify as verify_folder

    report = verify_folder(
        folder, runtimes=() if no_parity else runtimes_here(), parity=not no_parity
    )
    if report["differences"]:
        raise ModelError(
            f"'{folder}' is not as it was exported: {'; '.join(report['differences'])}. Export it "
            f"again, or copy it whole"
        )
    show(folder, report["parity"], as_json=as_json)
    if wrong := faults(report["parity"]):
        raise GateError("; ".join(wrong))


def runtimes_here() -> tuple[str, ...]:
    """Installed runtimes of fp32 graphs. Raises MissingError when there is none."""
    from mudit_engine.availability import available, install_command

    found = tuple(name for name in GRAPH_RUNTIMES if available(name))
    if not found:
        raise MissingError(
            f"no runtime to check the graphs with: {install_command('onnxruntime')}, or pass "
            f"--no-parity"
        )
    return found


def show(folder: Path, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Prints what a deployment folder holds and how far it is from PyTorch."""
    from mudit_engine.runtime.manifest import read_manifest

    manifest = read_manifest(folder)
    if as_json:
        flavours = {
            name: {"opset": one["opset"], "graphs": sorted(one["graphs"])}
            for name, one in manifest["flavours"].items()
        }
        emit_json(
            {
                "folder": str(folder),
                "flavours": flavours,
                "files": manifest["files"],
                "parity": rows,
            }
        )
        return
    cells = [
        [
            name,
            one["opset"],
            graph,
            info["nodes"],
            f"{manifest['files'][f'graphs/{name}/{graph}.onnx']['bytes'] / 2**20:.1f}",
        ]
        for name, one in manifest["flavours"].items()
        for graph, info in one["graphs"].items()
    ]
    print_table(
        f"Graphs in {folder}",
        ["flavour", "opset", "graph", "nodes", "MiB"],
        cells,
        numeric=["opset", "nodes", "MiB"],
    )
    if rows:
        from mudit_engine.export.parity import FIGURES

        figures = [
            [r["runtime"], r["case"], *(f"{r[k]:.1e}" if k in r else "" for k in FIGURES)]
            for r in rows
        ]
        title = "Relative L2 against PyTorch (search: distance to float64 over PyTorch's own)"
        print_table(title, ["runtime", "case", *FIGURES], figures, numeric=list(FIGURES))
    if "fp32" in manifest["flavours"]:
        note(f"mudit generate --model {folder} --runtime onnxruntime ... runs it")
    else:
        note(f"mudit export tensorrt {folder} --target ... builds its engines")
