"""Products in 8 bits: what is measured goes around the right products, attention is left alone, and
songs that differ too much leave the deployment as it was.

ModelOpt itself needs an environment of its own: MUDIT_MODELOPT_PYTHON names its interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from micro_deployment import micro_config, save_model
from mudit_engine.cli.main import run
from mudit_engine.config import load_config
from mudit_engine.errors import GateError, InputError, MissingError, ModelError
from mudit_engine.export import calibration
from mudit_engine.export import quantize as quantizing
from mudit_engine.export.onnx_export import export_onnx
from mudit_engine.export.quantize import Options, faults, graph_of, quantize, worst
from mudit_engine.export.quantized_graph import (
    Ranges,
    attentions_in_8_bits,
    fold_weights,
    insert,
    products,
    ranges_of,
    smooth,
    widened,
)
from mudit_engine.export.tensorrt_build import Options as BuildOptions
from mudit_engine.export.tensorrt_build import make_plan
from mudit_engine.runtime.manifest import check_deployment, read_manifest
from mudit_engine.runtime.trt_targets import TARGETS

MODELOPT = os.environ.get("MUDIT_MODELOPT_PYTHON")
ROWS, INPUTS, OUTPUTS = 5, 6, 4


def two_products(kind: int = TensorProto.BFLOAT16) -> onnx.ModelProto:
    """x W' behind a Transpose, then V as MatMul takes it, then a product of two values."""
    draw = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        values = draw.normal(0, 1, shape).astype(np.float32)
        return helper.make_tensor(name, kind, shape, values.reshape(-1).tolist())

    nodes = [
        helper.make_node("Transpose", ["blocks.w"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"], "first"),
        helper.make_node("MatMul", ["y", "final.v"], ["z"], "second"),
        helper.make_node("Transpose", ["z"], ["zt"], "other", perm=[1, 0]),
        helper.make_node("MatMul", ["z", "zt"], ["out"], "inner"),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", kind, [ROWS, INPUTS])],
        [helper.make_tensor_value_info("out", kind, [ROWS, ROWS])],
        [weight("blocks.w", OUTPUTS, INPUTS), weight("final.v", OUTPUTS, 3)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # without it, sums of two products saturate at 16 bits on processors that have no VNNI
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        widened(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def measured(model: onnx.ModelProto, x: np.ndarray, kind: str) -> dict[str, Ranges]:
    """Ranges of both products, of their largest values."""
    limit = {"fp8": 448.0, "int8": 127.0}[kind]
    held = {one.name: numpy_helper.to_array(one).astype(np.float64) for one in
            model.graph.initializer}  # fmt: skip
    w, v = held["blocks.w"].T, held["final.v"]

    def weight(one: np.ndarray) -> np.ndarray:
        return np.abs(one).max(None if kind == "fp8" else 0) / limit

    return {
        "first": Ranges(np.abs(x).max() / limit, weight(w)),
        "second": Ranges(np.abs(x @ w).max() / limit, weight(v)),
    }


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_products_in_8_bits_are_nearly_the_same(kind: str) -> None:
    x = np.random.default_rng(1).normal(0, 1, (ROWS, INPUTS)).astype(np.float32)
    model = two_products()
    exact, ranges = answer(model, x), measured(model, x, kind)
    assert insert(model, ranges, kind=kind) == 2
    onnx.checker.check_model(model, full_check=True)
    rough = answer(model, x)
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < {"fp8": 0.1, "int8": 0.03}[kind]
    kinds = {one.data_type for one in model.graph.initializer if one.name.endswith(".values")}
    assert kinds == {TensorProto.FLOAT8E4M3FN if kind == "fp8" else TensorProto.INT8}
    names = {one.name for one in model.graph.initializer}
    assert not {"blocks.w", "final.v"} & names, "weights are kept once"
    assert [node.name for node in model.graph.node if node.op_type == "Transpose"] == ["other"]
    # a product of two values is no product with a weight
    inner = next(node for node in model.graph.node if node.name == "inner")
    assert list(inner.input) == ["z", "zt"]


def test_a_wrong_scale_is_heard() -> None:
    x = np.random.default_rng(1).normal(0, 1, (ROWS, INPUTS)).astype(np.float32)
    model = two_products()
    exact, ranges = answer(model, x), measured(model, x, "int8")
    ranges["first"] = Ranges(ranges["first"].inputs / 8, ranges["first"].weight)
    insert(model, ranges, kind="int8")
    assert np.linalg.norm(answer(model, x) - exact) / np.linalg.norm(exact) > 0.2


def test_smoothing_changes_no_bit_and_saves_small_channels(tmp_path: Path) -> None:
    """Beside a channel that is a thousand times as large, int8 leaves nothing of the others."""
    x = np.random.default_rng(1).normal(0, 1, (ROWS, INPUTS)).astype(np.float32)
    x[:, 0] *= 1000
    plain, smoothed = two_products(), two_products()
    # the large channel says nothing
    held = next(one for one in plain.graph.initializer if one.name == "blocks.w")
    weight = np.array(numpy_helper.to_array(held))
    weight[:, 0] = 0
    for model in (plain, smoothed):
        next(one for one in model.graph.initializer if one.name == "blocks.w").CopyFrom(
            numpy_helper.from_array(weight, "blocks.w")
        )
    exact = answer(plain, x)
    peaks = calibration.channel_peaks(smoothed, [{"x": x}, {"x": x / 2}], tmp_path)
    assert peaks.keys() == {"first", "second"} and np.array_equal(peaks["first"], abs(x).max(0))
    assert smooth(smoothed, peaks, share=0.8, kept=["final"]) == 1
    onnx.checker.check_model(smoothed, full_check=True)
    assert np.array_equal(answer(smoothed, x), exact), "powers of two round nothing"
    now = calibration.channel_peaks(smoothed, [{"x": x}], tmp_path)
    assert now["first"].max() / now["first"].min() < 20 < peaks["first"].max() / 50
    assert np.array_equal(now["second"], peaks["second"]), "what is kept is left as it is"
    errors = []
    for model in (plain, smoothed):
        limit, own = 127.0, calibration.channel_peaks(model, [{"x": x}], tmp_path)
        weights = {one.node.name: one for one in products(model.graph)}
        ranges = {}
        for name, one in weights.items():
            value = next(t for t in model.graph.initializer if t.name == one.weight)
            w = np.abs(numpy_helper.to_array(value).astype(np.float32))
            columns = w.max(1) if one.turned else w.max(0)
            ranges[name] = Ranges(own[name].max() / limit, columns / limit)
        insert(model, ranges, kind="int8")
        errors.append(np.linalg.norm(answer(model, x) - exact) / np.linalg.norm(exact))
    assert errors[0] > 0.5 > 10 * errors[1], errors


def test_what_is_kept_stays_and_what_was_not_measured_is_named() -> None:
    x = np.ones((ROWS, INPUTS), np.float32)
    model = two_products()
    ranges = measured(model, x, "fp8")
    assert [one.weight for one in products(model.graph, kept=["final"])] == ["blocks.w"]
    assert insert(model, ranges, kind="fp8", kept=["final"]) == 1
    assert "final.v" in {one.name for one in model.graph.initializer}
    with pytest.raises(GateError, match="1 of 2 products were not measured .final.v"):
        insert(two_products(), {"first": ranges["first"]}, kind="fp8")
    with pytest.raises(GateError, match="'blocks.w' has a range that is no positive number"):
        zero = {**ranges, "first": Ranges(np.zeros(()), ranges["first"].weight)}
        insert(two_products(), zero, kind="fp8")


def test_the_twin_has_weights_that_modelopt_knows_for_weights() -> None:
    twin = widened(two_products())
    fold_weights(twin)
    names = {one.name for one in twin.graph.initializer}
    assert names == {"blocks.w.turned", "final.v"}
    assert {one.data_type for one in twin.graph.initializer} == {TensorProto.FLOAT}
    x = np.random.default_rng(1).normal(0, 1, (ROWS, INPUTS)).astype(np.float32)
    assert np.array_equal(answer(twin, x), answer(two_products(), x))


def test_ranges_are_read_by_the_products_names() -> None:
    x = np.random.default_rng(1).normal(0, 1, (ROWS, INPUTS)).astype(np.float32)
    model = widened(two_products())
    fold_weights(model)
    given = measured(two_products(), x, "int8")
    insert(model, given, kind="int8")
    found = ranges_of(model)
    assert found.keys() == given.keys()
    for name, ranges in given.items():
        assert np.allclose(found[name].inputs, ranges.inputs, rtol=1e-6)
        assert np.allclose(found[name].weight, ranges.weight, rtol=1e-6)


def test_an_attention_in_8_bits_is_noticed() -> None:
    model = two_products()
    model.graph.node.append(helper.make_node("Attention", ["q", "k", "v"], ["a"], "heads"))
    assert attentions_in_8_bits(model) == []
    model.graph.node.append(helper.make_node("DequantizeLinear", ["c", "s"], ["k"], "k"))
    assert attentions_in_8_bits(model) == ["heads"]


# The command, with a stand-in for ModelOpt that puts Q and DQ with ranges of largest values


FAKE = """
import json, sys
from pathlib import Path
import numpy as np, onnx
from onnx import numpy_helper
from mudit_engine.export.quantized_graph import Ranges, insert, products
folder, kind = Path(sys.argv[1]), sys.argv[2]
names = json.loads((folder / "products.json").read_text())
model = onnx.load(folder / "twin.onnx")
held = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
calls = np.load(folder / "calibration.npz")
assert any(key.startswith("2/x") for key in calls.files)
limit = {"fp8": 448.0, "int8": 127.0}[kind]
chosen = [one for one in products(model.graph) if one.node.name in names]
left = [one.weight for one in products(model.graph) if one.node.name not in names]
ranges = {
    one.node.name: Ranges(np.float64(RANGE / limit), np.abs(held[one.weight]).max() / limit)
    for one in chosen
}
insert(model, ranges, kind=kind, kept=left)
onnx.save(model, folder / "measured.onnx")
(folder / "modelopt.json").write_text('{"modelopt": "stand-in"}')
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_model(tmp_path_factory.mktemp("two"), micro_config(outline=True, blocks=2))
    return export_onnx(model, tmp_path_factory.mktemp("bf16") / "out", flavours=("bf16",))


@pytest.fixture
def deployment(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "deploy"))


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, largest: float) -> Path:
    script = tmp_path / "child.py"
    script.write_text(FAKE.replace("RANGE", str(largest)))
    monkeypatch.setattr(quantizing.modelopt_child, "__file__", str(script))
    return Path(sys.executable)


@pytest.mark.slow
def test_a_deployment_is_quantised_and_planned(
    deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = stand_in(tmp_path, monkeypatch, largest=12.0)
    before = (deployment / "graphs" / "bf16" / "step.onnx").read_bytes()
    target = TARGETS["h100"]
    with pytest.raises(InputError, match="export quantize .* --to fp8"):
        make_plan(deployment, target, options=BuildOptions(quantize="fp8"))
    monkeypatch.setattr(quantizing, "LIMITS", dict.fromkeys(quantizing.LIMITS, 9.0) | {"cosine": 0})
    found = quantize(deployment, "fp8", options=Options(songs=2, python=python))
    assert (deployment / "graphs" / "bf16" / "step.onnx").read_bytes() == before
    manifest = check_deployment(deployment)
    assert manifest["quantized"]["fp8"] == json.loads(json.dumps(found))
    assert graph_of("fp8") in manifest["files"]
    assert found["products"] > 3 and found["calibration"]["calls"] >= 4
    assert found["kept"] == [] and len(found["chosen"]["cosine_alone"]) == found["products"]
    config = load_config(deployment)
    assert found["measured"]["songs"][0]["seconds"] == config.max_seconds
    assert 0.9 < found["measured"]["worst"]["cosine"] < 1
    held = onnx.load(deployment / graph_of("fp8"))
    assert attentions_in_8_bits(held) == []
    plan = make_plan(deployment, target, options=BuildOptions(quantize="fp8"))
    sources = {entry["name"]: entry["onnx"] for entry in plan.spec["engines"]}
    assert sources["step"] == "../../quantized/step.fp8.onnx"
    assert "graphs/bf16" in sources["lyric_kv"] and plan.spec["quantized"] == "fp8"


@pytest.mark.slow
def test_songs_that_differ_too_much_leave_nothing(
    deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = stand_in(tmp_path, monkeypatch, largest=0.05)  # nearly all is cut off
    with pytest.raises(GateError, match=r"with 4 of \d+ products kept out of int8 .* cosine of"):
        quantize(deployment, "int8", options=Options(songs=1, python=python, most_kept=4))
    # the recorded calls may lose so much, other songs may not
    monkeypatch.setattr(quantizing, "LIMITS", {"cosine": -1.0, "distance": 0.0})
    with pytest.raises(GateError, match="makes other songs, nothing was written: .* distance is"):
        quantize(deployment, "int8", options=Options(songs=1, python=python))
    assert "quantized" not in check_deployment(deployment)
    assert not list(deployment.parent.glob(".deploy*"))


@pytest.mark.slow
def test_the_costliest_products_stay_as_they_were_exported(
    deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = stand_in(tmp_path, monkeypatch, largest=12.0)
    loose = dict.fromkeys(quantizing.LIMITS, 9.0)
    monkeypatch.setattr(quantizing, "LIMITS", loose | {"cosine": 0.0})
    all_of_them = quantize(deployment, "int8", options=Options(songs=2, python=python))
    lost = 1 - all_of_them["chosen"]["cosine_of_none_kept"]
    monkeypatch.setattr(quantizing, "LIMITS", loose | {"cosine": 1 - lost})
    found = quantize(deployment, "int8", options=Options(songs=2, python=python))
    assert found["chosen"]["cosine_of_these_kept"] >= 1 - quantizing.MARGINS[0] * lost
    alone = found["chosen"]["cosine_alone"]
    assert 0 < len(found["kept"]) < len(alone) / 2
    assert found["products"] + len(found["kept"]) == all_of_them["products"]
    made = onnx.load(deployment / graph_of("int8")).graph
    exported = onnx.load(deployment / "graphs" / "bf16" / "step.onnx").graph
    weights = [{one.name: one for one in graph.initializer} for graph in (made, exported)]
    assert all(weights[0][name] == weights[1][name] for name in found["kept"])
    smoothed = {node.input[0] for node in made.node if node.op_type == "QuantizeLinear"}
    assert len([one for one in smoothed if one.endswith(".smooth")]) == found["products"]


@pytest.mark.slow
def test_what_is_missing_is_said(deployment: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(InputError, match="--python .* is no file"):
        quantize(deployment, "fp8", options=Options(python=tmp_path / "none"))
    with pytest.raises(MissingError, match="nvidia-modelopt"):
        quantize(deployment, "fp8")
    assert run(["export", "quantize", str(deployment), "--to", "fp8"]) == 3
    (deployment / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="config.json"):
        quantize(deployment, "fp8", options=Options(python=Path(sys.executable)))


def test_figures_outside_their_limits_are_named() -> None:
    good = {"seconds": 9.0, "cosine": 1.0, "distance": 0.0, "deviation": 0.0, "clipping": -0.1}
    assert faults([good]) == []
    bad = {**good, "cosine": float("nan"), "clipping": 0.5}
    assert [one.split(" is ")[0] for one in faults([bad])] == ["9 s: cosine", "9 s: clipping"]
    assert worst([good, {**good, "cosine": 0.5}])["cosine"] == 0.5


@pytest.mark.slow
@pytest.mark.skipif(not MODELOPT, reason="needs MUDIT_MODELOPT_PYTHON: run `make quantize`")
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_modelopt_itself(deployment: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random weights: a song of theirs is nothing, so that products alone are judged."""
    monkeypatch.setattr(quantizing, "LIMITS", dict.fromkeys(quantizing.LIMITS, 9.0))
    monkeypatch.setitem(quantizing.LIMITS, "cosine", 0.99)
    found = quantize(deployment, kind, options=Options(songs=2, python=Path(str(MODELOPT))))
    assert found["versions"]["modelopt"] and found["measured"]["worst"]["cosine"] < 1
    assert read_manifest(deployment)["quantized"].keys() == {kind}


@pytest.mark.slow
def test_calls_are_of_all_noise_levels(exported: Path) -> None:
    config = load_config(exported)
    session = calibration.TwinSession(exported, flavour="bf16")
    songs = calibration.songs(config, exported, count=2)
    calls = calibration.record_calls(config, session, songs, levels=2)
    # of three steps the first and the last, and of the second song another one between them
    assert [call["x"].shape[1] for call in calls] == [songs[0].frames] * 2 + [songs[1].frames] * 3
    assert all(call["target_mask"].all() for call in calls), "nothing is padded"
    others = calibration.songs(config, exported, count=2, held_out=True)
    assert not {song.seed for song in songs} & {song.seed for song in others}
    assert others[0].seconds == config.max_seconds
