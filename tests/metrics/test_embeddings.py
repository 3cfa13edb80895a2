"""Features for distances: how many rows, of what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mudit_engine.errors import InputError, ModelError
from mudit_engine.metrics.embeddings import open_embedder

pytest.importorskip("transformers")

from tiny_encoders import save_clap, save_encodec, save_encoder

RATE = 8000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {
        "clap": save_clap(root / "clap"),
        "encodec": save_encodec(root / "encodec"),
        "mert": save_encoder(root / "mert"),
    }


def noise(seconds: float, channels: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(channels, round(seconds * RATE), generator=g)


# 25 s: three windows of 10 s, five of 5 s, a frame every 16 samples at 16 kHz, a patch every 1.5 s
@pytest.mark.parametrize(
    ("kind", "rows", "width"),
    [("clap", 3, 8), ("encodec", 25000, 8), ("mert", 5, 16), ("musicnn", 15, 200)],
)
def test_rows(folders: dict[str, Path], kind: str, rows: int, width: int) -> None:
    spec = kind if kind == "musicnn" else f"{kind}:{folders[kind]}"
    embedder = open_embedder(spec)
    assert (embedder.name, embedder.key) == (kind, spec)
    found = embedder(noise(25.0), RATE)
    assert found.shape[1] == width and abs(found.shape[0] - rows) <= 1
    assert torch.isfinite(found).all() and not found.requires_grad
    assert torch.equal(found, embedder(noise(25.0), RATE))


@pytest.mark.parametrize("spec", ["vggish", "clap", "musicnn:folder", "clap:", ""])
def test_unknown_features_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match="clap:SOURCE"):
        open_embedder(spec)


def test_weights_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as ClapModel"):
        open_embedder(f"clap:{tmp_path}")
