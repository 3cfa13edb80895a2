"""Strategy `single` equals ranks whatever the songs lack: batches without lyrics, descriptions and
references, and LoRAs, whose base no rank trains.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("deepspeed")
pytest.importorskip("peft")

from launch_ranks import run_jobs
from mudit_engine.training.checkpoints.export_part import export_part
from mudit_engine.training.checkpoints.saved_state import SavedState
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.tasks.choose import make_task
from mudit_engine.training.trainer import Trainer
from run_ranks import wake
from small_songs import small_recipe, write_songs

# a second thread only waits for the first, at these sizes
pytestmark = pytest.mark.usefixtures("one_thread")

# six epochs; the slow test takes thirty steps, for drift
STEPS, LONG = 12, 30
KINDS = {"none": 0, "rare": 2, "all": None}
PARALLEL: dict[str, Any] = {"strategy": "deepspeed", "parallel__timeout_seconds": 120}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditions")
    for name, conditions in KINDS.items():
        write_songs(folder / name, conditions=conditions, validation=0)
    base = small_recipe(folder / "all", steps=3, checkpoint__every=3)
    Trainer(base, folder / "base", quiet=True).run()
    export_part(folder / "base", folder / "model")
    return folder


def recipe(root: Path, kind: str, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {"steps": STEPS, "checkpoint__every": changes.get("steps", STEPS)}
    fields |= {"data__packs_per_step": 4, "optimizer__clip": 0.5}
    if kind == "lora":
        fields |= {"init": str(root / "model"), "lora": {"rank": 2, "alpha": 4}}
    return small_recipe(root / ("all" if kind == "lora" else kind), **{**fields, **changes})


def single(root: Path, kind: str, steps: int = STEPS) -> Path:
    folder = root / f"single-{kind}-{steps}"
    if not folder.exists():
        one = recipe(root, kind, steps=steps)
        task = make_task(one, Shards(one.data.folder))
        wake(task, 0.05)
        Trainer(one, folder, task=task, quiet=True).run()
    return folder


def run_world(
    root: Path, world: int, wanted: list[tuple[str, int]], folder: Path, *, steps: int = STEPS
) -> Path:
    jobs = []
    for kind, stage in wanted:
        one = recipe(root, kind, **PARALLEL, parallel__zero_stage=stage, steps=steps)
        out = str(folder / f"{kind}-{stage}")
        jobs.append({"recipe": one.resolved(), "out": out, "wake": 0.05})
    run_jobs(world, jobs, folder / "launch")
    return folder


def assert_same(root: Path, run: Path, kind: str, *, steps: int = STEPS) -> None:
    """Losses and gradient norms of every step within 1e-6, and the weights at the end."""
    alone = single(root, kind, steps)
    rows, expected = read_metrics(run)[0], read_metrics(alone)[0]
    assert len(rows) == len(expected) == steps
    for row, other in zip(rows, expected, strict=True):
        for name in ("loss", "grad_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-6), f"{name}, {row['step']}"
    tag = f"checkpoints/step-{steps:08d}"
    ours, theirs = (SavedState(at / tag, "model") for at in (run, alone))
    for name in ours.names("weight"):
        count = theirs.numel("weight", name)
        a, b = (one.read("weight", name, start=0, count=count) for one in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


# every stage, and a LoRA where gradients and where weights are spread
QUICK = [("none", 0), ("rare", 2), ("none", 3), ("lora", 1), ("lora", 3)]
ALL = [(kind, stage) for kind in KINDS for stage in range(4)]
LORA = [("lora", stage) for stage in (1, 2, 3)]


@pytest.fixture(scope="module")
def two_ranks(root: Path) -> Path:
    return run_world(root, 2, QUICK, root / "two")


@pytest.mark.parametrize("kind, stage", QUICK)
def test_two_ranks_equal_one_device(root: Path, two_ranks: Path, kind: str, stage: int) -> None:
    assert_same(root, two_ranks / f"{kind}-{stage}", kind)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_lora_of_ranks_is_exported_and_goes_on_alone(
    root: Path, two_ranks: Path, tmp_path: Path, stage: int
) -> None:
    run = two_ranks / f"lora-{stage}"
    export_part(run, tmp_path / "ours", weights="raw")
    export_part(single(root, "lora"), tmp_path / "theirs", weights="raw")
    for name in ("dit.safetensors", "lora/adapter_model.safetensors"):
        ours, theirs = (load_file(tmp_path / side / name) for side in ("ours", "theirs"))
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)
    shutil.copytree(run / "checkpoints", tmp_path / "on" / "checkpoints")
    summary = Trainer(recipe(root, "lora", steps=STEPS + 2), tmp_path / "on", quiet=True).run()
    assert summary["steps_run"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_every_stage_with_and_without_conditions(root: Path, tmp_path: Path, world: int) -> None:
    wanted = ALL + (LORA if world == 2 else [])
    folder = run_world(root, world, wanted, tmp_path, steps=LONG)
    for kind, stage in wanted:
        assert_same(root, folder / f"{kind}-{stage}", kind, steps=LONG)
