"""Recipes: the shipped ones are whole, wrong ones are refused with the field and the nearest name,
and a resolved one reads back.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.training.parallel.deepspeed_config import deepspeed_config
from mudit_engine.training.parallel.strategy import learning_rate
from mudit_engine.training.recipe import load_recipe, parse_recipe, recipe_names

SHIPPED = {
    "tiny-vae": ("vae", None),
    "tiny-vae-decoder": ("vae", None),
    "tiny-chinmu": ("chinmu", None),
    "tiny-dit-pretrain": ("dit-pretrain", "bezier"),
    "tiny-dit-finetune": ("dit-finetune", "bezier"),
    "tiny-dit-pretrain-mudit": ("dit-pretrain", "ddpm"),
    "tiny-dit-finetune-mudit": ("dit-finetune", "ddpm"),
    "musit-380m-vae": ("vae", None),
    "musit-380m-chinmu": ("chinmu", None),
    "musit-380m-pretrain": ("dit-pretrain", "bezier"),
    "musit-380m-finetune": ("dit-finetune", "bezier"),
    **{
        f"musit-{size}-{stage}": (task, "bezier" if "dit" in task else None)
        for size in ("1b", "3b")
        for stage, task in (
            ("vae", "vae"),
            ("chinmu", "chinmu"),
            ("pretrain", "dit-pretrain"),
            ("finetune", "dit-finetune"),
        )
    },
    "mudit-380m-pretrain": ("dit-pretrain", "ddpm"),
    "mudit-380m-finetune": ("dit-finetune", "ddpm"),
}


def test_shipped_recipes_are_these() -> None:
    assert set(recipe_names()) >= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe(name: str) -> None:
    recipe = load_recipe(name)
    task, path = SHIPPED[name]
    assert recipe.name == name and recipe.task == task
    if path:
        config = recipe.model_config_resolved()
        assert config.path.kind == path
        assert len(sampler_table(config.path, config.sampler).times) >= config.sampler.steps
        assert (
            recipe.dit.use_descriptions == recipe.dit.structured_lyrics == (task == "dit-finetune")
        )
    if task == "dit-finetune":
        assert recipe.dit.drop_both > 0, "without unconditional sequences there is no guidance"
    assert parse_recipe(json.loads(json.dumps(recipe.resolved())), source="again") == recipe


@pytest.mark.parametrize("world", [1, 8, 64])
@pytest.mark.parametrize("name", [name for name in SHIPPED if "380m" in name])
def test_one_recipe_from_one_process_to_64(name: str, world: int) -> None:
    """The global batch, and with it the training, is the recipe's whatever the ranks; DeepSpeed's
    document follows from both.
    """
    recipe = load_recipe(name)
    config = deepspeed_config(recipe, parameters=380_000_000, world=world)
    passes = config["gradient_accumulation_steps"]
    assert (
        passes * world >= recipe.data.packs_per_step
        and (passes - 1) * world < recipe.data.packs_per_step
    )
    assert config["zero_optimization"]["stage"] == 1 and config.get("bf16", {}).get(
        "enabled", False
    ) == (recipe.precision == "bf16")
    assert (
        load_recipe(name, overrides=["strategy=single", "parallel={}", "precision=fp32"]).strategy
        == "single"
    )


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.lrr=1", "unknown field 'optimizer.lrr': did you mean 'lr'"),
        ("stesp=1", "unknown field 'stesp': did you mean 'steps'"),
        ("steps=-1", r"steps.*greater than 0 \(given: -1\)"),
        ("optimizer.lr=fast", "optimizer.lr.*given: 'fast'"),
        ("vae.kl=1", "section 'vae' has no effect on task 'dit-finetune'"),
        ("schedule.warmup=999999", "warmup=999999 is longer than steps"),
        ("dit.drop_both=0.95", "must be at most 1"),
        ("model_overrides.dit.widht=8", "unknown field 'dit.widht': did you mean 'width'"),
        ("model=tinny", "no configuration 'tinny'"),
    ],
)
def test_wrong_fields_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("tiny-dit-finetune", overrides=[override])


@pytest.mark.parametrize("override", ["steps", "=3", ""])
def test_override_without_key_or_value(override: str) -> None:
    with pytest.raises(InputError, match="key=value"):
        load_recipe("tiny-vae", overrides=[override])


def test_overrides() -> None:
    recipe = load_recipe(
        "tiny-vae",
        overrides=[
            "optimizer.betas=[0.8, 0.9]",
            "data.folder=my=data",
            "ema.enabled=false",
            "steps=1e4",
        ],
    )
    assert (
        recipe.optimizer.betas == (0.8, 0.9)
        and recipe.data.folder == "my=data"
        and not recipe.ema.enabled
        and recipe.steps == 10_000
    )
    assert recipe.optimizer.lr == load_recipe("tiny-vae").optimizer.lr


def test_base(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"base": "tiny-vae", "name": "mine", "optimizer": {"lr": 1e-5}}))
    recipe, base = load_recipe(mine), load_recipe("tiny-vae")
    assert (
        recipe.optimizer.lr == 1e-5
        and recipe.optimizer.betas == base.optimizer.betas
        and recipe.steps == base.steps
    )
    mine.write_text(json.dumps({"base": str(mine)}))
    with pytest.raises(ConfigError, match="based on itself"):
        load_recipe(mine)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read"),
        ("[1]", "must be a JSON object"),
        ('{"name": "x"}', "task: Field required"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny-chinmu'"):
        load_recipe("tiny-chinmoo")


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("constant", {0: 0.1, 9: 1.0, 10: 1.0, 60: 1.0, 99: 1.0}),
        (
            "cosine",
            {
                0: 0.1,
                9: 1.0,
                10: 1.0,
                55: 0.5 + 0.1 / 2,
                99: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 89 / 90)),
            },
        ),
        ("wsd", {0: 0.1, 9: 1.0, 79: 1.0, 80: 1.0, 90: 0.1 + 0.9 * 0.5, 99: 0.1 + 0.9 / 20}),
    ],
)
def test_schedules(kind: str, expected: dict[int, float]) -> None:
    overrides = [
        "steps=100",
        "schedule.warmup=10",
        f"schedule.kind={kind}",
        "schedule.floor=0.1",
        "schedule.decay=0.2",
        "optimizer.lr=2.0",
    ]
    recipe = load_recipe("tiny-vae", overrides=overrides)
    assert {step: learning_rate(step, recipe) / 2 for step in expected} == pytest.approx(expected)
