"""Denoisers of a few thousand weights, and songs of every sampler for them."""

from __future__ import annotations

import torch
from torch import nn

from mudit_engine.config import DitConfig, PathConfig, SamplerConfig
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.models.dit import DiT
from mudit_engine.runtime.denoiser import Denoiser, SongInputs

CONFIG = DitConfig(
    latent_channels=8,
    width=128,
    blocks=2,
    heads=2,
    lyric_width=64,
    lyric_blocks=1,
    description_width=16,
    max_fragments=4,
    vocabulary_size=50,
)
BEZIER, DDPM = PathConfig(), PathConfig(kind="ddpm", prediction="v")


def make_denoiser(**changes: object) -> Denoiser:
    torch.manual_seed(0)
    model = DiT(CONFIG.model_copy(update=changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return Denoiser(model)


def song(
    frames: int,
    lyrics: int,
    *,
    seed: int = 0,
    path: PathConfig = BEZIER,
    negative: int = 0,
    reference: int = 0,
    user: str = "none",
    **sampler: object,
) -> SongInputs:
    g = torch.Generator().manual_seed(seed + 100)
    return SongInputs(
        frames=frames,
        seconds=frames / 10.77,
        table=sampler_table(path, SamplerConfig(**{"steps": 3, "guidance": 2.0, **sampler})),  # type: ignore[arg-type]
        seed=seed,
        descriptions=torch.randn(1 + seed % 3, 16, generator=g),
        negative=torch.randn(negative, 16, generator=g),
        lyric_ids=torch.randint(0, 50, (lyrics,), generator=g).tolist(),
        user_type=user,
        reference=torch.randn(reference, 8, generator=g) if reference else None,
        reference_kind="vocals",
    )


CONTINUOUS = [
    song(1, 0, seed=1, steps=1),
    song(1600, 210, seed=2, steps=2),
    song(63, 9, seed=3, steps=4, guidance=1.0, user="amateur"),
    song(100, 0, seed=4, steps=5, guidance_interval=(0.2, 0.7), negative=2),
    song(257, 31, seed=5, name="sde-euler", steps=3, reference=120, user="professional"),
    song(31, 40, seed=6, name="ode-heun", steps=3, reference=50, negative=1),
    song(48, 12, seed=7, name="dpmpp-2m", steps=4),
    song(20, 3, seed=8, name="ddim", steps=3, eta=1.0),
]
DISCRETE = [
    song(33, 5, seed=1, path=DDPM, name="ddim", steps=4),
    song(70, 0, seed=2, path=DDPM, name="ddim", eta=1.0, steps=6, user="amateur"),
    song(5, 80, seed=3, path=DDPM, name="dpmpp-2m", steps=5, guidance=0.0),
]


SHORT = [s for s in CONTINUOUS if s.frames < 200]
