"""A model folder small enough to run in every test, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from mudit_engine.config import ModelConfig, SamplerConfig
from mudit_engine.models.fewstep import write_student
from mudit_engine.models.folder import PARTS, build_part, save_config, save_part
from mudit_engine.models.lora import PARTS as LORA_PARTS
from mudit_engine.models.lora import lora_config, save_lora
from mudit_engine.models.parts import part_file

MICRO = ModelConfig.model_validate(
    {
        "name": "micro",
        "max_seconds": 20.0,
        "dit": {
            "latent_channels": 8,
            "width": 64,
            "blocks": 1,
            "heads": 2,
            "lyric_width": 64,
            "lyric_blocks": 1,
            "description_width": 32,
            "max_fragments": 4,
            "outline": True,
            "edits": True,
        },
        "vae": {
            "sample_rate": 8000,
            "channels": 1,
            "n_fft": 256,
            "stft_hop": 128,
            "fold": 4,
            "latent_channels": 8,
            "frame_width": 16,
            "frame_blocks": 1,
            "latent_width": 16,
            "latent_blocks": 1,
        },
        "chinmu": {
            "text_encoder": "characters",
            "text_width": 64,
            "text_blocks": 1,
            "audio_width": 64,
            "audio_blocks": 1,
            "embedding": 32,
            "head_dim": 32,
        },
        "sampler": {"steps": 2, "guidance": 2.0},
    }
)


def save_micro(folder: Path, *, outline: bool = True, **dit: float) -> Path:
    """Writes the micro model; keyword arguments fill whole tensors of the dit with a value."""
    torch.manual_seed(0)
    switches = {"outline": outline, "edits": outline}
    config = MICRO.model_copy(update={"dit": MICRO.dit.model_copy(update=switches)})
    save_config(config, folder)
    for part in PARTS:
        module = build_part(part, config)
        # adaLN-Zero starts as the identity, which hears no condition
        for parameter in module.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        for name, value in dit.items() if part == "dit" else ():
            module.get_parameter(name.replace("__", ".")).data.fill_(value)
        save_part(part, module, folder)
    return folder


STUDENT = SamplerConfig(name="ode-euler", steps=4, guidance=1.0, shift=3.0)


def save_student(folder: Path, *, seed: int = 0, sampler: SamplerConfig = STUDENT) -> Path:
    """Gives the micro model of this folder a few-step student of random weights. Returns its
    folder.
    """
    torch.manual_seed(seed)
    state = {
        "blocks.0.qkv.lora_A.default.weight": torch.randn(4, 64) * 0.3,
        "blocks.0.qkv.lora_B.default.weight": torch.randn(192, 4) * 0.3,
    }
    home = folder / "fewstep"
    config = lora_config(rank=4, alpha=4, dropout=0.0, parts=LORA_PARTS)
    save_lora(home, state, config, base=folder.name, half=True)
    write_student(home, sampler=sampler, dit=part_file(folder, "dit"))
    return home
