"""Graphs by OpenVINO on the CPU.

session = OpenVinoSession(folder / "graphs" / "fp32")
audio = session.run("vae_decode", {"latents": latents})[0]
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.availability import require
from mudit_engine.errors import ModelError


class OpenVinoSession:
    """Compiles each graph when it is first run, in fp32 whatever the machine prefers."""

    def __init__(self, folder: Path) -> None:
        require("openvino", "runtime 'openvino'")
        import openvino

        self.folder = folder
        self.core = openvino.Core()
        self.requests: dict[str, Any] = {}
        # a request serves one caller at a time; a service decodes in several threads
        self.lock = threading.Lock()

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Raises ModelError for a graph that is missing, broken, or takes other inputs."""
        with self.lock:
            return self._run(self.requests.get(graph) or self._compile(graph), graph, inputs)

    def _run(self, request: Any, graph: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        try:
            request.infer(
                {name: value.contiguous().numpy() for name, value in inputs.items()},
                share_inputs=True,
            )
        except RuntimeError as error:
            message = (
                f"graph '{graph}' of '{self.folder}' failed ({error}): export the model again with "
                "`mudit export onnx`"
            )
            raise ModelError(message) from error
        return tuple(torch.from_numpy(output.data.copy()) for output in request.output_tensors)

    def _compile(self, graph: str) -> Any:
        path = self.folder / f"{graph}.onnx"
        if not path.is_file():
            raise ModelError(f"no graph '{path}': export the model again with `mudit export onnx`")
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self.requests[graph] = self.core.compile_model(
                str(path), "CPU", settings
            ).create_infer_request()
        except RuntimeError as error:
            raise ModelError(
                f"graph '{path}' cannot be compiled ({error}): export the model again with `mudit "
                f"export onnx`"
            ) from error
        return self.requests[graph]
