"""Recipes of the size of 380 M parameters take a real step on a CPU: up to nine gigabytes, a minute
each. ChinMu's is in tasks/test_chinmu_full.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mudit_engine.benchmarks.training_scaling import write_data
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import audio_fields
from mudit_engine.training.recipe import ParallelConfig, load_recipe, recipe_names
from mudit_engine.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.full]
NAMES = [n for n in recipe_names() if "380m" in n and load_recipe(n).task.startswith("dit-")]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_takes_a_step(name: str, tmp_path: Path) -> None:
    """Network, optimiser and average as the recipe has them, in fp32, on a short song."""
    recipe = load_recipe(name)
    write_data(tmp_path / "songs", recipe.model_config_resolved().dit.latent_channels, 2)
    recipe = recipe.model_copy(
        update={
            "strategy": "single",
            "parallel": ParallelConfig(),
            "device": "cpu",
            "precision": "fp32",
            "init": None,
            "steps": 1,
            "schedule": recipe.schedule.model_copy(update={"warmup": 0}),
            "log": recipe.log.model_copy(update={"tensorboard": False, "validate_every": 0}),
            "data": recipe.data.model_copy(
                update={"folder": str(tmp_path / "songs"), "pack_size": 256, "packs_per_step": 1}
            ),
        }
    )
    trainer = Trainer(recipe, tmp_path / "run", quiet=True)
    weights = dict(trainer.task.part_module().named_parameters())
    assert sum(p.numel() for p in weights.values()) > 350e6
    before = weights["final.weight"].detach().clone()
    (work,) = trainer._works()
    metrics = trainer._step(work)
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
    assert not torch.equal(before, weights["final.weight"]), "the last projection has moved"


def test_the_codec_and_its_discriminators_take_a_step(tmp_path: Path) -> None:
    """As the recipe has them, on two crops of a second and a half in stereo."""
    rate, rng = 44100, np.random.default_rng(0)
    with ShardWriter(tmp_path / "songs", audio_fields(channels=2)) as writer:
        for number in range(2):
            samples = (rng.normal(size=(2 * rate, 2)) * 3000).astype(np.int16)
            writer.add(str(number), {"audio": samples}, metadata={"sample_rate": rate})
    overrides = [
        f"data.folder={tmp_path / 'songs'}",
        "data.pack_size=2",
        "data.packs_per_step=1",
        "strategy=single",
        "parallel={}",
        "vae.crop_seconds=1.5",
        "vae.adversarial_from=0",
        "vae.warm_start=none",  # two songs are too few to fit it on
        "steps=1",
        "schedule.warmup=0",
        "log.validate_every=0",
        "log.tensorboard=false",
    ]
    trainer = Trainer(load_recipe("musit-380m-vae", overrides=overrides), tmp_path / "run")
    parts = trainer.task.modules
    assert parts.keys() == {"generator", "discriminator"}
    assert sum(p.numel() for p in trainer.task.part_module().parameters()) > 75e6
    before = {
        f"{part}.{name}": p.detach().clone()
        for part, module in parts.items()
        for name, p in module.named_parameters()
    }
    (work,) = trainer._works()
    metrics = trainer._step(work)
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["discriminator_loss"])
    moved = {
        part
        for part, module in parts.items()
        for name, p in module.named_parameters()
        if not torch.equal(p, before[f"{part}.{name}"])
    }
    assert moved == parts.keys()
