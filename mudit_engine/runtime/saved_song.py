"""A song half-way through its steps, as bytes: to go on later, in another process.

    data = freeze(state)                        # latent, kept output, generator, step, levels
    goes_on(data, table)                        # whether a song of these steps can go on from it
    state = runtime.prepare(song); thaw(state, data)

What `prepare` makes is made again from the same inputs; only what steps change is kept. The rest of
the song is then bit for bit what it would have been.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mudit_engine.diffusion.samplers import SamplerTable
from mudit_engine.errors import ModelError
from mudit_engine.runtime.denoiser import SongProgress


def freeze(state: SongProgress) -> bytes | None:
    """Progress of a song, or None for a runtime that keeps it on its device."""
    if state.kept_TC.shape != state.x_TC.shape:
        return None
    return save(
        {
            "x": state.x_TC.detach().cpu().contiguous(),
            "kept": state.kept_TC.detach().cpu().contiguous(),
            "generator": state.generator.get_state(),
            "step": torch.tensor(state.step),
            "times": state.table.times.cpu().contiguous(),
        }
    )


def goes_on(data: bytes, table: SamplerTable) -> bool:
    """Whether progress is of the same steps as a table: of others, it is at another noise level
    than the table's next row begins at.
    """
    try:
        times = load(data)["times"]
    except (SafetensorError, KeyError):
        return False
    return torch.equal(times, table.times.cpu())


def thaw(state: Any, data: bytes) -> None:
    """Puts a freshly prepared song where `freeze` found it. Raises ModelError for progress of
    another song.
    """
    try:
        held = load(data)
        x, kept, generator, step = (held[name] for name in ("x", "kept", "generator", "step"))
        if x.shape != state.x_TC.shape or not 0 <= int(step) <= len(state.table.times):
            raise ValueError(f"step {int(step)} of a song of shape {tuple(x.shape)}")
        state.generator.set_state(generator)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the saved progress is of another song or broken ({error}): start the song again"
        ) from None
    state.x_TC, state.kept_TC = x.to(state.x_TC.device), kept.to(state.x_TC.device)
    state.step = int(step)
