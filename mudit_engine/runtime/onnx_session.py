"""Graphs by ONNX Runtime on the CPU.

session = OnnxSession(folder / "graphs" / "fp32")
audio = session.run("vae_decode", {"latents": latents})[0]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.availability import require
from mudit_engine.errors import ModelError


class OnnxSession:
    """Opens each graph when it is first run."""

    def __init__(self, folder: Path) -> None:
        require("onnxruntime", "runtime 'onnxruntime'")
        self.folder = folder
        self.sessions: dict[str, Any] = {}

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Raises ModelError for a graph that is missing, broken, or takes other inputs."""
        session = self.sessions.get(graph) or self._open(graph)
        arrays = {name: value.contiguous().numpy() for name, value in inputs.items()}
        try:
            return tuple(torch.from_numpy(output) for output in session.run(None, arrays))
        except Exception as error:  # onnxruntime raises its own unrelated exception types
            message = (
                f"graph '{graph}' of '{self.folder}' failed ({error}): export the model again with "
                "`mudit export onnx`"
            )
            raise ModelError(message) from error

    def _path(self, graph: str) -> Path:
        return self.folder / f"{graph}.onnx"

    def _session(self, path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _open(self, graph: str) -> Any:
        path = self._path(graph)
        if not path.is_file():
            raise ModelError(f"no graph '{path}': export the model again with `mudit export onnx`")
        try:
            self.sessions[graph] = self._session(path)
        except Exception as error:  # onnxruntime raises its own unrelated exception types
            raise ModelError(
                f"graph '{path}' cannot be opened ({error}): export the model again with `mudit "
                f"export onnx`"
            ) from error
        return self.sessions[graph]
