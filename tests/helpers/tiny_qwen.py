"""An untrained Qwen3 of a few thousand weights with a byte-level BPE tokenizer, in transformers'
layout: what a real base model looks like, made in a second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mudit_engine.lyric_model.prompts import END, START
from mudit_engine.lyric_model.songs import built_in_songs

PAD = "<|endoftext|>"


def bpe_tokenizer(texts: list[str], *, size: int = 1200) -> Any:
    """A byte-level BPE tokenizer as Qwen's, trained on texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def make_base(folder: Path, *, width: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """Writes the model and its tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    songs = built_in_songs(24)
    tokenizer = bpe_tokenizer([song.prompt() + song.answer() for song in songs])
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 5,  # wider than its tokenizer, as real ones are
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # untrained outputs are nearly flat: loud ones give adapters something to turn
        model.lm_head.weight.mul_(10)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return document
