"""Writes and re-checks the manifest of a deployment folder (read by mudit_engine/runtime/manifest.py).

write_manifest(folder, new_manifest(folder, exported))
report = verify(folder)                                     # files, graphs and parity once more
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mudit_engine.config import load_config
from mudit_engine.files import write_json
from mudit_engine.hardware import environment
from mudit_engine.runtime.manifest import FILE, KIND, SCHEMA, differences, file_sha256, read_manifest

LICENCE = "Apache-2.0"


def new_manifest(folder: Path, flavours: dict[str, Any]) -> dict[str, Any]:
    """The manifest of what lies in `folder` now."""
    config = load_config(folder)
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "model": config.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": environment()["versions"],
        "licence": LICENCE,
        "sampler": config.sampler.model_dump(mode="json"),
        "path": config.path.model_dump(mode="json"),
        "flavours": flavours,
        "files": hashes(folder),
        "parity": None,
    }


def hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file but the manifest itself."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILE)
    return {path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in files}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_json(folder / FILE, manifest)


def add_to_manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    """Updates top-level fields and the hashes of new files."""
    manifest = {**read_manifest(folder), **changes}
    manifest["files"] = hashes(folder)
    write_manifest(folder, manifest)
    return manifest


def verify(folder: Path, *, runtimes: Sequence[str] = ("onnxruntime",), parity: bool = True) -> dict[str, Any]:
    """Differences from the manifest, the graphs' own validity, and parity measured again where a runtime can run here."""
    import onnx

    from mudit_engine.export.parity import measure_parity

    manifest = read_manifest(folder)
    wrong = differences(folder, manifest)
    for flavour in manifest["flavours"]:
        for name in manifest["flavours"][flavour]["graphs"]:
            path = folder / "graphs" / flavour / f"{name}.onnx"
            try:
                onnx.checker.check_model(str(path))
            except Exception as error:  # onnx raises several unrelated types
                wrong.append(f"{flavour}/{name}.onnx: {str(error).splitlines()[0]}")
    rows = measure_parity(folder, runtimes=runtimes) if parity and not wrong and "fp32" in manifest["flavours"] else []
    return {"folder": str(folder), "differences": wrong, "parity": rows}
