"""The exported graphs are as they must be, and a deployment folder notices everything that is
not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from micro_deployment import MODES, micro_config, parts
from mudit_engine.cli.main import run
from mudit_engine.errors import GateError, InputError, ModelError
from mudit_engine.export import onnx_export, parity
from mudit_engine.export.graphs import DTYPES, graphs
from mudit_engine.export.onnx_export import check_file, check_graph, export_graph, export_onnx
from mudit_engine.export.unroll import unroll
from mudit_engine.runtime.load import open_session
from mudit_engine.runtime.manifest import differences, read_manifest

RUNTIMES = ("onnxruntime", "openvino")
ALL_GRAPHS = {"modulation", "lyric_kv", "conditions", "step", "vae_decode", "chinmu_text"}


def _broken(deployed: Path, to: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of the deployment folder in which one file's bytes were changed."""
    folder = shutil.copytree(deployed, to)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return folder


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_graphs_are_of_their_flavour(deployed: Path) -> None:
    manifest = read_manifest(deployed)
    assert manifest["flavours"]["fp32"]["opset"] == 20
    assert set(manifest["flavours"]["fp32"]["graphs"]) == ALL_GRAPHS
    inputs = manifest["flavours"]["fp32"]["graphs"]["step"]["inputs"]
    assert inputs["x"] == {"type": "float", "shape": ["songs", "targets", 8]}
    assert inputs["lyric_keys"]["shape"] == [1, "sequences", "lyrics", 2, 32]
    assert differences(deployed, manifest) == []
    assert manifest["samplers"].keys() == {"default", *parity.SAMPLERS}
    assert (
        {"torch", "onnx"} <= manifest["versions"].keys()
        and manifest["licence"] == "Apache-2.0"
        and manifest["limits"]["fragments"] == 4
    )


@pytest.mark.parametrize("flavour", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_tensorrt_flavour_is_attention_with_boolean_masks(
    model: Path, tmp_path: Path, flavour: str
) -> None:
    dit, vae, chinmu = parts(model, DTYPES[flavour])
    maker = graphs(dit, vae, chinmu, precision=flavour, expanded=True)["step"]  # type: ignore[arg-type]
    path = tmp_path / "graphs" / flavour / "step.onnx"
    path.parent.mkdir(parents=True)
    with torch.no_grad():
        described = export_graph(maker(), path, flavour=flavour)
    assert check_file(tmp_path, flavour, "step", described) == []
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert len(attentions) == 2 * len(dit.blocks), "self and cross of every block"
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input]
    }
    half = onnx.TensorProto.BFLOAT16 if flavour == "bf16" else onnx.TensorProto.FLOAT16
    assert {kinds[node.input[0]] for node in attentions} == {half}
    assert {kinds[node.input[3]] for node in attentions} == {onnx.TensorProto.BOOL}


@pytest.mark.parametrize("flavour", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_norms_of_two_types_are_no_graph(model: Path, tmp_path: Path, flavour: str) -> None:
    """The gate of every graph, ONNX's full check and ONNX Runtime, sees what the exporter's fusion
    makes of a norm: one without the cast of its input.
    """
    dit, vae, chinmu = parts(model, DTYPES[flavour])
    precision: Any = flavour
    maker = graphs(dit, vae, chinmu, precision=precision, expanded=True)["chinmu_text"]
    path = tmp_path / "chinmu_text.onnx"
    with torch.no_grad():
        export_graph(maker(), path, flavour=flavour)
    exported = onnx.load(str(path))
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(exported).graph.value_info
    }
    kinds |= {tensor.name: tensor.data_type for tensor in exported.graph.initializer}
    norms = [node for node in exported.graph.node if node.op_type == "RMSNormalization"]
    assert norms and all(kinds[node.input[0]] == kinds[node.input[1]] for node in norms)
    assert onnx_export.valid_onnx(path) == []
    casts = {
        node.output[0]: node.input[0] for node in exported.graph.node if node.op_type == "Cast"
    }
    widened = [node for node in norms if "_wide_" in node.input[0]]
    for node in widened:
        node.input[0] = casts[node.input[0]]
    assert widened
    onnx.save(exported, str(path))
    assert "RMSNormalization" in onnx_export.valid_onnx(path)[0]


def test_onnx_runtime_opens_every_graph(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights of no model: they are inputs of the copy that it opens."""
    path = deployed / "graphs" / "fp32" / "step.onnx"
    assert onnx_export.valid_onnx(path) == []
    opened = onnx_export._without_weights(onnx.load(str(path)), most=16)
    assert "dit.final.weight" in {value.name for value in opened.graph.input}
    assert len(opened.SerializeToString()) < path.stat().st_size / 2
    for node in opened.graph.node:
        node.op_type = "Sigmoid" if node.op_type == "Add" else node.op_type
    monkeypatch.setattr(onnx_export, "_without_weights", lambda model: opened)
    assert "ONNX Runtime does not open it" in onnx_export.valid_onnx(path)[0]


def test_weights_keep_their_names_and_shapes(deployed: Path) -> None:
    """What refits an engine finds weights by name."""
    flavour = read_manifest(deployed)["flavours"]["fp32"]["graphs"]
    for graph, part in (
        ("step", "dit"),
        ("lyric_kv", "dit"),
        ("vae_decode", "vae"),
        ("chinmu_text", "chinmu"),
    ):
        held = {
            tensor.name: tensor
            for tensor in onnx.load(str(deployed / f"graphs/fp32/{graph}.onnx")).graph.initializer
        }
        weights = load_file(deployed / f"{part}.safetensors")
        prefix = "" if part == "chinmu" else f"{part}."
        assert flavour[graph]["weights"]
        for name, shape in flavour[graph]["weights"].items():
            own = weights[name.removeprefix(prefix)].numpy()
            assert list(own.shape) == shape, name
            assert np.array_equal(onnx.numpy_helper.to_array(held[name]), own), name
        matrices = {
            name
            for name, tensor in held.items()
            if len(tensor.dims) == 2 and np.prod(tensor.dims) >= 4096
        }
        assert not {name for name in matrices if name.startswith("val_")}, (
            "a weight under another name"
        )


@pytest.mark.parametrize("count", [1, 3])
def test_an_unrolled_loop_computes_the_same(count: int) -> None:
    """x, n -> x * 2 + n + turn, `count` times; n and the 2 are of the graph around the body."""
    make, kind = onnx.helper, onnx.TensorProto
    value = make.make_tensor_value_info
    turn, going = value("turn", kind.INT64, []), value("going", kind.BOOL, [])
    inner = [
        make.make_node("Mul", ["state", "two"], ["doubled"], name="mul"),
        make.make_node("Add", ["doubled", "n"], ["more"], name="add"),
        make.make_node("Cast", ["turn"], ["number"], name="cast", to=kind.FLOAT),
        make.make_node("Add", ["more", "number"], ["next"], name="add_turn"),
        make.make_node("Identity", ["going"], ["goes"], name="go"),
    ]
    states = [value("state", kind.FLOAT, [2])]
    body = make.make_graph(
        inner,
        "body",
        [turn, going, *states],
        [value("goes", kind.BOOL, []), value("next", kind.FLOAT, [2])],
    )
    nodes = [
        make.make_node("Not", ["off"], ["on"], name="not"),
        make.make_node("Loop", ["count", "on", "x"], ["y"], name="loop", body=body),
    ]
    constants = [
        make.make_tensor("two", kind.FLOAT, [], [2.0]),
        make.make_tensor("off", kind.BOOL, [], [False]),
        make.make_tensor("count", kind.INT64, [], [count]),
    ]
    inputs = [value("x", kind.FLOAT, [2]), value("n", kind.FLOAT, [2])]
    graph = make.make_graph(nodes, "g", inputs, [value("y", kind.FLOAT, [2])], constants)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    feeds = {"x": np.float32([1, 2]), "n": np.float32([3, 5])}

    def result() -> np.ndarray:
        onnx.checker.check_model(model, full_check=True)
        return np.asarray(
            onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
        )

    expected = result()
    unroll(model, count)
    assert {node.op_type for node in model.graph.node} == {"Mul", "Add", "Cast", "Identity"}, (
        "no loop, nothing that only decided"
    )
    np.testing.assert_array_equal(result(), expected)


def test_faults_of_graphs_are_named() -> None:
    make = onnx.helper
    tensor = make.make_tensor_value_info
    weights = [make.make_tensor("w", onnx.TensorProto.DOUBLE, [1], [1.0])] * 2
    node = make.make_node("Attention", ["a", "a", "a", "", "", "", "a"], ["y"], name="attn")
    values = [tensor("a", onnx.TensorProto.FLOAT, [3]), tensor("b", onnx.TensorProto.FLOAT, [3])]
    body = make.make_graph([node], "g", values, [tensor("y", onnx.TensorProto.FLOAT, [3])], weights)
    model = make.make_model(
        body, opset_imports=[make.make_opsetid("", 18), make.make_opsetid("com.microsoft", 1)]
    )
    faults = "; ".join(check_graph(model, {"a": ["rows"], "c": [3]}, opset=23, floats={"FLOAT"}))
    expected = (
        "opset 18 instead of 23",
        "com.microsoft",
        "unused inputs b",
        "a, b instead of a, c",
        "a is [3] instead of ['rows']",
    )
    for fault in (*expected, "one name: w", "DOUBLE", "nonpad_kv_seqlen"):
        assert fault in faults
    named = {"dit.final.weight": (1,), "w": (2,)}
    assert "2 weights without their names and shapes (dit.final.weight, w)" in "; ".join(
        check_graph(model, {}, opset=18, floats={"DOUBLE"}, weights=named)
    )
    good = make.make_graph(
        [make.make_node("Neg", ["a"], ["y"])],
        "g",
        values[:1],
        [tensor("y", onnx.TensorProto.FLOAT, [3])],
    )
    assert (
        check_graph(
            make.make_model(good, opset_imports=[make.make_opsetid("", 23)]),
            {"a": [3]},
            opset=23,
            floats={"FLOAT"},
        )
        == []
    )


def test_large_weights_lie_beside_the_graph(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "EXTERNAL_BYTES", 1000)
    maker = graphs(*parts(model))["modulation"]
    (tmp_path / "graphs" / "fp32").mkdir(parents=True)
    with torch.no_grad():
        described = export_graph(
            maker(), tmp_path / "graphs" / "fp32" / "modulation.onnx", flavour="fp32"
        )
    assert (tmp_path / "graphs/fp32/modulation.onnx.data").stat().st_size > 5 * (
        tmp_path / "graphs/fp32/modulation.onnx"
    ).stat().st_size
    assert check_file(tmp_path, "fp32", "modulation", described) == []
    (tmp_path / "graphs/fp32/modulation.onnx.data").unlink()
    assert check_file(tmp_path, "fp32", "modulation", described) != []


def test_a_trace_remembers_no_operators(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Which takes longer than to trace them anew; what runs afterwards finds the setting."""
    import torch._dynamo.config as settings

    class Traced(Exception):
        pass

    def export(*args: Any, **options: Any) -> None:
        assert not settings.fake_tensor_cache_enabled
        raise Traced

    before = settings.fake_tensor_cache_enabled
    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(Traced):
        export_graph(graphs(*parts(model))["conditions"](), tmp_path / "one.onnx", flavour="fp32")
    assert settings.fake_tensor_cache_enabled == before


def test_a_faulty_graph_leaves_no_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "check_graph", lambda *args, **kwargs: ["something"])
    with pytest.raises(GateError, match="something"):
        export_onnx(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_stopped_leaves_no_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(source: Path, folder: Path, **options: Any) -> dict[str, Any]:
        assert any(path.name.startswith(".out.") for path in tmp_path.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("it went on")

    monkeypatch.setattr(onnx_export, "export_graphs", stopped)
    assert run(["export", "onnx", str(model), str(tmp_path / "out"), "--no-parity"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_an_unfaithful_export_leaves_no_folder(
    deployed: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(source: Path, folder: Path, **options: Any) -> dict[str, Any]:
        shutil.copytree(deployed / "graphs" / "fp32", folder)
        flavours: dict[str, Any] = read_manifest(deployed)["flavours"]
        return flavours["fp32"]

    monkeypatch.setattr(onnx_export, "export_graphs", copied)
    cases = parity.cases
    monkeypatch.setattr(parity, "cases", lambda config: list(cases(config))[-1:])
    monkeypatch.setattr(parity, "LATENTS_LIMIT", 0.0)
    with pytest.raises(
        GateError,
        match="nothing was written: onnxruntime, songs of several lengths: latents differ",
    ):
        export_onnx(model, tmp_path / "out", runtimes=("onnxruntime",))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(parity, "LATENTS_LIMIT", 1e-4)
    export_onnx(model, tmp_path / "out", runtimes=("onnxruntime",))
    assert [row["case"] for row in read_manifest(tmp_path / "out")["parity"]] == [
        "songs of several lengths",
        "decode",
        "text",
    ]


def test_a_folder_with_something_else_is_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not an export"):
        export_onnx(model, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        export_onnx(model, tmp_path / "thesis.txt")
    with pytest.raises(InputError, match="choose from fp32"):
        export_onnx(model, tmp_path / "out", flavours=("fp8",))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:1000], "step.onnx has 1000 bytes"),
        (_flip, "step.onnx has changed"),
        (None, "step.onnx is missing"),
    ],
    ids=["cut", "flipped", "gone"],
)
def test_a_broken_graph_is_named(
    deployed: Path, tmp_path: Path, change: Callable[[bytes], bytes] | None, message: str
) -> None:
    name = "graphs/fp32/step.onnx"
    folder = _broken(deployed, tmp_path / "folder", name, change or (lambda data: data))
    if change is None:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=message):
        open_session(folder, "onnxruntime")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_graph_that_was_broken_before_it_was_hashed_is_named(
    deployed: Path, tmp_path: Path, runtime: str
) -> None:
    from mudit_engine.export.manifest import add_to_manifest

    folder = _broken(
        deployed,
        tmp_path / "folder",
        "graphs/fp32/vae_decode.onnx",
        lambda data: data[: len(data) // 2],
    )
    add_to_manifest(folder, under="graphs")
    with pytest.raises(
        ModelError, match=r"(?s)vae_decode.onnx' cannot be .*: export the model again"
    ):
        open_session(folder, runtime).run("vae_decode", {"latents": torch.zeros(1, 9, 8)})


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_that_a_graph_does_not_take_are_an_error_of_ours(
    deployed: Path, runtime: str
) -> None:
    with pytest.raises(
        ModelError, match=r"(?s)graph 'vae_decode' of .* failed .*: export the model again"
    ):
        open_session(deployed, runtime).run("vae_decode", {"latents": torch.zeros(1, 9, 7)})


def test_weights_that_are_not_of_the_graphs_are_named(deployed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(deployed, tmp_path / "folder")
    weights = {name: value * 1.001 for name, value in load_file(folder / "dit.safetensors").items()}
    save_file(weights, folder / "dit.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="dit.safetensors has changed"):
        open_session(folder, "onnxruntime")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99, "engine": "9.9"}, r"exported by mudit-engine 9.9 \(schema 99\)"),
        ({"kind": "other"}, "no manifest of an export"),
        ({"flavours": {}}, "--flavour fp32"),
    ],
    ids=["version", "kind", "flavour"],
)
def test_a_manifest_of_something_else_is_refused(
    deployed: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = _broken(
        deployed,
        tmp_path / "folder",
        "manifest.json",
        lambda data: json.dumps({**json.loads(data), **change}).encode(),
    )
    with pytest.raises(ModelError, match=message):
        open_session(folder, "openvino")


def test_a_model_folder_is_no_deployment_folder(model: Path) -> None:
    with pytest.raises(ModelError, match="mudit export onnx"):
        open_session(model, "onnxruntime")
    with pytest.raises(InputError, match="onnxruntime, openvino"):
        open_session(model, "tensorflow")


def test_verify_command(
    deployed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(["export", "verify", str(deployed), "--no-parity", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["flavours"]["fp32"]["graphs"] == sorted(
        ALL_GRAPHS
    )
    row = {"runtime": "onnxruntime", "case": "instrumental", "latents": 2e-4, "padding": 0.0}
    monkeypatch.setattr(parity, "measure_parity", lambda folder, runtimes: [row])
    assert run(["export", "verify", str(deployed)]) == 4
    assert "instrumental: latents differ by 2.00e-04" in capsys.readouterr().err
    folder = _broken(deployed, tmp_path / "folder", "graphs/fp32/vae_decode.onnx", _flip)
    assert run(["export", "verify", str(folder)]) == 1
    assert "vae_decode.onnx has changed" in capsys.readouterr().err


def test_verify_finds_a_graph_of_another_opset(
    deployed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mudit_engine.export.manifest import add_to_manifest

    folder = shutil.copytree(deployed, tmp_path / "folder")
    path = folder / "graphs" / "fp32" / "modulation.onnx"
    graph = onnx.load(str(path))
    graph.opset_import[0].version = 18
    onnx.save(graph, str(path))
    add_to_manifest(folder, under="graphs")
    assert run(["export", "verify", str(folder), "--no-parity"]) == 1
    assert "modulation.onnx: opset 18 instead of 20" in capsys.readouterr().err


@pytest.mark.slow
def test_export_command_on_a_random_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both flavours of a model that nobody has trained, then again over itself."""
    config = tmp_path / "config.json"
    config.write_text(micro_config(outline=True).model_dump_json())
    arguments = ["export", "onnx", str(config), str(tmp_path / "out"), "--random-weights", "--json"]
    arguments += ["--flavour", "fp32", "--flavour", "bf16"]
    for _ in range(2):
        assert run(arguments) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        assert (
            set(results["flavours"]) == {"fp32", "bf16"} and parity.faults(results["parity"]) == []
        )
        assert len(results["parity"]) == len(RUNTIMES) * len(MODES)
        assert read_manifest(tmp_path / "out")["parity"] == results["parity"]


@pytest.mark.slow
def test_the_embedded_model_exports_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command: its phase search is one loop in the graph, and every mode in every runtime is
    PyTorch's song.
    """
    out = tmp_path / "out"
    assert run(["export", "onnx", "tiny", str(out), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert parity.faults(results["parity"]) == []
    searched = [row for row in results["parity"] if "search" in row]
    assert {row["runtime"] for row in searched} == set(RUNTIMES), "all phase steps, too"
    assert read_manifest(out)["flavours"]["fp32"]["graphs"]["vae_decode"]["inputs"][
        "refinements"
    ] == {"type": "int64", "shape": []}
    assert [
        node.op_type for node in onnx.load(str(out / "graphs/fp32/vae_decode.onnx")).graph.node
    ].count("Loop") == 1
