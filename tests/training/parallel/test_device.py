"""Micro-batches on a device: everything of one gets there, and neither the network nor its figures
wait for the device.

The meta device stands in for a GPU: it has no values, so that whoever reads one fails, and what is
copied to it is seen.
"""

from __future__ import annotations

import traceback
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
