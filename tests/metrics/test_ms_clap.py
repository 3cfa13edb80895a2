"""MS-CLAP's loader, held to weights of the published names and shapes, but smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mudit_engine.cli._eval_songs import sst_by
from mudit_engine.errors import InputError, ModelError
from mudit_engine.evaluation.systems import Asked
from mudit_engine.metrics.embeddings import open_embedder
from mudit_engine.metrics.ms_clap import MsClap

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, WORDS, EMBEDDING = 8, 50, 12
RATE = 44100


def published() -> dict[str, Tensor]:
    """Tensors by the names of CLAP_weights_2023.pth; two Swin stages of a block, one of GPT-2."""
    g = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def put(name: str, *shape: int) -> None:
        weights[name] = 0.2 * torch.randn(shape, generator=g)

    def linear(name: str, wide: int, narrow: int) -> None:
        put(f"{name}.weight", wide, narrow)
        put(f"{name}.bias", wide)

    def norm(name: str, width: int) -> None:
        put(f"{name}.weight", width)
        put(f"{name}.bias", width)

    tower = "audio_encoder.base.htsat"
    put(f"{tower}.spectrogram_extractor.stft.conv_real.weight", 513, 1, 1024)
    put(f"{tower}.spectrogram_extractor.stft.conv_imag.weight", 513, 1, 1024)
    weights[f"{tower}.logmel_extractor.melW"] = torch.rand(513, 64, generator=g) / 100
    norm(f"{tower}.bn0", 64)
    put(f"{tower}.bn0.running_mean", 64)
    weights[f"{tower}.bn0.running_var"] = torch.ones(64)
    weights[f"{tower}.bn0.num_batches_tracked"] = torch.tensor(3)
    put(f"{tower}.patch_embed.proj.weight", WIDTH, 1, 4, 4)
    put(f"{tower}.patch_embed.proj.bias", WIDTH)
    norm(f"{tower}.patch_embed.norm", WIDTH)
    for stage, heads in ((0, 1), (1, 2)):
        width, block = WIDTH * 2**stage, f"{tower}.layers.{stage}.blocks.0"
        norm(f"{block}.norm1", width)
        put(f"{block}.attn.relative_position_bias_table", 225, heads)
        weights[f"{block}.attn.relative_position_index"] = positions()
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
    put(f"{tower}.layers.0.downsample.reduction.weight", 2 * WIDTH, 4 * WIDTH)
    norm(f"{tower}.layers.0.downsample.norm", 4 * WIDTH)
    norm(f"{tower}.norm", 2 * WIDTH)
    put(f"{tower}.tscam_conv.weight", 527, 2 * WIDTH, 2, 3)
    put(f"{tower}.tscam_conv.bias", 527)
    linear(f"{tower}.head", 527, 527)
    text, wide = "caption_encoder.base", 16
    put(f"{text}.wte.weight", WORDS, wide)
    put(f"{text}.wpe.weight", 80, wide)
    block = f"{text}.h.0"
    weights[f"{block}.attn.bias"] = torch.ones(1, 1, 80, 80, dtype=torch.bool).tril()
    weights[f"{block}.attn.masked_bias"] = torch.tensor(-1e4)
    for name, (narrow, wider) in {
        "attn.c_attn": (wide, 3 * wide),
        "attn.c_proj": (wide, wide),
        "mlp.c_fc": (wide, 4 * wide),
        "mlp.c_proj": (4 * wide, wide),
    }.items():  # GPT-2 keeps its matrices as [in, out]
        put(f"{block}.{name}.weight", narrow, wider)
        put(f"{block}.{name}.bias", wider)
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        norm(f"{text}.{name}", wide)
    for tower, width in (("audio_encoder", 2 * WIDTH), ("caption_encoder", wide)):
        put(f"{tower}.projection.linear1.weight", EMBEDDING, width)
        put(f"{tower}.projection.linear2.weight", EMBEDDING, EMBEDDING)
        norm(f"{tower}.projection.layer_norm", EMBEDDING)
    weights["logit_scale"] = torch.tensor(2.0)
    return weights


def positions() -> Tensor:
    """Swin's index of relative positions in a window of 8."""
    at = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")).flatten(1)
    apart = (at[:, :, None] - at[:, None]).permute(1, 2, 0) + 7
    return apart[..., 0] * 15 + apart[..., 1]


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> MsClap:
    path = tmp_path_factory.mktemp("clap") / "CLAP_weights_2023.pth"
    torch.save({"model": published()}, path)
    return MsClap.load(path)


def noise(seconds: float, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(2, round(seconds * RATE), generator=g)


def test_every_tensor_is_in_its_place(clap: MsClap) -> None:
    weights = published()
    state = clap.audio.state_dict()
    block = "audio_encoder.layers.1.blocks.0.attention.self"
    qkv = weights["audio_encoder.base.htsat.layers.1.blocks.0.attn.qkv.weight"]
    parts = [state[f"{block}.{name}.weight"] for name in ("query", "key", "value")]
    assert torch.equal(torch.cat(parts), qkv)
    fresh = torch.equal(
        state[f"{block}.relative_position_index"], positions()
    )  # transformers' own, which the published one equals
    assert fresh
    assert torch.equal(
        state["audio_encoder.batch_norm.running_mean"],
        weights["audio_encoder.base.htsat.bn0.running_mean"],
    )
    text = clap.text.state_dict()
    assert torch.equal(
        text["h.0.mlp.c_fc.weight"], weights["caption_encoder.base.h.0.mlp.c_fc.weight"]
    )


def test_the_head_equals_its_formula(clap: MsClap) -> None:
    weights = published()
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    one, two, gain, bias = (
        weights[f"caption_encoder.projection.{name}"]
        for name in ("linear1.weight", "linear2.weight", "layer_norm.weight", "layer_norm.bias")
    )
    first = x @ one.T
    whole = first + torch.nn.functional.gelu(first) @ two.T
    wanted = torch.nn.functional.layer_norm(whole, (EMBEDDING,), gain, bias)
    torch.testing.assert_close(clap.heads["caption_encoder."](x), wanted)


def test_a_row_for_each_seven_seconds(clap: MsClap) -> None:
    assert clap.windows(noise(15), RATE).shape == (2, EMBEDDING)
    assert clap.windows(noise(19), RATE).shape == (3, EMBEDDING)
    # what is shorter is repeated
    short = noise(3.5)
    rows = [clap.windows(one, RATE) for one in (short, torch.cat([short, short], 1))]
    torch.testing.assert_close(rows[0], rows[1])
    assert not torch.allclose(rows[0], clap.windows(noise(3.5, seed=1), RATE))


def test_texts_are_read_up_to_their_last_token(clap: MsClap, monkeypatch: Any) -> None:
    monkeypatch.setattr(clap, "tokens", lambda text: [1 + len(word) for word in text.split()])
    rows = clap.encode_text(["a slow piano", "a slow song piano"])
    assert rows.shape == (2, EMBEDDING) and not torch.allclose(rows[0], rows[1])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    songs = clap.encode_audio([noise(8)], RATE)
    assert songs.shape == (1, EMBEDDING)
    with pytest.raises(InputError, match="a text is empty"):
        clap.encode_text([" "])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("audio_encoder.base.htsat.logmel_extractor.melW"), "melW' is missing"),
        (lambda w: w.pop("audio_encoder.base.htsat.norm.bias"), "norm.bias; 1 in all"),
        (
            lambda w: w.update({"caption_encoder.base.x": torch.ones(1)}),
            "the text tower of MS-CLAP",
        ),
        (lambda w: w.pop("audio_encoder.projection.linear1.weight"), "the head 'audio_encoder"),
    ],
    ids=["no filters", "a tensor lacks", "a tensor more", "no head"],
)
def test_other_weights_are_refused(change: Any, message: str) -> None:
    weights = published()
    change(weights)
    with pytest.raises(ModelError, match=message):
        MsClap(weights)


def test_features_and_sst_by_its_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "CLAP_weights_2023.pth"
    torch.save({"model": published()}, path)
    embedder = open_embedder(f"ms-clap:{path}")
    assert embedder.name == "ms-clap" and embedder(noise(8), RATE).shape == (1, EMBEDDING)
    with pytest.raises(InputError, match="or ms-clap:FILE"):
        open_embedder("ms-clap")
    monkeypatch.setattr(MsClap, "tokens", lambda self, text: [1 + len(w) for w in text.split()])
    measured = sst_by(f"ms-clap:{path}").measure(noise(8), RATE, Asked("s", "slow piano"))
    assert measured is not None and -1 <= measured <= 1


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "CLAP_weights_2023.pth"
    path.write_bytes(b"PK")
    with pytest.raises(ModelError, match="cannot be read"):
        MsClap.load(path)
    with pytest.raises(ModelError, match="cannot be read"):
        MsClap.load(tmp_path / "nowhere.safetensors")
