"""A model repository for NVIDIA's Triton Inference Server.

    REPO/models/mudit_song     a decoupled Python model (serving/triton_backend.py) with the
                               deployment folder inside: events and pieces of audio as they happen
    REPO/models/mudit_whole    gathers them into one answer (serving/triton_whole.py)

    write_repository(Path("deploy"), Path("repo"), options=RepositoryOptions(runtime="onnxruntime"))
    tritonserver --model-repository=repo/models  # in an environment that has mudit-engine

Requests are batched at the step by the engine inside mudit_song, whatever their lengths; the server
says that it is ready when the engine is warm. Nothing lies outside REPO/models, so that the
repository can be served from an object store.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudit_engine.availability import available
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.errors import GateError, InputError, OutputError
from mudit_engine.names import RUNTIMES
from mudit_engine.runtime.manifest import FILE, differences, read_manifest

MODELS = {
    "mudit_song": ("triton_backend", "SongModel"),
    "mudit_whole": ("triton_whole", "WholeModel"),
}
MODEL_FILE = """from mudit_engine.serving.{} import {} as TritonPythonModel

__all__ = ["TritonPythonModel"]
"""
VERSION = "1"
INSIDE = Path("models") / "mudit_song" / VERSION / "deployment"


@dataclass(frozen=True)
class RepositoryOptions:
    """How the server runs the models. `most_waiting`: songs that wait in an engine, beyond which
    requests are refused; `instances`: engines, on a GPU one for each; `whole`: clients of
    mudit_whole that are served at once.
    """

    runtime: str = "torch"
    most_waiting: int = 64
    instances: int = 1
    gpu: bool = False
    whole: int = 8

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise InputError(
                f"runtime '{self.runtime}' is unknown: choose from {', '.join(RUNTIMES)}"
            )
        if self.runtime == "tensorrt" and not self.gpu:
            raise InputError("runtime 'tensorrt' needs --gpu: its engines run nowhere else")


class Enum(str):
    """A value that is written without quotes."""


def write_repository(
    deployment: Path, repository: Path, *, options: RepositoryOptions | None = None
) -> Path:
    """Writes a model repository for NVIDIA's Triton Inference Server.

    Args:
        deployment: a deployment folder; it is copied into the model.
        repository: must not exist or be an earlier one.
        options: runtime, queue, copies, whether on a GPU.

    Returns:
        repository.

    Raises:
        ModelError: for a folder that is no intact deployment.
        InputError: for one that lacks what the runtime needs.
        GateError: for a configuration that the server's schema refuses.

    Examples:
        >>> repository = write_repository(deployed, new_folder)
        >>> sorted(path.name for path in (repository / "models").iterdir())
        ['mudit_song', 'mudit_whole']
    """
    options = options or RepositoryOptions()
    manifest = read_manifest(deployment)
    if wrong := differences(deployment, manifest):
        raise InputError(
            f"'{deployment}' is not as it was exported: {'; '.join(wrong)}. Export it again"
        )
    if options.runtime == "tensorrt" and not manifest.get("engines"):
        raise InputError(
            f"'{deployment}' has no engines: build them with `mudit export tensorrt {deployment} "
            f"--target ...`"
        )
    if options.runtime in ("onnxruntime", "openvino") and "fp32" not in manifest["flavours"]:
        raise InputError(
            f"'{deployment}' has no fp32 graphs, which {options.runtime} takes: `mudit export onnx "
            f"MODEL OUT --flavour fp32`"
        )
    if (
        repository.exists()
        and any(repository.iterdir())
        and not (repository / INSIDE / FILE).is_file()
    ):
        raise InputError(
            f"'{repository}' holds something that is not a repository: name a new folder"
        )
    config = load_config(deployment)
    configs = model_configs(config, options)
    for name, text in configs.items():
        if faults := config_faults(text):
            raise GateError(f"config.pbtxt of {name} is not what the server reads: {faults}")
    aside = repository.with_name(f".{repository.name}.{secrets.token_hex(4)}")
    try:
        for name, text in configs.items():
            folder = aside / "models" / name
            (folder / VERSION).mkdir(parents=True)
            (folder / "config.pbtxt").write_text(text, encoding="utf-8")
            (folder / VERSION / "model.py").write_text(
                MODEL_FILE.format(*MODELS[name]), encoding="utf-8"
            )
        shutil.copytree(deployment, aside / INSIDE)
        if repository.exists():
            shutil.rmtree(repository)
        aside.rename(repository)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"'{repository}' could not be written: {reason}. Free some space or name another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return repository


def model_configs(config: ModelConfig, options: RepositoryOptions) -> dict[str, str]:
    """config.pbtxt of every model."""
    request = [_port("REQUEST", "TYPE_STRING", [1])]
    audio = _port("AUDIO", "TYPE_INT16", [config.vae.channels, -1])
    rate = _port("SAMPLE_RATE", "TYPE_INT32", [1])
    kind = Enum("KIND_GPU" if options.gpu else "KIND_CPU")
    song = {
        "name": "mudit_song",
        "backend": "python",
        # the engine batches: the server hands every request over as it comes
        "max_batch_size": 0,
        "model_transaction_policy": {"decoupled": True},
        "input": request,
        "output": [_port("EVENT", "TYPE_STRING", [1]), audio, rate],
        "instance_group": [{"count": options.instances, "kind": kind}],
        "parameters": {
            "runtime": {"string_value": options.runtime},
            "most_waiting": {"string_value": str(options.most_waiting)},
        },
    }
    whole = {
        "name": "mudit_whole",
        "backend": "python",
        "max_batch_size": 0,
        "input": request,
        "output": [audio, rate, _port("INFO", "TYPE_STRING", [1])],
        "instance_group": [{"count": options.whole, "kind": Enum("KIND_CPU")}],
    }
    return {"mudit_song": pbtxt(song), "mudit_whole": pbtxt(whole)}


def _port(name: str, kind: str, dims: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Enum(kind), "dims": list(dims)}


def pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format: lists of messages repeat the field, mappings under MAPS
    are key and value.
    """
    lines = []
    for name, value in message.items():
        if name in MAPS:
            for key, entry in value.items():
                body = pbtxt({"key": key, "value": entry}, indent + "  ")
                lines.append(f"{indent}{name} {{\n{body}{indent}}}\n")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines += [
                f"{indent}{name} {{\n{pbtxt(one, indent + '  ')}{indent}}}\n" for one in value
            ]
        elif isinstance(value, Mapping):
            lines.append(f"{indent}{name} {{\n{pbtxt(value, indent + '  ')}{indent}}}\n")
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}\n")
    return "".join(lines)


MAPS = ("parameters",)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_scalar(one) for one in value)}]"
    return (
        json.dumps(value) if isinstance(value, str) and not isinstance(value, Enum) else str(value)
    )


def config_faults(text: str) -> str | None:
    """Why the server's own schema refuses a config.pbtxt; None when it does not, or when the schema
    (tritonclient) is not installed.
    """
    if not available("tritonclient"):
        return None
    from google.protobuf import text_format

    try:
        text_format.Parse(text, _schema().ModelConfig())
    except text_format.ParseError as error:
        return str(error)
    return None


def _schema() -> Any:
    """tritonclient's model_config_pb2 by its file: importing its package wants grpc."""
    import importlib.util

    package = importlib.util.find_spec("tritonclient")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("mudit_triton_model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
