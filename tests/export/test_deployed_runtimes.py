"""A deployment folder in use: `mudit generate --runtime`, the export it keeps in the cache, and the benchmark of CPU runtimes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from micro_deployment import micro_config
from mudit_engine import availability
from mudit_engine.benchmarks import cpu_runtimes
from mudit_engine.cli import _deployed
from mudit_engine.cli._export_verify import show
from mudit_engine.cli.main import run
from mudit_engine.config import load_config
from mudit_engine.errors import GateError, InputError, MissingError
from mudit_engine.export import onnx_export
from mudit_engine.models.folder import load_part, save_random_model
from mudit_engine.pipeline import SongPipeline
from mudit_engine.runtime import manifest as runtime_manifest
from mudit_engine.runtime import sessions
from mudit_engine.runtime.sessions import FASTEST, usual_runtime

SONG = ["generate", "--description", "piano", "--seconds", "2", "--seed", "1", "--steps", "2", "--json"]


@pytest.mark.parametrize(("asked", "runs"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("auto", "torch")])
def test_generate_through_a_deployment_folder(deployed: Path, tmp_path: Path, asked: str, runs: str) -> None:
    out = tmp_path / "song.wav"
    assert run([*SONG, "--model", str(deployed), "--runtime", asked, "--out", str(out)]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["runtime"] == runs


def test_what_runs_where_nobody_asked(deployed: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usual_runtime(model, cuda=False) == "torch", "a model folder has no graphs"
    assert usual_runtime(deployed, cuda=False) == "torch", "no runtime of graphs searches for phases as fast"
    config = load_config(deployed)
    config = config.model_copy(update={"vae": config.vae.model_copy(update={"phase_refinements": 0})})
    monkeypatch.setattr(sessions, "load_config", lambda folder: config)
    assert usual_runtime(deployed, cuda=True) == "torch"
    assert usual_runtime(deployed, cuda=False) == FASTEST[0]
    monkeypatch.setattr(sessions, "available", lambda name: name == FASTEST[1])
    assert usual_runtime(deployed, cuda=False) == FASTEST[1]
    monkeypatch.setattr(sessions, "available", lambda name: False)
    assert usual_runtime(deployed, cuda=False) == "torch"
    with pytest.raises(InputError, match="leave them out"):
        SongPipeline.from_pretrained(deployed, runtime="onnxruntime", device="cpu")


def test_a_model_is_exported_once_for_a_runtime(
    deployed: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Path] = []

    def export(source: Path, out: Path, **options: Any) -> Path:
        calls.append(out)
        return Path(shutil.copytree(deployed, out))

    monkeypatch.setattr(onnx_export, "export_onnx", export)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        assert run([*SONG, "--model", str(model), "--runtime", "onnxruntime", "--out", str(tmp_path / "song.wav")]) == 0
    assert len(calls) == 1 and tmp_path / "cache" in calls[0].parents
    assert "once" in capsys.readouterr().err
    other = shutil.copytree(model, tmp_path / model.name)
    save_random_model(micro_config(outline=True, blocks=1), other, seed=5)
    assert _deployed.deployed(str(other), runtime="onnxruntime") != calls[0], "other weights are another export"
    assert len(calls) == 2


def test_a_runtime_that_is_not_installed_says_how(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "available", lambda module: module != "openvino")
    with pytest.raises(MissingError, match="pip install openvino=="):
        _deployed.deployed(str(model), runtime="openvino")
    assert run([*SONG, "--model", str(model), "--runtime", "openvino"]) == 3


@pytest.mark.parametrize(("flavour", "next_step"), [("fp32", "--runtime onnxruntime"), ("bf16", "mudit export tensorrt")])
def test_an_export_says_what_runs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flavour: str, next_step: str
) -> None:
    """Graphs for TensorRT alone run in no CPU runtime."""
    manifest = {"flavours": {flavour: {"opset": 23, "graphs": {}}}, "files": {}}
    monkeypatch.setattr(runtime_manifest, "read_manifest", lambda folder: manifest)
    show(Path("deploy"), [], as_json=False)
    printed = capsys.readouterr().err
    assert next_step in printed and "deploy" in printed and printed.count("mudit ") == 1


def test_runtimes_are_timed_after_a_check(deployed: Path) -> None:
    rows = cpu_runtimes.run(deployed, lengths=(2.0,), rounds=2)
    expected = [(work, name) for work in ("step", "decode", "song") for name in cpu_runtimes.RUNTIMES]
    assert [(row.work, row.runtime) for row in rows] == expected
    assert all(row.seconds_p50 > 0 and row.cpu_seconds_p50 > 0 and row.rounds == 2 for row in rows)
    assert all(row.ratio_to_torch == row.cpu_ratio_to_torch == 1 and row.difference == 0 for row in rows if row.runtime == "torch")
    assert all(0 < row.difference < 1e-4 for row in rows if row.runtime != "torch")


def test_no_speed_of_a_wrong_result(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_runtimes, "LATENTS_LIMIT", 0.0)
    with pytest.raises(GateError, match="no speed is reported"):
        cpu_runtimes.run(deployed, runtimes=("onnxruntime",), lengths=(2.0,), rounds=1)


def test_random_weights_are_a_model_that_makes_sound(tmp_path: Path) -> None:
    config = save_random_model(micro_config(), tmp_path)
    for part in ("dit", "vae", "chinmu"):
        module = load_part(part, config, tmp_path)  # type: ignore[arg-type]
        assert all(parameter.any() for parameter in module.parameters())
