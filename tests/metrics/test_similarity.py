"""SST and ASOA with tiny random models, against their definitions written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mudit_engine.errors import InputError, ModelError
from mudit_engine.metrics.similarity import AudioSimilarity, TextSimilarity
from tiny_encoders import RATE, save_clap, save_encoder

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clap(tmp_path_factory.mktemp("clap"))


def song(seed: int, seconds: float = 3.0, rate: int = RATE) -> torch.Tensor:
    """A chord of low tones, the same sound at any rate."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * rate)) / rate
    return (
        sum(
            torch.sin(6.2832 * f * time)
            for f in (200 + 600 * torch.rand(3, generator=generator)).tolist()
        )[None]
        / 6
    )


def test_fixed_asoa_of_equal_audio_is_one_whatever_its_rate(encoder: Path) -> None:
    asoa = AudioSimilarity.load(str(encoder))
    assert asoa(song(0), RATE, song(0), RATE) == pytest.approx(1.0, abs=1e-5)
    assert asoa(song(0, rate=44100), 44100, song(0), RATE) == pytest.approx(1.0, abs=1e-3)
    assert asoa(song(0), RATE, song(1), RATE) < 0.999


def test_paper_asoa_is_the_mean_of_the_layer_matrix_of_the_first_samples(encoder: Path) -> None:
    from transformers import HubertModel

    asoa = AudioSimilarity.load(str(encoder), variant="paper")
    a, b = song(0, 7.0, 44100), song(1, 7.0, 44100)
    model = HubertModel.from_pretrained(encoder).eval()
    with torch.inference_mode():
        states = [
            torch.stack(model(x[:, :80_000], output_hidden_states=True).hidden_states)[:, 0].mean(1)
            for x in (a, b)
        ]
    pairs = [float(F.cosine_similarity(x, y, dim=0)) for x in states[0] for y in states[1]]
    assert asoa(a, 44100, b, 44100) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert asoa(a, 44100, a, 44100) < 0.9999, "layers differ, so even equal audio stays below 1"


def test_fixed_asoa_hears_the_whole_song(encoder: Path) -> None:
    asoa = AudioSimilarity.load(str(encoder))
    a = song(0, 33.0)
    changed = a.clone()
    changed[:, 31 * RATE :] = song(1, 2.0)
    assert asoa(a, RATE, changed, RATE) < 0.99999


def test_sst_is_the_cosine_of_both_towers(clap: Path) -> None:
    sst = TextSimilarity.load(str(clap))
    texts, songs = ["slow piano", "fast"], [song(0), song(1)]
    found = sst(texts, songs, RATE)
    with torch.inference_mode():
        ids = torch.tensor([[3, 5]])
        text = sst.model.get_text_features(
            input_ids=ids, attention_mask=torch.ones_like(ids)
        ).pooler_output
        heard = sst.extractor([songs[0][0].numpy()], sampling_rate=RATE, return_tensors="pt")
        audio = sst.model.get_audio_features(
            input_features=heard["input_features"], is_longer=heard["is_longer"]
        ).pooler_output
    assert found[0] == pytest.approx(float(F.cosine_similarity(text, audio)), abs=1e-5)
    assert found[1] == pytest.approx(sst(texts[1:], songs[1:], RATE)[0], abs=1e-5), (
        "songs do not look at each other"
    )


def test_long_audio_is_not_cut_at_random(clap: Path) -> None:
    sst = TextSimilarity.load(str(clap))
    long = torch.cat((song(0, 10.0), song(1, 10.0), song(2, 5.0)), 1)
    assert sst(["slow"], [long], RATE) == sst(["slow"], [long], RATE)


def test_bad_input(encoder: Path, clap: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hub id"):
        AudioSimilarity.load(str(tmp_path))
    with pytest.raises(InputError, match="paper, fixed"):
        AudioSimilarity.load(str(encoder), variant="other")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 texts and 2 songs"):
        TextSimilarity.load(str(clap))(["slow"], [song(0), song(1)], RATE)
