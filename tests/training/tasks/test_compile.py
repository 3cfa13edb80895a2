"""Blocks by torch.compile: a bounded number of compilations, and the losses of the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from mudit_engine import ops
from mudit_engine.errors import ConfigError
from mudit_engine.models import compiled
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe, load_recipe
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.tasks.choose import make_task
from mudit_engine.training.tasks.task import Moment, Task
from mudit_engine.training.trainer import Trainer
from small_songs import SMALL_DIT, small_recipe, write_songs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("compile") / "songs", 40)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything but the code generation, which has nothing to do with how often one compiles."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    compiled._compiled.cache_clear()
    counters.clear()
    yield
    torch._dynamo.reset()
    compiled._compiled.cache_clear()


def recipe(songs: Path, *, compile: str = "blocks", **dit: Any) -> Recipe:
    model = {**SMALL_DIT, "blocks": 3, **dit}
    return small_recipe(songs, model_overrides__dit=model, dit__compile=compile)


def passes(task: Task, batches: list[list[int]]) -> list[float]:
    """Losses of forward and backward passes."""
    found = []
    for step, batch in enumerate(batches):
        loss, _ = task.modules["model"](task.load(batch, Moment(0, 0, step)).inputs)
        loss.backward()
        found.append(loss.item())
    return found


# each way of attending is compiled by one of the next two tests, five seconds each
@pytest.mark.parametrize(
    "cross_attention, parts",
    [("serial", 3), pytest.param("parallel", 2, marks=pytest.mark.slow)],
)
def test_fifty_batches_compile_each_part_once(
    songs: Path, traced: None, cross_attention: str, parts: int
) -> None:
    """Of one song to seven, of any lengths, with and without lyrics, descriptions, references."""
    rng = np.random.default_rng(0)
    batches = [rng.choice(40, int(rng.integers(1, 8)), replace=False).tolist() for _ in range(50)]
    task = make_task(recipe(songs, cross_attention=cross_attention), Shards(songs))
    passes(task, batches)
    assert counters["stats"]["unique_graphs"] == parts
    with torch.no_grad():
        task.modules["model"](task.load([1, 2], Moment(0, 0, 0)).inputs)
    assert counters["stats"]["unique_graphs"] == parts, "passes without gradients run as ever"


@pytest.mark.parametrize(
    "cross_attention", [pytest.param("serial", marks=pytest.mark.slow), "parallel"]
)
def test_gradients_are_those_of_the_plain_blocks(
    songs: Path, traced: None, cross_attention: str
) -> None:
    task = make_task(recipe(songs, cross_attention=cross_attention), Shards(songs))
    for p in task.modules["model"].parameters():  # gates start at 0 and would hide the blocks
        torch.nn.init.normal_(p, std=0.2)
    other = copy.deepcopy(task)
    for block in other.dit.blocks:  # type: ignore[attr-defined]
        block.compiled = False
    batches = [[3, 4, 5], [7], [8, 9]]
    assert passes(task, batches) == pytest.approx(passes(other, batches), rel=1e-5)
    pairs = zip(
        task.modules["model"].named_parameters(), other.modules["model"].parameters(), strict=True
    )
    for (name, ours), theirs in pairs:
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_triton_operators_stay_as_they_are(songs: Path, traced: None) -> None:
    """On the path of a GPU, interpreted: the compiler sees the operators, not what is in them."""
    wide = {"width": 128, "heads": 2, "lyric_width": 64, "lyric_head_dim": 64, "blocks": 2}
    task = make_task(recipe(songs, **wide), Shards(songs))
    for p in task.modules["model"].parameters():
        torch.nn.init.normal_(p, std=0.1)
    batches = [[3, 4], [5, 6, 7]]
    with ops.use("triton"):
        ours = passes(task, batches)
    graphs = counters["stats"]["unique_graphs"]
    for block in task.dit.blocks:  # type: ignore[attr-defined]
        block.compiled = False
    assert ours == pytest.approx(passes(task, batches), rel=1e-3)
    assert graphs == 3


@pytest.mark.slow  # a C++ compiler takes most of a minute; the tests above hold what it is given
def test_twenty_steps_through_inductor(songs: Path, tmp_path: Path) -> None:
    rows = []
    for compile in ("none", "blocks"):
        changed = recipe(songs, compile=compile).model_copy(update={"steps": 20})
        Trainer(changed, tmp_path / compile, quiet=True).run()
        rows.append(read_metrics(tmp_path / compile)[0])
    assert len(rows[0]) == 20
    for plain, ours in zip(*rows, strict=True):
        for name in ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(plain[name], rel=1e-5), f"{name}, {plain['step']}"


@pytest.mark.parametrize("checkpointing", ["full"])
def test_whole_blocks_are_recomputed(songs: Path, traced: None, checkpointing: str) -> None:
    losses = []
    for compile in ("none", "blocks"):
        base = recipe(songs, compile=compile)
        stage = base.dit.model_copy(update={"checkpointing": checkpointing})
        task = make_task(base.model_copy(update={"dit": stage}), Shards(songs))
        losses.append(passes(task, [[1, 2, 3], [4, 5]]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_what_compiled_code_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="compile=blocks with checkpointing=selective"):
        load_recipe(
            "tiny-dit-finetune", overrides=["dit.compile=blocks", "dit.checkpointing=selective"]
        )
    with pytest.raises(ConfigError, match="use zero_stage 0 to 2"):
        load_recipe(
            "tiny-dit-finetune",
            overrides=["dit.compile=blocks", "strategy=deepspeed", "parallel.zero_stage=3"],
        )
