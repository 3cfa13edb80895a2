"""A tiny model with random weights that exercises every input of the graphs, and what its export is
held to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mudit_engine.config import ModelConfig, load_config
from mudit_engine.export.parity import SAMPLERS
from mudit_engine.models.folder import PARTS, build_part, load_part, save_config, save_part

VAE = {
    "sample_rate": 8000,
    "channels": 1,
    "n_fft": 256,
    "stft_hop": 128,
    "fold": 4,
    "latent_channels": 8,
    "phase_refinements": 1,
}
VAE |= {"frame_width": 16, "frame_blocks": 1, "latent_width": 16, "latent_blocks": 1}
DIT = {
    "latent_channels": 8,
    "width": 64,
    "blocks": 2,
    "heads": 2,
    "lyric_width": 64,
    "lyric_blocks": 1,
    "description_width": 32,
}
CHINMU = {
    "text_encoder": "characters",
    "text_width": 64,
    "text_blocks": 1,
    "audio_width": 64,
    "audio_blocks": 1,
    "embedding": 32,
}
CHINMU |= {"head_dim": 32}
# of a song that parity is measured in
MODES = {
    *(f"sampler {name}" for name in SAMPLERS),
    *(
        "no guidance",
        "guidance interval",
        "negative description",
        "reference audio",
        "instrumental",
        "nothing said",
    ),
    *("songs of several lengths", "decode", "text"),
}


def micro_config(**dit: object) -> ModelConfig:
    """An interpolant model that exercises every input; keyword arguments are fields of its
    transformer.
    """
    return ModelConfig.model_validate(
        {
            "name": "micro",
            "max_seconds": 20.0,
            "dit": {**DIT, "max_fragments": 4, **dit},
            "vae": VAE,
            "chinmu": CHINMU,
            "path": {"kind": "bezier", "prediction": "velocity"},
            "sampler": {"name": "ode-euler", "steps": 3, "guidance": 2.0},
        }
    )


def save_model(folder: Path, config: ModelConfig) -> Path:
    torch.manual_seed(0)
    save_config(config, folder)
    for part in PARTS:
        module = build_part(part, config)
        # adaLN-Zero starts as the identity, which hears no condition
        for parameter in module.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        save_part(part, module, folder)
    return folder


def parts(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    config = load_config(folder)
    return (
        load_part("dit", config, folder, dtype=dtype),
        load_part("vae", config, folder),
        load_part("chinmu", config, folder),
    )
