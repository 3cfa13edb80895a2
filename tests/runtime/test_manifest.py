"""A deployment folder that is not as it was exported is refused, by every runtime and by the name
of what differs; a broken manifest is one clear error.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mudit_engine.errors import ModelError
from mudit_engine.export.manifest import add_to_manifest, hashes
from mudit_engine.names import GRAPH_RUNTIMES, RUNTIMES
from mudit_engine.runtime import trt_denoiser, trt_device
from mudit_engine.runtime.load import open_model, open_session
from mudit_engine.runtime.manifest import FILE, check_deployment, differences, read_manifest

FILES = (
    "config.json",
    "contract.json",
    "dit.safetensors",
    "vae.safetensors",
    "chinmu.safetensors",
    *(
        f"graphs/fp32/{name}.onnx"
        for name in ("modulation", "lyric_kv", "conditions", "step", "vae_decode", "chinmu_text")
    ),
)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _swap(path: Path) -> None:
    """Another file of this folder under this name."""
    other = "config.json" if path.name != "config.json" else "contract.json"
    found = next(one / other for one in path.parents if (one / other).is_file())
    path.write_bytes(found.read_bytes())


def _link_out(path: Path) -> None:
    """The same bytes, but of a file that somebody else may change."""
    elsewhere = Path(os.environ["OUTSIDE"]) / path.name
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


WAYS: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped": (_flip, "has changed"),
    "deleted": (Path.unlink, "is missing"),
    "swapped": (_swap, "bytes instead of"),
    "linked-out": (_link_out, "is a link to outside"),
}


@pytest.fixture
def folder(deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "outside").mkdir()
    monkeypatch.setenv("OUTSIDE", str(tmp_path / "outside"))
    return Path(shutil.copytree(deployed, tmp_path / "folder"))


# What `mudit export quantize` and `tensorrt` add; no GPU is here, and nothing is in the engines
ENGINES = tuple(f"{name}.engine" for name in (*trt_denoiser.ENGINES, trt_denoiser.TEXT_ENGINE))
ADDED = (
    "quantized/step.fp8.onnx",
    "engines/a100/spec.json",
    *(f"engines/a100/{name}" for name in ENGINES),
)


class _Opened(Exception):
    """The folder was found to be as it was exported, and its engines would be loaded now."""


@pytest.fixture
def engines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with engines for the GPU of this machine, which seems to have one."""
    for name in ADDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"not really {name}".encode())
    entry = {
        "package": "tensorrt",
        "flavour": "bf16",
        "buckets": [{"frames": 64, "tokens": 64, "reference": 64}],
        "engines": {name.removesuffix(".engine"): {"engine": name} for name in ENGINES},
    }
    add_to_manifest(folder, under="quantized")
    add_to_manifest(folder, under="engines/a100", engines={"a100": entry})
    gpu = SimpleNamespace(name="NVIDIA A100-SXM4-80GB", compute_capability="8.0")
    monkeypatch.setattr(trt_denoiser, "machine", lambda: SimpleNamespace(gpus=[gpu]))
    monkeypatch.setattr(trt_denoiser, "require", lambda *names: None)

    def opened(*given: object) -> None:
        raise _Opened

    monkeypatch.setattr(trt_device, "CudaDevice", opened)
    return folder


def test_the_manifest_lists_every_file(deployed: Path, engines: Path) -> None:
    assert set(read_manifest(deployed)["files"]) == set(FILES)
    assert check_deployment(deployed)["kind"] == "mudit-export"
    assert set(read_manifest(engines)["files"]) == {*FILES, *ADDED}


def test_a_whole_folder_is_opened_by_every_runtime(engines: Path) -> None:
    for runtime in ("torch", *GRAPH_RUNTIMES):
        assert open_model(engines, runtime=runtime).name == runtime
    with pytest.raises(_Opened):
        open_model(engines, runtime="tensorrt")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*FILES, *ADDED])
def test_a_corrupt_file_is_refused_by_its_name(engines: Path, name: str, way: str) -> None:
    change, message = WAYS[way]
    change(engines / name)
    for runtime in RUNTIMES:
        # without config.json it is no model folder at all
        wanted = name if (name, way) == ("config.json", "deleted") else f"{name} .*{message}"
        with pytest.raises(ModelError, match=wanted):
            open_model(engines, runtime=runtime)


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "graphs/fp32/step.onnx.data",
        "engines/a100/other.engine",
        "engines/h100/step.engine",
        "quantized/step.int8.onnx",
    ],
)
def test_an_added_file_is_refused_by_its_name(engines: Path, name: str) -> None:
    (engines / name).parent.mkdir(parents=True, exist_ok=True)
    (engines / name).write_bytes(b"more")
    for runtime in RUNTIMES:
        with pytest.raises(ModelError, match=f"{name} is not of this export"):
            open_model(engines, runtime=runtime)


def test_a_folder_behind_a_link_is_refused(folder: Path) -> None:
    shutil.move(folder / "graphs", Path(os.environ["OUTSIDE"]) / "graphs")
    (folder / "graphs").symlink_to(Path(os.environ["OUTSIDE"]) / "graphs")
    with pytest.raises(ModelError, match=r"graphs/fp32/step.onnx is a link to outside"):
        check_deployment(folder)
    (folder / "extra").symlink_to(Path(os.environ["OUTSIDE"]))
    assert "extra is not of this export" in differences(folder, read_manifest(folder))


def test_a_link_inside_the_folder_is_as_good_as_the_file(folder: Path) -> None:
    shutil.move(folder / "vae.safetensors", folder / "graphs" / "vae.safetensors")
    (folder / "vae.safetensors").symlink_to("graphs/vae.safetensors")
    assert differences(folder, read_manifest(folder)) == [
        "graphs/vae.safetensors is not of this export"
    ]


def test_recording_engines_blesses_nothing_else(folder: Path) -> None:
    _flip(folder / "dit.safetensors")
    (folder / "engines" / "a100").mkdir(parents=True)
    (folder / "engines" / "a100" / "step.engine").write_bytes(b"engine")
    manifest = add_to_manifest(folder, under="engines/a100")
    assert manifest["files"]["engines/a100/step.engine"]["bytes"] == 6
    assert differences(folder, manifest) == ["dit.safetensors has changed"]


SHA = "0" * 64
BROKEN: dict[str, Any] = {
    "files is a list": {"files": []},
    "files is missing": {"files": ...},
    "files is null": {"files": None},
    "a file is a string": {"files": {"config.json": SHA}},
    "a size is a string": {"files": {"config.json": {"sha256": SHA, "bytes": "3"}}},
    "a size is negative": {"files": {"config.json": {"sha256": SHA, "bytes": -3}}},
    "a size is true": {"files": {"config.json": {"sha256": SHA, "bytes": True}}},
    "a hash is short": {"files": {"config.json": {"sha256": "00", "bytes": 3}}},
    "a hash is missing": {"files": {"config.json": {"bytes": 3}}},
    "a path goes up": {"files": {"../config.json": {"sha256": SHA, "bytes": 3}}},
    "a path goes down and up": {"files": {"a/../../b": {"sha256": SHA, "bytes": 3}}},
    "a path is absolute": {"files": {"/etc/passwd": {"sha256": SHA, "bytes": 3}}},
    "a path of a drive": {"files": {"C:config": {"sha256": SHA, "bytes": 3}}},
    "a path with backslashes": {"files": {"..\\config": {"sha256": SHA, "bytes": 3}}},
    "a path is empty": {"files": {"": {"sha256": SHA, "bytes": 3}}},
    "flavours is a list": {"flavours": ["fp32"]},
    "flavours is missing": {"flavours": ...},
    "a flavour has no graphs": {"flavours": {"fp32": {"opset": 20}}},
    "a graph is a string": {"flavours": {"fp32": {"opset": 20, "graphs": {"step": "x"}}}},
    "a flavour goes up": {"flavours": {"../x": {"opset": 20, "graphs": {}}}},
    "engines is a list": {"engines": []},
    "a target is null": {"engines": {"a100": None}},
    "a package is any": {
        "engines": {"a100": {"package": "os", "flavour": "bf16", "buckets": [], "engines": {}}}
    },
    "parity is a string": {"parity": "fine"},
    "schema is true": {"schema": True},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_manifest_is_one_clear_error(folder: Path, case: str) -> None:
    manifest = json.loads((folder / FILE).read_text())
    for key, value in BROKEN[case].items():
        manifest.pop(key) if value is ... else manifest.update({key: value})
    (folder / FILE).write_text(json.dumps(manifest))
    for load in (read_manifest, check_deployment, lambda one: open_session(one, "onnxruntime")):
        with pytest.raises(ModelError, match="(?i)export the model again"):
            load(folder)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b"3", b'"text"', b"\xff\xfe", b"[" * 100_000, b"{}"],
    ids=["empty", "cut", "null", "list", "number", "string", "not-utf8", "deep", "nothing"],
)
def test_what_is_no_manifest_at_all(folder: Path, text: bytes) -> None:
    (folder / FILE).write_bytes(text)
    with pytest.raises(ModelError, match="mudit export|export the model again"):
        read_manifest(folder)


def test_hashes_are_of_files_alone(folder: Path) -> None:
    assert set(hashes(folder)) == set(FILES)
