"""The exported graphs are the model: parity of every mode in every runtime, checked graphs, a manifest that notices everything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from conftest import micro_config, save_model
from mudit_engine.cli.main import run
from mudit_engine.config import load_config
from mudit_engine.dense import DenseKeys
from mudit_engine.errors import GateError, InputError, ModelError
from mudit_engine.export import onnx_export, parity
from mudit_engine.export.graphs import Graph
from mudit_engine.export.onnx_export import check_graph, export_graph, export_onnx
from mudit_engine.models.folder import load_part
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.runtime.manifest import differences, read_manifest
from mudit_engine.runtime.sessions import open_session

RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def rows(deployed: Path) -> list[dict[str, Any]]:
    return parity.measure_parity(deployed, runtimes=RUNTIMES)


def test_whole_songs_equal_pytorch_in_every_mode(rows: list[dict[str, Any]]) -> None:
    assert parity.faults(rows) == []
    modes = {row["case"] for row in rows}
    assert {"no guidance", "guidance interval", "negative description", "reference audio", "instrumental", "decode"} <= modes
    assert {f"sampler {name}" for name in parity.SAMPLERS} <= modes
    assert max(row["latents"] for row in rows if "latents" in row) < 1e-5, "fp32 rounding, no more"


@pytest.mark.parametrize("dit", [{"cross_attention": "parallel", "modulation": "per_block"}, {"qk_norm": False}], ids=["parallel", "plain"])
def test_other_networks_too(dit: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "model", micro_config(**dit))
    out = export_onnx(model, tmp_path / "out", flavours=("fp32",))
    assert parity.faults(parity.measure_parity(out, runtimes=("onnxruntime",))) == []


def test_a_mask_that_is_not_applied_is_noticed(deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding attended to: the figures of the padded songs must leave the limit."""
    from mudit_engine.runtime import graph_denoiser

    monkeypatch.setattr(graph_denoiser, "_first", lambda count, length, skipped=0: torch.arange(length) >= skipped)
    broken = parity.measure_parity(deployed, runtimes=("onnxruntime",))
    assert any("padding differ" in fault for fault in parity.faults(broken))


def test_other_weights_are_noticed(deployed: Path, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(deployed, tmp_path / "deploy")
    weights = load_part("dit", load_config(model), model).state_dict()
    from safetensors.torch import save_file

    weights = {name: value * 1.001 for name, value in weights.items()}
    save_file(weights, folder / "dit.safetensors", metadata={"part": "dit", "format": "pt"})
    with pytest.raises(ModelError, match="dit.safetensors has changed"):
        parity.measure_parity(folder, runtimes=("onnxruntime",))


def test_graphs_are_of_their_flavour(deployed: Path) -> None:
    manifest = read_manifest(deployed)
    assert manifest["flavours"]["fp32"]["opset"] == 20
    assert set(manifest["flavours"]["fp32"]["graphs"]) == {"modulation", "lyric_kv", "conditions", "step", "vae_decode", "chinmu_text"}
    step = onnx.load(str(deployed / "graphs" / "fp32" / "step.onnx"))
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in step.graph.input}
    assert shapes["x"] == ["songs", "targets", 8] and shapes["lyric_keys"] == [2, "sequences", "lyrics", 2, 32]
    assert shapes["other_mask"] == ["sequences", "others"], "TensorRT takes axes of one name for equal"
    assert differences(deployed, manifest) == []


@pytest.mark.parametrize("flavour", ["bf16", "fp16"])
def test_tensorrt_flavour_is_attention_with_boolean_masks(model: Path, tmp_path: Path, flavour: str) -> None:
    from mudit_engine.export.graphs import DTYPES, graphs

    config = load_config(model)
    dit: Any = load_part("dit", config, model, dtype=DTYPES[flavour])
    vae, chinmu = (load_part(part, config, model) for part in ("vae", "chinmu"))
    maker = graphs(dit, vae, chinmu, precision=flavour, expanded=True)["step"]  # type: ignore[arg-type]
    with torch.no_grad():
        export_graph(maker(), tmp_path / "step.onnx", flavour=flavour)
    graph = onnx.load(str(tmp_path / "step.onnx")).graph
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert len(attentions) == 2 * config.dit.blocks, "self and cross of every block"
    assert all(node.input[3] for node in attentions), "every attention has a mask"


class _Adds(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + 1.0 if self.training else a * 2.0


def test_faults_of_graphs_are_named() -> None:
    inputs = {"a": torch.zeros(3), "b": torch.zeros(3)}
    graph = Graph(_Adds(), inputs, {"a": {0: "rows"}}, ("y",))
    make = onnx.helper
    tensor = make.make_tensor_value_info
    weights = [make.make_tensor("w", onnx.TensorProto.DOUBLE, [1], [1.0])] * 2
    node = make.make_node("Attention", ["a", "a", "a", "", "", "", "a"], ["y"], name="attn")
    values = [tensor("a", onnx.TensorProto.FLOAT, [3]), tensor("b", onnx.TensorProto.FLOAT, [3])]
    body = make.make_graph([node], "g", values, [tensor("y", onnx.TensorProto.FLOAT, [3])], weights)
    model = make.make_model(body, opset_imports=[make.make_opsetid("", 18), make.make_opsetid("com.microsoft", 1)])
    faults = "; ".join(check_graph(model, graph, opset=23, floats={"FLOAT"}))
    expected = ("opset 18 instead of 23", "com.microsoft", "unused inputs b", "a is fixed in rows", "one name: w", "DOUBLE")
    for fault in (*expected, "nonpad_kv_seqlen"):
        assert fault in faults


def test_a_faulty_graph_leaves_no_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "check_graph", lambda *args, **kwargs: ["something"])
    with pytest.raises(GateError, match="something"):
        export_onnx(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not an export"):
        export_onnx(model, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_pipeline_makes_the_same_song(deployed: Path, model: Path) -> None:
    request = SongRequest(description="piano, slow", lyrics="[verse]\n月亮升起来", seconds=4, seed=3)
    expected = SongPipeline.from_pretrained(model).generate([request])[0]
    for runtime in RUNTIMES:
        song = SongPipeline.from_pretrained(deployed, runtime=runtime).generate([request])[0]
        assert np.abs(song.audio - expected.audio).max() < 1e-4 * np.abs(expected.audio).max() + 1e-6
        assert song.info["runtime"] == runtime


def test_what_is_wrong_with_a_folder_is_said(deployed: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="mudit export onnx"):
        open_session(model, "onnxruntime")
    for name, break_it, message in (
        ("cut", lambda path: path.write_bytes(path.read_bytes()[:1000]), "step.onnx has 1000 bytes"),
        ("gone", lambda path: path.unlink(), "step.onnx is missing"),
        ("flipped", _flip, "step.onnx has changed"),
    ):
        folder = shutil.copytree(deployed, tmp_path / name)
        break_it(folder / "graphs" / "fp32" / "step.onnx")
        with pytest.raises(ModelError, match=message):
            open_session(folder, "onnxruntime")
    folder = shutil.copytree(deployed, tmp_path / "old")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(ModelError, match="schema 99"):
        open_session(folder, "openvino")
    (folder / "manifest.json").write_text(json.dumps({**manifest, "flavours": {}}))
    with pytest.raises(ModelError, match="--flavour fp32"):
        open_session(folder, "openvino")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_verify_command(deployed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "verify", str(deployed), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["runtime"] for row in document["results"]["parity"]} == set(RUNTIMES)
    folder = shutil.copytree(deployed, tmp_path / "cut")
    _flip(folder / "graphs" / "fp32" / "vae_decode.onnx")
    assert run(["export", "verify", str(folder)]) == 1
    assert "vae_decode.onnx has changed" in capsys.readouterr().err


def test_a_sequence_without_keys_gets_nothing() -> None:
    """The null key: a guidance branch without lyrics takes 0 from cross-attention, not an average of padding."""
    from mudit_engine import ops

    q, k = torch.randn(3, 2, 8), torch.cat((torch.zeros(1, 2, 8), torch.randn(4, 2, 8)))
    mask = torch.tensor([[True, False, False, False, False]])
    assert torch.equal(ops.attention(q, k, k, DenseKeys(mask)), torch.zeros(3, 2, 8))
