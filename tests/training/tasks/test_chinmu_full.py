"""ChinMu at full size with random weights: a transformers encoder of Chinese text, 512 numbers, two
ranks of which the loss is that of one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from launch_ranks import run_jobs
from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.recipe import Recipe, load_recipe
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.tasks.chinmu import ChinMuLoss
from mudit_engine.training.tasks.choose import make_task
from mudit_engine.training.trainer import Trainer
from small_audio import write_tones

pytestmark = pytest.mark.slow


def save_albert(folder: Path) -> Path:
    """An encoder of the size of ALBERT base (11 M weights that 12 layers share), with a vocabulary
    of characters as Chinese BERTs have.
    """
    import torch
    from transformers import AlbertConfig, AlbertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [*"abcdefghijklmnopqrstuvwxyz", *"流行女声慢歌钢琴"]
    (folder / "vocab.txt").write_text("\n".join([*marks, *characters]), "utf-8")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=21128,
        embedding_size=128,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    AlbertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_two_ranks_train_the_full_size_as_one(tmp_path: Path) -> None:
    data = write_tones(tmp_path / "data", users=("professional", "amateur"))
    encoder = save_albert(tmp_path / "albert")

    def recipe(**changes: object) -> Recipe:
        fields: dict[str, object] = {
            "data.folder": str(data),
            "data.pack_size": 6,
            "model_overrides.chinmu.text_encoder": str(encoder),
            "chinmu.crop_seconds": 1.0,
            "chinmu.registers": 0.5,
            "chinmu.encode_at_once": 2,
            "chinmu.levels": "[1, 1, 0]",
            "strategy": "single",
            "precision": "fp32",
            "steps": 2,
            "schedule.warmup": 1,
            "log.validate_every": 0,
            "log.tensorboard": "false",
            "log.curve": "false",
            **changes,
        }
        overrides = [f"{name}={value}" for name, value in fields.items()]
        return load_recipe("musit-380m-chinmu", overrides=overrides)

    one = recipe()
    task = make_task(one, Shards(data))
    module = task.modules["model"]
    assert isinstance(module, ChinMuLoss)
    config = module.chinmu.config
    assert (config.embedding, config.audio_width, config.audio_blocks) == (512, 512, 8)
    assert sum(p.numel() for p in module.parameters()) > 30e6
    Trainer(one, tmp_path / "one", task=task, quiet=True).run()
    two = recipe(strategy="deepspeed", **{"parallel.zero_stage": 1})
    run_jobs(2, [{"recipe": two.resolved(), "out": str(tmp_path / "two")}], tmp_path / "launch")
    ours, theirs = (read_metrics(tmp_path / name)[0] for name in ("two", "one"))
    assert len(ours) == len(theirs) == 2
    for row, other in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
