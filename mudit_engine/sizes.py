"""How big a configuration is, before it is trained or rented for: parameters by part, state in
bytes, frames of a song.

    # {"blocks": 346234880, "lyric_blocks": 12603904, ...}
    parameter_counts(load_config("musit-380m"))["dit"]
    song_frames(config.vae, 260.0)                          # 2800
    lyric_cache_bytes(config.dit, tokens=1000, bytes_per_value=2)

Counts come from the network classes themselves, built with parameters on torch's meta device: a 3 B
network takes no memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mudit_engine.config import ModelConfig, VaeConfig

if TYPE_CHECKING:
    from torch import nn

    from mudit_engine.config import DitConfig

# AdamW at any precision: fp32 weights + gradients + two moments (4 + 4 + 4 + 4), or bf16 weights
# and gradients beside fp32 master weights and moments (2 + 2 + 4 + 4 + 4)
TRAINING_BYTES_PER_PARAMETER = 16


def parameter_counts(config: ModelConfig) -> dict[str, dict[str, int | None]]:
    """Parameters of each child module of dit, vae and chinmu. None: a pretrained text encoder,
    whose size only its own files tell.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    from mudit_engine.models.chinmu import CHARACTERS, AudioTower, CharacterEncoder
    from mudit_engine.models.dit import DiT
    from mudit_engine.models.vae import SpectralVAE

    class EmptyOnMeta(TorchFunctionMode):
        """torch.empty, which layers make parameters with, takes no memory; filters are made from
        values and stay real.
        """

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(
                *args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {})
            )

    with EmptyOnMeta():
        dit, vae, audio = DiT(config.dit), SpectralVAE(config.vae), AudioTower(config.chinmu)
        # not ChinMu itself, which would fetch a pretrained encoder
        text = (
            _count(CharacterEncoder(config.chinmu))
            if config.chinmu.text_encoder == CHARACTERS
            else None
        )
    return {
        "dit": _children(dit),
        "vae": _children(vae),
        "chinmu": {"text": text, "audio": _count(audio)},
    }


def song_frames(config: VaeConfig, seconds: float) -> int:
    """Latent frames, which are the transformer's target tokens, of a song."""
    return math.ceil(seconds * config.sample_rate / config.hop)


def lyric_cache_bytes(config: DitConfig, *, tokens: int, bytes_per_value: int) -> int:
    """Keys and values of all blocks for a song's lyric tokens:
    computed once, read at every step.
    """
    return tokens * config.blocks * 2 * config.width * bytes_per_value


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _children(module: nn.Module) -> dict[str, int | None]:
    counts: dict[str, int | None] = {name: _count(child) for name, child in module.named_children()}
    own = _count(module) - sum(count or 0 for count in counts.values())
    return {name: count for name, count in (counts | {"own": own}).items() if count}
