"""ChinMu: towers at every length, batch independence, the loss, and a transformers text encoder
made here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mudit_engine.config import ChinMuConfig
from mudit_engine.errors import InputError, ModelError
from mudit_engine.models.chinmu import ChinMu, info_nce

CONFIG = ChinMuConfig(
    text_encoder="characters",
    text_width=64,
    text_blocks=1,
    audio_width=64,
    audio_blocks=1,
    embedding=32,
    head_dim=32,
)
TEXTS = ["女声", "流行抒情，钢琴", "a fast rock song, 150 bpm", "🎹" * 300]


@pytest.fixture(scope="module")
def chinmu() -> ChinMu:
    torch.manual_seed(0)
    return ChinMu(CONFIG).eval()


def test_text_vectors_are_unit_and_independent_of_the_batch(chinmu: ChinMu) -> None:
    together = chinmu.encode_text(TEXTS)
    assert together.shape == (4, 32)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(together, torch.cat([chinmu.encode_text([text]) for text in TEXTS]))


def test_word_order_and_case(chinmu: ChinMu) -> None:
    ab, ba, upper, lower = chinmu.encode_text(["钢琴", "琴钢", "ROCK", "rock"])
    assert (ab - ba).norm() > 1e-3
    assert torch.equal(upper, lower)


def test_audio_of_any_length_and_rate(chinmu: ChinMu) -> None:
    g = torch.Generator().manual_seed(0)
    songs = [
        torch.randn(1, 100, generator=g) * 0.1,
        torch.randn(2, 22050, generator=g) * 0.1,
        torch.randn(40000, generator=g) * 0.1,
    ]
    together = chinmu.encode_audio(songs, 22050)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(
        together,
        torch.cat([chinmu.encode_audio([song], 22050) for song in songs]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_tone_is_the_same_at_another_sample_rate(chinmu: ChinMu) -> None:
    def tone(rate: int) -> torch.Tensor:
        return 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(2 * rate) / rate)

    a, b = chinmu.encode_audio([tone(22050)], 22050), chinmu.encode_audio([tone(44100)], 44100)
    assert float((a * b).sum()) > 0.99


def test_info_nce_against_its_definition() -> None:
    g = torch.Generator().manual_seed(0)
    text, audio = (
        torch.nn.functional.normalize(torch.randn(5, 8, generator=g), dim=1) for _ in range(2)
    )
    scale = torch.tensor(7.0)
    logits = (scale * text @ audio.T).double().exp()
    by_hand = (
        -sum(
            torch.log(logits[i, i] / logits[i].sum()) + torch.log(logits[i, i] / logits[:, i].sum())
            for i in range(5)
        )
        / 2
    )
    torch.testing.assert_close(info_nce(text, audio, scale).double(), by_hand)
    # the same song twice is no negative: with all songs alike nothing is left to tell apart
    assert float(info_nce(text, audio, scale, groups=torch.zeros(5))) == pytest.approx(
        0.0, abs=1e-6
    )


def test_training_pulls_pairs_together() -> None:
    torch.manual_seed(0)
    model = ChinMu(CONFIG)
    rate = CONFIG.sample_rate
    songs = [
        torch.sin(2 * torch.pi * f * torch.arange(rate // 2) / rate) for f in (110.0, 440.0, 1760.0)
    ]
    texts = ["低", "中", "高"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = info_nce(*model(texts, songs), model.scale) / 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0], losses


def test_empty_fragment_is_an_error(chinmu: ChinMu) -> None:
    with pytest.raises(InputError, match="empty"):
        chinmu.encode_text(["ok", "  "])
    assert chinmu.encode_text([]).shape == (0, 32)


def test_transformers_text_encoder_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "流", "行", "女", "声"]),
        encoding="utf-8",
    )
    tokenizer = transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    encoder = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=9,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    encoder.save_pretrained(tmp_path)
    model = ChinMu(CONFIG.model_copy(update={"text_encoder": str(tmp_path)})).eval()
    together = model.encode_text(["流行", "女声流行流行"])
    torch.testing.assert_close(
        together,
        torch.cat([model.encode_text([t]) for t in ("流行", "女声流行流行")]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_unreachable_text_encoder_is_explained(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="nothing-here"):
        ChinMu(CONFIG.model_copy(update={"text_encoder": str(tmp_path / "nothing-here")}))
