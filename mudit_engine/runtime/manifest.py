"""manifest.json of a deployment folder: what is in it, by whom it was made, and whether it still
is.

    manifest = read_manifest(folder)
    differences(folder, manifest)                   # ["graphs/fp32/step.onnx has changed"], or []
    # where a runtime finds its graphs; raises when it has none
    folder_of_graphs(folder, "onnxruntime")

Written by export/manifest.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mudit_engine import __version__
from mudit_engine.errors import ModelError

FILE = "manifest.json"
SCHEMA = 2  # of the folder and of what its graphs take
KIND = "mudit-export"
# runtime -> flavour of its graphs
FLAVOUR_OF_RUNTIME = {"onnxruntime": "fp32", "openvino": "fp32"}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises ModelError when there is none, or one this version cannot read."""
    path = folder / FILE
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"'{folder}' has no {FILE}: make a deployment folder with `mudit export onnx MODEL OUT`"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read ({error}): export the model again") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ModelError(
            f"'{path}' is no manifest of an export: make a deployment folder with `mudit export "
            f"onnx MODEL OUT`"
        )
    if manifest.get("schema") != SCHEMA:
        raise ModelError(
            f"'{folder}' was exported by mudit-engine "
            f"{manifest.get('engine', 'of another version')} (schema {manifest.get('schema')!r}), "
            f"this is {__version__} (schema {SCHEMA}): export the model again, or use that version"
        )
    return manifest


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(
    folder: Path, manifest: dict[str, Any], *, only: Callable[[str], bool] = lambda name: True
) -> list[str]:
    """What of the folder is not as the manifest says: files missing, changed, or of another size.
    Extra files do not matter.

    `only` chooses files by their names in the manifest.
    """

    def difference(name: str) -> str | None:
        path, known = folder / name, manifest["files"][name]
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != known["bytes"]:
            return f"{name} has {size} bytes instead of {known['bytes']}"
        return f"{name} has changed" if file_sha256(path) != known["sha256"] else None

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return [text for text in pool.map(difference, filter(only, manifest["files"])) if text]


def folder_of_graphs(folder: Path, runtime: str) -> Path:
    """Folder of a runtime's graphs, verified.
    Raises ModelError that names what differs or lacks.
    """
    manifest = read_manifest(folder)
    flavour = FLAVOUR_OF_RUNTIME[runtime]
    if flavour not in manifest["flavours"]:
        raise ModelError(
            f"'{folder}' holds graphs of {', '.join(manifest['flavours']) or 'no flavour'}, "
            f"runtime '{runtime}' takes {flavour}: "
            f"export with `mudit export onnx MODEL OUT --flavour {flavour}`"
        )
    # the model's own files too: weights that were trained on are not those of the graphs
    if wrong := differences(
        folder, manifest, only=lambda name: "/" not in name or name.startswith(f"graphs/{flavour}/")
    ):
        raise ModelError(
            f"'{folder}' is not as it was exported: {'; '.join(wrong)}. Export it again, or copy "
            f"it whole"
        )
    return folder / "graphs" / flavour
