"""Micro-batches of few shapes: sizes are multiples, and losses stay those of the songs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from mudit_engine.errors import ConfigError
from mudit_engine.training.dataset.batching import Sampler
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe, load_recipe
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.tasks.buckets import Buckets, Sizes
from mudit_engine.training.tasks.choose import make_task
from mudit_engine.training.tasks.task import Moment
from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe, write_songs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("buckets") / "songs", 60)


def shape(inputs: Any) -> tuple[tuple[int, ...], ...]:
    """Sizes of every tensor that a step of the network is given."""
    own = {**inputs.__dict__, **inputs.clean.__dict__}
    outline = own.pop("outline")
    leaves = tree_leaves([*own.values(), *(outline.__dict__.values() if outline else ())])
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor))


def shapes(recipe: Recipe, steps: int) -> set[tuple[tuple[int, ...], ...]]:
    """Those of the micro-batches of the first steps."""
    task = make_task(recipe, Shards(recipe.data.folder))
    sampler = Sampler(
        task.costs(),
        seed=0,
        budget=recipe.data.pack_size,
        packs_per_step=1,
        numbers=task.shards.numbers("train"),
    )
    walk = sampler.walk(0, 0)
    found = set()
    for step, (epoch, place) in zip(range(steps), walk, strict=False):
        (pack,) = sampler.batch(epoch, place)
        found.add(shape(task.load(pack, Moment(0, epoch, step)).inputs))
    return found


@pytest.mark.parametrize("reference", [0.0, 0.5])
def test_few_shapes_occur(songs: Path, reference: float) -> None:
    plain = small_recipe(songs, dit__reference=reference)
    steps = 60
    as_they_come = shapes(plain, steps)
    bucketed = shapes(small_recipe(songs, dit__reference=reference, data__buckets=2), steps)
    assert len(as_they_come) > 50, "hardly two micro-batches are alike"
    assert len(bucketed) <= (6 if reference == 0 else 16)
    assert len(shapes(small_recipe(songs, data__buckets=1, dit__reference=0.0), steps)) <= 4


def test_losses_are_those_of_the_songs(songs: Path, tmp_path: Path) -> None:
    rows = []
    for name, buckets in (("plain", None), ("bucketed", 3)):
        recipe = small_recipe(songs, steps=6, data__buckets=buckets)
        Trainer(recipe, tmp_path / name, quiet=True).run()
        rows.append(read_metrics(tmp_path / name)[0])
    for plain, bucketed in zip(*rows, strict=True):
        for name in ("loss", "grad_norm", "mse", "weight"):
            assert bucketed[name] == pytest.approx(plain[name], rel=1e-5), name


def test_sizes_are_multiples_and_fillers_make_them() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(300, 2800, 500)
    buckets = Buckets(
        8, pack_size=16384, frames=frames, lyrics=frames // 4, max_fragments=8, references=True
    )
    for _ in range(200):
        count = int(rng.integers(1, 30))
        real = Sizes(
            count,
            int(rng.integers(count, 16385)),
            int(rng.integers(0, 8 * count + 1)),
            int(rng.integers(0, 9000)),
            int(rng.integers(0, 16384)),
        )
        whole, fillers = buckets.rounded(real), buckets.fillers(real)
        for name, unit in buckets.unit.__dict__.items():
            added = sum(getattr(filler, name) for filler in fillers)
            assert getattr(real, name) + added == getattr(whole, name)
            assert getattr(whole, name) % unit == 0
            assert getattr(fillers[0], name) >= 1, "a row of every kind, which ranks need"
        assert all(filler.frames >= 1 and filler.fragments <= 8 for filler in fillers)
    full = Sizes(int(16384 / frames.mean()), 16384, 0, 0, 0)
    assert buckets.rounded(full).frames < 16384 * 1.01, "a full pack is no larger than a bucket"


def test_another_task_has_none() -> None:
    with pytest.raises(ConfigError, match="data.buckets is for the dit tasks, not 'vae'"):
        load_recipe("tiny-vae", overrides=["data.buckets=4"])
