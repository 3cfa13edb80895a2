"""Models that write: the small one in plain torch against transformers, bases that are refused."""

from __future__ import annotations

import json

import pytest
import torch

from mudit_engine.errors import InputError, ModelError
from mudit_engine.lyric_model.author import chapters
from mudit_engine.lyric_model.base import find_base, weights_hash
from mudit_engine.lyric_model.causal import TransformersModel
from mudit_engine.lyric_model.form import parse_form
from mudit_engine.lyric_model.small import CharacterModel
from mudit_engine.lyric_model.songs import built_in_songs
from mudit_engine.lyric_model.writer import open_writer
from tiny_qwen import make_base

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An untrained small model in its folder."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from mudit_engine.training.dataset.lyric_set import character_tokenizer

    folder = tmp_path_factory.mktemp("small")
    tokenizer = character_tokenizer(built_in_songs(12))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_small_model_is_transformers_qwen3(small):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = open_writer(str(small))
    assert isinstance(ours, CharacterModel)
    theirs, tokenizer = (
        kind.from_pretrained(small) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    song = built_in_songs(12)[0]
    text = song.prompt() + song.answer() + "龘"
    tokens = ours.encode(text)
    assert tokens == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(tokens[:-1]) == text[:-1]
    with torch.inference_mode():
        wanted = theirs(torch.tensor([tokens])).logits[0, -1]
    whole = ours.read(tokens)
    torch.testing.assert_close(whole.logits_KV[0], wanted, atol=1e-5, rtol=1e-5)
    parts = ours.read(tokens[20:], ours.read(tokens[:20]))
    torch.testing.assert_close(parts.logits_KV[0], wanted, atol=1e-5, rtol=1e-5)
    stepped = ours.step(ours.branch(ours.read(tokens[:-1]), 3), [tokens[-1], 5, tokens[-1]])
    torch.testing.assert_close(stepped.logits_KV[2], wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(stepped.logits_KV[1], wanted, atol=1e-2)


def test_branches_leave_the_past_as_it_was(tmp_path):
    model = open_writer(str(make_base(tmp_path)))
    assert isinstance(model, TransformersModel)
    tokens = model.encode("月亮落在海面上")
    past = model.read(tokens[:-1])
    branches = model.step(model.branch(past, 2), [3, tokens[-1]])
    alone = model.read([tokens[-1]], past)
    torch.testing.assert_close(branches.logits_KV[1], alone.logits_KV[0])
    torch.testing.assert_close(model.read(tokens).logits_KV, alone.logits_KV)


def test_a_short_memory_writes_in_chapters():
    form = parse_form(",".join(["verse:8x9"] * 12))
    spans = chapters(form, 512)
    assert chapters(form, None) == [(0, 12)]
    assert len(spans) > 2
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert (spans[0][0], spans[-1][1]) == (0, 12)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("Qwen/Qwen-14B-Chat-Int4", None, "GPTQ.*Qwen/Qwen3-14B"),
        ("x", {"model_type": "qwen", "auto_map": {"AutoConfig": "c.C"}}, "remote code"),
        ("x", {"model_type": "qwen2", "quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ("x", {"model_type": "bert", "architectures": ["BertModel"]}, "no causal language model"),
    ],
)
def test_bases_that_cannot_be_tuned_are_refused_with_the_reason(tmp_path, name, config, said):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        name = str(tmp_path)
    with pytest.raises(InputError, match=said):
        find_base(name)


def test_a_tokenizer_without_chatml_is_refused(tmp_path):
    make_base(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    document["added_tokens"] = [
        token for token in document["added_tokens"] if "im_" not in token["content"]
    ]
    for mark in ("<|im_start|>", "<|im_end|>"):
        vocabulary = document["model"]["vocab"]
        vocabulary[mark.replace("im", "xx")] = vocabulary.pop(mark)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    settings = tmp_path / "tokenizer_config.json"
    told = json.loads(settings.read_text(encoding="utf-8"))
    told = {k: v for k, v in told.items() if v != "<|im_end|>"}
    settings.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ModelError, match="ChatML"):
        TransformersModel.load(tmp_path)


def test_the_hash_is_of_the_weights(tmp_path):
    first = weights_hash(make_base(tmp_path / "a"))
    assert first == weights_hash(make_base(tmp_path / "b"))
    assert first != weights_hash(make_base(tmp_path / "c", seed=1))
