"""A deployment folder in use: `mudit generate --runtime`, the export it keeps in the cache, and the
benchmark of CPU runtimes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from micro_deployment import micro_config
from mudit_engine import availability
from mudit_engine.benchmarks import cpu_runtimes
from mudit_engine.benchmarks.peers import PlainPhaseSearch
from mudit_engine.cli import _deployed
from mudit_engine.cli._export_verify import show
from mudit_engine.cli.main import run
from mudit_engine.config import load_config
from mudit_engine.errors import GateError, InputError, MissingError
from mudit_engine.export import onnx_export
from mudit_engine.models.folder import load_part, save_random_model
from mudit_engine.names import GRAPH_RUNTIMES
from mudit_engine.pipeline import SongPipeline
from mudit_engine.runtime import load, trt_denoiser
from mudit_engine.runtime import manifest as runtime_manifest
from mudit_engine.runtime.load import fast_dtype, usual_runtime

SONG = [
    "generate",
    "--description",
    "piano",
    "--seconds",
    "2",
    "--seed",
    "1",
    "--steps",
    "2",
    "--json",
]


@pytest.mark.parametrize(
    ("asked", "runs"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("auto", "torch")]
)
def test_generate_through_a_deployment_folder(
    deployed: Path, tmp_path: Path, asked: str, runs: str
) -> None:
    out = tmp_path / "song.wav"
    assert run([*SONG, "--model", str(deployed), "--runtime", asked, "--out", str(out)]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["runtime"] == runs


def test_an_edited_song_costs_a_manifest_no_other(
    deployed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"description": "piano"}, {"edit": "a.wav", "repaint": "1-2"}, {"description": "rock"}]
    manifest = tmp_path / "songs.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    given = [*SONG[3:], "--model", str(deployed), "--runtime", "onnxruntime", "--keep-going"]
    command = ["generate", "--manifest", str(manifest), "--out", str(tmp_path / "out"), *given]
    assert run([*command, "--dry-run"]) == 1
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results["understood"]) == 2
    [failure] = results["failures"]
    assert failure["where"].endswith("line 2")
    assert "edited songs run with --runtime torch" in failure["error"]


def test_what_runs_where_nobody_asked(
    deployed: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(name="NVIDIA A100-SXM4-80GB", compute_capability="8.0")
    other = SimpleNamespace(name="NVIDIA H100 80GB HBM3", compute_capability="9.0")
    whole = {
        "package": "tensorrt",
        "engines": {name: {} for name in trt_denoiser.engines_of(load_config(deployed))},
    }
    manifest = {**runtime_manifest.read_manifest(deployed), "engines": {"a100": whole}}
    part = {**manifest, "engines": {"a100": {**whole, "engines": {"step": {}}}}}
    for here, found, package, expected in (
        ([gpu], manifest, True, "tensorrt"),
        ([], manifest, True, "torch"),
        ([other], manifest, True, "torch"),
        ([gpu], part, True, "torch"),
        ([gpu], manifest, False, "torch"),
    ):
        for module in (load, trt_denoiser):
            monkeypatch.setattr(module, "machine", lambda here=here: SimpleNamespace(gpus=here))
        monkeypatch.setattr(load, "read_manifest", lambda folder, found=found: found)
        monkeypatch.setattr(load, "available", lambda name, package=package: package)
        assert usual_runtime(deployed) == expected
        assert usual_runtime(model) == "torch", "a model folder has no engines"
    with pytest.raises(InputError, match="leave them out"):
        SongPipeline.from_pretrained(deployed, runtime="onnxruntime", device="cpu")


def test_a_model_is_exported_once_for_a_runtime(
    deployed: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Path] = []

    def export(source: Path, out: Path, **options: Any) -> Path:
        calls.append(out)
        return Path(shutil.copytree(deployed, out))

    monkeypatch.setattr(onnx_export, "export_onnx", export)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        assert (
            run(
                [
                    *SONG,
                    "--model",
                    str(model),
                    "--runtime",
                    "onnxruntime",
                    "--out",
                    str(tmp_path / "song.wav"),
                ]
            )
            == 0
        )
    assert len(calls) == 1 and tmp_path / "cache" in calls[0].parents
    assert "once" in capsys.readouterr().err
    other = shutil.copytree(model, tmp_path / model.name)
    save_random_model(micro_config(outline=True, blocks=1), other, seed=5)
    assert _deployed.deployed(str(other), runtime="onnxruntime") != calls[0], (
        "other weights are another export"
    )
    assert len(calls) == 2


def test_a_runtime_that_is_not_installed_says_how(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "available", lambda module: module != "openvino")
    with pytest.raises(MissingError, match="pip install openvino=="):
        _deployed.deployed(str(model), runtime="openvino")
    assert run([*SONG, "--model", str(model), "--runtime", "openvino"]) == 3


@pytest.mark.parametrize(
    ("flavour", "next_step"), [("fp32", "--runtime onnxruntime"), ("bf16", "mudit export tensorrt")]
)
def test_an_export_says_what_runs_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flavour: str,
    next_step: str,
) -> None:
    """Graphs for TensorRT alone run in no CPU runtime."""
    manifest = {"flavours": {flavour: {"opset": 23, "graphs": {}}}, "files": {}}
    monkeypatch.setattr(runtime_manifest, "read_manifest", lambda folder: manifest)
    show(Path("deploy"), [], as_json=False)
    printed = capsys.readouterr().err
    assert next_step in printed and "deploy" in printed and printed.count("mudit ") == 1


def test_runtimes_are_timed_after_a_check(deployed: Path) -> None:
    rows = cpu_runtimes.run(deployed, lengths=(2.0,), rounds=2)
    own = ("torch", "torch-bf16", *GRAPH_RUNTIMES)
    expected = [
        (work, name)
        for work in ("step", "decode", "song")
        for name in (*own, *(["torch.stft"] if work == "decode" else []))
    ]
    assert [(row.work, row.runtime) for row in rows] == expected
    assert all(row.seconds_p50 > 0 and row.cpu_seconds_p50 > 0 and row.rounds == 2 for row in rows)
    assert all(
        row.ratio_to_torch == row.cpu_ratio_to_torch == 1 and row.difference == 0
        for row in rows
        if row.runtime == "torch"
    )
    limits = {"torch": 0.0, "torch-bf16": 2e-1, "onnxruntime": 1e-4, "openvino": 1e-4}
    for row in rows:
        if row.runtime == cpu_runtimes.PEER:
            assert row.difference is None
        else:
            assert row.difference is not None and row.difference <= limits[row.runtime]
            assert (row.difference > 0) == (row.runtime != "torch"), (
                "something else than PyTorch in fp32 ran"
            )


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_precision_of_the_networks(
    model: Path, tmp_path: Path, precision: str, expected: str
) -> None:
    out = tmp_path / "song.wav"
    assert run([*SONG, "--model", str(model), "--precision", precision, "--out", str(out)]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["precision"] == expected
    pipeline = SongPipeline.from_pretrained(model, device="cpu", dtype=getattr(torch, expected))
    half = (*pipeline.vae.decoder.parameters(), *pipeline.runtime.dit.parameters())
    assert {str(p.dtype) for p in half} == {f"torch.{expected}"}
    assert {
        p.dtype for p in (*pipeline.vae.encoder.parameters(), *pipeline.chinmu.parameters())
    } == {torch.float32}


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for expected in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(load, "auto_dtype", lambda expected=expected: expected)
        assert fast_dtype(torch.device("cpu")) == expected
    assert fast_dtype(torch.device("cuda")) == torch.bfloat16


def test_precision_is_not_for_graphs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert (
        run([*SONG, "--model", str(model), "--runtime", "onnxruntime", "--precision", "bf16"]) == 2
    )
    assert not (tmp_path / "cache").exists(), "refused before anything is exported"
    assert "--precision bf16 is for --runtime torch" in " ".join(capsys.readouterr().err.split())


def test_a_peer_that_does_other_work_is_refused(
    deployed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainPhaseSearch, "inconsistency", lambda self, latents: (0.2, 0.3))
    with pytest.raises(GateError, match="equal work"):
        cpu_runtimes.run(deployed, runtimes=(), lengths=(2.0,), rounds=1, works=("decode",))


def test_no_speed_of_a_wrong_result(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_runtimes, "LATENTS_LIMIT", 0.0)
    with pytest.raises(GateError, match="no speed is reported"):
        cpu_runtimes.run(deployed, runtimes=("onnxruntime",), lengths=(2.0,), rounds=1)


def test_random_weights_are_a_model_that_makes_sound(tmp_path: Path) -> None:
    config = save_random_model(micro_config(), tmp_path)
    for part in ("dit", "vae", "chinmu"):
        module = load_part(part, config, tmp_path)  # type: ignore[arg-type]
        assert all(parameter.any() for parameter in module.parameters())
