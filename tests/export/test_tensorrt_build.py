"""Engines: what is asked of the builder, what it made of the graph, and the package for a GPU host.

TensorRT-RTX builds without a driver, so the gate is tested on real engines: of one attention block
small enough to take seconds.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from micro_deployment import micro_config
from mudit_engine.availability import available, pinned
from mudit_engine.cli._export_tensorrt import GPUS, RTX, SMS
from mudit_engine.cli.main import run
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.errors import GateError, ModelError, MuditError
from mudit_engine.export import tensorrt_build, tensorrt_engine
from mudit_engine.export.fusion import (
    fusion_reports,
    mask_faults,
    network_counts,
    parse_kernels,
    wanted,
)
from mudit_engine.export.graphs import GRAPHS
from mudit_engine.export.manifest import add_to_manifest, new_manifest, write_manifest
from mudit_engine.export.tensorrt_build import (
    TARGETS,
    build_engines,
    build_script,
    make_plan,
)
from mudit_engine.models.folder import save_config
from mudit_engine.runtime.buckets import parse_buckets, profiles
from mudit_engine.runtime.manifest import differences, file_sha256, read_manifest
from mudit_engine.runtime.trt_targets import order, target_of_gpu

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
    **options: Any,
) -> Any:
    """Builds one engine for SM80 in this process; its row and log."""
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
        tensorrt_rtx, {"capability": "SM80", "timing_cache": None}, entry, folder
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


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    """A deployment folder as far as planning reads it."""
    folder = tmp_path / "deploy"
    save_config(micro_config(outline=True), folder)
    names = ("modulation", "lyric_kv", "conditions", "step", "vae_decode", "chinmu_text")
    graph: dict[str, Any] = {"inputs": {}, "outputs": {}, "nodes": 0}
    write_manifest(
        folder,
        new_manifest(
            folder,
            {"bf16": {"opset": 23, "precision": "bf16", "graphs": dict.fromkeys(names, graph)}},
        ),
    )
    return folder


def test_what_the_machine_lacks_is_exit_3_with_a_package(
    deployment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            [
                "export",
                "tensorrt",
                str(deployment),
                "--target",
                "a100",
                "--bucket",
                "5:64",
                "--bucket",
                "20",
            ]
        )
        == 3
    )
    error = capsys.readouterr().err
    assert "no NVIDIA driver" in error and "pip install" in error and "build.sh" in error
    out = deployment / "engines" / "a100"
    spec = json.loads((out / "spec.json").read_text())
    assert [entry["name"] for entry in spec["engines"]] == [
        "modulation",
        "lyric_kv",
        "conditions",
        "step",
        "vae_decode",
        "chinmu_text",
    ]
    assert spec["timing_cache"] == "timing.cache"
    assert (out / "build_engines.py").read_text() == Path(tensorrt_engine.__file__).read_text()
    assert read_manifest(deployment).get("engines") is None, "nothing was built"


def test_step_has_a_profile_a_bucket_with_fixed_rows(deployment: Path) -> None:
    config = micro_config(outline=True)
    buckets = parse_buckets(config, ["20", "5:64"])
    short, long = profiles(config, buckets, "step")
    assert short["x"] == ((1, 128, 8),) * 3 and long["x"][0][1] == 320
    assert short["other_rows"] == ((1, 4, 64), (2, 4, 64), (2, 132, 64)), (
        "descriptions, or with a whole reference"
    )
    assert short["lyric_keys"][2] == (2, 2, 72, 2, 32) and short["song"] == ((1,), (2,), (2,))
    assert len(profiles(config, buckets, "conditions")) == 2, "an outline has the bucket's frames"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--target", "a100", "--bucket", "x"], 2, "write SECONDS"),
        (["--target", "a100", "--bucket", "500"], 2, "songs of up to 20 s"),
        (["--target", "rtx-sm90"], 2, "rtx-sm90"),
        ([], 2, "--target here is the GPU"),
        (["--target", "here"], 3, "it has none"),
        (["--record"], 1, "run build.sh"),
        (["--target", "a100", "--flavour", "fp16"], 1, "--flavour fp16"),
        (["--target", "a100", "--package-only"], 0, "build package for a100"),
    ],
    ids=["bucket", "long", "target", "no-target", "here", "record", "flavour", "package"],
)
def test_answers_name_what_to_do(
    deployment: Path,
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["export", "tensorrt", str(deployment), *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_builder_that_fails_is_an_error_with_its_reason(deployment: Path) -> None:
    if not available("tensorrt_rtx"):
        pytest.skip("needs tensorrt-rtx")
    # there is no graph file
    with pytest.raises(MuditError, match=r"failed on 'step' for rtx-sm80"):
        build_engines(make_plan(deployment, TARGETS["rtx-sm80"], graphs=["step"]))


def test_an_engine_that_fails_the_gate_is_removed(
    deployment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(plan: Any, name: str, *, measured: bool) -> dict[str, Any]:
        (plan.out / f"{name}.engine").write_bytes(b"engine")
        return {"name": name}

    monkeypatch.setattr(tensorrt_build, "_run", fake)
    monkeypatch.setattr(tensorrt_build, "lacking", lambda target, options: None)
    bad = {"profiles": [{"faults": ["attention 3 is 0 fused kernels"]}], "masks": []}
    good: dict[str, Any] = {"profiles": [{"faults": []}], "masks": []}
    monkeypatch.setattr(
        tensorrt_build, "check_engine", lambda plan, entry: bad if entry["name"] == "step" else good
    )
    plan = make_plan(deployment, TARGETS["rtx-sm80"], graphs=["step", "lyric_kv"])
    with pytest.raises(GateError, match="step: attention 3 is 0 fused kernels"):
        build_engines(plan)
    assert not (plan.out / "step.engine").exists() and (plan.out / "lyric_kv.engine").exists()
    assert [row["name"] for row in json.loads((plan.out / "report.json").read_text())] == [
        "lyric_kv",
        "step",
    ]


def test_the_manifest_forgets_an_engine_whose_rebuild_failed(
    deployment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(plan: Any, name: str, *, measured: bool) -> dict[str, Any]:
        (plan.out / f"{name}.engine").write_bytes(f"engine {builds}".encode())
        figures = {"bytes": 8, "profiles": 1, "memory": {}, "version": "1", "build_seconds": 1.0}
        return {"name": name, "engine": f"{name}.engine", **figures}

    builds, fused = 1, {"profiles": [], "masks": []}
    parted = {"profiles": [{"faults": ["attention 3 is 0 fused kernels"]}], "masks": []}
    monkeypatch.setattr(tensorrt_build, "_run", fake)
    monkeypatch.setattr(tensorrt_build, "lacking", lambda target, options: None)
    monkeypatch.setattr(tensorrt_build, "check_engine", lambda plan, entry: fused)
    command = [
        "export",
        "tensorrt",
        str(deployment),
        "--target",
        "rtx-sm80",
        "--graph",
        "step",
        "--graph",
        "lyric_kv",
        "--json",
    ]
    assert run(command) == 0
    assert set(read_manifest(deployment)["engines"]["rtx-sm80"]["engines"]) == {"step", "lyric_kv"}
    builds = 2
    monkeypatch.setattr(
        tensorrt_build,
        "check_engine",
        lambda plan, entry: parted if entry["name"] == "step" else fused,
    )
    assert run(command) == 4
    manifest = read_manifest(deployment)
    assert set(manifest["engines"]["rtx-sm80"]["engines"]) == {"lyric_kv"}, "step was removed"
    assert differences(deployment, manifest) == [], "and lyric_kv is the new one"
    assert run([*command[:-1], "--package-only"]) == 0
    assert differences(deployment, read_manifest(deployment)) == []
    monkeypatch.setattr(tensorrt_build, "check_engine", lambda plan, entry: parted)
    assert run(command) == 4
    assert read_manifest(deployment)["engines"] == {}


def built(home: Path, *names: str) -> None:
    """What build_engines.py leaves, for these engines."""
    rows = {}
    for name in names:
        engine = home / f"{name}.engine"
        engine.write_bytes(f"engine {name}".encode())
        onnx_file = (home / "../../graphs/bf16" / f"{name}.onnx").resolve()
        figures = {"bytes": 8, "profiles": 1, "memory": {}, "version": "11", "build_seconds": 1.0}
        hashes = {"onnx_sha256": file_sha256(onnx_file), "engine_sha256": file_sha256(engine)}
        rows[name] = {"name": name, "engine": engine.name, **figures, **hashes}
    (home / "built.json").write_text(json.dumps(rows))


def test_engines_of_the_script_are_gated_and_recorded(
    deployment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = deployment / "graphs" / "bf16"
    graphs.mkdir(parents=True)
    for name in ("step", "lyric_kv"):
        (graphs / f"{name}.onnx").write_bytes(name.encode())
    add_to_manifest(deployment, under="graphs")
    command = ["export", "tensorrt", str(deployment)]
    assert run([*command, "--target", "h200", "--package-only"]) == 0
    home = deployment / "engines" / "h200"
    script = (home / "build.sh").read_text()
    assert "mudit export tensorrt ../.. --record --target h200" in script
    built(home, "step", "lyric_kv")
    assert differences(deployment, read_manifest(deployment)), "an engine of no manifest is refused"
    good: dict[str, Any] = {"profiles": [], "masks": []}
    bad = {"profiles": [{"faults": ["attention 3 is 0 fused kernels"]}], "masks": []}
    monkeypatch.setattr(tensorrt_build, "check_engine", lambda plan, entry: good)
    assert run([*command, "--record", "--json"]) == 0
    manifest = read_manifest(deployment)
    assert set(manifest["engines"]["h200"]["engines"]) == {"step", "lyric_kv"}
    assert differences(deployment, manifest) == []
    # one that is not fused is removed, the other stays
    monkeypatch.setattr(
        tensorrt_build, "check_engine", lambda plan, entry: bad if entry["name"] == "step" else good
    )
    assert run([*command, "--record", "--target", "h200"]) == 4
    assert "step: attention 3" in capsys.readouterr().err
    manifest = read_manifest(deployment)
    assert set(manifest["engines"]["h200"]["engines"]) == {"lyric_kv"}
    assert differences(deployment, manifest) == [] and not (home / "step.engine").exists()
    # engines of other graphs, a changed engine, a changed package
    built(home, "step", "lyric_kv")
    (home / "step.engine").write_bytes(b"another")
    assert run([*command, "--record"]) == 1
    assert "engine 'step' of target 'h200' was built from another graph" in capsys.readouterr().err
    (home / "spec.json").write_text((home / "spec.json").read_text() + " ")
    assert run([*command, "--record"]) == 1
    assert "engines/h200/spec.json has" in capsys.readouterr().err


def test_targets_are_found_by_name_and_capability() -> None:
    assert target_of_gpu("NVIDIA H200", "9.0") == "h200"
    assert target_of_gpu("NVIDIA A100-SXM4-80GB", "8.0") == "a100"
    assert target_of_gpu("NVIDIA GeForce RTX 4090", "8.9") == "sm_89"
    assert target_of_gpu("NVIDIA T4", "7.0") is None
    assert order("9.0", "NVIDIA H200") == ["h200", "sm_90", "h100", "rtx-portable"]
    assert order("8.9", "NVIDIA L40S")[:3] == ["l40s", "sm_89", "rtx-sm89"]
    assert order("8.0", "NVIDIA A30") == ["sm_80", "a100", "rtx-sm80", "rtx-portable"]
    assert TARGETS["rtx-sm121"].compiles_for == "SM121" and TARGETS["b200"].compiles_for is None
    assert set(TARGETS) == {*GPUS, *SMS, *RTX}, "what --target offers"


def test_quantising_is_left_to_the_gpu_host(
    deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.zeros(3, np.float32))
    arguments = [
        "export",
        "tensorrt",
        str(deployment),
        "--target",
        "a100",
        "--quantize",
        "int8",
        "--calibration",
        str(inputs),
    ]
    assert run(arguments) == 3
    assert (
        available("modelopt") or "needs ModelOpt, which is not installed" in capsys.readouterr().err
    )
    out = deployment / "engines" / "a100"
    entries = {
        entry["name"]: entry for entry in json.loads((out / "spec.json").read_text())["engines"]
    }
    assert {name for name, entry in entries.items() if entry["quantize"]} == {"step"}
    assert (out / entries["step"]["calibration"]).read_bytes() == inputs.read_bytes()
    script = (out / "build.sh").read_text()
    assert (
        script.index("--quantize-only") < script.index("build_engines.py spec.json\n")
        and "nvidia-modelopt" in script
    )
    if not available("modelopt"):
        done = subprocess.run(
            [sys.executable, "build_engines.py", "spec.json", "--quantize-only"],
            cwd=out,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 3 and "pip install nvidia-modelopt" in done.stderr
    assert run([*arguments[:5], "--calibration", str(inputs)]) == 2
    assert run([*arguments[:7], "--calibration", str(tmp_path / "none.npz")]) == 2


def test_attention_is_left_out_of_quantising(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    module = types.ModuleType("modelopt.onnx.quantization")
    module.quantize = lambda **options: asked.update(options)  # type: ignore[attr-defined]
    for name in ("modelopt", "modelopt.onnx"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", module)
    np.savez(tmp_path / "calibration.npz", x=np.arange(3))
    entry = {
        "name": "step",
        "onnx": "step.onnx",
        "quantize": "fp8",
        "calibration": "calibration.npz",
    }
    assert tensorrt_engine.quantize(entry, tmp_path) == tmp_path / "step.fp8.onnx"
    assert (
        "Attention" in asked["op_types_to_exclude"]
        and "Attention" not in asked["op_types_to_quantize"]
    )
    assert asked["quantize_mode"] == "fp8" and asked["calibration_data"]["x"].tolist() == [0, 1, 2]


def test_quantising_leaves_the_deployments_graph_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ModelOpt rewrites what it is given; the graph's hash is in the manifest."""
    from types import ModuleType

    def rewrites(onnx_path: str, output_path: str, **options: Any) -> None:
        assert Path(onnx_path).with_name("step.onnx.data").read_bytes() == b"weights"
        Path(onnx_path).write_bytes(b"rewritten")
        Path(output_path).write_bytes(b"quantised")

    for name in ("modelopt", "modelopt.onnx", "modelopt.onnx.quantization"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["modelopt.onnx.quantization"].quantize = rewrites  # type: ignore[attr-defined]
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "step.onnx").write_bytes(b"graph")
    (graphs / "step.onnx.data").write_bytes(b"weights")
    folder = tmp_path / "engines"
    folder.mkdir()
    entry = {"name": "step", "onnx": "../graphs/step.onnx", "quantize": "int8"}
    assert tensorrt_engine.quantize(entry, folder).read_bytes() == b"quantised"
    assert (graphs / "step.onnx").read_bytes() == b"graph"
    assert [path.name for path in folder.iterdir()] == ["step.int8.onnx"]


def test_pins_are_those_of_setup_py(deployment: Path) -> None:
    plan = make_plan(deployment, TARGETS["a100"])
    assert plan.spec[
        "install"
    ] == f"pip install {pinned('tensorrt')}" and sys.prefix not in build_script(plan)
    assert f"# pip install {pinned('tensorrt')}\n" in build_script(plan)


def test_a_folder_without_graphs_says_how_to_export(tmp_path: Path) -> None:
    save_config(micro_config(), tmp_path)
    write_manifest(tmp_path, new_manifest(tmp_path, {"fp32": {"opset": 20, "graphs": {}}}))
    with pytest.raises(ModelError, match="--flavour bf16"):
        make_plan(tmp_path, TARGETS["a100"])
