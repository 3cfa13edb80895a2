"""Which runtimes there are, and how each opens the graphs of a deployment folder.

session = open_session(folder, "onnxruntime")
"""

from __future__ import annotations

from pathlib import Path

from mudit_engine.errors import InputError
from mudit_engine.runtime.graph_denoiser import Session
from mudit_engine.runtime.manifest import folder_of_graphs

RUNTIMES = ("torch", "onnxruntime", "openvino")


def open_session(folder: Path, runtime: str) -> Session:
    """Raises InputError for an unknown runtime, MissingError when its package is not here, ModelError when the folder does not fit."""
    if runtime == "onnxruntime":
        from mudit_engine.runtime.onnx_denoiser import OnnxSession

        return OnnxSession(folder_of_graphs(folder, runtime))
    if runtime == "openvino":
        from mudit_engine.runtime.openvino_denoiser import OpenVinoSession

        return OpenVinoSession(folder_of_graphs(folder, runtime))
    raise InputError(f"runtime '{runtime}' runs no graphs: choose one of {', '.join(RUNTIMES[1:])}")
