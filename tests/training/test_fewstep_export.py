"""The LoRA of an exported dit-distill run is a few-step student of the model it began from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mudit_engine.config import load_config
from mudit_engine.errors import ModelError
from mudit_engine.models.fewstep import student_of
from mudit_engine.models.folder import build_part, save_config, save_part
from mudit_engine.models.lora import read_lora
from mudit_engine.training.checkpoints.export_part import export_part
from mudit_engine.training.recipe import Recipe, load_recipe
from mudit_engine.training.trainer import Trainer
from small_songs import CHANNELS, SMALL_DIT, write_songs

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")


def recipe_of(root: Path, name: str) -> Recipe:
    fields = {
        "init": str(root / "base"),
        "model_overrides.dit": SMALL_DIT,
        "model_overrides.vae.latent_channels": CHANNELS,
        "data.folder": str(root / "songs"),
        "data.pack_size": 200,
        "steps": 2,
        "schedule.warmup": 0,
        "checkpoint.every": 2,
        "log.tensorboard": False,
        "log.curve": False,
        "log.validate_every": 0,
        "lora": {"rank": 4, "alpha": 4},
        **({"distill.substeps": 2} if name.endswith("fewstep") else {}),
    }
    return load_recipe(
        name, overrides=[f"{name}={json.dumps(value)}" for name, value in fields.items()]
    )


def test_the_exported_lora_is_a_student(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "tiny-dit-fewstep")
    config = recipe.model_config_resolved()
    torch.manual_seed(0)
    usual = config.sampler.model_copy(update={"steps": 25, "guidance": 3.0})
    save_config(config.model_copy(update={"sampler": usual}), tmp_path / "base")
    save_part("dit", build_part("dit", config), tmp_path / "base")
    write_songs(tmp_path / "songs")
    Trainer(recipe, tmp_path / "run").run()
    export_part(tmp_path / "run", tmp_path / "out", dtype="float16")
    lora = tmp_path / "out/lora"
    assert {w.dtype for w in load_file(lora / "adapter_model.safetensors").values()} == {
        torch.float16
    }
    shutil.copytree(lora, tmp_path / "base/fewstep")
    student = student_of(tmp_path / "base")
    assert student.sampler == load_config(tmp_path / "out").sampler == config.sampler
    assert (student.sampler.steps, student.sampler.guidance) == (4, 1.0)
    assert load_config(tmp_path / "base").sampler == usual and read_lora(student.lora.folder).pairs
    # the exported folder has it in its weights already
    shutil.copytree(lora, tmp_path / "out/fewstep")
    with pytest.raises(ModelError, match="not the song transformer that this student"):
        student_of(tmp_path / "out")
    plain = recipe_of(tmp_path, "tiny-dit-finetune")
    Trainer(plain, tmp_path / "plain").run()
    export_part(tmp_path / "plain", tmp_path / "tuned")
    assert (tmp_path / "tuned/lora").is_dir()
    assert not (tmp_path / "tuned/lora/student.json").exists()
