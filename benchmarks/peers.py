"""Strong peers to measure against, built from packages at the workload's own size.

peer = StableAudioPeer(load_config("published").dit)
peer.step(((1536, 1024),), guidance=False)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mudit_engine.availability import require
from mudit_engine.config import DitConfig

CONTEXT_WIDTH = 1024
GLOBAL_WIDTH = 512
PEER_LATENT = 96


class StableAudioPeer:
    """diffusers' StableAudioDiTModel of equal width, depth and heads. A batch is padded to its longest song, as its pipeline does."""

    name = "diffusers StableAudioDiTModel"

    def __init__(self, config: DitConfig) -> None:
        require("diffusers", "the peer of the benchmark")
        from diffusers import StableAudioDiTModel

        self.head_dim = config.head_dim
        torch.manual_seed(0)
        self.model = StableAudioDiTModel(
            sample_size=1536,
            in_channels=PEER_LATENT,
            out_channels=PEER_LATENT,
            num_layers=config.blocks,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.heads,
            num_key_value_attention_heads=config.heads,
            cross_attention_dim=CONTEXT_WIDTH,
            cross_attention_input_dim=CONTEXT_WIDTH,
            global_states_input_dim=GLOBAL_WIDTH,
        ).eval()

    def prepare(self, songs: Sequence[tuple[int, int]], *, guidance: bool) -> Callable[[], torch.Tensor]:
        """A function that runs one step of the songs (with guidance: twice the batch, as its pipeline does)."""
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        batch = len(songs) * (2 if guidance else 1)
        frames, context = max(f for f, _ in songs), max(n for _, n in songs)
        g = torch.Generator().manual_seed(1)
        x = torch.randn(batch, PEER_LATENT, frames, generator=g)
        states = torch.randn(batch, context, CONTEXT_WIDTH, generator=g)
        summary = torch.randn(batch, 1, GLOBAL_WIDTH, generator=g)
        # the model rotates half of each head and prepends one global token
        rotary = get_1d_rotary_pos_embed(self.head_dim // 2, frames + 1, use_real=True, repeat_interleave_real=False)
        time = torch.full((batch,), 0.5)

        def step() -> torch.Tensor:
            with torch.inference_mode():
                return self.model(
                    x, time, encoder_hidden_states=states, global_hidden_states=summary, rotary_embedding=rotary, return_dict=False
                )[0]

        return step
