"""Configuration: presets, refused fields with the near miss, impossible values, round trips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from mudit_engine.config import (
    PRESETS,
    DitConfig,
    ModelConfig,
    SamplerConfig,
    load_config,
    parse_config,
)
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.errors import ConfigError
from mudit_engine.models.dit import DiT
from mudit_engine.training.recipe import load_recipe


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load_and_round_trip(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)
    assert config.name == preset
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert load_config(path) == load_config(tmp_path) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_sampler_runs_on_its_path(preset: str) -> None:
    config = load_config(preset)
    assert len(sampler_table(config.path, config.sampler).times) >= config.sampler.steps


def test_the_small_mudit_is_what_its_recipe_trains() -> None:
    recipe = load_recipe("tiny-dit-finetune-mudit")
    assert recipe.model_config_resolved() == load_config("tiny-mudit")
    tiny, mudit = load_config("tiny"), load_config("tiny-mudit")
    assert (tiny.vae, tiny.chinmu, tiny.dit) == (mudit.vae, mudit.chinmu, mudit.dit)


@pytest.mark.parametrize(
    ("preset", "millions", "share"),
    [
        ("mudit-380m", 380, 0.03),
        ("musit-380m", 380, 0.03),
        ("musit-380m-parallel", 380, 0.03),
        ("musit-1b", 1000, 0.1),
        ("musit-3b", 3000, 0.1),
        ("published", 428, 0.05),
    ],
)
def test_preset_sizes(preset: str, millions: int, share: float) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in DiT(load_config(preset).dit).parameters())
    assert abs(parameters / 1e6 - millions) <= share * millions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "x", "dit": {"widht": 12}}, r"'dit\.widht': did you mean 'width'"),
        ({"name": "x", "dlt": {}}, "'dlt': did you mean 'dit'"),
        ({"name": "x", "dit": {"width": 100, "heads": 3}}, "width=100 does not split into heads=3"),
        ({"name": "x", "dit": {"width": -4}}, r"dit\.width: .*greater than 0.*-4"),
        ({"name": "x", "path": {"kind": "ddpm"}}, "ddpm takes eps, v or x0"),
        (
            {"name": "x", "vae": {"latent_channels": 5}},
            r"dit\.latent_channels=96 differs from vae\.latent_channels=5",
        ),
        (
            {"name": "x", "path": {"kind": "ddpm", "prediction": "v"}},
            "'ode-euler' needs a linear or bezier path",
        ),
        ({"name": "x", "sampler": {"guidance_interval": [0.9, 0.1]}}, "0 <= low <= high <= 1"),
        ({}, "name: Field required"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_fields_are_explained(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(ModelConfig, fields, source="config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[1]", "must be a JSON object"), ("\xff", "cannot be read")],
)
def test_broken_files_are_explained(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path)


def test_missing_file_names_the_presets() -> None:
    with pytest.raises(ConfigError, match="musit-380m"):
        load_config("no-such")
    with pytest.raises(ConfigError, match="did you mean 'musit-380m'"):
        load_config("musit-38m")


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        DitConfig().width = 3  # type: ignore[misc]


def test_json_of_every_config_is_plain() -> None:
    json.dumps(load_config("tiny").model_dump(mode="json"))
    assert SamplerConfig.model_validate_json(SamplerConfig().model_dump_json()) == SamplerConfig()
