"""Fewer steps: the student begins as its teacher, lands nearer to it with training, and its folder
carries the sampler that it learned.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mudit_engine.config import PathConfig, SamplerConfig, load_config
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.errors import ConfigError
from mudit_engine.models.folder import build_part, save_config, save_part
from mudit_engine.training.checkpoints.export_part import export_part
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe, load_recipe, recipe_names
from mudit_engine.training.recipe_stages import DistillStage
from mudit_engine.training.tasks.distill import DistillTask, few_steps, noise_levels, unconditional
from mudit_engine.training.tasks.task import Moment
from mudit_engine.training.trainer import Trainer
from small_songs import CHANNELS, SMALL_DIT, write_songs

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a network of random weights that hears its conditions, and songs."""
    root = tmp_path_factory.mktemp("base")
    config = recipe_of(root).model_config_resolved()
    torch.manual_seed(0)
    dit = build_part("dit", config)
    for parameter in dit.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    save_config(config, root / "model")
    save_part("dit", dit, root / "model")
    write_songs(root / "songs")
    return root


def recipe_of(root: Path, **changes: Any) -> Recipe:
    fields = {
        "init": str(root / "model"),
        "model_overrides.dit": SMALL_DIT,
        "model_overrides.vae.latent_channels": CHANNELS,
        "data.folder": str(root / "songs"),
        "data.pack_size": 200,
        "steps": 6,
        "schedule.warmup": 0,
        "checkpoint.every": 3,
        "log.tensorboard": False,
        "log.curve": False,
        "log.validate_every": 3,
        "log.validation_split": "validation",
        "lora.rank": 4,
        "distill.substeps": 3,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return load_recipe(
        "tiny-dit-fewstep",
        overrides=[f"{name}={json.dumps(value)}" for name, value in fields.items()],
    )


def task_of(root: Path, **changes: Any) -> DistillTask:
    recipe = recipe_of(root, **changes)
    return DistillTask(recipe, Shards(recipe.data.folder))


@pytest.mark.parametrize(
    ("path", "sampler"),
    [
        (PathConfig(kind="linear"), SamplerConfig(steps=4, shift=3.0)),
        (PathConfig(kind="bezier"), SamplerConfig(steps=3)),
        (PathConfig(kind="ddpm", prediction="v"), SamplerConfig(name="ddim", steps=4)),
    ],
    ids=["linear", "bezier", "ddpm"],
)
def test_the_teacher_passes_through_the_students_levels(
    path: PathConfig, sampler: SamplerConfig
) -> None:
    sampler = sampler.model_copy(update={"guidance": 1.0})
    student, teacher = few_steps(path, sampler, DistillStage(substeps=5, guidance=2.5))
    assert len(teacher.times) == 5 * len(student.times)
    assert torch.allclose(student.times, teacher.times[::5], atol=1e-6)
    assert set(teacher.rows[:, 6].tolist()) == {2.5} and set(student.rows[:, 6].tolist()) == {1.0}
    # what is kept of an earlier step, and noise, have no part in either
    assert not teacher.rows[:, [2, 3]].any() and not student.rows[:, [2, 3]].any()
    from mudit_engine.diffusion.paths import make_path

    levels = noise_levels(make_path(path), student)
    assert levels[0] == pytest.approx(1.0) and bool((levels.diff() < 0).all())


def test_the_teacher_is_guided_within_its_interval_alone() -> None:
    sampler = SamplerConfig(steps=4, shift=3.0, guidance=1.0)
    stage = DistillStage(substeps=3, guidance=2.5, guidance_interval=(0.0, 0.9))
    _, teacher = few_steps(PathConfig(kind="bezier"), sampler, stage)
    weights = teacher.rows[:, 6].tolist()
    assert weights == [1.0 if t > 0.9 + 1e-6 else 2.5 for t in teacher.times.tolist()]
    assert 1.0 in weights and 2.5 in weights
    with pytest.raises(ValueError, match="guidance_interval"):
        DistillStage(guidance_interval=(0.9, 0.1))


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ({"name": "dpmpp-2m", "guidance": 1.0}, "cannot be learned in fewer steps"),
        ({"name": "sde-euler", "guidance": 1.0}, "cannot be learned in fewer steps"),
        ({"name": "ode-euler", "guidance": 3.0}, "the student takes guidance 3 in"),
    ],
)
def test_samplers_that_one_output_does_not_decide_are_refused(
    base: Path, sampler: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        task_of(base, model_overrides__sampler={"steps": 4, **sampler}).modules  # noqa: B018


@pytest.mark.parametrize("name", [name for name in recipe_names() if "fewstep" in name])
def test_the_shipped_recipes_few_steps_are_their_teachers(name: str) -> None:
    recipe = load_recipe(name)
    config = recipe.model_config_resolved()
    student, teacher = few_steps(config.path, config.sampler, recipe.distill)
    assert len(student.times) == 4 and len(teacher.times) == 4 * recipe.distill.substeps


def test_an_untrained_student_of_one_substep_is_its_teacher(base: Path) -> None:
    task = task_of(base, distill__substeps=1, distill__guidance=1.0)
    batch = task.load([0, 1, 2], Moment(0, 0, 0))
    loss, logs = task.modules["model"](batch.inputs)
    assert float(loss) == pytest.approx(0.0, abs=1e-6 * batch.weight)
    assert float(logs["off"][0]) < 1e-6 * float(logs["off"][1])
    guided = task_of(base, distill__substeps=1, distill__guidance=2.0)
    loss, _ = guided.modules["model"](guided.load([0, 1, 2], Moment(0, 0, 0)).inputs)
    assert float(loss) > 1e-3


def test_the_target_is_where_the_samplers_own_steps_lead(base: Path) -> None:
    """A song by the tables' rows, by hand: the student's row with the target lands there."""
    task = task_of(base)
    module = task.modules["model"]
    inputs = task.load([1], Moment(0, 0, 0)).inputs
    clean, step = inputs.clean, int(inputs.times_B[0])
    config = task.config
    fine = sampler_table(
        config.path, config.sampler.model_copy(update={"steps": 12, "guidance": 3.0})
    )
    level = noise_levels(task.path, module.student)[step]
    x_TC = task.path.add_noise(
        clean.latents_TC, inputs.noise_TC, level.expand(len(inputs.noise_TC))
    )
    start = x_TC.clone()
    with torch.no_grad():
        for row in range(3 * step, 3 * step + 3):
            told = replace(clean, latents_TC=x_TC, times_B=fine.times[row : row + 1])
            blind = replace(unconditional(told, edits=None), latents_TC=x_TC)
            cond, uncond = task.dit(told), task.dit(blind)
            a, b, *_, w = fine.rows[row].tolist()
            x_TC = a * x_TC + b * (uncond + w * (cond - uncond))
        reached = module._taught(clean, start, inputs.times_B.long(), None)
    assert torch.allclose(reached, x_TC, atol=1e-5)


def test_every_step_is_drawn_in_training_and_judged_when_held_out(base: Path) -> None:
    task = task_of(base)
    assert task.modules
    drawn = {
        float(step) for n in range(12) for step in task.load([0, 1], Moment(0, 0, n)).inputs.times_B
    }
    assert drawn == {0.0, 1.0, 2.0, 3.0}
    held = task.load([0, 1], Moment(0, 0, 0, training=False))
    assert held.inputs.times_B.tolist() == [0.0, 1.0, 2.0, 3.0] * 2


def test_the_unconditional_branch_is_told_nothing(base: Path) -> None:
    task = task_of(base, dit__reference=1.0)
    assert task.modules
    clean = task.load([0, 1, 2], Moment(0, 0, 0)).inputs.clean
    blind = unconditional(clean, edits=None)
    assert sum(clean.fragments) and sum(clean.lyrics)
    assert not sum(blind.fragments) + sum(blind.lyrics) + sum(blind.reference_frames)
    assert not blind.user_B.any() and torch.equal(blind.seconds_B, clean.seconds_B)
    lyrics, words = (
        replace(clean, lyric_ids=(clean.lyric_ids + 1) % 40 + 2),
        replace(clean, descriptions=-clean.descriptions),
    )
    for other in (lyrics, words):
        assert torch.equal(task.dit(unconditional(other, edits=None)), task.dit(blind))


def test_training_lands_nearer_and_the_folder_is_sampled_in_four_steps(
    base: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(base, steps=40, optimizer__lr=3e-3, log__validate_every=20)
    Trainer(recipe, tmp_path / "run").run()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    off = [row["off"] for row in rows if "off" in row and "grad_norm" in row]
    assert sum(off[-8:]) < 0.8 * sum(off[:8])
    export_part(tmp_path / "run", tmp_path / "model")
    sampler = load_config(tmp_path / "model").sampler
    assert (sampler.steps, sampler.guidance, sampler.name) == (4, 1.0, "ode-euler")
    assert (tmp_path / "model/lora").is_dir()


def test_a_plan_counts_the_teachers_passes(base: Path) -> None:
    from mudit_engine.training.planning.plan import Request, of_recipe

    recipe = recipe_of(base)
    cluster: Any = None
    plain = Request("tiny", recipe.model_config_resolved(), cluster)
    assert of_recipe(plain, recipe).taught == 6  # three steps, each with and without words
    assert of_recipe(plain, recipe_of(base, distill__guidance=1.0)).taught == 3
    assert of_recipe(plain, load_recipe("tiny-dit-finetune")).taught == 0
