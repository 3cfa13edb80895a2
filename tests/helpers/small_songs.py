"""Small synthetic data sets and recipes for the training tests: seconds to write, seconds to train
on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import song_fields
from mudit_engine.training.recipe import Recipe, load_recipe

CHANNELS = 8
SMALL_DIT = {
    "latent_channels": CHANNELS,
    "width": 16,
    "blocks": 1,
    "heads": 2,
    "lyric_width": 16,
    "lyric_head_dim": 8,
    "lyric_blocks": 1,
}


def write_songs(
    folder: Path,
    count: int = 24,
    *,
    seed: int = 0,
    validation: int = 4,
    shard_bytes: int = 40_000,
    conditions: int | None = None,
    held_out: str = "validation",
) -> Path:
    """A DiT data set of `count` training songs of 8 to 40 frames, and a few in `held_out`. Of
    them the first `conditions` (None: all) have lyrics, descriptions and stems.
    """
    rng = np.random.default_rng(seed)
    with ShardWriter(
        folder, song_fields(latent_channels=CHANNELS), shard_bytes=shard_bytes
    ) as writer:
        for number in range(count + validation):
            frames, tokens, fragments = (
                int(rng.integers(8, 41)),
                int(rng.integers(0, 12)),
                int(rng.integers(0, 7)),
            )
            tokens = min(tokens, frames // 2)
            phase = rng.uniform(0, 6, CHANNELS)
            latents = np.sin(np.arange(frames)[:, None] * 0.4 + phase) + 0.1 * rng.normal(
                size=(frames, CHANNELS)
            )
            user = rng.integers(1, 3, 2)
            description = np.sort(rng.integers(0, 2, fragments))
            description -= description[:1].sum()
            levels = rng.integers(0, 3, fragments)
            kinds = np.stack([levels, description, user[description], description, levels > 0], 1)
            arrays = {
                "latents": latents,
                "phonemes": rng.integers(4, 100, tokens),
                "fragments": rng.normal(size=(fragments, 512)),
                "fragment_kinds": kinds,
            }
            if number % 3 == 0:
                arrays["stem.vocals"] = latents * 0.5
            if conditions is not None and number >= conditions:
                arrays = {"latents": latents}
            split = "train" if number < count else held_out
            metadata = {
                "seconds": frames / 10.77,
                "bpm": 90 + number,
                "chords": [(0.0, 1.0, "Dm7"), (1.0, 9.0, "G7")],
            }
            writer.add(f"song-{number:03d}", arrays, metadata=metadata, split=split)
    return folder


def small_recipe(data: Path, **changes: Any) -> Recipe:
    """tiny-dit-finetune with a network of a few thousand weights. Changes are keyed by dotted names
    with __ for the dot.
    """
    fields = {
        "data.folder": str(data),
        "data.pack_size": 128,
        "data.packs_per_step": 2,
        "model_overrides.dit": SMALL_DIT,
        "model_overrides.vae.latent_channels": CHANNELS,
        "init": None,
        "steps": 12,
        "schedule.warmup": 3,
        "checkpoint.every": 4,
        "log.validate_every": 0,
        "log.validation_split": "validation",
        "log.tensorboard": False,
        "log.curve": False,
        "dit.reference": 0.5,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return load_recipe(
        "tiny-dit-finetune",
        overrides=[f"{name}={json.dumps(value)}" for name, value in fields.items()],
    )
