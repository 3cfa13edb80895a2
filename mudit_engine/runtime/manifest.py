"""manifest.json of a deployment folder: what is in it, by whom it was made, and whether it still
is.

    manifest = read_manifest(folder)
    differences(folder, manifest)            # ["graphs/fp32/step.onnx has changed"], or []
    check_deployment(folder)                 # its manifest, or ModelError that names what differs
    folder_of_graphs(folder, "onnxruntime")  # where a runtime finds its graphs, checked

Every file is listed with its size and sha256: one that is missing, changed, added or a link to
somewhere else makes the folder another one, and every runtime refuses it by the file's name. The
one exception is the runtime cache that TensorRT-RTX keeps beside its engines, which it checks
itself. Written by export/manifest.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mudit_engine import __version__
from mudit_engine.errors import ModelError

FILE = "manifest.json"
SCHEMA = 2  # of the folder and of what its graphs take
KIND = "mudit-export"
RUNTIME_CACHE = "runtime.cache"  # engines/TARGET/...: kernels that TensorRT-RTX compiled here
_CACHE = re.compile(r"engines/[^/]+/(\.runtime\.[0-9a-f]{8}\.cache|runtime\.cache)")
LARGEST = 64 << 20  # bytes of a manifest: that of a large model is below one MiB
# runtime -> flavour of its graphs
FLAVOUR_OF_RUNTIME = {"onnxruntime": "fp32", "openvino": "fp32"}


def _inside(name: str) -> str:
    parts = PurePosixPath(name).parts
    plain = name == "/".join(parts) and "\\" not in name and "\0" not in name and ":" not in name
    if not parts or not plain or parts[0] == "/" or ".." in parts:
        raise ValueError("is no path inside the folder")
    return name


Inside = Annotated[str, AfterValidator(_inside)]


class _Open(BaseModel):
    """What a reader needs is checked; more may stand beside it."""

    model_config = ConfigDict(extra="allow", strict=True)


class _File(_Open):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class _Tensor(_Open):
    type: str
    shape: list[int | str]


class _Graph(_Open):
    inputs: dict[str, _Tensor]
    outputs: dict[str, _Tensor]
    nodes: int
    weights: dict[str, list[int]] = {}


class _Flavour(_Open):
    opset: int
    graphs: dict[Inside, _Graph]


class _Bucket(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    frames: int = Field(gt=0)
    tokens: int = Field(gt=0)
    reference: int = Field(ge=0)


class _Target(_Open):
    package: str = Field(pattern=r"^tensorrt(_rtx)?$")
    flavour: str = Field(pattern=r"^(bf16|fp16|fp32)$")
    buckets: list[_Bucket]
    engines: dict[Inside, dict[str, Any]]


class _Manifest(_Open):
    flavours: dict[Inside, _Flavour]
    files: dict[Inside, _File]
    engines: dict[Inside, _Target] | None = None
    parity: list[dict[str, Any]] | None = None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises ModelError when there is none, or one that is broken or that this version cannot
    read.
    """
    path = folder / FILE
    try:
        if path.stat().st_size > LARGEST:
            raise ModelError(f"'{path}' has more than {LARGEST} bytes: export the model again")
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"'{folder}' has no {FILE}: make a deployment folder with `mudit export onnx MODEL OUT`"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read ({error}): export the model again") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ModelError(
            f"'{path}' is no manifest of an export: make a deployment folder with `mudit export "
            f"onnx MODEL OUT`"
        )
    if manifest.get("schema") != SCHEMA or isinstance(manifest["schema"], bool):
        raise ModelError(
            f"'{folder}' was exported by mudit-engine "
            f"{manifest.get('engine', 'of another version')} (schema {manifest.get('schema')!r}), "
            f"this is {__version__} (schema {SCHEMA}): export the model again, or use that version"
        )
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"'{path}' is broken at {where}: {first['msg'].removeprefix('Value error, ')} "
            f"(given: {str(first['input'])[:80]}). Export the model again"
        ) from None
    return manifest


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> Iterator[str]:
    """Names of everything in the folder that is not a folder, but the manifest; links to folders
    are such things too, and are not followed.
    """
    for here, folders, files in os.walk(folder, followlinks=False):
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        for name in sorted((*files, *links)):
            path = (Path(here) / name).relative_to(folder).as_posix()
            if path != FILE and not _CACHE.fullmatch(path):
                yield path


def differences(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What of the folder is not as the manifest says: files missing, changed, of another size,
    added, or lying elsewhere behind a link.
    """
    home = folder.resolve()

    def difference(name: str) -> str | None:
        path, known = folder / name, manifest["files"][name]
        if not path.resolve().is_relative_to(home):
            return f"{name} is a link to outside the folder"
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != known["bytes"]:
            return f"{name} has {size} bytes instead of {known['bytes']}"
        return f"{name} has changed" if file_sha256(path) != known["sha256"] else None

    listed: dict[str, Any] = manifest["files"]
    added = [f"{name} is not of this export" for name in files_of(folder) if name not in listed]
    if (folder / FILE).is_symlink() and not (folder / FILE).resolve().is_relative_to(home):
        added.append(f"{FILE} is a link to outside the folder")
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return [text for text in pool.map(difference, listed) if text] + added


def check_deployment(folder: Path) -> dict[str, Any]:
    """The manifest of a deployment folder that is as it was exported. Raises ModelError that names
    what differs.
    """
    manifest = read_manifest(folder)
    if wrong := differences(folder, manifest):
        raise ModelError(
            f"'{folder}' is not as it was exported: {'; '.join(wrong)}. Export it again, or copy "
            f"it whole"
        )
    return manifest


def folder_of_graphs(folder: Path, runtime: str) -> Path:
    """Folder of a runtime's graphs, verified. Raises ModelError that names what differs or
    lacks.
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
    check_deployment(folder)
    return folder / "graphs" / flavour
