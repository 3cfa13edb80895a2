"""Which codec a data set's latents are of: told by what encodes, not by what decodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mudit_engine.errors import ConfigError, InputError, ModelError
from mudit_engine.training.dataset.encoded_with import FILE, check_encoder, note_encoder


def moved(model: Path, out: Path, prefix: str) -> Path:
    """A copy of a model whose VAE has other weights where their names begin so."""
    shutil.copytree(model, out)
    path = out / "vae.safetensors"
    weights = load_file(path)
    [name, *_] = [one for one in sorted(weights) if one.startswith(prefix)]
    weights[name] = weights[name] + torch.ones_like(weights[name])
    save_file(weights, path, metadata={"part": "vae"})
    return out


@pytest.fixture
def encoded(micro: Path, tmp_path: Path) -> Path:
    note_encoder(tmp_path / "latents", micro, parts=("vae", "chinmu"))
    return tmp_path / "latents"


def test_another_decoder_is_the_same_codec(encoded: Path, micro: Path, tmp_path: Path) -> None:
    better = moved(micro, tmp_path / "better", "decoder.")
    check_encoder(encoded, str(better), named="init")
    note_encoder(encoded, better, parts=("vae", "chinmu"))
    # what is told then is the files of one model
    note = json.loads((encoded / FILE).read_text())
    assert note["model"] == str(better)
    check_encoder(encoded, str(micro), named="init")


@pytest.mark.parametrize("prefix", ["encoder.", "feature_mean", "latent_std"])
def test_whatever_encodes_makes_another_codec(
    prefix: str, encoded: Path, micro: Path, tmp_path: Path
) -> None:
    other = moved(micro, tmp_path / "other", prefix)
    before = (encoded / FILE).read_bytes()
    with pytest.raises(ConfigError, match="was encoded with the VAE of .* not that of init"):
        check_encoder(encoded, str(other), named="init")
    with pytest.raises(InputError, match="encoded with another vae"):
        note_encoder(encoded, other, parts=("vae",))
    assert (encoded / FILE).read_bytes() == before


def test_a_note_without_the_latents_digest_goes_by_the_file(
    encoded: Path, micro: Path, tmp_path: Path
) -> None:
    note = json.loads((encoded / FILE).read_text())
    del note["latents"]
    (encoded / FILE).write_text(json.dumps(note))
    check_encoder(encoded, str(micro), named="init")
    with pytest.raises(ConfigError, match="was encoded with the VAE of"):
        check_encoder(encoded, str(moved(micro, tmp_path / "better", "decoder.")), named="init")
    note_encoder(encoded, micro, parts=("vae",))
    assert json.loads((encoded / FILE).read_text())["latents"], "known from now on"


def test_a_codec_that_cannot_be_read_is_named(encoded: Path, micro: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(micro, tmp_path / "broken")
    (broken / "vae.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="'.*vae.safetensors' is not a whole safetensors file"):
        check_encoder(encoded, str(broken), named="init")
