"""A model repository for NVIDIA's Triton Inference Server: text -> denoise -> decode, and the
ensemble that chains them.

    REPO/models/mudit_text, mudit_denoise, mudit_decode  Python models (serving/triton_backend.py)
    REPO/models/mudit_song                               the ensemble: one JSON request, audio out
    REPO/deployment                                      the deployment folder, once for all of them

    write_repository(Path("deploy"), Path("repo"), options=RepositoryOptions(runtime="onnxruntime"))
    tritonserver --model-repository=repo/models  # in an environment that has mudit-engine

Requests that wait together are batched (songs of any lengths: the engine's batches are ragged);
each model is warmed up with a real request before the server says it is ready.
"""

from __future__ import annotations

import json
import secrets
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mudit_engine.availability import available
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.errors import GateError, InputError, OutputError
from mudit_engine.names import RUNTIMES
from mudit_engine.runtime.manifest import FILE, differences, read_manifest

MODELS = {"mudit_text": "TextModel", "mudit_denoise": "DenoiseModel", "mudit_decode": "DecodeModel"}
MODEL_FILE = """from mudit_engine.serving.triton_backend import {} as TritonPythonModel

__all__ = ["TritonPythonModel"]
"""
WARM_FRAMES = 32


@dataclass(frozen=True)
class RepositoryOptions:
    """How the server runs the models. `gpu` places denoise and decode on it;
    delay in microseconds.
    """

    runtime: str = "torch"
    max_batch: int = 8
    delay: int = 20_000
    instances: int = 1
    gpu: bool = False

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
        deployment: a deployment folder; it is copied, once for all models.
        repository: must not exist or be an earlier one.
        options: runtime, batch, delay, copies, whether on a GPU.

    Returns:
        repository.

    Raises:
        ModelError: for a folder that is no intact deployment.
        InputError: for one that lacks what the runtime needs.
        GateError: for a configuration that the server's schema refuses.

    Examples:
        >>> repository = write_repository(deployed, new_folder)
        >>> sorted(path.name for path in (repository / "models").iterdir())
        ['mudit_decode', 'mudit_denoise', 'mudit_song', 'mudit_text']
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
        and not (repository / "deployment" / FILE).is_file()
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
        shutil.copytree(deployment, aside / "deployment")
        for name, text in configs.items():
            folder = aside / "models" / name
            (folder / "1").mkdir(parents=True)
            (folder / "config.pbtxt").write_text(text, encoding="utf-8")
            if name in MODELS:
                (folder / "1" / "model.py").write_text(
                    MODEL_FILE.format(MODELS[name]), encoding="utf-8"
                )
        _write_warm_up(aside, config)
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
    c, audio = config.dit.latent_channels, config.vae.channels
    song = ("SONG", "TYPE_STRING", [1])
    latents, seconds = ("LATENTS", "TYPE_FP32", [-1, c]), ("SECONDS", "TYPE_FP32", [1])
    request, info = ("REQUEST", "TYPE_STRING", [1]), ("INFO", "TYPE_STRING", [1])
    sound, rate = ("AUDIO", "TYPE_INT16", [audio, -1]), ("SAMPLE_RATE", "TYPE_INT32", [1])
    warm = {
        "mudit_text": {"REQUEST": ("TYPE_STRING", [1], "request")},
        "mudit_denoise": {"SONG": ("TYPE_STRING", [1], "song")},
        "mudit_decode": {
            "LATENTS": ("TYPE_FP32", [WARM_FRAMES, c], "latents"),
            "SECONDS": ("TYPE_FP32", [1], "seconds"),
        },
    }
    ports = {
        "mudit_text": ([request], [song, seconds, info]),
        "mudit_denoise": ([song], [latents]),
        "mudit_decode": ([latents, seconds], [sound, rate]),
    }
    texts = {name: _python_model(name, *ports[name], warm[name], options) for name in MODELS}
    # the ensemble's own tensors carry the data from step to step
    steps = []
    for name, (takes, gives) in ports.items():
        maps = {
            "input_map": {port[0]: port[0] for port in takes},
            "output_map": {port[0]: port[0] for port in gives},
        }
        steps.append({"model_name": name, "model_version": -1, **maps})
    ensemble = {
        "name": "mudit_song",
        "platform": "ensemble",
        "max_batch_size": options.max_batch,
        "input": [_port(*request)],
        "output": [_port(*port) for port in (sound, rate, info, latents)],
        "ensemble_scheduling": {"step": steps},
    }
    return {**texts, "mudit_song": pbtxt(ensemble)}


def _python_model(
    name: str,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    warm: Mapping[str, Any],
    options: RepositoryOptions,
) -> str:
    on_gpu = options.gpu and name != "mudit_text"
    samples = {
        port: {"data_type": Enum(kind), "dims": dims, "input_data_file": file}
        for port, (kind, dims, file) in warm.items()
    }
    return pbtxt(
        {
            "name": name,
            "backend": "python",
            "max_batch_size": options.max_batch,
            # songs differ in length: requests are batched as they are, and never padded to each
            # other
            "input": [
                {**_port(*port), **({"allow_ragged_batch": True} if -1 in port[2] else {})}
                for port in inputs
            ],
            "output": [_port(*port) for port in outputs],
            "instance_group": [
                {"count": options.instances, "kind": Enum("KIND_GPU" if on_gpu else "KIND_CPU")}
            ],
            "dynamic_batching": {"max_queue_delay_microseconds": options.delay},
            "parameters": {"runtime": {"string_value": options.runtime}},
            "model_warmup": [{"name": "short song", "batch_size": 1, "inputs": samples}],
        }
    )


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


MAPS = ("input_map", "output_map", "parameters", "inputs")


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


def _write_warm_up(root: Path, config: ModelConfig) -> None:
    """Files that the server reads as inputs: raw values, and for strings a 32-bit length before
    each.
    """
    from mudit_engine.models.chinmu import ChinMu
    from mudit_engine.models.folder import load_part
    from mudit_engine.models.vae import SpectralVAE
    from mudit_engine.reading import RequestReader
    from mudit_engine.serving.triton_backend import pack_song, parse_request

    seconds = min(WARM_FRAMES / config.vae.frame_rate, config.max_seconds)
    request = json.dumps(
        {"description": "warm up", "seconds": round(max(seconds, 1.0), 3), "seed": 0}
    ).encode()
    vae, chinmu = (load_part(part, config, root / "deployment") for part in ("vae", "chinmu"))
    assert isinstance(vae, SpectralVAE) and isinstance(chinmu, ChinMu)
    reader = RequestReader(config, vae, text=chinmu)
    song = reader.inputs(reader.read(parse_request(request, root)))
    latents = np.zeros((WARM_FRAMES, config.dit.latent_channels), np.float32)
    files = {
        "mudit_text/request": _string(request),
        "mudit_denoise/song": _string(pack_song(song)),
        "mudit_decode/latents": latents.tobytes(),
        "mudit_decode/seconds": struct.pack("<f", WARM_FRAMES / config.vae.frame_rate),
    }
    for name, data in files.items():
        model, file = name.split("/")
        folder = root / "models" / model / "warmup"
        folder.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)


def _string(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data
