"""The one place that opens a model on a runtime: folder, networks, decoder and what reads text.

    opened = open_model("tiny")                              # torch, on CUDA where there is one
    opened = open_model(Path("deploy"), runtime="onnxruntime")
    opened.runtime, opened.decoder, opened.text

`auto` is tensorrt where the folder has engines for this machine's GPU, else torch. On a CPU no
runtime of graphs wins: in fp32 they are about as fast as torch at a guided step of musit-380m and
30 s, and torch has bf16 beside it (benchmarks/results/cpu_runtimes_*.json; `mudit bench runtimes
FOLDER` measures yours).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mudit_engine.availability import available
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.errors import InputError, MissingError, ModelError
from mudit_engine.hardware import keep_freed_memory, machine
from mudit_engine.models.chinmu import CHARACTERS, ChinMu
from mudit_engine.models.dit import DiT
from mudit_engine.models.fewstep import Student, student_of
from mudit_engine.models.folder import load_part, model_folder
from mudit_engine.models.lora import LoraSet
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.names import GRAPH_RUNTIMES, RUNTIMES
from mudit_engine.runtime.decode import LatentDecoder, TorchDecoder
from mudit_engine.runtime.denoiser import Denoiser, Runtime, TextEncoder
from mudit_engine.runtime.graph_denoiser import (
    GraphDecoder,
    GraphDenoiser,
    GraphTextEncoder,
    Session,
)
from mudit_engine.runtime.manifest import FILE, check_deployment, folder_of_graphs, read_manifest
from mudit_engine.runtime.precision import auto_dtype

log = logging.getLogger(__name__)

# (model folder, runtime) -> the deployment folder that has its graphs
Deploy = Callable[[Path, str], Path]


@dataclass(frozen=True)
class OpenModel:
    """A model that can make songs.

    Args:
        config: its configuration.
        vae: the codec.
        chinmu: the encoder of descriptions.
        runtime: what denoises.
        decoder: what makes audio of normalised latents.
        text: what reads descriptions: chinmu, or a runtime that stands in for it.
        name: of the runtime.
        precision: of the networks' products.
        student: the few-step student that is in the weights, and whose sampler is in `config`; None
            for the model itself.

    Examples:
        >>> open_model("tiny", dtype=torch.float32).precision
        torch.float32
    """

    config: ModelConfig
    vae: SpectralVAE
    chinmu: ChinMu
    runtime: Runtime[Any]
    decoder: LatentDecoder
    text: TextEncoder
    name: str
    precision: torch.dtype
    student: Student | None = None


def open_model(
    source: str | Path,
    *,
    runtime: str = "torch",
    device: str | None = None,
    dtype: torch.dtype | None = None,
    deploy: Deploy | None = None,
    fast: bool = False,
) -> OpenModel:
    """Opens an embedded model by name, a model folder, or a folder made by `mudit export`.

    Args:
        source: a name such as "tiny", or a folder.
        runtime: torch runs on CUDA where there is one, else on the CPU; tensorrt on the GPU that
            its engines were built for; onnxruntime and openvino on the CPU in fp32; auto chooses.
        device: of torch, such as "cuda:1"; the other runtimes take none.
        dtype: of torch's networks; None is bf16 where the device multiplies it fast, else fp32.
            torch.float8_e4m3fn runs the widest products of a bf16 song transformer in FP8
            (runtime/fp8.py), on a GPU that has them, once two songs have shown what that changes.
        deploy: makes the graphs of a model folder that has none.
        fast: with the model's few-step student (models/fewstep.py), on torch.

    Returns:
        The networks and what runs them.

    Raises:
        InputError: for an unknown runtime or options that it does not take, and for a model that
            has no student.
        MissingError: for a package or device that is not here.
        ModelError: for a folder that does not fit.
        GateError: for a network that FP8 changes too much.

    Examples:
        >>> opened = open_model("tiny", dtype=torch.float32)
        >>> opened.name, opened.config.vae.sample_rate
        ('torch', 22050)
    """
    folder = model_folder(source)
    if runtime == "auto":
        runtime = "torch" if fast or dtype is not None else usual_runtime(folder)
    if runtime not in RUNTIMES:
        raise InputError(f"runtime '{runtime}' is unknown: choose one of {', '.join(RUNTIMES)}")
    if runtime == "torch":
        place = usual_device(device)
        student = student_of(folder) if fast else None
        if dtype is torch.float8_e4m3fn:
            return _open_fp8(folder, place, student)
        return _open_torch(folder, place, dtype, student)
    if fast:
        raise InputError(
            f"runtime '{runtime}' runs the weights it was exported with: take runtime 'torch', or "
            f"export the few-step student with `mudit export onnx {source} OUT --fast`"
        )
    if device is not None or dtype is not None:
        raise InputError(
            f"runtime '{runtime}' chooses device and dtype itself: leave them out, or take runtime "
            "'torch'"
        )
    if runtime == "tensorrt":
        return _open_tensorrt(folder)
    return _open_graphs(deploy(folder, runtime) if deploy else folder, runtime)


def _open_torch(
    folder: Path, place: torch.device, dtype: torch.dtype | None, student: Student | None
) -> OpenModel:
    if place.type == "cpu":
        keep_freed_memory()
    if (folder / FILE).is_file():
        check_deployment(folder)
    config, dtype = load_config(folder), dtype or fast_dtype(place)
    dit = load_part("dit", config, folder, device=place, dtype=dtype)
    assert isinstance(dit, DiT)
    vae, chinmu = load_codec_and_text(config, folder, place, dtype)
    if student is not None:
        LoraSet(dit).use([student.lora])
        config = student.configured(config)
    return OpenModel(
        config, vae, chinmu, Denoiser(dit), TorchDecoder(vae), chinmu, "torch", dtype, student
    )


def _open_fp8(folder: Path, place: torch.device, student: Student | None) -> OpenModel:
    from mudit_engine.runtime.fp8 import FP8, check_device, hold_to, probe_songs, with_fp8

    check_device(place)
    opened = _open_torch(folder, place, torch.bfloat16, student)
    assert isinstance(opened.runtime, Denoiser)
    exact, fast = opened.runtime.dit, with_fp8(opened.runtime.dit)
    # layouts of two probes are not worth a capture
    error = hold_to(
        Denoiser(fast, captures=False), Denoiser(exact, captures=False), probe_songs(opened.config)
    )
    log.info("two songs in FP8 differ from themselves in bf16 by %.3f of their norm", error)
    return replace(opened, runtime=Denoiser(fast), precision=FP8)


def _open_tensorrt(folder: Path) -> OpenModel:
    from mudit_engine.runtime.trt_denoiser import NoText, TrtDecoder, check_engines, open_tensorrt

    # nothing of a folder that is not as it was exported is loaded
    config, target, entry = check_engines(folder)
    vae, chinmu = load_codec_and_text(config, folder, torch.device("cpu"), torch.float32)
    engines = open_tensorrt(folder, config, target, entry, halo=vae.receptive_field)
    text = NoText(config.dit.description_width) if engines.reads_text else chinmu
    return OpenModel(
        config, vae, chinmu, engines, TrtDecoder(engines), text, "tensorrt", engines.dtype
    )


def _open_graphs(folder: Path, runtime: str) -> OpenModel:
    session = open_session(folder, runtime)  # which checks the folder
    config = load_config(folder)
    vae, chinmu = load_codec_and_text(config, folder, torch.device("cpu"), torch.float32)
    reads = config.chinmu.text_encoder == CHARACTERS
    return OpenModel(
        config,
        vae,
        chinmu,
        GraphDenoiser(config.dit, session),
        GraphDecoder(config.vae, vae.receptive_field, session),
        GraphTextEncoder(config.chinmu, session) if reads else chinmu,
        runtime,
        torch.float32,
    )


def usual_runtime(folder: Path) -> str:
    """What runtime `auto` is for this folder on this machine."""
    if (folder / FILE).is_file() and machine().gpus:
        from mudit_engine.runtime.trt_denoiser import engines_here

        with suppress(ModelError):
            _, entry = engines_here(read_manifest(folder), load_config(folder))
            return "tensorrt" if available(entry["package"]) else "torch"
    return "torch"


def usual_device(name: str | None = None) -> torch.device:
    """The device of this name; without one CUDA where there is a GPU, else the CPU.

    Raises InputError for a name that torch does not know, MissingError for one that is not here.
    """
    try:
        place = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise InputError(f"device '{name}' is unknown: use cpu, cuda or cuda:N") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise MissingError(
            f"device '{name}', but torch {torch.__version__} sees no CUDA device: use 'cpu', or "
            "install a CUDA build of torch"
        )
    return place


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 on CUDA; on a CPU what it multiplies matrices in fastest, by a measurement that is kept
    (runtime/precision.py).
    """
    return torch.bfloat16 if device.type == "cuda" else auto_dtype()


def load_codec_and_text(
    config: ModelConfig, folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[SpectralVAE, ChinMu]:
    """The decoder's network in `dtype`; spectra keep fp32, as do the encoders, which are a small
    share of the work.
    """
    vae, chinmu = (load_part(part, config, folder, device=device) for part in ("vae", "chinmu"))
    assert isinstance(vae, SpectralVAE) and isinstance(chinmu, ChinMu)
    vae.decoder.to(dtype)
    return vae, chinmu


def open_session(folder: Path, runtime: str) -> Session:
    """What runs the fp32 graphs of a deployment folder.

    Raises InputError for an unknown runtime, MissingError when its package is not here, ModelError
    when the folder does not fit.
    """
    if runtime == "onnxruntime":
        from mudit_engine.runtime.onnx_session import OnnxSession

        return OnnxSession(folder_of_graphs(folder, runtime))
    if runtime == "openvino":
        from mudit_engine.runtime.openvino_session import OpenVinoSession

        return OpenVinoSession(folder_of_graphs(folder, runtime))
    raise InputError(
        f"runtime '{runtime}' runs no graphs: choose one of {', '.join(GRAPH_RUNTIMES)}"
    )
