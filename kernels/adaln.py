"""Adaptive LayerNorm and gated residuals over packed rows; the modulation row of each token is looked up.

    h = LN(x) (1 + scale[r]) + shift[r]                     layer_norm_modulate
    x' = x + gate[r] y;  h = LN(x') (1 + scale[r]) + shift[r]        residual_norm: the residual stream is read and written once

r = runs: (rows, table row) pairs that say which modulation row each run of packed rows takes.

    h = layer_norm_modulate_reference(x, shift, scale, runs)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


@dataclass(frozen=True)
class Runs:
    """Run-length form of the row index: (number of packed rows, row of the modulation table). On a device it is int32 [T]."""

    items: tuple[tuple[int, int], ...]
    _tensors: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def tensor(self, device: torch.device | str) -> Tensor:
        """int32 [T]: the modulation row of every packed row, made once."""
        device = torch.device(device)
        if device not in self._tensors:
            counts, rows = zip(*self.items, strict=True) if self.items else ((), ())
            index = torch.tensor(rows, dtype=torch.int32).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
            self._tensors[device] = index.to(device)
        return self._tensors[device]

    def slices(self) -> Iterator[tuple[slice, int]]:
        start = 0
        for count, row in self.items:
            yield slice(start, start + count), row
            start += count

    @property
    def rows(self) -> int:
        return sum(count for count, _ in self.items)


def layer_norm_modulate_reference(x_TD: Tensor, shift_RD: Tensor | None, scale_RD: Tensor | None, runs: Runs | None, *, eps: float = EPS) -> Tensor:
    """LayerNorm without affine terms, then (1 + scale) and shift of the run's row; plain LayerNorm when they are None."""
    width = (x_TD.shape[1],)
    if shift_RD is None or scale_RD is None or runs is None:
        return F.layer_norm(x_TD, width, eps=eps)
    parts = [F.layer_norm(x_TD[rows], width, 1 + scale_RD[r], shift_RD[r], eps) for rows, r in runs.slices()]
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def residual_norm_reference(
    x_TD: Tensor,
    y_TD: Tensor,
    gate_RD: Tensor | None,
    shift_RD: Tensor | None,
    scale_RD: Tensor | None,
    runs: Runs | None,
    *,
    eps: float = EPS,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns (x + gate[r] y, its modulated LayerNorm). gate None is 1; shift and scale None give the plain LayerNorm.

    `inplace` writes the residual stream over x (inference only: autograd still needs x).
    """
    if gate_RD is None:
        x = x_TD.add_(y_TD) if inplace else x_TD + y_TD
    elif runs is None:
        raise ValueError("a gate needs runs: which modulation row each packed row takes")
    elif inplace:
        x = x_TD
        for rows, r in runs.slices():
            x[rows].addcmul_(y_TD[rows], gate_RD[r])
    else:
        parts = [torch.addcmul(x_TD[rows], y_TD[rows], gate_RD[r]) for rows, r in runs.slices()]
        x = torch.cat(parts) if len(parts) != 1 else parts[0]
    return x, layer_norm_modulate_reference(x, shift_RD, scale_RD, runs, eps=eps)
