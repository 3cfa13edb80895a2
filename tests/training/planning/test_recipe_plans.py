"""Every shipped recipe of a stage and size passes plan on the cluster it is meant for, as it says;
the state of the small stages is planned without their activations.
"""

from __future__ import annotations

import dataclasses
import json

import pytest

from mudit_engine.cli.main import run as mudit
from mudit_engine.config import load_config
from mudit_engine.errors import InputError
from mudit_engine.training.dataset.lengths import Lengths, read_lengths
from mudit_engine.training.planning import plan as planning
from mudit_engine.training.planning.clusters import make_cluster
from mudit_engine.training.planning.plan import Request, make_plan, of_recipe
from mudit_engine.training.planning.report import report
from mudit_engine.training.planning.stage_plan import plan_stage
from mudit_engine.training.planning.state_bytes import Sharding, parameters_of, state_bytes
from mudit_engine.training.recipe import load_recipe, recipe_names
from mudit_engine.training.recipe_stages import LoraConfig
from round_costs import cost_model

CLUSTER = make_cluster("a100-80g", nodes=8, gpus_per_node=8)
SIZED = [name for name in recipe_names() if any(size in name for size in ("380m", "1b", "3b"))]
DITS = [name for name in SIZED if load_recipe(name).task.startswith("dit")]


@pytest.fixture(scope="module")
def lengths() -> Lengths:
    mix = read_lengths("songs", load_config("musit-380m"))
    return dataclasses.replace(mix, frames=mix.frames[:2000], tokens=mix.tokens[:2000])


def test_all_stages_of_all_sizes_are_there() -> None:
    for size in ("380m", "1b", "3b"):
        tasks = {load_recipe(name).task for name in SIZED if f"musit-{size}" in name}
        assert tasks >= {"vae", "chinmu", "dit-pretrain", "dit-finetune"}


@pytest.mark.parametrize("name", DITS)
def test_a_recipe_is_planned_as_it_says(
    name: str, lengths: Lengths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With round figures of the costs: those of 380m's own are of test_step_cost.py."""
    monkeypatch.setattr(
        planning, "fit", lambda config, *, precision, checkpointing: cost_model(checkpointing)
    )
    recipe = load_recipe(name)
    config = recipe.model_config_resolved()
    plan = make_plan(of_recipe(Request(recipe.model, config, CLUSTER), recipe), lengths)
    (option,) = plan.options
    assert option.fits and option.checkpointing == recipe.dit.checkpointing
    assert (option.pack_size, option.packs_per_step) == (16384, 64) and option.micro_batches == 1
    low, high = option.seconds_range
    assert low < option.step_seconds < high
    assert option.gpu_hours == pytest.approx(recipe.steps * option.step_seconds * 64 / 3600)
    songs = recipe.steps * plan.frames_per_step / lengths.frames.mean()
    document = report(plan)
    assert document["paper"]["under_epochs"] == pytest.approx(songs / 1_500_000)
    assert document["paper"]["gpu_days"] == 2240


@pytest.mark.parametrize("name", [name for name in SIZED if name not in DITS])
def test_the_small_stages_state_fits(name: str) -> None:
    document = plan_stage(load_recipe(name), CLUSTER)
    assert document["fits"] and document["not_modelled"] == ["activations", "time"]
    for phase in document["phases"].values():
        # weights, gradients, and a 64th of two moments, the average and the master weights
        assert phase["memory"]["weights"] >= 2 * phase["parameters"]
        assert phase["deepspeed"]["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_passes_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mudit plan FILE` of each there is; of lyric models it names the way."""
    monkeypatch.setattr(
        planning, "fit", lambda config, *, precision, checkpointing: cost_model(checkpointing)
    )
    code = mudit(["plan", name, "--nodes", "1", "--gpus-per-node", "8", "--json"])
    out = json.loads(capsys.readouterr().out)
    if load_recipe(name).task == "lyrics":
        assert code == 2 and "--lyrics MODEL" in out["error"]["message"]
        return
    assert code == 0, out
    assert out["results"].get("fits", True)


def test_a_lora_is_planned_with_its_base() -> None:
    """Weights of both, and gradients, moments and average of the additions alone."""
    pytest.importorskip("peft")
    config = load_config("musit-380m").dit
    whole, lora = parameters_of(config), parameters_of(config, lora=LoraConfig(rank=16))
    assert lora.frozen == whole.count and lora.count < 0.03 * whole.count
    for stage, world in ((0, 1), (1, 8), (2, 8), (3, 8)):
        sharding = Sharding(stage, world, "fp32" if stage == 0 else "bf16")
        full, thin = (state_bytes(p, sharding) for p in (whole, lora))
        assert thin["moments"] < 0.03 * full["moments"]
        assert thin["gradients"] < 0.03 * full["gradients"]
        assert full["weights"] * 0.99 < thin["weights"] < full["weights"] * 1.05, stage


def test_a_lyric_model_is_planned_elsewhere() -> None:
    with pytest.raises(InputError, match="planned by --lyrics"):
        plan_stage(load_recipe("lyrics-small"), CLUSTER)
