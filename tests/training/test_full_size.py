"""Recipes of 380 M parameters take a real step on a CPU: nine gigabytes, a minute each."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mudit_engine.benchmarks.training_scaling import write_data
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
