"""Small data sets of pairs of songs, of which the better ones are smooth and the others noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mudit_engine.training.dataset.shard_files import Field
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import song_fields
from small_songs import CHANNELS


def write_pairs(
    folder: Path,
    count: int = 12,
    *,
    validation: int = 4,
    shorter: int = 0,
    weights: Mapping[int, float] | None = None,
) -> Path:
    """`count` pairs of 8 to 24 frames to train on, and some held out; the songs that lost are
    `shorter` frames shorter. weights: of some pairs, by number; the others say none.
    """
    rng = np.random.default_rng(0)
    fields = {**song_fields(latent_channels=CHANNELS), "lost": Field("float16", CHANNELS)}
    with ShardWriter(folder, fields) as writer:
        for number in range(count + validation):
            frames = int(rng.integers(8, 25))
            phase = rng.uniform(0, 6, CHANNELS)
            arrays = {
                "latents": np.sin(np.arange(frames)[:, None] * 0.4 + phase),
                "lost": rng.normal(size=(frames - shorter, CHANNELS)),
                "phonemes": rng.integers(4, 100, frames // 4),
                "fragments": rng.normal(size=(2, 512)),
                "fragment_kinds": np.array([[2, 0, 1 + number % 2, 0, 1]] * 2),
            }
            writer.add(
                f"pair-{number:03d}",
                arrays,
                metadata={"seconds": frames / 10.77}
                | ({"weight": weights[number]} if weights and number in weights else {}),
                split="train" if number < count else "validation",
            )
    return folder
