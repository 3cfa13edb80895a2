"""Learning from pairs: the base is the network without its LoRA, the better song becomes likelier,
and a run that resumes equals one that was never interrupted.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mudit_engine.errors import ConfigError, InputError
from mudit_engine.models.folder import build_part, save_config, save_part
from mudit_engine.models.lora import without_lora
from mudit_engine.training.checkpoints.export_part import export_part
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe, load_recipe
from mudit_engine.training.tasks.align import NOISE_LEVELS, AlignTask
from mudit_engine.training.tasks.dit import noised
from mudit_engine.training.tasks.task import Moment
from mudit_engine.training.trainer import Trainer
from small_pairs import write_pairs
from small_songs import CHANNELS, SMALL_DIT

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a network of random weights that hears its conditions, and pairs."""
    root = tmp_path_factory.mktemp("base")
    recipe = pair_recipe(root, init=str(root), lora__rank=1)
    config = recipe.model_config_resolved()
    torch.manual_seed(0)
    dit = build_part("dit", config)
    for parameter in dit.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    save_config(config, root / "model")
    save_part("dit", dit, root / "model")
    write_pairs(root / "pairs")
    return root


def pair_recipe(root: Path, **changes: Any) -> Recipe:
    fields = {
        "name": "pairs",
        "task": "dit-align",
        "init": str(root / "model"),
        "model_overrides.dit": SMALL_DIT,
        "model_overrides.vae.latent_channels": CHANNELS,
        "data.folder": str(root / "pairs"),
        "data.pack_size": 200,
        "steps": 8,
        "schedule.warmup": 0,
        "schedule.kind": "constant",
        "optimizer.lr": 1e-3,
        "checkpoint.every": 4,
        "checkpoint.keep": 9,
        "log.tensorboard": False,
        "log.curve": False,
        "log.validation_split": "validation",
        "align.beta": 50.0,
        "dit.drop_both": 0.0,
        "dit.drop_lyrics": 0.0,
        "dit.drop_descriptions": 0.0,
        "lora.rank": 4,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return load_recipe(
        "tiny-dit-finetune",
        overrides=[f"{name}={json.dumps(value)}" for name, value in fields.items()],
    )


def align_task(base: Path, **changes: Any) -> AlignTask:
    recipe = pair_recipe(base, **changes)
    return AlignTask(recipe, Shards(recipe.data.folder))


def test_an_untrained_lora_is_the_base(base: Path) -> None:
    task = align_task(base)
    batch = task.load([0, 1, 2], Moment(0, 0, 0))
    loss, logs = task.modules["model"](batch.inputs)
    assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-6) and batch.weight == 3.0
    assert logs["told"] == (1.5, 3.0) and float(logs["drift"][0]) == 0.0
    # and with additions, without_lora is still the base
    won = batch.inputs.won.clean
    before = task.dit(won)
    for name, parameter in task.dit.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    changed = task.dit(won)
    with without_lora(task.dit):
        assert torch.equal(task.dit(won), before)
    assert torch.equal(task.dit(won), changed) and not torch.allclose(changed, before)


def test_both_songs_of_a_pair_meet_the_same_conditions(base: Path) -> None:
    task = align_task(base)
    inputs = task.load([3, 5], Moment(0, 0, 2)).inputs
    won, lost = inputs.won, inputs.lost
    assert torch.equal(won.noise_TC, lost.noise_TC) and torch.equal(won.times_B, lost.times_B)
    assert torch.equal(won.clean.descriptions, lost.clean.descriptions)
    rows = task.shards.read(3)["lost"]
    assert torch.equal(lost.clean.latents_TC[: len(rows)], torch.from_numpy(rows.copy()).float())
    held = task.load([3], Moment(0, 0, 0, training=False))
    assert held.weight == NOISE_LEVELS and len(set(held.inputs.won.times_B.tolist())) == 4


def test_a_step_makes_the_better_song_likelier(base: Path) -> None:
    task = align_task(base)
    module, inputs = task.modules["model"], task.load([0, 1, 2, 3], Moment(0, 0, 0)).inputs
    trained = [p for p in module.parameters() if p.requires_grad]
    _, before = module(inputs)
    optimizer = torch.optim.SGD(trained, lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss, after = module(inputs)
        loss.backward()
        optimizer.step()
    _, after = module(inputs)
    apart = [float(logs["mse_lost"][0] - logs["mse_won"][0]) for logs in (before, after)]
    assert apart[1] > apart[0] and float(after["margin"][0]) > 0
    assert all(p.grad is None for p in module.parameters() if not p.requires_grad)


def test_a_pair_counts_by_its_weight_and_its_anchor(base: Path, tmp_path: Path) -> None:
    heavy = write_pairs(tmp_path / "heavy", weights={0: 3.0, 1: 0.5})
    task = align_task(base, data__folder=str(heavy), align__anchor=25.0)
    batch = task.load([0, 1, 2], Moment(0, 0, 0))
    assert batch.weight == 4.5 == float(task.weights()[:3].sum())
    loss, logs = task.modules["model"](batch.inputs)
    assert loss.item() == pytest.approx(4.5 * math.log(2), rel=1e-6), "the base anchors itself"
    for name, parameter in task.dit.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    loss, logs = task.modules["model"](batch.inputs)
    anchored, alone = [], []
    for number, weight in enumerate((3.0, 0.5, 1.0)):
        one, logs = task.modules["model"](task.load([number], Moment(0, 0, 0)).inputs)
        worse = float(logs["drift"][0])
        alone.append(weight * float(logs["preference"][0]))
        anchored.append(weight * 25.0 * worse)
        assert one.item() == pytest.approx(alone[-1] + anchored[-1], rel=1e-4)
    assert loss.item() == pytest.approx(sum(alone) + sum(anchored), rel=1e-4)
    assert abs(sum(anchored)) > 0.01


def test_the_unconditional_branch_is_held_where_it_was(base: Path) -> None:
    """Two branches that move as one are heard once by guidance; the weight leaves the first."""
    moved = {}
    for blind in (0.0, 1e4):
        torch.manual_seed(0)
        task = align_task(base, align__blind=blind)
        module, inputs = task.modules["model"], task.load([0, 1, 2], Moment(0, 0, 0)).inputs
        optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-3)
        for _ in range(12):
            optimizer.zero_grad()
            loss, logs = module(inputs)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            moved[blind] = float(module._moved(noised(task.path, inputs.won)[0]).sum())
            pulled = float(logs["preference"][0]) / 3
        assert pulled < math.log(2), "the pairs are told all the same"
        if blind:
            whole = float(logs["preference"][0]) + blind * float(logs["moved"][0])
            assert loss.item() == pytest.approx(whole, rel=1e-4)
        else:
            assert float(logs["moved"][0]) == 0.0, "what is not asked for is not computed"
    assert moved[1e4] < 0.3 * moved[0.0]


def test_a_filler_on_ranks_counts_for_nothing(base: Path) -> None:
    task = align_task(base)
    alone = task.modules["model"](task.load([0, 1], Moment(0, 0, 0)).inputs)
    task.on_ranks = True
    batch = task.load([0, 1], Moment(0, 0, 0))
    assert len(batch.inputs.lost.clean.frames) == 3 and batch.weight == 2.0
    together = task.modules["model"](batch.inputs)
    assert together[0].item() == pytest.approx(alone[0].item(), rel=1e-6)
    assert together[1]["told"][1] == 2.0


def test_resumed_equals_uninterrupted_and_its_start_is_the_base(base: Path, tmp_path: Path) -> None:
    guard = {"log__validate_every": 4, "guard__limits": {"drift": 9.0}}
    recipe = pair_recipe(base, lora__dropout=0.1, **guard)
    whole = Trainer(recipe, tmp_path / "whole", quiet=True).run()
    trainer = Trainer(recipe, tmp_path / "cut", quiet=True)
    save = trainer._after_step

    def stop(log: Any) -> None:
        save(log)
        if trainer.progress.step == 5:
            raise KeyboardInterrupt

    trainer._after_step = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    resumed = Trainer(recipe, tmp_path / "cut", quiet=True).run()
    assert resumed["held_out"] == whole["held_out"]
    files = [
        load_file(tmp_path / name / "checkpoints/step-00000008/model.safetensors")
        for name in ("whole", "cut")
    ]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    # zero steps of training are the base, to the bit; eight are not
    original = load_file(base / "model/dit.safetensors")
    for tag, same in (("0", True), ("8", False)):
        export_part(tmp_path / "whole", tmp_path / tag, tag=tag)
        merged = load_file(tmp_path / tag / "dit.safetensors")
        assert all(torch.equal(original[name], merged[name]) for name in original) == same


def test_what_cannot_be_aligned_is_refused(base: Path, tmp_path: Path) -> None:
    uneven = write_pairs(tmp_path / "uneven", 2, validation=0, shorter=1)
    with pytest.raises(InputError, match="two songs of different lengths"):
        align_task(base, data__folder=str(uneven))
    with pytest.raises(ConfigError, match="lora, for example"):
        pair_recipe(base, lora=None)
    with pytest.raises(ConfigError, match="'align' has no effect on task 'dit-finetune'"):
        pair_recipe(base, task="dit-finetune")
