"""A deployment folder against its manifest: files, graphs and whole songs once more.

report = verify(folder)      # {"folder": ..., "differences": [...], "parity": [rows]}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mudit_engine.export import parity as songs
from mudit_engine.export.onnx_export import check_file
from mudit_engine.runtime.manifest import differences, read_manifest


def verify(
    folder: Path, *, runtimes: Sequence[str] = ("onnxruntime",), parity: bool = True
) -> dict[str, Any]:
    """A deployment folder against its manifest: files, graphs, and whole songs once more.

    Args:
        folder: written by `export_onnx`.
        runtimes: what parity is measured with, of fp32 graphs.
        parity: False checks files and graphs alone.

    Returns:
        {"folder": its name, "differences": a list of sentences, "parity": rows}.

    Raises:
        ModelError: for a folder without a readable manifest.

    Examples:
        >>> verify(deployed, parity=False)["differences"]
        []
    """
    manifest = read_manifest(folder)
    wrong = differences(folder, manifest)
    changed = {text.split()[0] for text in wrong}
    for flavour, exported in manifest["flavours"].items():
        for name, described in exported["graphs"].items():
            if f"graphs/{flavour}/{name}.onnx" not in changed:
                wrong += [
                    f"graphs/{flavour}/{name}.onnx: {fault}"
                    for fault in check_file(folder, flavour, name, described)
                ]
    rows = (
        songs.measure_parity(folder, runtimes=runtimes)
        if parity and not wrong and "fp32" in manifest["flavours"]
        else []
    )
    return {"folder": str(folder), "differences": wrong, "parity": rows}
