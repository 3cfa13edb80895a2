"""ChinMu's batches: texts and crops by (seed, step, song id), equal words are no negatives, and
pairs are learned.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mudit_engine.errors import ConfigError, InputError
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.tasks.chinmu import ChinMuTask, crop
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
