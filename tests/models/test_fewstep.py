"""A model's few-step student: its own sampler, only beside its own weights, and songs that can be
made again from their sidecars.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from micro_model import MICRO, STUDENT, save_micro, save_student
from mudit_engine.cli.main import run
from mudit_engine.config import PathConfig, SamplerConfig, check_sampler, load_config
from mudit_engine.errors import InputError, ModelError
from mudit_engine.models.complete import share_parts
from mudit_engine.models.fewstep import student_of, write_student
from mudit_engine.models.folder import save_config
from mudit_engine.models.lora import LoraSpec
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest
from mudit_engine.training.recipe import load_recipe

REQUEST = SongRequest("slow piano", seconds=2, seed=3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = save_micro(tmp_path / "model")
    save_student(folder)
    return folder


def opened(folder: Path, **options: Any) -> SongPipeline:
    return SongPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32, **options)


def test_it_is_the_lora_at_its_own_steps(model: Path) -> None:
    fast, plain = opened(model, fast=True), opened(model)
    [song], [usual] = fast.generate([REQUEST]), plain.generate([REQUEST])
    assert song.info["sampler"] == STUDENT.model_dump(mode="json")
    assert not any("few-step" in note for note in song.info["notes"])
    assert usual.info["fast"] is None and usual.info["sampler"]["steps"] == MICRO.sampler.steps
    plain.set_loras([LoraSpec(model / "fewstep")])
    by_hand = SongRequest("slow piano", seconds=2, seed=3, sampler=STUDENT.model_dump())
    assert (plain.generate([by_hand])[0].latents == song.latents).all()
    plain.set_loras([])
    assert abs(plain.generate([by_hand])[0].latents - song.latents).max() > 1e-2
    # a LoRA that is put on top and taken off again leaves the student
    fast.set_loras([LoraSpec(model / "fewstep", 0.5)])
    assert abs(fast.generate([REQUEST])[0].latents - song.latents).max() > 1e-3
    fast.set_loras([])
    assert (fast.generate([REQUEST])[0].latents == song.latents).all()


def test_what_is_asked_for_wins_and_is_noted(model: Path) -> None:
    fast = opened(model, fast=True)
    asked = SongRequest("slow piano", seconds=2, seed=3, sampler={"steps": 7, "guidance": 2.0})
    understood = fast.understand(asked)
    assert (understood.sampler.steps, understood.sampler.shift) == (7, 3.0)
    [note] = [note for note in understood.notes if "few-step" in note]
    assert "4 steps of ode-euler, guidance 1, shift 3: with steps 7, guidance 2.0" in note
    same = SongRequest("slow piano", seconds=2, seed=3, sampler={"steps": 4})
    assert not any("few-step" in note for note in fast.check(same))
    assert not any("few-step" in note for note in opened(model).check(asked))


def test_a_song_is_made_again_from_its_sidecar(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "song.wav"
    command = ["generate", "--model", str(model), "--description", "slow piano", "--seconds", "2"]
    command += ["--precision", "fp32", "--loudness", "off", "--latents", "--fast"]
    assert run([*command, "--out", str(out)]) == 0
    told = json.loads(out.with_suffix(".json").read_text())
    fields = {name: value for name, value in told["request"].items() if value is not None}
    again = opened(model, fast=told["fast"] is not None)
    assert again.student is not None and again.student.record == told["fast"]
    [song] = again.generate([SongRequest(**fields, sampler=told["sampler"])])
    kept = load_file(out.with_suffix(".safetensors"))
    assert any(torch.equal(torch.from_numpy(song.latents), value) for value in kept.values())


def test_a_dry_run_names_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--model", str(model), "--description", "piano", "--dry-run", "--json"]
    assert run([*command, "--fast"]) == 0
    said = capsys.readouterr()
    student = student_of(model)
    assert json.loads(said.out)["results"]["fast"] == student.record
    assert "few-step student" in said.err and "4 steps of ode-euler" in said.err
    assert run(command) == 0
    assert "fast" not in json.loads(capsys.readouterr().out)["results"]


def test_a_model_without_one_says_how_to_train_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_micro(tmp_path / "model")
    with pytest.raises(
        InputError, match="no few-step student .*mudit train tiny-dit-fewstep --set"
    ):
        opened(model, fast=True)
    ddpm = save_micro(tmp_path / "ddpm")
    path = PathConfig(kind="ddpm", prediction="v")
    sampler = SamplerConfig(name="ddim", steps=2)
    save_config(load_config(ddpm).model_copy(update={"path": path, "sampler": sampler}), ddpm)
    with pytest.raises(InputError, match=r"mudit train (\S+) ") as refused:
        opened(ddpm, fast=True)
    named = re.findall(r"mudit train (\S+) ", str(refused.value))[0]
    check_sampler(path, load_recipe(named).model_config_resolved().sampler)
    command = ["generate", "--model", str(model), "--description", "piano", "--fast"]
    assert run([*command, "--out", str(tmp_path / "a.wav")]) == 2
    assert "copy OUT/lora" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tensorrt"])
def test_exported_weights_are_not_changed(
    model: Path, runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="mudit export onnx .* --fast"):
        SongPipeline.from_pretrained(model, runtime=runtime, fast=True)
    command = ["generate", "--model", str(model), "--description", "piano", "--runtime", runtime]
    assert run([*command, "--fast", "--dry-run"]) == 2
    assert run(["serve", str(model), "--runtime", runtime, "--fast"]) == 2
    assert "--fast is for --runtime torch" in capsys.readouterr().err


def changed(path: Path) -> None:
    weights = {name: value * 1.01 for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def test_other_weights_are_refused_with_both_values(model: Path) -> None:
    held = json.loads((model / "fewstep/student.json").read_text())
    original = (model / "dit.safetensors").read_bytes()
    changed(model / "dit.safetensors")
    said = "dit.safetensors' is not the song transformer that this student was trained on: "
    with pytest.raises(ModelError, match=f"{said}.*{held['dit_sha256']}"):
        opened(model, fast=True)
    opened(model)
    (model / "dit.safetensors").write_bytes(original)
    opened(model, fast=True)
    changed(model / "fewstep/adapter_model.safetensors")
    with pytest.raises(ModelError, match=f"not the adapter of .*{held['adapter_sha256']}"):
        opened(model, fast=True)
    (model / "fewstep/adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="adapter_model.safetensors': copy it again"):
        opened(model, fast=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: {}, "cannot be read"),
        (lambda told: [], "cannot be read"),
        (lambda told: {**told, "schema": 2}, "schema 2, this version reads 1"),
        (lambda told: {**told, "sampler": {"stops": 4}}, "unknown field 'stops'"),
        (lambda told: {**told, "sampler": 4}, "schema"),
    ],
    ids=["empty", "list", "schema", "field", "number"],
)
def test_a_broken_file_is_named(model: Path, change: Any, said: str) -> None:
    path = model / "fewstep/student.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises((ModelError, InputError), match=said):
        student_of(model)
    path.unlink()
    with pytest.raises(ModelError, match="student.json' cannot be read"):
        student_of(model)


def test_a_sampler_of_another_path_is_refused(tmp_path: Path) -> None:
    folder = save_micro(tmp_path / "model")
    path = MICRO.path.model_copy(update={"kind": "ddpm", "prediction": "v"})
    sampler = MICRO.sampler.model_copy(update={"name": "ddim"})
    save_config(load_config(folder).model_copy(update={"path": path, "sampler": sampler}), folder)
    home = save_student(folder)
    with pytest.raises(ModelError, match="needs a linear or bezier path"):
        student_of(folder)
    ddim = SamplerConfig(name="ddim", steps=4, guidance=1.0)
    write_student(home, sampler=ddim, dit=folder / "dit.safetensors")
    assert opened(folder, fast=True).generate([REQUEST])[0].info["sampler"]["name"] == "ddim"


def test_saved_folders_are_whole(model: Path, tmp_path: Path) -> None:
    fast = opened(model, fast=True)
    [song] = fast.generate([REQUEST])
    merged = fast.save_pretrained(tmp_path / "merged")
    assert load_config(merged).sampler == STUDENT and not (merged / "fewstep").exists()
    [found] = opened(merged).generate([REQUEST])
    assert abs(found.latents - song.latents).max() < 1e-5
    copy = opened(model).save_pretrained(tmp_path / "copy")
    assert load_config(copy).sampler == MICRO.sampler
    assert (opened(copy, fast=True).generate([REQUEST])[0].latents == song.latents).all()
    shutil.copytree(model, tmp_path / "beside")
    shared = share_parts(tmp_path / "beside", "model")
    assert (opened(shared, fast=True).generate([REQUEST])[0].latents == song.latents).all()


def test_exports_take_the_merged_weights(model: Path, tmp_path: Path) -> None:
    from mudit_engine.cli._export_onnx import _merged
    from mudit_engine.export.onnx_export import _copy_model

    [song] = opened(model, fast=True).generate([REQUEST])
    folder = Path(_merged(str(model), tmp_path / "work", (), fast=True))
    assert folder.name == "model" and load_config(folder).sampler == STUDENT
    assert abs(opened(folder).generate([REQUEST])[0].latents - song.latents).max() < 1e-5
    (tmp_path / "plain").mkdir()
    _copy_model(model, tmp_path / "plain")
    assert not (tmp_path / "plain" / "fewstep").exists()
    command = ["export", "onnx", "tiny", str(tmp_path / "out"), "--random-weights", "--fast"]
    assert run(command) == 2


@pytest.mark.parametrize("command", ["tiny", "melody", "whole", "references"])
def test_it_can_be_judged(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_pretrained(source: str, **options: Any) -> SongPipeline:
        asked.append((source, options))
        raise InputError("enough")

    monkeypatch.setattr(SongPipeline, "from_pretrained", from_pretrained)
    monkeypatch.setattr("mudit_engine.cli._eval_whole._long_songs", lambda *given: [])
    assert run(["eval", command, "--model", "mine", "--fast"]) == 2
    assert asked == [("mine", {"fast": True})]
