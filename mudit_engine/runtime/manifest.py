"""manifest.json of a deployment folder: what is in it, by whom it was made, and whether it still is.

    manifest = read_manifest(folder)
    differences(folder, manifest)                   # ["graphs/fp32/step.onnx has changed"], or []
    folder_of_graphs(folder, "onnxruntime")         # where a runtime finds its graphs; raises when it has none

Written by export/manifest.py.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mudit_engine.errors import ModelError

FILE = "manifest.json"
SCHEMA = 1
KIND = "mudit-export"
# runtime -> flavour of its graphs
FLAVOUR_OF_RUNTIME = {"onnxruntime": "fp32", "openvino": "fp32"}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises ModelError when there is none, or one this version cannot read."""
    path = folder / FILE
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"'{folder}' has no {FILE}: make a deployment folder with `mudit export onnx MODEL OUT`") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read ({error}): export the model again") from None
    if manifest.get("kind") != KIND or manifest.get("schema") != SCHEMA:
        raise ModelError(f"'{path}' is of kind {manifest.get('kind')!r}, schema {manifest.get('schema')!r}: export the model again")
    return manifest


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What of the folder is not as the manifest says: files missing, changed, or of another size. Extra files do not matter."""
    found = []
    for name, known in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != known["bytes"]:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {known['bytes']}")
        elif file_sha256(path) != known["sha256"]:
            found.append(f"{name} has changed")
    return found


def folder_of_graphs(folder: Path, runtime: str) -> Path:
    """Folder of a runtime's graphs, verified. Raises ModelError that names what differs or lacks."""
    manifest = read_manifest(folder)
    flavour = FLAVOUR_OF_RUNTIME[runtime]
    if flavour not in manifest["flavours"]:
        raise ModelError(
            f"'{folder}' holds graphs of {', '.join(manifest['flavours']) or 'no flavour'}, runtime '{runtime}' takes {flavour}: "
            f"export with `mudit export onnx MODEL OUT --flavour {flavour}`"
        )
    if wrong := differences(folder, manifest):
        raise ModelError(f"'{folder}' is not as it was exported: {'; '.join(wrong)}. Export it again, or copy it whole")
    return folder / "graphs" / flavour
