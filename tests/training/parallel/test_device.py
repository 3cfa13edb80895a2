"""Micro-batches on a device: everything of one gets there, and neither the network nor its figures
wait for the device.

The meta device stands in for a GPU: it has no values, so that whoever reads one fails, and what is
copied to it is seen.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mudit_engine import ops
from mudit_engine.errors import InputError
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe
from mudit_engine.training.tasks.choose import make_task
from mudit_engine.training.tasks.task import Moment, Task, pinned, read, to_device
from mudit_engine.training.trainer import Trainer
from small_audio import CORPUS_ATTRIBUTES, chinmu_recipe, vae_recipe, write_chords, write_tones
from small_songs import small_recipe, write_songs

META = torch.device("meta")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    root = tmp_path_factory.mktemp("device")
    attributes = {**dict.fromkeys(CORPUS_ATTRIBUTES, 0.0), "height": 0.5}
    return {
        "dit": small_recipe(write_songs(root / "songs")),
        "chinmu": chinmu_recipe(write_tones(root / "tones"), **{"chinmu.attributes": attributes}),
        "vae": vae_recipe(
            write_chords(root / "chords"), **{"vae.adversarial": 0.1, "vae.adversarial_from": 0}
        ),
    }


class Copies(TorchDispatchMode):
    """Where a copy from the host to the device waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        copied = (
            func is torch.ops.aten._to_copy.default
            and args[0].device.type == "cpu"
            and kwargs.get("device") == META
        )
        if copied and not kwargs.get("non_blocking"):
            self.places.append(
                "".join(traceback.format_list(traceback.extract_stack(limit=6)[:-1]))
            )
        return func(*args, **kwargs)


def loaded(recipe: Recipe) -> tuple[Task, Any]:
    task = make_task(recipe, Shards(recipe.data.folder))
    return task, task.load(task.shards.numbers("train")[:3], Moment(0, 0, 0)).inputs


def hosts(value: Any) -> list[torch.Tensor]:
    """Tensors of a batch, wherever it keeps them."""
    if hasattr(value, "__dict__") and not isinstance(value, torch.Tensor):
        return [tensor for item in value.__dict__.values() for tensor in hosts(item)]
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", ["dit", "chinmu", "vae"])
def test_a_micro_batch_never_waits_for_the_device(recipes: dict[str, Recipe], name: str) -> None:
    task, inputs = loaded(recipes[name])
    modules = {phase: module.to(META) for phase, module in task.modules.items()}
    assert len(hosts(inputs)) >= 2 and all(tensor.device.type == "cpu" for tensor in hosts(inputs))
    with ops.use("eager"), Copies() as copies:
        for phase in task.active(0):
            moved = to_device(inputs, META)
            assert all(tensor.device == META for tensor in hosts(moved))
            loss, logs = modules[phase](moved)
            loss.backward()
            assert logs and loss.device == META
    assert not copies.places, copies.places[0]


@pytest.mark.parametrize("name", ["dit", "chinmu", "vae"])
def test_the_weight_of_a_global_batch_is_known_without_asking(
    recipes: dict[str, Recipe], tmp_path: Any, name: str
) -> None:
    work = Trainer(recipes[name], tmp_path, quiet=True)._load(0, 0, 0)
    assert work.weight == sum(batch.weight * share for batch, share in work.batches) > 0


def test_what_loads_a_batch_locks_its_pages(
    recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.to(META))  # which needs a GPU
    for recipe in recipes.values():
        _, inputs = loaded(recipe)
        assert all(tensor.device == META for tensor in hosts(pinned(inputs)))


def test_figures_are_read_at_once() -> None:
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads() as reads:
        values = read([torch.tensor(1.5), 2.0, torch.tensor(3), torch.tensor(0.1)])
    assert values.dtype == torch.float64 and reads.count == 0
    assert values.tolist() == [1.5, 2.0, 3.0, float(torch.tensor(0.1))]
    assert read([]).tolist() == []


class Scalars(TorchDispatchMode):
    """How often a value is read from a tensor, one by one or as a list."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.places: list[str] = []
        tolist = torch.Tensor.tolist

        def listed(tensor: torch.Tensor) -> Any:
            self.note()
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", listed)

    def note(self) -> None:
        self.places.append("".join(traceback.format_list(traceback.extract_stack(limit=9)[:-2])))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.note()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("strategy", ["single", "zero1", "zero2", "zero3"])
def test_a_step_reads_its_figures_once_and_asks_no_other_rank(
    recipes: dict[str, Recipe], tmp_path: Any, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Of a step in the middle of a run: one read of the norm and all figures, no host all-reduce,
    none of gathered objects.
    """
    changes: dict[str, Any] = {"steps": 4}
    if strategy != "single":
        pytest.importorskip("deepspeed")
        changes |= {"strategy": "deepspeed", "parallel__zero_stage": int(strategy[-1])}
    recipe = small_recipe(Path(recipes["dit"].data.folder), **changes)
    trainer = Trainer(recipe, tmp_path, quiet=True)
    works = [trainer._load(step, 0, step) for step in range(3)]
    for work in works[:2]:
        trainer._step(work)
    asked: list[str] = []
    for name in ("sum", "highest", "gather", "first", "barrier"):
        original = getattr(trainer.ranks, name)
        monkeypatch.setattr(
            trainer.ranks,
            name,
            lambda *args, name=name, original=original: (asked.append(name), original(*args))[1],
        )
    scalars = Scalars(monkeypatch)
    with scalars:
        metrics = trainer._step(works[2])
    assert metrics["loss"] > 0 and metrics["grad_norm"] > 0
    # DeepSpeed looks at the norm too, which the gate has given it on the host
    read_here = [place for place in scalars.places if "is_invalid_grad_norm" not in place]
    assert len(read_here) == 1 and "in decide" in read_here[0], read_here
    assert asked == []


def test_lyrics_of_another_vocabulary_are_refused_on_the_host(recipes: dict[str, Recipe]) -> None:
    """An id outside the embedding ends a GPU's context."""
    task = make_task(recipes["dit"], Shards(recipes["dit"].data.folder))
    task.config = task.config.model_copy(
        update={"dit": task.config.dit.model_copy(update={"vocabulary_size": 50})}
    )
    with pytest.raises(
        InputError,
        match=r"lyric token \d+ is outside the model's 50: it was made with another vocabulary",
    ):
        task.load(task.shards.numbers("train"), Moment(0, 0, 0))
