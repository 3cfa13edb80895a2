"""How big a configuration is, before it is trained or rented for: parameters by part, state in bytes, frames of a song.

    parameter_counts(load_config("musit-380m"))["dit"]      # {"blocks": 346234880, "lyric_blocks": 12603904, ...}
    song_frames(config.vae, 260.0)                          # 2800
    lyric_cache_bytes(config.dit, tokens=1000, bytes_per_value=2)

Counts come from the network classes themselves, built on torch's meta device: a 3 B network takes no memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mudit_engine.config import ModelConfig, VaeConfig

if TYPE_CHECKING:
    from torch import nn

    from mudit_engine.config import DitConfig

# AdamW at any precision: fp32 weights + gradients + two moments (4 + 4 + 4 + 4), or bf16 weights and gradients beside fp32 master
# weights and moments (2 + 2 + 4 + 4 + 4)
TRAINING_BYTES_PER_PARAMETER = 16


def parameter_counts(config: ModelConfig) -> dict[str, dict[str, int | None]]:
    """Parameters of each child module of dit, vae and chinmu. None: a pretrained text encoder, whose size only its own files tell."""
    import torch

    from mudit_engine.models.chinmu import CHARACTERS, AudioTower, CharacterEncoder
    from mudit_engine.models.dit import DiT
    from mudit_engine.models.vae import SpectralVAE

    with torch.device("meta"):
        dit, vae = DiT(config.dit), SpectralVAE(config.vae)
    # ChinMu would fetch a pretrained encoder, and mel filters are made from values: its own towers are small enough to build for real
    text = None
    if config.chinmu.text_encoder == CHARACTERS:
        text = _count(CharacterEncoder(config.chinmu))
    return {"dit": _children(dit), "vae": _children(vae), "chinmu": {"text": text, "audio": _count(AudioTower(config.chinmu))}}


def song_frames(config: VaeConfig, seconds: float) -> int:
    """Latent frames, which are the transformer's target tokens, of a song."""
    return math.ceil(seconds * config.sample_rate / config.hop)


def lyric_cache_bytes(config: DitConfig, *, tokens: int, bytes_per_value: int) -> int:
    """Keys and values of all blocks for a song's lyric tokens: computed once, read at every step."""
    return tokens * config.blocks * 2 * config.width * bytes_per_value


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _children(module: nn.Module) -> dict[str, int | None]:
    counts: dict[str, int | None] = {name: _count(child) for name, child in module.named_children()}
    own = _count(module) - sum(count or 0 for count in counts.values())
    return {name: count for name, count in (counts | {"own": own}).items() if count}
