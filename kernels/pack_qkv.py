"""Packing prologue of attention: split the fused projection, RMS-normalise queries and keys, rotate
the keys.

    q = rms(x Wq) gq        k = R(p) (rms(x Wk) gk)        v = x Wv

Queries are rotated inside the attention kernel, once per tile; keys here, once per song, so that
cross-attention keys can be cached. How R(p) pairs the columns of a head is defined in rotary.py.

    cos, sin = rope_table(positions, 96)
    q, k, v = pack_qkv(qkv, q_gain, k_gain, cos, sin, heads=16)

A program takes a tile of rows of one section (q of a stream, k or v) and walks over its heads, so
that the tile's fp32 table is read once. Backward un-rotates, recomputes the RMS (cheaper than
keeping it) and leaves one partial row of each gain's gradient per program. Forward and backward
share one file, as they must agree on where every section and pair lies.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rotary import rope_chunks, rotate_reference
from .rows import DTYPES, aligned, on_device, processors, row_pointers, segment_sums

EPS = 1e-6


def rms_norm_reference(x: Tensor, gain: Tensor | None, *, eps: float = EPS) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, computed in at least fp32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (y if gain is None else y * gain.to(y.dtype)).to(x.dtype)


def pack_qkv_reference(
    qkv: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    q_streams: int = 1,
    eps: float = EPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits qkv [..., T, (S + 2) H K], laid out q of stream 0, k, v, q of the other streams, into
    q [..., T, S H, K], k and v [..., T, H, K].

    Gains are [K] for k and [S, K] for q (one per stream), or None for no normalisation. k comes
    back rotated by cos, sin [..., T, K/2]; q does not.
    """
    x = qkv.unflatten(-1, (q_streams + 2, heads, qkv.shape[-1] // ((q_streams + 2) * heads)))
    q0, k, v, *others = x.unbind(-3)
    q = torch.stack((q0, *others), -3) if others else q0.unsqueeze(-3)
    if q_gain is not None:
        q = rms_norm_reference(q, q_gain[:, None], eps=eps)
    if k_gain is not None:
        k = rms_norm_reference(k, k_gain, eps=eps)
    return q.flatten(-3, -2), rotate_reference(k, cos, sin), v


def pack_kv_reference(
    kv: Tensor, k_gain: Tensor | None, cos: Tensor, sin: Tensor, *, heads: int, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Splits kv [..., L, 2 H K] into a normalised, rotated k and v, both [..., L, H, K]: the cached
    side of cross-attention.
    """
    k, v = kv.unflatten(-1, (2, heads, kv.shape[-1] // (2 * heads))).unbind(-3)
    if k_gain is not None:
        k = rms_norm_reference(k, k_gain, eps=eps)
    return rotate_reference(k, cos, sin), v


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


@triton.jit(launch_metadata=_metadata)
def _pack_fwd_kernel(
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


@triton.jit(launch_metadata=_metadata)
def _pack_bwd_kernel(
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


def _shape_of_program(
    x: Tensor, sections: int, heads: int, head_dim: int, *, per_thread: int = 8
) -> dict[str, int]:
    """Tile of `per_thread` elements of each half; all heads (the table is read once), fewer when
    the rest makes too few programs.
    """
    block = triton.next_power_of_2(head_dim // 2)
    tile_rows = max(128 * per_thread // block, 1)
    programs = triton.cdiv(x.shape[0], tile_rows) * sections
    group = heads
    while group > 1 and programs * (heads // group) < 8 * processors(x.device):
        group = max(d for d in range(1, group) if heads % d == 0)
    return {
        "HEADS": heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "CHUNK": rope_chunks(head_dim)[0],
        "BLOCK": block,
        "TILE_ROWS": tile_rows,
        "num_warps": 4,
    }


def _aligned_heads(x: Tensor) -> Tensor:
    """x [T, H, K] with rows and heads that 16-byte accesses can reach (hints speak of 8 elements,
    whatever the type).
    """
    ready = (
        x.stride(2) == 1
        and x.stride(0) % 8 == 0
        and x.stride(1) % 8 == 0
        and x.data_ptr() % 16 == 0
    )
    return x if ready else x.clone(memory_format=torch.contiguous_format)


def _gain(gain: Tensor | None) -> Tensor | None:
    return None if gain is None else gain.contiguous()


def _launch_forward(
    x: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k: Tensor,
    v: Tensor | None,
    q_streams: int,
    eps: float,
) -> Tensor:
    """Packs x [T, sections H K] into k and v [T, H, K], which may be strided (v None: left where it
    is); returns q [T, S H, K].
    """
    rows, heads, head_dim = k.shape
    q = torch.empty(rows, q_streams * heads, head_dim, dtype=x.dtype, device=x.device)
    if rows:
        x = aligned(x)
        programs = q_streams + 1 + (v is not None)
        shape = _shape_of_program(x, programs, heads, head_dim)
        with on_device(x.device):
            _pack_fwd_kernel[
                triton.cdiv(rows, shape["TILE_ROWS"]), programs * heads // shape["GROUP"]
            ](
                x,
                _gain(q_gain),
                _gain(k_gain),
                cos.contiguous(),
                sin.contiguous(),
                q,
                k,
                v,
                x.stride(0),
                k.stride(0),
                k.stride(1),
                0 if v is None else v.stride(0),
                0 if v is None else v.stride(1),
                rows,
                eps,
                SECTIONS=q_streams + 2,
                HAS_Q=q_streams > 0,
                HAS_V=v is not None,
                Q_NORM=q_gain is not None,
                K_NORM=k_gain is not None,
                **shape,
            )
    return q


@torch.library.custom_op("mudit::pack", mutates_args=())
def _pack(
    x: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    q_streams: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    k = torch.empty(
        x.shape[0], heads, x.shape[1] // ((q_streams + 2) * heads), dtype=x.dtype, device=x.device
    )
    v = torch.empty_like(k)
    return _launch_forward(x, q_gain, k_gain, cos, sin, k, v, q_streams, eps), k, v


@torch.library.custom_op("mudit::pack_into", mutates_args=("k", "v"))
def _pack_into(
    x: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k: Tensor,
    v: Tensor | None,
    q_streams: int,
    eps: float,
) -> Tensor:
    return _launch_forward(x, q_gain, k_gain, cos, sin, k, v, q_streams, eps)


@torch.library.custom_op("mudit::pack_backward", mutates_args=())
def _pack_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    x: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, q_gain [S, K] and k_gain [1, K] (empty where there is no gain)."""
    rows, heads, head_dim = dk.shape
    q_streams = dq.shape[1] // heads
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # one 16-byte access a thread in each half: with more, fp32 spills on sm_100
    shape = _shape_of_program(x, q_streams + 2, heads, head_dim, per_thread=16 // x.element_size())
    tiles, groups = triton.cdiv(rows, shape["TILE_ROWS"]), heads // shape["GROUP"]
    parts = torch.empty(
        q_streams + 1, tiles * groups, head_dim, dtype=torch.float32, device=x.device
    )
    q_parts, k_parts = (
        parts[1:] if q_gain is not None else parts[:0],
        parts[:1] if k_gain is not None else parts[:0],
    )
    if rows:
        x, dq, dk, dv = aligned(x), _aligned_heads(dq), _aligned_heads(dk), _aligned_heads(dv)
        with on_device(x.device):
            _pack_bwd_kernel[tiles, (q_streams + 2) * groups](
                x,
                _gain(q_gain),
                _gain(k_gain),
                cos.contiguous(),
                sin.contiguous(),
                dq,
                dk,
                dv,
                dx,
                q_parts,
                k_parts,
                x.stride(0),
                dq.stride(0),
                dq.stride(1),
                dk.stride(0),
                dk.stride(1),
                dv.stride(0),
                dv.stride(1),
                rows,
                tiles * groups,
                eps,
                SECTIONS=q_streams + 2,
                HAS_Q=q_streams > 0,
                Q_NORM=q_gain is not None,
                K_NORM=k_gain is not None,
                **shape,
            )
    gain = q_gain if q_gain is not None else k_gain
    dtype = x.dtype if gain is None else gain.dtype
    return dx, segment_sums(q_parts, dtype=dtype)[:, 0], segment_sums(k_parts, dtype=dtype)[:, 0]


@_pack.register_fake
def _(
    x: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    q_streams: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    head_dim = x.shape[1] // ((q_streams + 2) * heads)
    q = x.new_empty(x.shape[0], q_streams * heads, head_dim)
    return q, x.new_empty(x.shape[0], heads, head_dim), x.new_empty(x.shape[0], heads, head_dim)


@_pack_into.register_fake
def _(
    x: Tensor,
    q_gain: Any,
    k_gain: Any,
    cos: Tensor,
    sin: Tensor,
    k: Tensor,
    v: Tensor | None,
    q_streams: int,
    eps: float,
) -> Tensor:
    return x.new_empty(x.shape[0], q_streams * k.shape[1], k.shape[2])


@_pack_backward.register_fake
def _(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    x: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gain, streams = q_gain if q_gain is not None else k_gain, dq.shape[1] // dk.shape[1]
    dtype = x.dtype if gain is None else gain.dtype
    dq_gain = x.new_empty(0 if q_gain is None else streams, dk.shape[2], dtype=dtype)
    return (
        x.new_empty(x.shape),
        dq_gain,
        x.new_empty(0 if k_gain is None else 1, dk.shape[2], dtype=dtype),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, q_gain, k_gain, cos, sin, *_, ctx.eps = inputs
    ctx.save_for_backward(x, q_gain, k_gain, cos, sin)


def _differentiate(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    # once: a second look is an error inside a checkpoint
    x, q_gain, k_gain, cos, sin = ctx.saved_tensors
    dx, dq_gain, dk_gain = _pack_backward(dq, dk, dv, x, q_gain, k_gain, cos, sin, ctx.eps)
    return (
        dx,
        None if q_gain is None else dq_gain,
        None if k_gain is None else dk_gain[0],
        None,
        None,
        None,
        None,
        None,
    )


_pack.register_autograd(_differentiate, setup_context=_save)


def _run(
    x: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k_out: Tensor | None,
    v_out: Tensor | None,
    heads: int,
    q_streams: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, sections = x.shape[0], q_streams + 2
    if x.dim() != 2 or x.shape[1] % (sections * heads):
        raise ValueError(
            f"projection {tuple(x.shape)} does not split into {sections} sections of {heads} "
            f"heads: pass [T, {sections} x heads x K]"
        )
    head_dim = x.shape[1] // (sections * heads)
    if head_dim % 16 or len(rope_chunks(head_dim)) > 2 or x.dtype not in DTYPES:
        raise ValueError(
            f"head_dim={head_dim} of {x.dtype} has no triton kernel (64, 96, 128, or another sum "
            f"of two powers of two from 16 up,"
            " of bfloat16, float16, float32): use the eager backend"
        )
    for name, given, shape in (
        ("cos", cos, (rows, head_dim // 2)),
        ("sin", sin, (rows, head_dim // 2)),
        ("q_gain", q_gain, (q_streams, head_dim)),
        ("k_gain", k_gain, (head_dim,)),
        ("k_out", k_out, (rows, heads, head_dim)),
        ("v_out", v_out, (rows, heads, head_dim)),
    ):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"{name} of shape {tuple(given.shape)}: this projection needs {shape}")
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        raise ValueError(
            f"RoPE tables of {cos.dtype}, {sin.dtype}: pass float32 (rope_table makes them)"
        )
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, q_gain, k_gain)
    )
    if k_out is None and v_out is None and needs_grad:
        return _pack(x, q_gain, k_gain, cos, sin, heads, q_streams, eps)
    if needs_grad:
        raise ValueError(
            "k_out and v_out are written in place, which autograd cannot follow: concatenate the "
            "returned k and v, or use no_grad"
        )
    for name, given in (("k_out", k_out), ("v_out", v_out)):
        if given is not None and (given.dtype != x.dtype or _aligned_heads(given) is not given):
            raise ValueError(
                f"{name} of {given.dtype}, strides {given.stride()}: pass {x.dtype} with a dense "
                f"last axis and 16-byte rows and heads"
            )
    k = (
        torch.empty(rows, heads, head_dim, dtype=x.dtype, device=x.device)
        if k_out is None
        else k_out
    )
    q = _pack_into(x, q_gain, k_gain, cos, sin, k, v_out, q_streams, eps)
    # nobody asked for v elsewhere: it stays where the projection wrote it
    v = (
        x.view(rows, sections, heads, head_dim)[:, 2 if q_streams else 1]
        if v_out is None
        else v_out
    )
    return q, k, v


def pack_qkv(
    qkv: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    q_streams: int = 1,
    eps: float = EPS,
    k_out: Tensor | None = None,
    v_out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, S H, K], k and v [T, H, K] from qkv [T, (S + 2) H K], laid out q of stream 0, k, v, q
    of the other streams; differentiable.

    q and k are RMS-normalised with gains [S, K] and [K] (None: not), k is rotated by fp32 tables
    cos, sin [T, K/2] and written to `k_out`, v to `v_out` where given: strided [T, H, K], such as
    rows of a buffer that already holds lyric keys (no gradients then). Without v_out and gradients
    v is a view of qkv. Raises ValueError for head widths that are no sum of at most two powers of
    two from 16 up. Sources: Su et al. 2021 (rotation), Henry et al. 2020 (QK-norm).
    """
    return _run(qkv, q_gain, k_gain, cos, sin, k_out, v_out, heads, q_streams, eps)


def pack_kv(
    kv: Tensor,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    eps: float = EPS,
    k_out: Tensor | None = None,
    v_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalised, rotated k and v [L, H, K] from kv [L, 2 H K]: the cached side of cross-attention.
    As pack_qkv without queries.
    """
    return _run(kv, None, k_gain, cos, sin, k_out, v_out, heads, 0, eps)[1:]
