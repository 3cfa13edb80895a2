"""Which runtimes there are, and how each opens the graphs of a deployment folder.

session = open_session(folder, "onnxruntime")
"""

from __future__ import annotations

from pathlib import Path

from mudit_engine.availability import available
from mudit_engine.config import load_config
from mudit_engine.errors import InputError
from mudit_engine.runtime.graph_denoiser import Session
from mudit_engine.runtime.manifest import FILE, FLAVOUR_OF_RUNTIME, folder_of_graphs, read_manifest

RUNTIMES = ("torch", "onnxruntime", "openvino")
# CPU runtimes, fastest first: 1.02 and 0.93 times torch at a guided step of musit-380m, 1.03 and 1.11 times at a decode (CPU-seconds, on a
# busy machine: benchmarks/results/cpu_runtimes_*.json) of a song of 30 s. A step of 260 s is 0.78 and 0.70 times as fast (one round,
# no guidance). Nothing wins by 15 %, so that torch is the default; `mudit bench runtimes FOLDER` measures yours.
FASTEST = ("openvino", "onnxruntime")


def usual_runtime(folder: Path, *, cuda: bool) -> str:
    """What `--runtime auto` runs: torch, and on a CPU the fastest one that is installed and has graphs here.

    Making the graphs first would cost more than a song, so a model folder without them runs in torch. So does one whose codec searches
    for phases: at a decode of the embedded model OpenVINO is 0.44 and ONNX Runtime 0.40 times as fast as torch, more than a step gains.
    """
    if cuda or not (folder / FILE).is_file() or load_config(folder).vae.phase_refinements:
        return "torch"
    flavours = read_manifest(folder)["flavours"]
    return next((name for name in FASTEST if available(name) and FLAVOUR_OF_RUNTIME[name] in flavours), "torch")


def open_session(folder: Path, runtime: str) -> Session:
    """Raises InputError for an unknown runtime, MissingError when its package is not here, ModelError when the folder does not fit."""
    if runtime == "onnxruntime":
        from mudit_engine.runtime.onnx_denoiser import OnnxSession

        return OnnxSession(folder_of_graphs(folder, runtime))
    if runtime == "openvino":
        from mudit_engine.runtime.openvino_denoiser import OpenVinoSession

        return OpenVinoSession(folder_of_graphs(folder, runtime))
    raise InputError(f"runtime '{runtime}' runs no graphs: choose one of {', '.join(RUNTIMES[1:])}")
