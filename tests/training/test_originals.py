"""Learning from a data set's songs beside the model's own, without a reward."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mudit_engine.cli.main import run
from mudit_engine.errors import InputError
from mudit_engine.models.folder import load_config
from mudit_engine.names import USER_TYPES
from mudit_engine.pipeline import SongPipeline
from mudit_engine.training.align.originals import Originals
from mudit_engine.training.align.pairs import write_pairs
from mudit_engine.training.align.run import AlignPlan, make_recipe
from mudit_engine.training.dataset.encoded_with import check_encoder, note_encoder
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import Shards, audio_fields, song_fields
from mudit_engine.training.tasks.align import AlignTask
from mudit_engine.training.tasks.task import Moment

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")

SECTION = {"name": "verse", "start": 0.0, "end": 9.0, "plays": ["bass"], "energy": 0.5}


@pytest.fixture(scope="module")
def data(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training songs of 16 to 36 frames, the longest first, and one held out. The first has
    a professional's words alone.
    """
    folder = tmp_path_factory.mktemp("data")
    config = load_config(model)
    rate, width = config.vae.frame_rate, config.dit.description_width
    rng = np.random.default_rng(0)
    fields = song_fields(latent_channels=config.dit.latent_channels, description_width=width)
    note_encoder(folder, model, parts=("vae", "chinmu"))
    with ShardWriter(folder, fields) as writer:
        for number in range(7):
            frames = 36 - 4 * number
            users = (2, 2) if number == 0 else (1, 2)
            arrays = {
                "latents": rng.normal(size=(frames, config.dit.latent_channels)),
                "phonemes": np.arange(4, 8),
                "phoneme_times": np.array([[-1, -1], [0.1, 0.3], [0.3, 0.5], [-1, -1]]),
                "fragments": rng.normal(size=(4, width)),
                # two descriptions, each whole and as one word of it
                "fragment_kinds": np.array(
                    [[level, 0, users[d], d, level // 2] for d in (0, 1) for level in (2, 0)]
                ),
            }
            metadata = {
                "seconds": frames / rate,
                "bpm": 90 + number,
                "key": 9,
                "mode": "minor",
                "chords": [[0.0, 1.0, "Am7"], [1.0, 9.0, "G"]],
                "melody": [[0.1, 0.3, 60]],
                "arrangement": [SECTION],
                "drums": True,
                "voice": "female",
                "style": "jazz",
            }
            split = "test" if number == 6 else "train"
            writer.add(f"song-{number}", arrays, metadata=metadata, split=split)
    return folder


@pytest.fixture(scope="module")
def pipeline(model: Path) -> SongPipeline:
    return SongPipeline.from_pretrained(model)


def originals(folder: Path, data: Path, pipeline: SongPipeline, **options: Any) -> Originals:
    return Originals(folder, Shards(data), pipeline, sampler={"steps": 2}, **options)


def test_a_data_sets_song_is_preferred_to_the_models_own(
    tmp_path: Path, data: Path, pipeline: SongPipeline
) -> None:
    beside = originals(tmp_path / "songs", data, pipeline, each=2)
    shards = Shards(data)
    number = beside.numbers(1)[0]
    pairs = beside.of(number)
    assert [one.id for one in pairs] == ["song-5.0", "song-5.1"], "the shortest for training"
    assert {one.request for one in pairs} == {"song-5"}
    for pair in pairs:
        assert np.array_equal(pair.won_TC, shards.read(number)["latents"])
        assert pair.lost_TC.shape == pair.won_TC.shape and np.isfinite(pair.lost_TC).all()
    assert not np.array_equal(pairs[0].lost_TC, pairs[1].lost_TC)
    # what is made is kept, and another seed makes other songs
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "songs").iterdir()}
    again = originals(tmp_path / "songs", data, pipeline, each=2).of(number)
    assert made == {path: path.stat().st_mtime_ns for path in made}
    assert np.array_equal(again[1].lost_TC, pairs[1].lost_TC)
    other = originals(tmp_path / "other", data, pipeline, each=2, seed=1).of(number)
    assert not np.array_equal(other[0].lost_TC, pairs[0].lost_TC)


def test_own_words_are_preferred_to_those_of_another_style(
    tmp_path: Path, data: Path, pipeline: SongPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    prepare = pipeline.runtime.prepare
    monkeypatch.setattr(
        pipeline.runtime, "prepare", lambda inputs: told.append(inputs) or prepare(inputs)
    )
    beside = originals(tmp_path, data, pipeline, each=3, mismatched=1)
    with pytest.raises(InputError, match="no song of another style than 'song-5'"):
        beside.of(5)
    monkeypatch.setattr(Originals, "_other", lambda self, record: self.shards.read(0))
    pairs = beside.of(5)
    original, first, second, last = pairs[0].won_TC, pairs[0].lost_TC, pairs[1].lost_TC, pairs[2]
    assert np.array_equal(original, Shards(data).read(5)["latents"])
    assert np.array_equal(pairs[1].won_TC, original) and not np.array_equal(first, second)
    assert np.array_equal(last.won_TC, first), "an own song is preferred to one in other words"
    own, _, other = told
    assert torch.equal(own.descriptions, last.inputs.descriptions), "to its own words"
    assert torch.equal(other.descriptions, beside._described(beside.shards.read(0))[0])
    assert torch.equal(own.outline.features_TF, other.outline.features_TF), "and the same plan"


def test_the_models_own_song_heard_what_training_will_say(
    tmp_path: Path, data: Path, model: Path, pipeline: SongPipeline
) -> None:
    """The plan and the words that a song is made with are, row by row, those of its pair."""
    beside = originals(tmp_path / "songs", data, pipeline)
    pairs = [pair for number in beside.numbers() for pair in beside.of(number)]
    plan = AlignPlan(tmp_path, model=str(model), originals=data, steps=3, device="cpu")
    width = pipeline.config.dit.description_width
    assert write_pairs(pairs, plan.pairs, model=model, width=width) == 6
    task = AlignTask(make_recipe(plan), Shards(plan.pairs))
    places = {task.shards.id(number): number for number in range(len(task.shards))}
    for pair in pairs:
        record = task.shards.read(places[pair.id])
        told = task._conditions(record, Moment(0, 0, 0, training=False))
        heard = pair.inputs.outline
        assert heard is not None and heard.features_TF.any()
        assert torch.equal(told.outline.features_TF, heard.features_TF)
        assert torch.equal(
            torch.from_numpy(np.array(told.fragments)).float(), pair.inputs.descriptions
        )
        assert tuple(told.lyrics) == pair.inputs.lyric_ids
        assert USER_TYPES[told.user] == pair.user_type
    unsaid = replace(pairs[0].inputs, outline=None)
    heard = beside._made("other", [unsaid])[0]
    assert not np.array_equal(heard, pairs[0].lost_TC), "the plan changes the song"


def test_whose_descriptions_are_taken(tmp_path: Path, data: Path, pipeline: SongPipeline) -> None:
    professional = originals(tmp_path, data, pipeline, user_type="professional")
    assert professional.numbers() == [5, 4, 3, 2, 1, 0] and professional.numbers(2) == [5, 4]
    amateur = originals(tmp_path, data, pipeline, user_type="amateur")
    assert amateur.numbers() == [5, 4, 3, 2, 1], "the first has no amateur's words"
    assert {pair.user_type for pair in amateur.of(3)} == {"amateur"}
    both = originals(tmp_path / "both", data, pipeline)
    drawn = {pair.user_type for number in both.numbers() for pair in both.of(number)}
    assert drawn == {"professional", "amateur"}


def test_what_cannot_be_compared_is_named(
    tmp_path: Path, data: Path, model: Path, pipeline: SongPipeline, micro: Path
) -> None:
    with ShardWriter(tmp_path / "sound", audio_fields(channels=1)) as writer:
        writer.add("a", {"audio": np.zeros((9, 1))}, metadata={}, split="train")
    with pytest.raises(InputError, match=r"holds no latents, phonemes.*without --audio-only"):
        originals(tmp_path, tmp_path / "sound", pipeline)
    check_encoder(data, str(model), named="the model")
    with pytest.raises(InputError, match="was encoded with the VAE of"):
        check_encoder(data, str(micro), named="the model")
    nobody = originals(tmp_path, data, pipeline, user_type="none")
    with pytest.raises(InputError, match="no training song with a description of user type 'none'"):
        nobody.numbers()


def test_a_model_learns_from_a_data_set(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    command = ["align", "--out", str(out), "--model", str(model), "--originals", str(data)]
    command += ["--most", "4", "--pairs-each", "1", "--held-out", "2", "--held-out-songs", "1"]
    command += ["--requests", "builtin:1", "--seconds", "2", "--steps", "3", "--device", "cpu"]
    command += ["--set", "log.tensorboard=false", "--json"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["results"]["pairs"] == 4
    assert (out / "dit.safetensors").is_file() and len(list((out / "work/songs").iterdir())) == 4
    assert run([*command, "--most", "3"]) == 2
    assert "other settings (most)" in json.loads(capsys.readouterr().out)["error"]["message"]
    preferences = tmp_path / "preferences.jsonl"
    preferences.touch()
    both = ["--preferences", str(preferences), "--system", str(tmp_path)]
    assert run([*command, *both]) == 2
    assert "two ways" in json.loads(capsys.readouterr().out)["error"]["message"]
