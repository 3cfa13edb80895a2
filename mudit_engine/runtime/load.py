"""Which runtimes there are, and how each opens the graphs of a deployment folder.

session = open_session(folder, "onnxruntime")
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mudit_engine.availability import available
from mudit_engine.config import load_config
from mudit_engine.errors import InputError, ModelError
from mudit_engine.hardware import machine
from mudit_engine.runtime.graph_denoiser import Session
from mudit_engine.runtime.manifest import FILE, folder_of_graphs, read_manifest

RUNTIMES = ("torch", "onnxruntime", "openvino")


def usual_runtime(folder: Path) -> str:
    """What `--runtime auto` runs: tensorrt where the folder has engines for this GPU, else torch.

    On a CPU no runtime of graphs wins: in fp32 they are about as fast as torch at a guided step of
    musit-380m and 30 s, and torch has bf16 beside it (benchmarks/results/cpu_runtimes_*.json;
    `mudit bench runtimes FOLDER` measures yours).
    """
    if (folder / FILE).is_file() and machine().gpus:
        from mudit_engine.runtime.trt_denoiser import engines_here

        with suppress(ModelError):
            _, entry = engines_here(read_manifest(folder), load_config(folder))
            return "tensorrt" if available(entry["package"]) else "torch"
    return "torch"


def open_session(folder: Path, runtime: str) -> Session:
    """Raises InputError for an unknown runtime, MissingError when its package is not here,
    ModelError when the folder does not fit.
    """
    if runtime == "onnxruntime":
        from mudit_engine.runtime.onnx_session import OnnxSession

        return OnnxSession(folder_of_graphs(folder, runtime))
    if runtime == "openvino":
        from mudit_engine.runtime.openvino_session import OpenVinoSession

        return OpenVinoSession(folder_of_graphs(folder, runtime))
    raise InputError(f"runtime '{runtime}' runs no graphs: choose one of {', '.join(RUNTIMES[1:])}")
