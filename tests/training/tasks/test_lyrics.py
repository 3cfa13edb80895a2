"""Tuning the lyric model: what a pack is, QLoRA that learns, adapters and runs that come back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mudit_engine.errors import ConfigError, InputError, ModelError
from mudit_engine.lyric_model.author import write_freely
from mudit_engine.lyric_model.base import ADAPTER_WEIGHTS, NOTE
from mudit_engine.lyric_model.causal import TransformersModel
from mudit_engine.lyric_model.scoring import score_text
from mudit_engine.lyric_model.songs import built_in_songs, write_songs
from mudit_engine.lyric_model.writer import open_writer
from mudit_engine.training.checkpoints.export_part import export_part
from mudit_engine.training.dataset.lyric_set import LyricSet, character_tokenizer
from mudit_engine.training.recipe import Recipe, load_recipe
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.tasks.choose import make_task, open_data
from mudit_engine.training.tasks.lyrics import LyricTask, pack
from mudit_engine.training.tasks.task import Moment
from mudit_engine.training.trainer import Trainer
from tiny_qwen import make_base

for needed in ("transformers", "peft", "bitsandbytes"):
    pytest.importorskip(needed)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), width=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "songs.jsonl"
    write_songs(built_in_songs(40), file)
    return file


def recipe(base: Path | str, data: Path, *overrides: str) -> Recipe:
    fixed = [
        f"lyrics.base={json.dumps(str(base))}",
        f"data.folder={json.dumps(str(data))}",
        "data.pack_size=1536",
        "data.packs_per_step=2",
        "precision=fp32",
        "device=cpu",
        "schedule.warmup=2",
        "lyrics.checkpointing=false",
        "log.tensorboard=false",
        "log.curve=false",
    ]
    return load_recipe("lyrics-qlora", overrides=[*fixed, *overrides])


def run(folder: Path, asked: Recipe) -> Trainer:
    trainer = Trainer(asked, folder, quiet=True)
    trainer.run()
    return trainer


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / ADAPTER_WEIGHTS)


def test_a_pack_is_the_sum_of_its_songs(base, data):
    asked = recipe(base, data, "lyrics.method=lora", "lyrics.dropout=0")
    task = make_task(asked, open_data(asked))
    module = task.modules["model"].eval()
    moment = Moment(0, 0, 0)
    together = task.load([0, 1, 2], moment)
    alone = [task.load([number], moment) for number in (0, 1, 2)]
    with torch.no_grad():
        losses = [module(batch.inputs)[0].item() for batch in alone]
        assert module(together.inputs)[0].item() == pytest.approx(sum(losses), rel=1e-5)
    assert together.weight == sum(batch.weight for batch in alone)


def test_only_the_answer_and_its_end_count():
    inputs = pack([np.array([5, 6, 7, 8, 9]), np.array([1, 2, 3])], [2, 1])
    assert inputs.kept_A.tolist() == [1, 2, 3, 5, 6]
    assert inputs.targets_A.tolist() == [7, 8, 9, 2, 3]
    assert inputs.positions_1T[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert not inputs.mask_11TT[0, 0, 5:, :5].any()
    assert inputs.mask_11TT[0, 0].equal(inputs.mask_11TT[0, 0].tril())


def test_qlora_learns_and_its_adapter_comes_back_exactly(base, data, tmp_path):
    asked = recipe(
        base, data, "steps=20", "optimizer.lr=2e-2", "log.validate_every=4", "checkpoint.every=20"
    )
    trainer = run(tmp_path, asked)
    _, validations = read_metrics(tmp_path)
    losses = [row["loss"] for row in validations]
    assert losses[-1] < losses[0] - 0.1
    module = trainer.task.modules["model"].eval()
    weights = module.lyrics.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert weights.dtype == torch.uint8  # four bits each, two to a byte

    export_part(tmp_path, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 16, 16)
    assert settings["base_model_name_or_path"] == str(base)
    loaded = TransformersModel.load(tmp_path / "model")
    tokens = torch.tensor([loaded.encode(built_in_songs(1)[0].prompt())])
    with torch.inference_mode():
        ours = module.lyrics(input_ids=tokens).logits
        theirs = loaded.model(input_ids=tokens).logits
    assert torch.equal(ours, theirs)


def test_an_adapter_is_for_its_base_alone(base, data, tmp_path):
    run(tmp_path / "run", recipe(base, data, "steps=2", "lyrics.method=lora"))
    export_part(tmp_path / "run", tmp_path / "model")
    note = json.loads((tmp_path / "model" / NOTE).read_text())
    assert note["method"] == "lora"
    other = make_base(tmp_path / "other", width=64, seed=1)
    with pytest.raises(ModelError, match="other weights"):
        TransformersModel.load(tmp_path / "model", base=str(other))


def test_a_resumed_run_equals_an_uninterrupted_one(base, data, tmp_path):
    changes = ("steps=6", "checkpoint.every=3", "log.validate_every=3", "optimizer.lr=1e-2")
    run(tmp_path / "whole", recipe(base, data, *changes))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    run(tmp_path / "cut", recipe(base, data, *changes))
    for folder in ("whole", "cut"):
        export_part(tmp_path / folder, tmp_path / folder / "model")
    whole, cut = (adapter(tmp_path / folder / "model") for folder in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_checkpoints_hold_what_is_trained_alone(base, data, tmp_path):
    run(tmp_path, recipe(base, data, "steps=1", "schedule.warmup=1"))
    [tag] = (tmp_path / "checkpoints").glob("step-00000001")
    assert sum(file.stat().st_size for file in tag.iterdir()) < 2e6
    from safetensors.torch import load_file

    assert all(".lora_" in name for name in load_file(tag / "model.safetensors"))


def test_the_score_rises_with_training(data, tmp_path):
    """A small model from nothing: what it writes freely for held-out prompts, before and after."""
    songs = built_in_songs(100, languages=("zh",))
    short = [song for song in songs if len(song.answer()) < 60 and song.rhyme != "free"]
    write_songs(short, tmp_path / "songs.jsonl")
    asked = load_recipe(
        "lyrics-small",
        overrides=[
            f"data.folder={json.dumps(str(tmp_path / 'songs.jsonl'))}",
            "data.pack_size=256",
            "steps=100",
            "schedule.warmup=10",
            "optimizer.lr=4e-3",
            "log.validate_every=0",
            "log.tensorboard=false",
            "log.curve=false",
            "checkpoint.every=1000",
            "lyrics.small.width=96",
            "lyrics.small.layers=2",
            "lyrics.small.heads=4",
            "lyrics.small.head_width=24",
            "lyrics.small.mlp_width=192",
        ],
    )
    trainer = run(tmp_path / "run", asked)
    scores = []
    for tag in ("0", "100"):
        export_part(tmp_path / "run", tmp_path / tag, tag=tag)
        model = open_writer(str(tmp_path / tag))
        held_out = [s for s in trainer.task.songs.songs if s.split == "validation"] or short[:4]
        texts = [
            write_freely(model, song.prompt(), seed=n, most_tokens=120)
            for n, song in enumerate(held_out[:6])
        ]
        points = [
            score_text(text, form=song.form).total
            for text, song in zip(texts, held_out, strict=False)
        ]
        scores.append(sum(points) / len(points))
    assert scores[1] > scores[0] + 20


def test_a_tokenizer_of_characters_gives_every_text_back():
    songs = built_in_songs(12)
    tokenizer = character_tokenizer(songs)
    made = LyricSet(songs, tokenizer, source="test", longest=2048)
    for song, tokens in zip(songs, made.tokens, strict=True):
        assert tokenizer.decode(tokens) == song.prompt() + song.answer() + "<|im_end|>"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("strategy=deepspeed", "parallel.zero_stage=3", "lyrics.method=qlora"), "zero_stage=2"),
        (("lyrics.base=scratch", "lyrics.method=qlora"), "tunes a base"),
    ],
)
def test_what_cannot_be_trained_is_refused(base, data, overrides, said):
    asked = recipe(base, data, *overrides)
    with pytest.raises(ConfigError, match=said):
        LyricTask(asked, open_data(asked))


def test_a_song_that_is_too_long_is_named(base, data):
    with pytest.raises(InputError, match="data.pack_size="):
        open_data(recipe(base, data, "data.pack_size=32"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="ranks are processes")
@pytest.mark.parametrize(("method", "stage"), [("qlora", 2), ("lora", 2), ("lora", 3)])
def test_two_ranks_equal_one(base, data, tmp_path, method, stage):
    from launch_ranks import run_jobs

    pytest.importorskip("deepspeed")
    changes = (f"lyrics.method={method}", "steps=5", "optimizer.lr=1e-2")
    run(tmp_path / "one", recipe(base, data, *changes))
    spread = recipe(base, data, *changes, "strategy=deepspeed", f"parallel.zero_stage={stage}")
    run_jobs(2, [{"recipe": spread.resolved(), "out": str(tmp_path / "two")}], tmp_path / "jobs")
    one, two = (
        [row["loss"] for row in read_metrics(tmp_path / name)[0]] for name in ("one", "two")
    )
    assert two == pytest.approx(one, rel=2e-5)
    for name in ("one", "two"):
        export_part(tmp_path / name, tmp_path / name / "model")
    ours, theirs = (adapter(tmp_path / name / "model") for name in ("one", "two"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=2e-4, rtol=2e-3)
