"""What the builder made of a graph. TensorRT-RTX builds without a driver, so the gate is tested on
real engines: of one attention block small enough to take seconds.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from micro_deployment import micro_config
from mudit_engine.availability import available
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.export import tensorrt_engine
from mudit_engine.export.fusion import (
    fusion_reports,
    mask_faults,
    network_counts,
    parse_kernels,
    wanted,
)
from mudit_engine.export.graphs import GRAPHS
from mudit_engine.export.quantized_graph import Ranges, insert, products, smooth
from mudit_engine.runtime.manifest import file_sha256

WIDTH, HEADS, HEAD = 64, 2, 32
needs_rtx = pytest.mark.skipif(not available("tensorrt_rtx"), reason="needs tensorrt-rtx")
COUNTS = {"attentions": 1, "qkv": 1, "norms": 1}


def block(
    *, attention: str = "fused", mask: str = "mask", kind: int = TensorProto.BFLOAT16
) -> onnx.ModelProto:
    """x + Out(Attention(QKV(LayerNorm x))) over `tokens`, under the boolean mask of the keys.

    attention: "fused" is ONNX's own, "parts" the same as products and softmax in fp32, which no
    kernel of the builder fuses. mask: "mask", "inverted", "missing", or "other" (a mask of
    something else).
    """
    draw = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def weight(name: str, *shape: int) -> str:
        weights.append(
            helper.make_tensor(
                name,
                kind,
                shape,
                draw.normal(0, 0.1, int(np.prod(shape))).astype(np.float32).tolist(),
            )
        )
        return name

    def sizes(name: str, *values: int) -> str:
        weights.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    weights.append(helper.make_tensor("ones", kind, [WIDTH], [1.0] * WIDTH))
    weights.append(helper.make_tensor("shift", kind, [1, WIDTH], draw.normal(0, 1, WIDTH).tolist()))
    add("LayerNormalization", ["x", "ones"], "normed", epsilon=1e-6)
    add("Mul", ["normed", "shift"], "scaled")
    add("Add", ["scaled", "shift"], "modulated")
    add(
        "Gemm",
        ["modulated", weight("blocks.0.qkv.weight", 3 * WIDTH, WIDTH)],
        "projected",
        transB=1,
    )
    nodes.append(
        helper.make_node(
            "Split", ["projected"], ["q2", "k2", "v2"], name="node_split", axis=-1, num_outputs=3
        )
    )
    (
        sizes("heads", 1, -1, HEADS, HEAD),
        sizes("rows", -1, WIDTH),
        sizes("front", 0, 1, 2),
        sizes("end", 1),
        sizes("query_axis", 2),
    )
    for name in "qkv":
        add("Reshape", [f"{name}2", "heads"], f"{name}3")
        add("Transpose", [f"{name}3"], name, perm=[0, 2, 1, 3])
    masked = {"mask": "mask", "other": "other", "inverted": "inverted", "missing": ""}[mask]
    if mask == "inverted":
        add("Not", ["mask"], "inverted")
    add("Unsqueeze", [masked or "mask", "front"], "mask4")
    add("Shape", ["q"], "q_shape")
    add("Gather", ["q_shape", "query_axis"], "queries")
    add("Concat", ["end", "end", "queries", "end"], "mask_shape", axis=0)
    add("Expand", ["mask4", "mask_shape"], "mask_all")
    if attention == "fused":
        add("Attention", ["q", "k", "v"] + (["mask_all"] if masked else []), "attended")
    else:
        weights.append(helper.make_tensor("scale", TensorProto.FLOAT, [1], [HEAD**-0.5]))
        weights.append(helper.make_tensor("low", TensorProto.FLOAT, [1], [-1e9]))
        for name in "qkv":
            add("Cast", [name], f"{name}f", to=TensorProto.FLOAT)
        add("Transpose", ["kf"], "kt", perm=[0, 1, 3, 2])
        add("MatMul", ["qf", "kt"], "scores0")
        add("Mul", ["scores0", "scale"], "scores1")
        add("Where", ["mask_all", "scores1", "low"], "scores")
        add("Softmax", ["scores"], "shares", axis=-1)
        add("MatMul", ["shares", "vf"], "attended0")
        add("Cast", ["attended0"], "attended", to=kind)
    add("Transpose", ["attended"], "back", perm=[0, 2, 1, 3])
    add("Reshape", ["back", "rows"], "flat")
    add("Gemm", ["flat", weight("blocks.0.out.weight", WIDTH, WIDTH)], "out", transB=1)
    add("Add", ["x", "out"], "y")
    value = helper.make_tensor_value_info
    masks = ["mask", "other"] if mask == "other" else ["mask"]
    inputs = [
        value("x", kind, ["tokens", WIDTH]),
        *(value(name, TensorProto.BOOL, ["tokens"]) for name in masks),
    ]
    graph = helper.make_graph(
        nodes, "block", inputs, [value("y", kind, ["tokens", WIDTH])], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def build(
    model: onnx.ModelProto,
    folder: Path,
    *,
    lengths: tuple[tuple[int, int, int], ...] = ((8, 64, 128),),
    capability: str = "SM80",
    **options: Any,
) -> Any:
    """Builds one engine in this process; its row and log."""
    import tensorrt_rtx

    onnx.save(model, folder / "block.onnx")
    names = {value.name: (WIDTH,) if value.name == "x" else () for value in model.graph.input}
    shapes = [
        {name: [[n, *rest] for n in three] for name, rest in names.items()} for three in lengths
    ]
    entry = {
        "name": "block",
        "onnx": "block.onnx",
        "engine": "block.engine",
        "profiles": shapes,
        **options,
    }
    row = tensorrt_engine.build(
        tensorrt_rtx, {"capability": capability, "timing_cache": None}, entry, folder
    )
    return row, gzip.open(folder / "block.log.gz", "rt").read()


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, Any, str, Path]:
    folder = tmp_path_factory.mktemp("fused")
    model = block()
    return model, *build(model, folder, lengths=((8, 64, 128), (256, 256, 256))), folder


@needs_rtx
def test_a_fused_block_passes_in_every_profile(fused: Any) -> None:
    model, row, log, folder = fused
    reports = fusion_reports(log, model, "lyric_kv", counts=COUNTS)
    assert [report.profile for report in reports] == [0, 1]
    for report in reports:
        assert report.faults == []
        assert (report.attentions, report.qkv, report.matrices, report.norms) == (1, 1, 2, 1)
    assert mask_faults(model, "lyric_kv") == []
    assert row["bytes"] == (folder / "block.engine").stat().st_size > 0
    assert (
        row["profiles"] == 2
        and len(row["memory"]["Total Activation Memory"]) == 2
        and row["build_seconds"] > 0
    )


def in_8_bits(kind: str) -> onnx.ModelProto:
    """The block with both its products in 8 bits, as `mudit export quantize` leaves them."""
    model = block()
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Gemm":  # the exporter writes MatMul, its weight behind a Transpose
            turned = f"{node.input[1]}.turned"
            nodes.append(
                helper.make_node("Transpose", [node.input[1]], [turned], turned, perm=[1, 0])
            )
            node = helper.make_node("MatMul", [node.input[0], turned], node.output, node.name)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if kind == "int8":
        channels = np.random.default_rng(1).uniform(0.1, 100, WIDTH)
        peaks = {one.node.name: channels for one in products(model.graph)}
        assert smooth(model, peaks, share=0.8) == 2
    scales = {one.node.name: Ranges(np.float64(0.05), np.float64(0.004)) for one in
              products(model.graph)}  # fmt: skip
    assert insert(model, scales, kind=kind) == 2
    return model


@needs_rtx
@pytest.mark.parametrize(("kind", "capability"), [("fp8", "SM89"), ("int8", "SM80")])
def test_products_in_8_bits_are_built_and_counted(
    tmp_path: Path, kind: str, capability: str
) -> None:
    model = in_8_bits(kind)
    _, log = build(model, tmp_path, capability=capability)
    [report] = fusion_reports(log, model, "lyric_kv", counts=COUNTS)
    assert report.faults == []
    assert (report.attentions, report.qkv, report.matrices, report.norms) == (1, 1, 2, 1)
    gemms = [line for line in log.splitlines() if ", LayerType: gemm, " in line]
    number = {"fp8": "FP8", "int8": "Int8"}[kind]
    assert len(gemms) == 2 and all(f"Datatype: {number}" in line for line in gemms)


@needs_rtx
def test_an_attention_in_parts_fails_the_gate(tmp_path: Path) -> None:
    model = block(attention="parts")
    _, log = build(model, tmp_path)
    (report,) = fusion_reports(log, model, "lyric_kv", counts=COUNTS)
    assert "the graph has 0 attentions where the network has 1" in report.faults


@needs_rtx
def test_an_attention_that_no_kernel_fuses_fails_the_gate(tmp_path: Path) -> None:
    """fp32 has no fused kernel: the builder refuses, or takes it apart and the report says so."""
    model = block(kind=TensorProto.FLOAT)
    try:
        _, log = build(model, tmp_path)
    except tensorrt_engine.BuildError as error:
        assert "ttention" in str(error)
        return
    (report,) = fusion_reports(log, model, "lyric_kv", counts=COUNTS)
    assert any("0 fused kernels instead of one" in fault for fault in report.faults)


@needs_rtx
@pytest.mark.parametrize("mask", ["inverted", "other", "missing"])
def test_a_wrong_mask_fails_the_gate(tmp_path: Path, mask: str) -> None:
    model = block(mask=mask)
    assert mask_faults(model, "lyric_kv"), "by its values"
    if mask == "inverted":
        return  # its kernel depends on the mask: only the values tell
    _, log = build(model, tmp_path)
    (report,) = fusion_reports(log, model, "lyric_kv", counts=COUNTS)
    assert any("does not depend on mask" in fault for fault in report.faults), (
        "by what the kernel reads"
    )


@needs_rtx
def test_faults_of_a_log_are_named(fused: Any) -> None:
    model, _, log, _ = fused
    kernels = parse_kernels(log)
    assert len([kernel for kernel in kernels if "mha" in kernel.name]) == 2
    assert "lists no kernels" in fusion_reports("nothing", model, "lyric_kv")[0].faults[0]
    parted = log.replace("_gemm_mha_v2", "_softmax")
    assert "0 fused kernels" in fusion_reports(parted, model, "lyric_kv")[0].faults[0]
    unmodulated = log.replace("[ONNX Layer: node_modulated]", "")
    assert any(
        "node_modulated in another" in fault
        for fault in fusion_reports(unmodulated, model, "lyric_kv")[0].faults
    )
    first = next(
        line
        for line in log.splitlines()
        if "LayerType: " in line and "{ Name: blocks.0.out.weight" in line
    )
    twice = log + "\n" + first.replace("Name: ", "Name: again_", 1)
    assert any(
        "blocks.0.out.weight is read by 2 kernels" in fault
        for fault in fusion_reports(twice, model, "lyric_kv")[0].faults
    )


@needs_rtx
def test_options_reach_the_builder(tmp_path: Path) -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    spec = {"capability": "SM89", "timing_cache": None}
    entry = {
        "optimization_level": 2,
        "profiles": [{"x": [[1, 4], [2, 4], [3, 4]]}],
    }
    config = tensorrt_engine._config(trt, trt.Builder(logger), spec, entry, tmp_path)
    assert config.builder_optimization_level == 2 and config.num_optimization_profiles == 1
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM89
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


@needs_rtx
def test_the_script_of_the_package_builds_alone(tmp_path: Path) -> None:
    """What a GPU host runs: the copy, in a process without this project on its path."""
    onnx.save(block(), tmp_path / "block.onnx")
    shapes = {"x": [[8, WIDTH]] * 3, "mask": [[8]] * 3}
    entry = {"name": "block", "onnx": "block.onnx", "engine": "block.engine", "profiles": [shapes]}
    spec = {
        "package": "tensorrt_rtx",
        "install": "pip install tensorrt-rtx",
        "capability": None,
        "timing_cache": None,
        "engines": [entry],
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    script = tmp_path / "build_engines.py"
    script.write_bytes(Path(tensorrt_engine.__file__).read_bytes())
    command = [sys.executable, "-I", str(script), "spec.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["bytes"] == (tmp_path / "block.engine").stat().st_size
    assert row["onnx_sha256"] == file_sha256(tmp_path / "block.onnx")
    assert json.loads((tmp_path / "built.json").read_text()) == {"block": row}
    done = subprocess.run([*command, "--measure"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "measuring needs" in done.stderr, "no GPU here"
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "package": "no_such_builder"}))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3 and "pip install tensorrt-rtx" in done.stderr
    (tmp_path / "block.onnx").write_bytes(b"junk")
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "engine 'block'" in done.stderr


@pytest.mark.parametrize(("preset", "buckets"), [("musit-380m", 4), ("tiny", 1)])
def test_the_committed_report_is_of_whole_networks_fully_fused(preset: str, buckets: int) -> None:
    file = (
        "tensorrt_rtx_engines.json"
        if preset == "musit-380m"
        else f"tensorrt_rtx_engines_{preset}.json"
    )
    report = json.loads((Path(__file__).parents[2] / "benchmarks/results" / file).read_text())
    config = load_config(preset)
    rows = {(row["target"], row["name"]): row for row in report["results"]["engines"]}
    assert {target for target, _ in rows} == {"rtx-sm80", "rtx-portable"}
    for target in ("rtx-sm80", "rtx-portable"):
        for name in GRAPHS:
            row = rows[target, name]
            assert row["masks"] == [] and row["bytes"] > 0 and row["build_cpu_seconds"] > 0
            assert (
                len(row["memory"]["Total Activation Memory"])
                == row["profiles"]
                == len(row["fusion"])
            )
            for profile in row["fusion"]:
                assert profile["faults"] == []
                for figure, count in network_counts(config, name).items():
                    assert profile[figure] == count, f"{target} {name}: {figure}"
        assert rows[target, "step"]["profiles"] == buckets


def test_counts_are_those_of_the_network() -> None:
    config = ModelConfig.model_validate({"name": "musit-380m"})
    assert network_counts(config, "step") == {"attentions": 20, "qkv": 10, "norms": 30}
    assert network_counts(micro_config(cross_attention="parallel"), "step")["norms"] == 4
    assert network_counts(config, "vae_decode") == {}


def test_constants_of_a_transform_are_no_weights() -> None:
    """A phase search multiplies by them at every turn; a weight that two products read is one gemm
    too many.
    """
    make, names = helper.make_node, ("vae.stft.dft.back_real", "vae.decoder.linear.weight")
    nodes = [
        make("MatMul", ["x", name], [f"{name}{turn}"], name=f"{name}/{turn}")
        for name in names
        for turn in (0, 1)
    ]
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [1, 1], [1.0]) for name in names]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], weights))
    assert set(wanted(model, "vae_decode").matrices) == {"vae.decoder.linear.weight"}


def test_cross_attention_is_told_from_self_attention_by_its_keys() -> None:
    make = helper.make_node
    nodes = [
        make("Gemm", ["x", "w"], ["own"], name="g1"),
        make("Attention", ["own", "own", "own"], ["a"], name="self0"),
        make("Transpose", ["lyric_keys"], ["k"], name="t"),
        make("Attention", ["a", "k", "k"], ["b"], name="cross0"),
        make("Gemm", ["b", "w"], ["again"], name="g2"),
        make("Attention", ["again", "again", "again"], ["y"], name="self1"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], []))
    found = wanted(model, "step").attentions
    assert found == {
        "self0": ("target_mask", "other_mask"),
        "cross0": ("lyric_mask",),
        "self1": ("target_mask", "other_mask"),
    }
