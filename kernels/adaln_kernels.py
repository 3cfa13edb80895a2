"""Kernels of adaptive LayerNorm (kernels/adaln.py): one pass over tiles of rows of one run.

    forward     sum = x + gate[r] y;  n = (sum - mean) rstd;  h = n (1 + scale[r]) + shift[r]
    backward    dn = dh (1 + scale[r]);  dx = rstd (dn - mean(dn) - n mean(dn n)) + dsum
                dy = gate[r] dx;  d shift = sum of dh;  d scale = sum of dh n;  d gate = sum of dx y

r is the modulation row of the tile's run, and the sums of a tile's rows are partial rows that
rows.segment_sums adds. Whole rows stay in registers; mean and rstd = 1 / sqrt(variance + eps) are
kept in fp32 for the backward pass.

    norm_fwd_kernel[(tiles,)](x, y, gate, shift, scale, ..., **shape_of_program(width))
"""

from __future__ import annotations

from functools import cache
from typing import Any

import triton
import triton.language as tl

from .rows import row_pointers, row_starts


def _metadata(grid: tuple[int, ...], metadata: Any, args: dict[str, Any]) -> dict[str, Any]:
    x, backward = args["x_ptr"], "dx_ptr" in args
    if backward:
        streams, name = 3 + args["HAS_DSUM"] + 2 * args["HAS_GATE"], "norm_bwd"
    else:
        streams, name = 2 + 2 * args["HAS_Y"], "norm_fwd"
    return {
        "name": f"{name}_{tuple(x.shape)}",
        "flops32": x.numel() * (16 if backward else 10),
        "bytes": x.numel() * x.element_size() * streams,
    }


@triton.jit
def _tile_of(tiles_ptr, n_rows, tile_rows, HAS_TILES: tl.constexpr):
    """(first row, rows, table row) of this program."""
    tile = tl.program_id(0).to(tl.int64)
    if HAS_TILES:
        start, count, r = (
            tl.load(tiles_ptr + tile * 3),
            tl.load(tiles_ptr + tile * 3 + 1),
            tl.load(tiles_ptr + tile * 3 + 2),
        )
        return start.to(tl.int64), count.to(tl.int64), r
    start = tile * tile_rows
    return start, tl.minimum(tile_rows, n_rows - start), 0


@triton.jit
def _table_row(ptr, r, stride_row, cols, inside):
    return tl.load(row_starts(ptr, r, stride_row) + cols, mask=inside, other=0.0).to(tl.float32)[
        None, :
    ]


@triton.jit(launch_metadata=_metadata, do_not_specialize=["n_rows", "tile_rows"])
def norm_fwd_kernel(
    x_ptr,
    y_ptr,
    gate_ptr,
    shift_ptr,
    scale_ptr,
    tiles_ptr,
    sum_ptr,
    h_ptr,
    stats_ptr,
    stride_x_row,
    stride_y_row,
    stride_gate_row,
    stride_shift_row,
    stride_scale_row,
    stride_sum_row,
    n_rows,
    tile_rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
    HAS_TILES: tl.constexpr,
    HAS_Y: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_STATS: tl.constexpr,
):
    start, count, r = _tile_of(tiles_ptr, n_rows, tile_rows, HAS_TILES)
    cols = tl.arange(0, BLOCK_D)
    inside = cols < D
    if HAS_GATE:
        gate = _table_row(gate_ptr, r, stride_gate_row, cols, inside)
    if HAS_SCALE:
        shift = _table_row(shift_ptr, r, stride_shift_row, cols, inside)
        scale = _table_row(scale_ptr, r, stride_scale_row, cols, inside)
    for first in range(0, count, ROW_BLOCK):
        rows = start + first + tl.arange(0, ROW_BLOCK)
        live = rows < start + count
        mask = live[:, None] & inside[None, :]
        x = tl.load(
            row_pointers(x_ptr, rows, stride_x_row) + cols[None, :], mask=mask, other=0.0
        ).to(tl.float32)
        if HAS_Y:
            y = tl.load(
                row_pointers(y_ptr, rows, stride_y_row) + cols[None, :], mask=mask, other=0.0
            ).to(tl.float32)
            if HAS_GATE:
                y = gate * y
            # what is normalised is what is stored: backward sees the same numbers
            rounded = (x + y).to(sum_ptr.dtype.element_ty)
            tl.store(
                row_pointers(sum_ptr, rows, stride_sum_row) + cols[None, :], rounded, mask=mask
            )
            x = rounded.to(tl.float32)
        mean = tl.sum(x, axis=1) / D
        centred = tl.where(mask, x - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + eps)
        h = centred * rstd[:, None]
        if HAS_SCALE:
            h = h * (1.0 + scale) + shift
        tl.store(
            row_pointers(h_ptr, rows, D) + cols[None, :], h.to(h_ptr.dtype.element_ty), mask=mask
        )
        if HAS_STATS:
            tl.store(stats_ptr + rows, mean, mask=live)
            tl.store(stats_ptr + n_rows + rows, rstd, mask=live)


@triton.jit
def _add_part(part_ptr, value, first, inside):
    """Adds one block of rows to this program's partial row in memory (a row too wide for three
    accumulators in registers).
    """
    before = tl.load(part_ptr, mask=inside & (first > 0), other=0.0)
    tl.store(part_ptr, before + tl.sum(value, axis=0), mask=inside)


@triton.jit(launch_metadata=_metadata, do_not_specialize=["n_rows", "tile_rows", "n_tiles"])
def norm_bwd_kernel(
    x_ptr,
    y_ptr,
    gate_ptr,
    scale_ptr,
    stats_ptr,
    tiles_ptr,
    dh_ptr,
    dsum_ptr,
    dx_ptr,
    dy_ptr,
    parts_ptr,
    stride_x_row,
    stride_y_row,
    stride_gate_row,
    stride_scale_row,
    stride_dh_row,
    stride_dsum_row,
    n_rows,
    tile_rows,
    n_tiles,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
    HAS_TILES: tl.constexpr,
    HAS_DSUM: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PARTS_IN_MEMORY: tl.constexpr,
):
    start, count, r = _tile_of(tiles_ptr, n_rows, tile_rows, HAS_TILES)
    cols = tl.arange(0, BLOCK_D)
    inside = cols < D
    # parts [Q, N, D]: shift and scale, then gate
    part_ptr = parts_ptr + tl.program_id(0).to(tl.int64) * D + cols
    next_part = tl.cast(n_tiles, tl.int64) * D
    gate_part = 2 if HAS_SCALE else 0
    # sums over the tile's rows stay two-dimensional until its end: no exchange between threads
    # inside the loop
    if HAS_GATE:
        gate = _table_row(gate_ptr, r, stride_gate_row, cols, inside)
        if not PARTS_IN_MEMORY:
            dgate = tl.zeros((ROW_BLOCK, BLOCK_D), tl.float32)
    if HAS_SCALE:
        scale = _table_row(scale_ptr, r, stride_scale_row, cols, inside)
        if not PARTS_IN_MEMORY:
            dshift = tl.zeros((ROW_BLOCK, BLOCK_D), tl.float32)
            dscale = tl.zeros((ROW_BLOCK, BLOCK_D), tl.float32)
    for first in range(0, count, ROW_BLOCK):
        rows = start + first + tl.arange(0, ROW_BLOCK)
        live = rows < start + count
        mask = live[:, None] & inside[None, :]
        x = tl.load(
            row_pointers(x_ptr, rows, stride_x_row) + cols[None, :], mask=mask, other=0.0
        ).to(tl.float32)
        dh = tl.load(
            row_pointers(dh_ptr, rows, stride_dh_row) + cols[None, :], mask=mask, other=0.0
        ).to(tl.float32)
        mean, rstd = (
            tl.load(stats_ptr + rows, mask=live, other=0.0),
            tl.load(stats_ptr + n_rows + rows, mask=live, other=0.0),
        )
        normed = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
        dnormed = dh
        if HAS_SCALE:
            dnormed = dh * (1.0 + scale)
            if PARTS_IN_MEMORY:
                _add_part(part_ptr, dh, first, inside)
                _add_part(part_ptr + next_part, dh * normed, first, inside)
            else:
                dshift += dh
                dscale += dh * normed
        along_one = tl.sum(dnormed, axis=1) / D
        along_normed = tl.sum(dnormed * normed, axis=1) / D
        dx = rstd[:, None] * (dnormed - along_one[:, None] - normed * along_normed[:, None])
        if HAS_DSUM:
            dx += tl.load(
                row_pointers(dsum_ptr, rows, stride_dsum_row) + cols[None, :], mask=mask, other=0.0
            ).to(tl.float32)
        tl.store(
            row_pointers(dx_ptr, rows, D) + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask
        )
        if HAS_GATE:
            y = tl.load(
                row_pointers(y_ptr, rows, stride_y_row) + cols[None, :], mask=mask, other=0.0
            ).to(tl.float32)
            tl.store(
                row_pointers(dy_ptr, rows, D) + cols[None, :],
                (gate * dx).to(dy_ptr.dtype.element_ty),
                mask=mask,
            )
            if PARTS_IN_MEMORY:
                _add_part(part_ptr + gate_part * next_part, dx * y, first, inside)
            else:
                dgate += dx * y
        if PARTS_IN_MEMORY:
            # the next block's loads may sit in other threads than this block's stores
            tl.debug_barrier()
    if not PARTS_IN_MEMORY:
        if HAS_SCALE:
            tl.store(part_ptr, tl.sum(dshift, axis=0), mask=inside)
            tl.store(part_ptr + next_part, tl.sum(dscale, axis=0), mask=inside)
        if HAS_GATE:
            tl.store(part_ptr + gate_part * next_part, tl.sum(dgate, axis=0), mask=inside)


@cache
def shape_of_program(width: int) -> dict[str, int]:
    """8 columns a thread: one 16-byte access of bf16, and room in registers for a row's inputs and
    three accumulators.
    """
    block = max(triton.next_power_of_2(width), 64)
    warps = min(max(block // 256, 4), 16)
    return {
        "D": width,
        "BLOCK_D": block,
        "ROW_BLOCK": max(1, warps * 256 // block),
        "num_warps": warps,
    }
