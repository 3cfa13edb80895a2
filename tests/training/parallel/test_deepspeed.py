"""DeepSpeed's strategy against `single`: the same losses, gradient norms, weights and averages,
whatever the stage and the ranks.

The ranks of a world run all their jobs in the same processes (run_ranks.py); the reference runs
here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("deepspeed")

from launch_ranks import run_jobs
from mudit_engine.config import load_config
from mudit_engine.models.folder import load_part
from mudit_engine.training.checkpoints.checkpoint import Checkpoints, find_fault
from mudit_engine.training.checkpoints.export_part import export_part
from mudit_engine.training.checkpoints.saved_state import SavedState
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.tasks.choose import make_task
from mudit_engine.training.trainer import Trainer
from run_ranks import poison, wake
from small_audio import CORPUS_ATTRIBUTES, chinmu_recipe, vae_recipe, write_chords, write_tones
from small_songs import small_recipe, write_songs

# a second thread only waits for the first, at these sizes
pytestmark = pytest.mark.usefixtures("one_thread")

WAKE = 0.05
# 5 packs an epoch in steps of 4: accumulation 2 on 2 ranks, and the last step of an epoch leaves
# ranks without songs
DIT: dict[str, Any] = {
    "data__packs_per_step": 4,
    "log__validate_every": 6,
    "optimizer__clip": 0.5,
    "ema__decay": 0.9,
    "log__songs": True,
}
DIT |= {"checkpoint__keep": 5}
PARALLEL: dict[str, Any] = {"strategy": "deepspeed", "parallel__timeout_seconds": 120}

QUICK: dict[str, dict[str, Any]] = {
    "zero-0": {"parallel__zero_stage": 0},
    "zero-1-selective": {"parallel__zero_stage": 1, "dit__checkpointing": "selective"},
    "zero-2-full": {"parallel__zero_stage": 2, "dit__checkpointing": "full"},
    "zero-3-full": {
        "parallel__zero_stage": 3,
        "parallel__persistence_threshold": 0,
        "dit__checkpointing": "full",
    },
    "ulysses-2": {"parallel__zero_stage": 1, "parallel__sequence_parallel": 2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    write_songs(folder / "songs")
    write_chords(folder / "chords")
    write_tones(folder / "tones", users=("professional", "amateur"))
    return folder


def train_here(
    recipe: Recipe, folder: Path, *, awake: float = WAKE, poisoned: int | None = None
) -> Path:
    task = make_task(recipe, Shards(recipe.data.folder))
    wake(task, awake)
    trainer = Trainer(recipe, folder, task=task, quiet=True)
    if poisoned is not None:
        poison(trainer, poisoned)
    trainer.run()
    return folder


def job(recipe: Recipe, folder: Path, *, awake: float = WAKE) -> dict[str, Any]:
    return {"recipe": recipe.resolved(), "out": str(folder), "wake": awake}


def dit(root: Path, **changes: Any) -> Recipe:
    return small_recipe(root / "songs", **{**DIT, **changes})


def audio_recipes(root: Path, **parallel: Any) -> dict[str, Recipe]:
    dotted = {name.replace("__", "."): value for name, value in parallel.items()}
    # 20 tones in packs of 7: the last pack of an epoch has fewer songs than it could, and ranks
    # share unevenly
    attributes = {**dict.fromkeys(CORPUS_ATTRIBUTES, 0.0), "height": 0.5}
    pairs = {"steps": 8, "data.pack_size": 7, "chinmu.attributes": attributes}
    pairs |= {"chinmu.registers": 0.5, "chinmu.encode_at_once": 2}
    chinmu = chinmu_recipe(root / "tones", **{**pairs, "ema.decay": 0.9, **dotted})
    gan = {
        "vae.adversarial": 0.1,
        "vae.adversarial_from": 2,
        "data.packs_per_step": 2,
        "data.pack_size": 2,
        "vae.statistics_songs": 4,
    }
    return {
        "chinmu": chinmu,
        "vae": vae_recipe(root / "chords", **{**gan, "ema.decay": 0.9, **dotted}),
    }


@pytest.fixture(scope="module")
def reference(root: Path) -> Callable[[str], Path]:
    """Runs of strategy single, undisturbed but for "poisoned", made once each."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            recipes: dict[str, Callable[[], Recipe]] = {
                "dit": lambda: dit(root),
                "dit-20": lambda: dit(root, steps=20),
                "dit-parallel": lambda: dit(root, model_overrides__dit__cross_attention="parallel"),
                "chinmu": lambda: audio_recipes(root)["chinmu"],
                "vae": lambda: audio_recipes(root)["vae"],
                "poisoned": lambda: dit(root),
            }
            # the codec starts from its closed form: there is nothing to wake
            made[name] = train_here(
                recipes[name](),
                root / f"single-{name}",
                awake=0.0 if name in ("vae", "chinmu") else WAKE,
                poisoned=5 if name == "poisoned" else None,
            )
        return made[name]

    return get


@pytest.fixture(scope="module")
def two_ranks(root: Path, reference: Callable[[str], Path]) -> Path:
    """Everything that the quick tests ask of a world of 2, in one pair of processes."""
    folder = root / "two"
    jobs = [job(dit(root, **PARALLEL, **changes), folder / name) for name, changes in QUICK.items()]
    for name, recipe in audio_recipes(root, **PARALLEL, parallel__zero_stage=2).items():
        jobs.append(job(recipe, folder / f"{name}-zero-2", awake=0.0))
    jobs.append(
        job(dit(root, **PARALLEL, parallel__zero_stage=2, precision="bf16"), folder / "bf16")
    )
    for stage in (0, 2, 3):
        jobs.append(
            job(dit(root, **PARALLEL, parallel__zero_stage=stage), folder / f"poisoned-{stage}")
            | {"poison": 5}
        )
    # goes on from where the single device was after step 4
    shutil.copytree(
        reference("dit") / "checkpoints" / "step-00000004",
        folder / "from-single" / "checkpoints" / "step-00000004",
    )
    jobs.append(job(dit(root, **PARALLEL, parallel__zero_stage=3), folder / "from-single"))
    run_jobs(2, jobs, folder / "launch")
    return folder


def assert_same(run: Path, single: Path, *, rel: float = 1e-6) -> None:
    """Losses, gradient norms and validation of two runs, and the songs of every step."""
    (rows, checks), (expected, expected_checks) = read_metrics(run), read_metrics(single)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name in [name for name in other if name.endswith(("loss", "grad_norm"))]:
            assert row[name] == pytest.approx(other[name], rel=rel), f"{name} of step {row['step']}"
        assert (row["songs"], row["weight"], row["lr"]) == (
            other["songs"],
            pytest.approx(other["weight"]),
            other["lr"],
        )
    assert len(checks) == len(expected_checks)
    for row, other in zip(checks, expected_checks, strict=True):
        # the average leans on the first weights, which cold moments have moved by rounding errors'
        # signs
        assert row["loss"] == pytest.approx(other["loss"], rel=max(rel, 1e-5))


def seen(run: Path) -> list[list[str]]:
    return [
        sorted(json.loads(line)["songs"]) for line in (run / "songs.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("name", QUICK)
def test_two_ranks_equal_one_device(
    two_ranks: Path, reference: Callable[[str], Path], name: str
) -> None:
    assert_same(two_ranks / name, reference("dit"))
    assert seen(two_ranks / name) == seen(reference("dit"))


def test_bf16_with_exact_master_weights(two_ranks: Path, reference: Callable[[str], Path]) -> None:
    assert_same(two_ranks / "bf16", reference("dit"), rel=5e-3)  # of fp32
    ours, single = (
        SavedState(run / "checkpoints" / "step-00000000", "model")
        for run in (two_ranks / "bf16", reference("dit"))
    )
    for name in single.names("weight"):
        first, exact = (
            one.read("weight", name, start=0, count=single.numel("weight", name))
            for one in (ours, single)
        )
        assert torch.equal(first, exact), "the first master weights are not rounded to bf16"


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_gradient_of_nan_is_left_out_and_counted(
    two_ranks: Path, reference: Callable[[str], Path], stage: int
) -> None:
    """One rank's gradient spoils the step of all; weights, moments and average stay as they were,
    as on one device.
    """
    run, single = two_ranks / f"poisoned-{stage}", reference("poisoned")
    assert json.loads((run / "summary.json").read_text())["skipped_steps"] == 1
    rows, expected = read_metrics(run)[0], read_metrics(single)[0]
    assert (
        [row["step"] for row in rows if row["grad_norm"] is None]
        == [5]
        == [row["step"] for row in expected if row["grad_norm"] is None]
    )
    for name in ("loss", "grad_norm"):
        ours, theirs = (
            [row[name] for row in found if row[name] is not None] for found in (rows, expected)
        )
        assert ours == pytest.approx(theirs, rel=1e-6), name


def test_contrastive_steps_equal_one_device(
    two_ranks: Path, reference: Callable[[str], Path]
) -> None:
    assert_same(two_ranks / "chinmu-zero-2", reference("chinmu"))


def assert_same_adversarial(run: Path, single: Path) -> None:
    """Losses of all steps, and gradient norms until the discriminators have joined (step 2) and
    stepped once.

    The norms' bar: weights that are moved by one fp32 rounding move those of strategy single by up
    to 4e-6 until then, and each step adds the rounding of an update. Later a unit at the kink of
    its leaky ReLU can move a norm by a percent: strategy single does so itself when its first
    weights are moved by 1e-9.
    """
    rows, expected = read_metrics(run)[0], read_metrics(single)[0]
    assert (
        len(rows) == len(expected)
        and "discriminator_loss" in rows[2]
        and "discriminator_loss" not in rows[1]
    )
    for row, other in zip(rows, expected, strict=True):
        for name in [name for name in other if name.endswith("loss")]:
            assert row[name] == pytest.approx(other[name], rel=2e-6), (
                f"{name} of step {row['step']}"
            )
        for name in [name for name in other if name.endswith("grad_norm")]:
            assert row[name] == pytest.approx(
                other[name], rel=2e-5 if row["step"] <= 2 else 5e-2
            ), f"{name} of step {row['step']}"


def test_adversarial_steps_equal_one_device(
    two_ranks: Path, reference: Callable[[str], Path]
) -> None:
    assert_same_adversarial(two_ranks / "vae-zero-2", reference("vae"))


def test_resumes_what_one_device_began(two_ranks: Path, reference: Callable[[str], Path]) -> None:
    rows = read_metrics(two_ranks / "from-single")[0]
    assert [row["step"] for row in rows] == list(range(4, 12)), "it began at the checkpoint"
    for row, other in zip(rows, read_metrics(reference("dit"))[0][4:], strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-6) and row[
            "grad_norm"
        ] == pytest.approx(other["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("name", ["zero-0", "zero-2-full", "zero-3-full"])
def test_one_device_resumes_what_ranks_began(
    root: Path, two_ranks: Path, reference: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    shutil.copytree(
        two_ranks / name / "checkpoints" / "step-00000008",
        tmp_path / "checkpoints" / "step-00000008",
    )
    Trainer(dit(root), tmp_path, quiet=True).run()
    for row, other in zip(
        read_metrics(tmp_path)[0], read_metrics(reference("dit"))[0][8:], strict=True
    ):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-6) and row[
            "grad_norm"
        ] == pytest.approx(other["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("name", ["zero-1-selective", "zero-3-full"])
def test_checkpoint_holds_every_element_once(
    two_ranks: Path, reference: Callable[[str], Path], name: str
) -> None:
    tag = Checkpoints(two_ranks / name / "checkpoints").named("12")
    assert find_fault(tag) is None
    assert json.loads((tag / "manifest.json").read_text())["files"].keys() >= {
        "model.rank-00000-of-00002.safetensors", "model.rank-00001-of-00002.safetensors",
        "model.buffers.safetensors"
    }  # fmt: skip
    ours, single = (
        SavedState(tag, "model"),
        SavedState(Checkpoints(reference("dit") / "checkpoints").named("12"), "model"),
    )
    for kind in ("weight", "exp_avg", "exp_avg_sq", "ema"):
        assert ours.names(kind) == single.names(kind)
        for parameter in single.names(kind):
            pieces = sorted((start, count) for start, count, _, _ in ours._pieces[kind, parameter])
            total = single.numel(kind, parameter)
            assert sum(count for _, count in pieces) == total and pieces[0][0] == 0, (
                "no gap, no overlap"
            )
            theirs = single.read(kind, parameter, start=0, count=total)
            torch.testing.assert_close(
                ours.read(kind, parameter, start=0, count=total), theirs, rtol=1e-3, atol=1e-5
            )


def test_export_takes_the_average_from_pieces(
    two_ranks: Path, reference: Callable[[str], Path], tmp_path: Path
) -> None:
    parts = []
    for number, run in enumerate((two_ranks / "zero-3-full", reference("dit"))):
        export_part(run, tmp_path / str(number))
        parts.append(
            load_part(
                "dit", load_config(tmp_path / str(number)), tmp_path / str(number)
            ).state_dict()
        )
    assert parts[0].keys() == parts[1].keys()
    for name, value in parts[0].items():
        torch.testing.assert_close(value, parts[1][name], rtol=1e-3, atol=1e-5)


def test_the_derived_configuration_is_saved(two_ranks: Path) -> None:
    saved = json.loads((two_ranks / "zero-3-full" / "deepspeed.json").read_text())
    assert (
        saved["zero_optimization"]["stage"] == 3
        and saved["gradient_clipping"] == 0.5
        and saved["gradient_accumulation_steps"] == 2
    )
    assert (two_ranks / "vae-zero-2" / "deepspeed.discriminator.json").is_file()


SLOW_FOUR: dict[str, tuple[str, dict[str, Any], float]] = {
    **{
        f"zero-{stage}": ("dit-20", {"parallel__zero_stage": stage, "steps": 20}, 1e-6)
        for stage in range(4)
    },
    "zero-3-partitioned": (
        "dit-20",
        {"parallel__zero_stage": 3, "parallel__persistence_threshold": 0, "steps": 20},
        1e-6,
    ),
    "offload": (
        "dit-20",
        {"parallel__zero_stage": 2, "parallel__offload": "optimizer", "steps": 20},
        1e-6,
    ),
    "ulysses-2x2": (
        "dit-20",
        {"parallel__zero_stage": 1, "parallel__sequence_parallel": 2, "steps": 20},
        1e-6,
    ),
    "ulysses-2x2-zero-3": (
        "dit-20",
        {"parallel__zero_stage": 3, "parallel__sequence_parallel": 2, "steps": 20},
        1e-6,
    ),
    "ulysses-2x2-joint": (
        "dit-parallel",
        {
            "parallel__zero_stage": 2,
            "parallel__sequence_parallel": 2,
            "model_overrides__dit__cross_attention": "parallel",
        },
        1e-6,
    ),
    **{
        f"bf16-zero-{stage}": (
            "dit-20",
            {"parallel__zero_stage": stage, "precision": "bf16", "steps": 20},
            5e-3,
        )
        for stage in (1, 2, 3)
    },
}


@pytest.fixture(scope="module")
def four_ranks(root: Path) -> Path:
    folder = root / "four"
    jobs = []
    for name, (_, changes, _) in SLOW_FOUR.items():
        checkpointing = {"dit__checkpointing": "full"} if "zero" in name else {}
        jobs.append(job(dit(root, **PARALLEL, **changes, **checkpointing), folder / name))
    for stage in (1, 3):
        for name, recipe in audio_recipes(root, **PARALLEL, parallel__zero_stage=stage).items():
            jobs.append(job(recipe, folder / f"{name}-zero-{stage}", awake=0.0))
    run_jobs(4, jobs, folder / "launch", timeout=3600)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_FOUR)
def test_four_ranks_equal_one_device(
    four_ranks: Path, reference: Callable[[str], Path], name: str
) -> None:
    single, _, rel = SLOW_FOUR[name]
    assert_same(four_ranks / name, reference(single), rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chinmu-zero-1", "chinmu-zero-3", "vae-zero-1", "vae-zero-3"])
def test_other_stages_on_four_ranks(
    four_ranks: Path, reference: Callable[[str], Path], name: str
) -> None:
    task = name.partition("-")[0]
    (assert_same if task == "chinmu" else assert_same_adversarial)(
        four_ranks / name, reference(task)
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2], ids=["no-launcher", "torchrun"])
def test_command(root: Path, tmp_path: Path, ranks: int) -> None:
    """`mudit train` without a launcher is a world of one; under torchrun one rank reports. Standard
    output holds the report alone.
    """
    recipe = dit(root, **PARALLEL, parallel__zero_stage=2)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.resolved()))
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        if ranks
        else []
    )
    command = [
        sys.executable,
        *launcher,
        "-m",
        "mudit_engine",
        "train",
        str(tmp_path / "recipe.json"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run"), "--json"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)["results"]
    assert report["steps"] == 12 and Path(report["exported"]).is_file()
    # a network that was not woken has no reference here: its loss falls, and its average can be
    # loaded
    rows = read_metrics(tmp_path / "run")[0]
    assert len(rows) == 12 and all(row["grad_norm"] for row in rows)
    assert load_part("dit", load_config(tmp_path / "run" / "model"), tmp_path / "run" / "model")
