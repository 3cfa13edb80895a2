"""ChinMu's batches: texts and crops by (seed, step, song id), equal words are no negatives, and
pairs are learned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mudit_engine.errors import ConfigError, InputError
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.tasks.chinmu import ChinMuTask, crop, in_parts, register_loss
from mudit_engine.training.tasks.task import Moment
from mudit_engine.training.trainer import Trainer
from small_audio import CORPUS_ATTRIBUTES, RATE, write_tones
from small_audio import chinmu_recipe as recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"))


def test_batches(data: Path) -> None:
    task = ChinMuTask(recipe(data), Shards(data))
    inputs = task.load(range(10), Moment(0, 0, 3)).inputs
    again = task.load([9, 3], Moment(0, 1, 3)).inputs
    assert [texts[3] for texts in inputs.texts] == [texts[1] for texts in again.texts]
    assert torch.equal(inputs.songs[3], again.songs[1]) and inputs.songs[3].shape == (RATE // 2,)
    assert not torch.equal(task.load([3], Moment(0, 0, 4)).inputs.songs[0], inputs.songs[3])
    for texts, groups in zip(inputs.texts, inputs.groups, strict=True):
        assert [[a == b for b in groups] for a in groups] == [
            [a == b for b in texts] for a in texts
        ]
    assert len(inputs.texts) == 2 and {len(text.split()) for text in sum(inputs.texts, ())} == {
        1,
        3,
    }, "words and phrases"


def test_equal_words_are_no_negatives(data: Path) -> None:
    task = ChinMuTask(recipe(data, **{"chinmu.levels": [1, 0, 0], "chinmu.texts": 1}), Shards(data))
    same = task.load([0, 4, 8], Moment(0, 0, 0)).inputs
    assert same.texts == (("bass", "bass", "bass"),)
    loss, _ = task.modules["model"](same)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)


def test_pairs_are_learned(data: Path, tmp_path: Path, one_thread: None) -> None:
    trainer = Trainer(recipe(data), tmp_path, quiet=True)
    trainer.run()
    assert trainer.validate()["recall_at_1"] > 0.9, "four tones, four words: chance is 0.25"


def test_crop() -> None:
    audio = np.arange(20)[:, None]
    assert crop(audio, 6, None)[0, 0] == 7 and len(crop(audio, 30, None)) == 20
    assert len(crop(audio, 0, None)) == 0


def test_songs_without_words_are_named(data: Path) -> None:
    task = ChinMuTask(recipe(data), Shards(data))
    with pytest.raises(InputError, match="song 'unknown' has no description"):
        task.load([len(task.shards) - 1], Moment(0, 0, 0))
    only_sentences = ChinMuTask(recipe(data, **{"chinmu.levels": [0, 0, 1]}), Shards(data))
    with pytest.raises(InputError, match="'tone-00' has no fragment of the levels"):
        only_sentences.load([0], Moment(0, 0, 0))


def test_one_pack_a_step(data: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"packs_per_step=2: InfoNCE compares the songs of one pack"
    ):
        ChinMuTask(recipe(data, **{"data.packs_per_step": 2}), Shards(data))


def test_labels_are_told_by_audio_and_words(data: Path, tmp_path: Path) -> None:
    attributes = {**dict.fromkeys(CORPUS_ATTRIBUTES, 0.0), "height": 0.5}
    Trainer(recipe(data, **{"chinmu.attributes": attributes}), tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line["told_height"] for line in lines if "told_height" in line]
    assert told[0] < 0.7 and sum(told[-5:]) / 5 > 0.95


def test_attribute_that_no_song_has_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'colour', which no song"):
        Trainer(
            recipe(
                data,
                **{"chinmu.attributes": {**dict.fromkeys(CORPUS_ATTRIBUTES, 0.0), "colour": 1.0}},
            ),
            tmp_path,
        ).run()


def loss_and_gradients(task: ChinMuTask, songs: range) -> tuple[float, dict[str, torch.Tensor]]:
    module = task.modules["model"]
    module.zero_grad()
    loss, _ = module(task.load(songs, Moment(0, 0, 0)).inputs)
    loss.backward()
    return float(loss.detach()), {
        name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None
    }


def kept_bytes(task: ChinMuTask, songs: range) -> int:
    """Bytes that the forward pass keeps for the backward one, weights left out."""
    module, kept = task.modules["model"], {}
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = task.load(songs, Moment(0, 0, 0)).inputs
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = module(inputs)
    del loss
    return sum(kept.values())


def test_parts_give_the_large_batchs_gradients(data: Path) -> None:
    changes = {"chinmu.registers": 0.5}
    whole = ChinMuTask(recipe(data, **changes), Shards(data))
    parts = ChinMuTask(recipe(data, **changes, **{"chinmu.encode_at_once": 3}), Shards(data))
    parts.modules["model"].load_state_dict(whole.modules["model"].state_dict())
    songs = range(10)
    (loss, gradients), (ours, found) = (loss_and_gradients(t, songs) for t in (whole, parts))
    assert ours == pytest.approx(loss, rel=1e-6) and found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert kept_bytes(parts, songs) < 0.3 * kept_bytes(whole, songs)


def test_a_batch_of_one_level_or_of_all(data: Path) -> None:
    levels = {"chinmu.levels": [1, 1, 0], "chinmu.texts": 1}

    def lengths(mixing: str, step: int) -> set[int]:
        task = ChinMuTask(recipe(data, **levels, **{"chinmu.mixing": mixing}), Shards(data))
        [texts] = task.load(range(12), Moment(0, 0, step)).inputs.texts
        return {len(text.split()) for text in texts}

    assert {1, 3} in [lengths("minibatch", step) for step in range(3)]
    of_batches = [lengths("batch", step) for step in range(8)]
    assert all(len(one) == 1 for one in of_batches) and {1} in of_batches and {3} in of_batches


def test_registers_against_the_definition() -> None:
    g = torch.Generator().manual_seed(0)
    pro, amateur = (
        torch.nn.functional.normalize(torch.randn(4, 8, generator=g).double(), dim=-1)
        for _ in range(2)
    )
    words = (torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 5]))  # songs 0 and 3 say the same
    both = torch.tensor([True, True, True, False])
    scale = torch.tensor(3.0, dtype=torch.float64)
    expected = 0.0
    for i in range(3):
        for a, b in ((pro, amateur), (amateur, pro)):
            wa, wb = words if a is pro else words[::-1]
            others = [float(scale * a[i] @ b[j]) for j in range(4) if j != i and wb[j] != wb[i]] + [
                float(scale * a[i] @ a[j]) for j in range(4) if wa[j] != wa[i]
            ]
            right = float(scale * a[i] @ b[i])
            expected -= (right - math.log(sum(map(math.exp, [right, *others])))) / 2
    found = register_loss((pro, amateur), (pro, amateur), words, scale, first=0, both_n=both)
    assert float(found) == pytest.approx(expected)
    # the share of a rank that holds the last two songs
    shares = [
        register_loss(
            (pro[part], amateur[part]),
            (pro, amateur),
            words,
            scale,
            first=part.start,
            both_n=both[part],
        )
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert float(sum(shares)) == pytest.approx(expected)


def test_registers_are_drawn_in_order(tmp_path: Path) -> None:
    data = write_tones(tmp_path / "data", users=("professional", "amateur"))
    task = ChinMuTask(recipe(data, **{"chinmu.registers": 1.0}), Shards(data))
    inputs = task.load(range(8), Moment(0, 0, 0)).inputs
    assert inputs.both == (True,) * 8
    assert all(text.startswith("pro") for text in inputs.texts[0])
    assert not any(text.startswith("pro") for text in inputs.texts[1])
    loss, logs = task.modules["model"](inputs)
    assert float(logs["registers"][0]) > 0 and math.isfinite(float(loss.detach()))


@pytest.mark.parametrize("items, most, parts", [(7, 7, 3), (3, 7, 3), (1, 7, 3), (3, 3, 0)])
def test_ranks_with_fewer_songs_compute_as_many_parts(items: int, most: int, parts: int) -> None:
    """Where weights are sharded each part gathers them, so that a rank with a part less would leave
    the others waiting; what it computes for company has no weight.
    """
    layer, rows = torch.nn.Linear(4, 2), list(torch.randn(items, 4).unbind())
    calls = []

    def encode(given: Sequence[torch.Tensor]) -> torch.Tensor:
        calls.append(len(given))
        return layer(torch.stack(list(given)))

    out = in_parts(encode, rows, 3, most=most)
    assert len(calls) == max(parts, 1)
    out.square().sum().backward()
    assert len(calls) == 2 * parts + (not parts), "each part again in the backward pass"
    found = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    plain = layer(torch.stack(rows))
    plain.square().sum().backward()
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(found, [p.grad for p in layer.parameters()])
