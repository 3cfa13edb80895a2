"""Kernels of the packing prologue (kernels/pack_qkv.py): one section (q of a stream, k or v) of a
tile of rows, head by head.

    forward     n = x / sqrt(mean(x^2) + eps);  y = R(p) (n g)
    backward    dn = R(-p) dy g;  dx = (dn - n mean(dn n)) / sqrt(mean(x^2) + eps)
                dg = sum of R(-p) dy n

Normalised are sections with a gain, rotated is k alone. The tile's fp32 table is read once for all
heads. Backward un-rotates, recomputes the RMS (cheaper than keeping it) and leaves one partial row
of each gain's gradient per program. Forward and backward share one file, as they must agree on
where every section and pair lies.

    pack_fwd_kernel[tiles, sections * heads // group](qkv, q_gain, k_gain, cos, sin, q, k, v, ...)
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .rows import row_pointers


def _metadata(grid: tuple[int, ...], metadata: Any, args: dict[str, Any]) -> dict[str, Any]:
    backward = "dx_ptr" in args
    x, elements = (
        args["x_ptr"],
        args["n_rows"] * args["SECTIONS"] * args["HEADS"] * args["HEAD_DIM"],
    )
    bytes_moved = (
        elements * x.element_size() * (3 if backward else 2) + args["n_rows"] * args["HEAD_DIM"] * 4
    )
    return {
        "name": f"pack_{'bwd' if backward else 'fwd'}_{tuple(x.shape)}",
        "flops32": elements * (14 if backward else 7),
        "bytes": bytes_moved,
    }


@triton.jit
def _pair_columns(HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Pair i of a head: columns of its two elements, [1, BLOCK] each, and which i exist. CHUNK is
    the width of the first chunk.

    A head of two chunks (64 + 32) is one tile of 48 pairs in 64 lanes: lanes cost nothing where
    memory is the limit, and runs of 8 columns stay whole, so that accesses stay 16 bytes wide.
    """
    i = tl.arange(0, BLOCK)[None, :]
    first = i < CHUNK // 2
    a_col = i + tl.where(first, 0, CHUNK // 2)
    return a_col, a_col + tl.where(first, CHUNK // 2, (HEAD_DIM - CHUNK) // 2), i < HEAD_DIM // 2


@triton.jit
def _load_table(cos_ptr, sin_ptr, rows, mask, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)[None, :]
    cos = tl.load(row_pointers(cos_ptr, rows, HEAD_DIM // 2) + cols, mask=mask, other=0.0)
    return cos, tl.load(row_pointers(sin_ptr, rows, HEAD_DIM // 2) + cols, mask=mask, other=0.0)


@triton.jit
def _load_gain(gain_ptr, stream, a_col, b_col, inside, HEAD_DIM: tl.constexpr):
    a = tl.load(gain_ptr + stream * HEAD_DIM + a_col, mask=inside, other=0.0).to(tl.float32)
    return a, tl.load(gain_ptr + stream * HEAD_DIM + b_col, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _pack_section_fwd(
    x_ptrs,
    out_ptrs,
    gain_ptr,
    cos_ptr,
    sin_ptr,
    rows,
    n_rows,
    stride_out_head,
    stream,
    eps,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """HEADS heads of one section, from rows at x_ptrs to rows at out_ptrs [R, 1]: copied,
    normalised (NORM), rotated (ROTATE).
    """
    a_col, b_col, inside = _pair_columns(HEAD_DIM, CHUNK, BLOCK)
    mask = (rows < n_rows)[:, None] & inside
    if NORM:
        gain_a, gain_b = _load_gain(gain_ptr, stream, a_col, b_col, inside, HEAD_DIM)
    if ROTATE:
        cos, sin = _load_table(cos_ptr, sin_ptr, rows, mask, HEAD_DIM, BLOCK)
    for head in tl.range(0, HEADS, loop_unroll_factor=2):
        x_head, out_head = (
            x_ptrs + head * HEAD_DIM,
            out_ptrs + tl.multiple_of(head * stride_out_head, 8),
        )
        a = tl.load(x_head + a_col, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x_head + b_col, mask=mask, other=0.0).to(tl.float32)
        if NORM:
            rms = tl.rsqrt(tl.sum(a * a + b * b, axis=1) / HEAD_DIM + eps)[:, None]
            a, b = a * rms * gain_a, b * rms * gain_b
        if ROTATE:
            a, b = a * cos - b * sin, a * sin + b * cos
        tl.store(out_head + a_col, a.to(out_ptrs.dtype.element_ty), mask=mask)
        tl.store(out_head + b_col, b.to(out_ptrs.dtype.element_ty), mask=mask)


@triton.jit(launch_metadata=_metadata, do_not_specialize=["n_rows"])
def pack_fwd_kernel(
    x_ptr,
    q_gain_ptr,
    k_gain_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    stride_x_row,
    stride_k_row,
    stride_k_head,
    stride_v_row,
    stride_v_head,
    n_rows,
    eps,
    SECTIONS: tl.constexpr,
    HAS_Q: tl.constexpr,
    HAS_V: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    groups: tl.constexpr = HEADS // GROUP
    section, head = tl.program_id(1) // groups, (tl.program_id(1) % groups) * GROUP
    # sections lie as q of stream 0, k, v, q of the other streams; without queries as k, v
    key: tl.constexpr = 1 if HAS_Q else 0
    if not HAS_V:
        section = tl.where(section > key, section + 1, section)
    x_ptrs = row_pointers(x_ptr, rows, stride_x_row) + (section * HEADS + head) * HEAD_DIM
    if section == key:
        k_ptrs = row_pointers(k_ptr, rows, stride_k_row) + tl.multiple_of(head * stride_k_head, 8)
        _pack_section_fwd(
            x_ptrs,
            k_ptrs,
            k_gain_ptr,
            cos_ptr,
            sin_ptr,
            rows,
            n_rows,
            stride_k_head,
            0,
            eps,
            GROUP,
            HEAD_DIM,
            CHUNK,
            BLOCK,
            K_NORM,
            True,
        )
    elif section == key + 1:
        if HAS_V:
            v_ptrs = row_pointers(v_ptr, rows, stride_v_row) + tl.multiple_of(
                head * stride_v_head, 8
            )
            _pack_section_fwd(
                x_ptrs,
                v_ptrs,
                None,
                None,
                None,
                rows,
                n_rows,
                stride_v_head,
                0,
                eps,
                GROUP,
                HEAD_DIM,
                CHUNK,
                BLOCK,
                False,
                False,
            )
    elif HAS_Q:
        stream = tl.maximum(section - 2, 0)
        q_ptrs = (
            row_pointers(q_ptr, rows, (SECTIONS - 2) * HEADS * HEAD_DIM)
            + (stream * HEADS + head) * HEAD_DIM
        )
        _pack_section_fwd(
            x_ptrs,
            q_ptrs,
            q_gain_ptr,
            None,
            None,
            rows,
            n_rows,
            HEAD_DIM,
            stream,
            eps,
            GROUP,
            HEAD_DIM,
            CHUNK,
            BLOCK,
            Q_NORM,
            False,
        )


@triton.jit
def _pack_section_bwd(
    x_ptrs,
    d_ptrs,
    dx_ptrs,
    gain_ptr,
    cos_ptr,
    sin_ptr,
    part_ptr,
    rows,
    n_rows,
    stride_d_head,
    stream,
    eps,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """Gradients of HEADS heads of one section from d_ptrs to dx_ptrs, and this program's part of
    the gain's gradient to part_ptr.
    """
    a_col, b_col, inside = _pair_columns(HEAD_DIM, CHUNK, BLOCK)
    mask = (rows < n_rows)[:, None] & inside
    if NORM:
        gain_a, gain_b = _load_gain(gain_ptr, stream, a_col, b_col, inside, HEAD_DIM)
        dgain_a, dgain_b = (
            tl.zeros((TILE_ROWS, BLOCK), tl.float32),
            tl.zeros((TILE_ROWS, BLOCK), tl.float32),
        )
    if ROTATE:
        cos, sin = _load_table(cos_ptr, sin_ptr, rows, mask, HEAD_DIM, BLOCK)
    for head in range(HEADS):
        x_head, d_head, dx_head = (
            x_ptrs + head * HEAD_DIM,
            d_ptrs + tl.multiple_of(head * stride_d_head, 8),
            dx_ptrs + head * HEAD_DIM,
        )
        da = tl.load(d_head + a_col, mask=mask, other=0.0).to(tl.float32)
        db = tl.load(d_head + b_col, mask=mask, other=0.0).to(tl.float32)
        if ROTATE:
            da, db = da * cos + db * sin, db * cos - da * sin
        if NORM:
            a = tl.load(x_head + a_col, mask=mask, other=0.0).to(tl.float32)
            b = tl.load(x_head + b_col, mask=mask, other=0.0).to(tl.float32)
            rms = tl.rsqrt(tl.sum(a * a + b * b, axis=1) / HEAD_DIM + eps)[:, None]
            a, b = a * rms, b * rms
            dgain_a += da * a
            dgain_b += db * b
            da, db = da * gain_a, db * gain_b
            along = tl.sum(a * da + b * db, axis=1)[:, None] / HEAD_DIM
            da, db = rms * (da - a * along), rms * (db - b * along)
        tl.store(dx_head + a_col, da.to(dx_ptrs.dtype.element_ty), mask=mask)
        tl.store(dx_head + b_col, db.to(dx_ptrs.dtype.element_ty), mask=mask)
    if NORM:
        tl.store(part_ptr + a_col, tl.sum(dgain_a, axis=0)[None, :], mask=inside)
        tl.store(part_ptr + b_col, tl.sum(dgain_b, axis=0)[None, :], mask=inside)


@triton.jit(launch_metadata=_metadata, do_not_specialize=["n_rows", "n_parts"])
def pack_bwd_kernel(
    x_ptr,
    q_gain_ptr,
    k_gain_ptr,
    cos_ptr,
    sin_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    dx_ptr,
    q_parts_ptr,
    k_parts_ptr,
    stride_x_row,
    stride_dq_row,
    stride_dq_head,
    stride_dk_row,
    stride_dk_head,
    stride_dv_row,
    stride_dv_head,
    n_rows,
    n_parts,
    eps,
    SECTIONS: tl.constexpr,
    HAS_Q: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    rows = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    groups: tl.constexpr = HEADS // GROUP
    section, group = tl.program_id(1) // groups, tl.program_id(1) % groups
    head, part = group * GROUP, tile * groups + group
    key: tl.constexpr = 1 if HAS_Q else 0
    x_ptrs = row_pointers(x_ptr, rows, stride_x_row) + (section * HEADS + head) * HEAD_DIM
    dx_ptrs = (
        row_pointers(dx_ptr, rows, SECTIONS * HEADS * HEAD_DIM)
        + (section * HEADS + head) * HEAD_DIM
    )
    if section == key:
        dk_ptrs, part_ptr = row_pointers(dk_ptr, rows, stride_dk_row), k_parts_ptr + part * HEAD_DIM
        _pack_section_bwd(
            x_ptrs, dk_ptrs + tl.multiple_of(head * stride_dk_head, 8), dx_ptrs, k_gain_ptr,
            cos_ptr, sin_ptr, part_ptr, rows, n_rows, stride_dk_head, 0, eps, GROUP, HEAD_DIM,
            CHUNK, BLOCK, TILE_ROWS, K_NORM, True,
        )  # fmt: skip
    elif section == key + 1:
        dv_ptrs = row_pointers(dv_ptr, rows, stride_dv_row)
        _pack_section_bwd(
            x_ptrs, dv_ptrs + tl.multiple_of(head * stride_dv_head, 8), dx_ptrs, None, None, None,
            None, rows, n_rows, stride_dv_head, 0, eps, GROUP, HEAD_DIM, CHUNK, BLOCK, TILE_ROWS,
            False, False,
        )  # fmt: skip
    elif HAS_Q:
        stream = tl.maximum(section - 2, 0)
        dq_ptrs, part_ptr = (
            row_pointers(dq_ptr, rows, stride_dq_row),
            q_parts_ptr + (stream * n_parts + part) * HEAD_DIM,
        )
        _pack_section_bwd(
            x_ptrs, dq_ptrs + tl.multiple_of((stream * HEADS + head) * stride_dq_head, 8), dx_ptrs,
            q_gain_ptr, None, None, part_ptr, rows, n_rows, stride_dq_head, stream, eps, GROUP,
            HEAD_DIM, CHUNK, BLOCK, TILE_ROWS, Q_NORM, False,
        )  # fmt: skip
