"""Gated residuals and modulated LayerNorm in code that is compiled once for any batch.

    x' = x + gate[index] y;  h = LN(x') (1 + scale[index]) + shift[index]

kernels/adaln.py takes its runs as Python numbers, which torch.compile would build into the code, so
that every batch were compiled anew. Here they are tensors.

    runs = RunTensors.of(layout.runs, device, table_rows=songs)
    x, h = residual_norm_indexed(x, y, gate, shift, scale, runs)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from . import adaln
from .adaln import EPS
from .runs import Runs


@dataclass(frozen=True)
class RunTensors:
    """Runs as tensors alone, for compiled code: one code serves all runs, whose numbers it never
    sees.

    Args:
        index: int64 [T], the modulation row of every packed row.
        tiles: int32 [N, 3], as Runs.tiles gives them for tiles of TILE_ROWS rows.
        offsets: int32 [R + 1], likewise.
    """

    TILE_ROWS = 64  # about what a full pack takes of a GPU of a hundred processors

    index: Tensor
    tiles: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, runs: Runs, device: torch.device, *, table_rows: int) -> RunTensors:
        """Of runs over a table of `table_rows` rows."""
        tiles = runs.tiles(device, tile_rows=cls.TILE_ROWS, table_rows=table_rows)
        return cls(runs.tensor(device).long(), *tiles)


def residual_norm_indexed(
    x_TD: Tensor,
    y_TD: Tensor,
    gate_RD: Tensor | None,
    shift_RD: Tensor | None,
    scale_RD: Tensor | None,
    runs: RunTensors,
    *,
    eps: float = EPS,
) -> tuple[Tensor, Tensor]:
    """residual_norm_reference by a table lookup a row, which a compiler fuses; it takes memory for
    the looked up rows where nothing does.
    """
    x = x_TD + y_TD if gate_RD is None else torch.addcmul(x_TD, y_TD, gate_RD[runs.index])
    h = F.layer_norm(x, (x.shape[1],), eps=eps)
    if shift_RD is None or scale_RD is None:
        return x, h
    return x, h * (1 + scale_RD[runs.index]) + shift_RD[runs.index]


def residual_norm_traced(
    x_TD: Tensor,
    y_TD: Tensor,
    gate_RD: Tensor | None,
    shift_RD: Tensor | None,
    scale_RD: Tensor | None,
    runs: RunTensors,
    *,
    eps: float = EPS,
) -> tuple[Tensor, Tensor]:
    """residual_norm by its Triton operator, which a compiler leaves as it is."""
    tables = gate_RD is not None or scale_RD is not None
    total, h, _ = adaln._residual_norm(
        x_TD, y_TD, gate_RD, shift_RD, scale_RD, runs.tiles if tables else None,
        runs.offsets if tables else None, RunTensors.TILE_ROWS, eps,
    )  # fmt: skip
    return total, h
