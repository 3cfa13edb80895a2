"""A look at a data set: what it counts, and that it names every song and shard that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mudit_engine.training.dataset.inspect_shards import draw, inspect
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import Shards, song_fields
from small_songs import write_songs


def test_counts(tmp_path: Path) -> None:
    shards = Shards(write_songs(tmp_path / "songs"))
    report = inspect(shards, verify=True)
    assert (
        report.songs == 28
        and report.splits == {"train": 24, "validation": 4, "test": 0}
        and report.unit == "latents"
    )
    assert report.hours == pytest.approx(shards.rows("latents").sum() / 10.77 / 3600, abs=1e-3)
    assert (
        report.rows["phonemes"] == shards.rows("phonemes").sum()
        and not report.bad
        and not report.damaged
    )
    assert report.percentiles["p0"] <= report.percentiles["p50"] <= report.percentiles["p100"]
    draw(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_names_what_is_wrong(tmp_path: Path) -> None:
    latents = np.ones((20, 8))
    with ShardWriter(tmp_path, song_fields(latent_channels=8)) as writer:
        writer.add("good", {"latents": latents}, metadata={"seconds": 2.0})
        writer.add("empty", {}, metadata={"seconds": 2.0})
        writer.add("timeless", {"latents": latents})
        writer.add("silent", {"latents": 0 * latents}, metadata={"seconds": 2.0})
        writer.add(
            "hasty", {"latents": latents, "phonemes": np.arange(40)}, metadata={"seconds": 2.0}
        )
    report = inspect(Shards(tmp_path), verify=True)
    assert (
        report.bad.keys() == {"empty", "timeless", "silent", "hasty"}
        and "20.0 phonemes a second" in report.bad["hasty"]
    )
    assert "silent" not in inspect(Shards(tmp_path)).bad, "only --verify reads the latents"
    path = tmp_path / "000-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert inspect(Shards(tmp_path), verify=True).damaged == [path.name]
