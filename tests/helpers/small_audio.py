"""Small audio data sets and recipes of the codec's and ChinMu's stages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import audio_fields
from mudit_engine.training.recipe import Recipe, load_recipe

RATE = 8000
SMALL_VAE = {
    "sample_rate": RATE,
    "channels": 1,
    "n_fft": 256,
    "stft_hop": 64,
    "fold": 4,
    "latent_channels": 8,
    "phase_refinements": 0,
}
SMALL_VAE |= {
    "phase_head": True,
    "frame_width": 16,
    "frame_blocks": 1,
    "latent_width": 16,
    "latent_blocks": 1,
}
WORDS = ("bass", "low", "middle", "high")
SMALL_CHINMU = {
    "text_width": 32,
    "text_blocks": 1,
    "audio_width": 32,
    "audio_blocks": 1,
    "head_dim": 16,
    "sample_rate": RATE,
    "mels": 32,
}
CORPUS_ATTRIBUTES = load_recipe("tiny-chinmu").chinmu.attributes


def write_chords(folder: Path) -> Path:
    """Chords that fade, a second and a half each; one song is shorter than a crop."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, audio_fields(channels=1)) as writer:
        for number in range(14):
            t = np.arange(1000 if number == 0 else 12000) / RATE
            wave = (
                sum(np.sin(2 * np.pi * hertz * t) for hertz in rng.uniform(100, 2000, 3))
                * 0.2
                * np.exp(-t)
            )
            split = "train" if number < 12 else "validation"
            writer.add(
                f"chord-{number:02d}",
                {"audio": (wave[:, None] * 32767).astype(np.int16)},
                metadata={"sample_rate": RATE},
                split=split,
            )
    return folder


def vae_recipe(data: Path, **changes: object) -> Recipe:
    fields = {
        "data.folder": str(data),
        "data.pack_size": 4,
        "model_overrides.vae": SMALL_VAE,
        "model_overrides.dit.latent_channels": 8,
        "vae.mel": 1.0,
        "vae.spectral": 1.0,
        "vae.crop_seconds": 0.5,
        "vae.adversarial_seconds": 0.25,
        "vae.discriminator_width": 4,
        "steps": 8,
        "schedule.warmup": 2,
        "checkpoint.every": 4,
        "log.validate_every": 0,
        "log.validation_split": "validation",
        "log.tensorboard": False,
        "log.curve": False,
        **changes,
    }
    return load_recipe(
        "tiny-vae", overrides=[f"{name}={json.dumps(value)}" for name, value in fields.items()]
    )


def write_tones(folder: Path, *, users: tuple[str, ...] = ("amateur",)) -> Path:
    """Tones of four heights, each described by its word; a professional says "pro" first."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, audio_fields(channels=1)) as writer:
        for number in range(24):
            height = number % 4
            wave = (
                np.sin(np.arange(RATE * 2) * 2 * np.pi * 200 * 2**height / RATE + rng.uniform(0, 6))
                * 0.3
            )
            described = [
                {
                    "language": "en",
                    "user": user,
                    "word": [f"{'pro ' * (user == 'professional')}{WORDS[height]}"],
                    "phrase": [f"{'pro ' * (user == 'professional')}a {WORDS[height]} tone"],
                    "sentence": [],
                }
                for user in users
            ]
            samples = (wave[:, None] * 32767).astype(np.int16)
            split = "train" if number < 20 else "validation"
            writer.add(
                f"tone-{number:02d}",
                {"audio": samples},
                metadata={"sample_rate": RATE, "descriptions": described, "height": WORDS[height]},
                split=split,
            )
        writer.add(
            "unknown",
            {"audio": samples},
            metadata={"sample_rate": RATE, "descriptions": []},
            split="test",
        )
    return folder


def chinmu_recipe(data: Path, **changes: object) -> Recipe:
    fields = {
        "data.folder": str(data),
        "data.pack_size": 10,
        "model_overrides.chinmu": SMALL_CHINMU,
        "chinmu.crop_seconds": 0.5,
        "chinmu.attributes": dict.fromkeys(CORPUS_ATTRIBUTES, 0.0),
        "steps": 60,
        "schedule.warmup": 5,
        "optimizer.lr": 3e-3,
        "log.validate_every": 0,
        "log.validation_split": "validation",
        "log.tensorboard": False,
        "log.curve": False,
        **changes,
    }
    return load_recipe(
        "tiny-chinmu", overrides=[f"{name}={json.dumps(value)}" for name, value in fields.items()]
    )
