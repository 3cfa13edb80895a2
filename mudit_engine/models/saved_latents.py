"""Latents of a song in a file, so that it can be edited without a loss.

save_latents("song.safetensors", latents, config.vae)
latents = load_latents("song.safetensors", config.vae)        # None: another codec made them
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mudit_engine.config import VaeConfig
from mudit_engine.errors import InputError
from mudit_engine.files import atomic_path
from mudit_engine.models.contract import digest


def codec_digest(config: VaeConfig) -> str:
    """SHA-256 of what decides how latents of a codec are laid out."""
    return digest(config.model_dump(mode="json"))


def save_latents(path: Path, latents_TC: np.ndarray, config: VaeConfig) -> None:
    """Writes normalised latents fp32 [T, C], with the codec that they are of."""
    data = save(
        {"latents": torch.from_numpy(np.ascontiguousarray(latents_TC, np.float32))},
        {"codec": codec_digest(config)},
    )
    with atomic_path(path) as aside:
        aside.write_bytes(data)


def load_latents(path: Path, config: VaeConfig) -> Tensor | None:
    """Latents fp32 [T, C] that `save_latents` wrote; None for those of another codec.

    Raises:
        InputError: for a file that is broken or holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("codec") != codec_digest(config):
                return None
            latents: Tensor = file.get_tensor("latents")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"'{path}' holds no latents of a song ({error}): remove it, and the audio is encoded"
        ) from None
    if latents.ndim != 2 or latents.shape[1] != config.latent_channels:
        raise InputError(f"'{path}' holds latents of shape {tuple(latents.shape)}")
    return latents
