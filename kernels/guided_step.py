"""Guidance and one sampler update in one pass, with a row of coefficients for every song.

    out = uncond + w (cond - uncond)        x' = a x + b out + c kept + d noise        kept' = p x + q out

Every sampler of the engine is a table of rows (a, b, c, d, p, q, w): DDIM of any eta, Euler, Heun, Euler-Maruyama, DPM-Solver++ 2M.

    x, kept = guided_step_reference(x, kept, cond, uncond, noise, rows, runs)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .adaln import Runs

COLUMNS = ("a", "b", "c", "d", "p", "q", "w")


def guided_step_reference(
    x_TC: Tensor, kept_TC: Tensor, cond_TC: Tensor, uncond_TC: Tensor, noise_TC: Tensor | None, rows_B7: Tensor, runs: Runs
) -> tuple[Tensor, Tensor]:
    """One update of packed latents; returns (x', kept'), both fp32 like x (float64 stays float64).

    cond and uncond are the network's outputs [T, C] (any float dtype); where a song is not guided, w = 1 and uncond is not read
    into the result even if it holds NaN. noise may be None when every d is 0. rows are fp32 [B, 7]; runs give each packed row its song.
    """
    x_parts, kept_parts = [], []
    for span, song in runs.slices():
        a, b, c, d, p, q, w = rows_B7[song].to(x_TC.dtype).unbind()
        x, kept, cond = x_TC[span], kept_TC[span], cond_TC[span].to(x_TC.dtype)
        out = cond if w == 1 else torch.lerp(uncond_TC[span].to(x.dtype), cond, w)
        new = a * x + b * out
        if c != 0:
            new = new + c * kept
        if noise_TC is not None and d != 0:
            new = new + d * noise_TC[span]
        x_parts.append(new)
        kept_parts.append(p * x + q * out)
    return torch.cat(x_parts), torch.cat(kept_parts)
