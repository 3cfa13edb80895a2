"""What ranges are measured on: calls of the graph `step` in songs that somebody could ask for,
at noise levels from the first step to the last.

    session = TwinSession(folder, flavour="bf16")       # the deployment's graphs, on this CPU
    calls = record_calls(folder, session, songs(config, count=8), levels=6)
    songs(config, count=2, held_out=True)               # others, to judge by

Songs are recorded at their own lengths: what pads a bucket is masked, and would be measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mudit_engine.config import ModelConfig
from mudit_engine.export.quantized_graph import products, widened
from mudit_engine.reading import RequestReader
from mudit_engine.request import SongRequest
from mudit_engine.runtime.denoiser import SongInputs, denoise
from mudit_engine.runtime.graph_denoiser import GraphDenoiser
from mudit_engine.runtime.load import load_codec_and_text
from mudit_engine.runtime.onnx_session import OnnxSession

EXTERNAL_BYTES = 2**31 - 2**20  # protobuf's own limit is 2 GiB

# (description, lyrics, share of the longest song)
ASKED = (
    ("流行抒情，钢琴与弦乐，女声，温暖，BPM 84", "[verse]\n月亮升起来\n照着旧窗台", 0.3),
    ("fast punk rock, male voice, distorted guitar, 168 BPM", "[chorus]\nwe run all night", 0.25),
    ("calm solo piano, instrumental, slow, A minor", None, 0.4),
    ("民谣，吉他，男声，乡愁", "[verse]\n山的那边是海\n[chorus]\n我在等你回来", 0.5),
    ("electronic dance, four on the floor, bright synth", None, 0.2),
    ("jazz trio, brushes, female voice, swing", "[verse]\nmoonlight on the river", 0.35),
    ("", "[verse]\n你好世界\nhello world", 0.25),
    ("古风，古筝，笛子，悠远", "[intro]\n[verse]\n长安一片月", 0.6),
)
HELD_OUT = (
    ("rock ballad, electric guitar, male voice, 76 BPM", "[verse]\nhold\n[chorus]\nstay", 1.0),
    ("儿歌，欢快，木琴，童声", "[verse]\n小星星亮晶晶\n挂在天空放光明", 0.3),
)


def songs(
    config: ModelConfig, folder: Path, *, count: int = len(ASKED), held_out: bool = False
) -> list[SongInputs]:
    """Songs of a model folder as its reader understands them, a seed each; those held out are other
    ones, the first of them as long as the model makes songs.
    """
    vae, chinmu = load_codec_and_text(config, folder, torch.device("cpu"), torch.float32)
    reader = RequestReader(config, vae, text=chinmu)
    asked = HELD_OUT if held_out else ASKED
    found = []
    for number in range(count):
        description, lyrics, share = asked[number % len(asked)]
        request = SongRequest(
            description=description,
            lyrics=lyrics,
            seconds=max(1.0, round(share * config.max_seconds, 1)),
            user_type="amateur" if number % 2 else "none",
            seed=(1000 if held_out else 0) + number,
        )
        with torch.inference_mode():
            found.append(reader.inputs(reader.read(request)))
    return found


class TwinSession(OnnxSession):
    """The half precision graphs of a deployment folder on a CPU, widened to float32, whose types
    ONNX Runtime has there. `step` is another graph to run for that of this name.
    """

    def __init__(self, folder: Path, *, flavour: str, step: Path | None = None) -> None:
        super().__init__(folder / "graphs" / flavour)
        self.step = step

    def _path(self, graph: str) -> Path:
        return self.step if graph == "step" and self.step else super()._path(graph)

    def _session(self, path: Path) -> Any:
        import onnx

        with tempfile.TemporaryDirectory(prefix="mudit-twin-") as work:
            twin = Path(work) / "twin.onnx"
            save_model(widened(onnx.load(str(path))), twin)
            return super()._session(twin)


def channel_peaks(
    model: Any, calls: Sequence[Mapping[str, np.ndarray]], work: Path
) -> dict[str, np.ndarray]:
    """The largest magnitude of every channel of each product's input, by the node's name, over
    recorded calls of a graph. `work` is a folder for the graph that tells them.
    """
    import onnxruntime
    from onnx import helper

    twin = widened(model)
    inputs = {one.node.name: one.node.input[0] for one in products(twin.graph)}
    told = sorted({*inputs.values()} - {one.name for one in twin.graph.output})
    twin.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in told)
    save_model(twin, work / "peaks.onnx")
    session = onnxruntime.InferenceSession(
        str(work / "peaks.onnx"), providers=["CPUExecutionProvider"]
    )
    found: dict[str, np.ndarray] = {}
    for call in calls:
        for name, value in zip(told, session.run(told, dict(call)), strict=True):
            peak = np.abs(value).reshape(-1, value.shape[-1]).max(0)
            found[name] = np.maximum(found.get(name, 0), peak)
    return {node: found[name] for node, name in inputs.items()}


def save_model(model: Any, path: Path) -> None:
    """Writes a model, weights beside it where protobuf could not hold them."""
    import onnx

    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_BYTES
    if large:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, str(path))


class _Recorder:
    """A session that keeps the inputs of some calls of `step`."""

    def __init__(self, session: Any, rows: Sequence[int]) -> None:
        self.session, self.rows, self.row = session, set(rows), 0
        self.kept: list[dict[str, np.ndarray]] = []

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if graph == "step":
            if self.row in self.rows:
                self.kept.append({name: value.numpy().copy() for name, value in inputs.items()})
            self.row += 1
        outputs: tuple[Tensor, ...] = self.session.run(graph, inputs)
        return outputs


def record_calls(
    config: ModelConfig, session: Any, asked: Sequence[SongInputs], *, levels: int
) -> list[dict[str, np.ndarray]]:
    """Inputs of `step` at `levels` rows of each song's table, from the first to the last, other
    ones from song to song.
    """
    calls: list[dict[str, np.ndarray]] = []
    for number, song in enumerate(asked):
        last = len(song.table.times) - 1
        shift = number / max(len(asked), 1)
        wanted = {
            round(last * min(1.0, (level + shift) / max(levels - 1, 1))) for level in range(levels)
        }
        recorder = _Recorder(session, sorted(wanted | {0, last}))
        runtime = GraphDenoiser(config.dit, recorder)
        denoise(runtime, [runtime.prepare(replace(song))])
        calls += recorder.kept
    return calls


def save_calls(calls: Sequence[Mapping[str, np.ndarray]], path: Path) -> None:
    """Writes calls as modelopt_child.py reads them."""
    arrays = {f"{n}/{name}": value for n, call in enumerate(calls) for name, value in call.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
