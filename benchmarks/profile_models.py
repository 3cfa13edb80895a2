"""Models of any preset with random weights, for measuring what a size costs before it is trained.

pipeline = random_pipeline("musit-380m")
"""

from __future__ import annotations

import torch

from mudit_engine.benchmarks.end_to_end import make_network
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.models.chinmu import ChinMu
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.pipeline import SongPipeline
from mudit_engine.runtime.denoiser import Denoiser
from mudit_engine.runtime.load import fast_dtype, usual_device


def random_config(preset: str) -> ModelConfig:
    """The preset with a text encoder that needs no download."""
    config = load_config(preset)
    text = config.chinmu.model_copy(update={"text_encoder": "characters"})
    return config.model_copy(update={"chinmu": text})


def random_pipeline(preset: str, *, dtype: torch.dtype | None = None) -> SongPipeline:
    """A pipeline whose songs are noise and whose costs are the preset's."""
    config, place = random_config(preset), usual_device()
    dtype = dtype or fast_dtype(place)
    dit = make_network(config.dit).to(place, dtype)
    torch.manual_seed(0)
    vae = SpectralVAE(config.vae).eval().requires_grad_(False).to(place)
    vae.decoder.to(dtype)
    chinmu = ChinMu(config.chinmu).eval().requires_grad_(False).to(place)
    return SongPipeline(
        config, vae, chinmu, runtime=Denoiser(dit), runtime_name="torch", precision=dtype
    )
