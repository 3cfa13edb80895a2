"""Guidance and one sampler update in one pass, with a row of coefficients for every song.

    out = uncond + w (cond - uncond)        x' = a x + b out + c kept + d noise        kept' = p x + q out

Every sampler of the engine is a table of rows (a, b, c, d, p, q, w): DDIM of any eta, Euler, Heun, Euler-Maruyama, DPM-Solver++ 2M.

    x, kept = guided_step_reference(x, kept, out, noise, rows, spans)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

COLUMNS = ("a", "b", "c", "d", "p", "q", "w")


@dataclass(frozen=True)
class Spans:
    """Where each song lies: (start, rows, cond_start, uncond_start), the first in x, kept and noise, the last two in the network's output.

    uncond_start is -1 for a song that is not guided at this step (its output is cond, whatever w says).
    """

    items: tuple[tuple[int, int, int, int], ...]
    _tensors: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def tensor(self, device: torch.device | str) -> Tensor:
        """int32 [B, 4] on `device`, made once."""
        device = torch.device(device)
        if device not in self._tensors:
            self._tensors[device] = torch.tensor(self.items, dtype=torch.int32).reshape(-1, 4).to(device)
        return self._tensors[device]


def guided_step_reference(
    x_TC: Tensor, kept_TC: Tensor, out_NC: Tensor, noise_TC: Tensor | None, rows_B7: Tensor, spans: Spans
) -> tuple[Tensor, Tensor]:
    """One update of packed latents; returns new (x', kept') of x's dtype (fp32; float64 stays float64).

    x, kept, noise are [T, C]; out_NC [N, C] is the network's packed output (any float dtype), conditional and unconditional sequences of all songs
    in one buffer. rows_B7 are the songs' coefficients. noise may be None when every d is 0. Rows no span covers are returned unchanged.
    """
    new_x, new_kept = x_TC.clone(), kept_TC.clone()
    for (start, count, cond_start, uncond_start), row in zip(spans.items, rows_B7, strict=True):
        a, b, c, d, p, q, w = row.to(x_TC.dtype).unbind()
        here = slice(start, start + count)
        x, out = x_TC[here], out_NC[cond_start : cond_start + count].to(x_TC.dtype)
        if uncond_start >= 0:
            uncond = out_NC[uncond_start : uncond_start + count].to(x_TC.dtype)
            out = uncond + w * (out - uncond)
        new = a * x + b * out
        if c != 0:  # kept is undefined (it may hold NaN) until a row has written it
            new = new + c * kept_TC[here]
        if d != 0:
            if noise_TC is None:
                raise ValueError("a sampler row has d != 0 but no noise was given")
            new = new + d * noise_TC[here]
        new_x[here], new_kept[here] = new, p * x + q * out
    return new_x, new_kept
