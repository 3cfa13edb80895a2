"""Plans and packages of engines: what is asked of the builder, what a machine lacks, and what the
manifest says of what was built.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from micro_deployment import micro_config
from mudit_engine.availability import available, pinned
from mudit_engine.cli._export_tensorrt import GPUS, RTX, SMS
from mudit_engine.cli.main import run
from mudit_engine.errors import GateError, ModelError, MuditError
from mudit_engine.export import tensorrt_build, tensorrt_engine
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


@pytest.mark.parametrize("what", ["changed", "added", "linked"])
def test_engines_are_built_of_what_was_exported(
    deployment: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine of a graph that changed since would hold it, wherever that graph is later."""
    match what:
        case "changed":
            file = deployment / "config.json"
            file.write_text(file.read_text() + " ")
        case "added":
            file = deployment / "graphs" / "bf16" / "other.onnx"
            file.parent.mkdir(parents=True)
            file.write_bytes(b"")
        case _:
            file = deployment / "step.onnx"
            file.symlink_to("/etc/hostname")
    for arguments in (["--target", "rtx-sm80"], ["--target", "a100", "--package-only"]):
        assert run(["export", "tensorrt", str(deployment), *arguments]) == 1
        told = capsys.readouterr().err
        assert file.name in told and "not as it was exported" in told
    assert not (deployment / "engines").exists()


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
    monkeypatch.setattr(tensorrt_build, "lacking", lambda target: None)
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
    monkeypatch.setattr(tensorrt_build, "lacking", lambda target: None)
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
