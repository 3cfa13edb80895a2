"""Packing prologue of attention: split the fused projection, RMS-normalise queries and keys, rotate
the keys.

    q = rms(x Wq) gq        k = R(p) (rms(x Wk) gk)        v = x Wv

Queries are rotated inside the attention kernel, once per tile; keys here, once per song, so that
cross-attention keys can be cached. How R(p) pairs the columns of a head is defined in rotary.py.

    cos, sin = rope_table(positions, 96)
    q, k, v = pack_qkv(qkv, q_gain, k_gain, cos, sin, heads=16)

The Triton kernels are in pack_qkv_kernels.py. A program takes a tile of rows of one section (q of a
stream, k or v) and walks over its heads, so that the tile's fp32 table is read once. Backward, each
program leaves one partial row of each gain's gradient, which rows.segment_sums adds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .pack_qkv_kernels import pack_bwd_kernel, pack_fwd_kernel
from .rotary import rope_chunks, rotate_reference
from .rows import (
    DTYPES,
    aligned,
    cdiv,
    check_written,
    on_device,
    processors,
    segment_sums,
    unobserved,
)

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


@lru_cache(maxsize=4096)
def _shape_of_program(
    rows: int,
    device: torch.device,
    sections: int,
    heads: int,
    head_dim: int,
    *,
    per_thread: int = 8,
) -> dict[str, int]:
    """Tile of `per_thread` elements of each half; all heads (the table is read once), fewer when
    the rest makes too few programs.
    """
    block = 1 << (head_dim // 2 - 1).bit_length()
    tile_rows = max(128 * per_thread // block, 1)
    programs = cdiv(rows, tile_rows) * sections
    # of three sizes alone: each one is a compiled kernel
    quarter = max(d for d in range(1, max(heads // 4, 1) + 1) if heads % d == 0)
    enough = 8 * processors(device)
    group = next((g for g in (heads, quarter) if programs * (heads // g) >= enough), 1)
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
        shape = _shape_of_program(rows, x.device, programs, heads, head_dim)
        with on_device(x.device):
            pack_fwd_kernel[cdiv(rows, shape["TILE_ROWS"]), programs * heads // shape["GROUP"]](
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


def _into(
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
    check_written({"k": k} if v is None else {"k": k, "v": v}, {"x": x, "cos": cos, "sin": sin})
    return _launch_forward(x, q_gain, k_gain, cos, sin, k, v, q_streams, eps)


_pack_into = torch.library.custom_op("mudit::pack_into", _into, mutates_args=("k", "v"))


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
    shape = _shape_of_program(
        rows, x.device, q_streams + 2, heads, head_dim, per_thread=16 // x.element_size()
    )
    tiles, groups = cdiv(rows, shape["TILE_ROWS"]), heads // shape["GROUP"]
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
            pack_bwd_kernel[tiles, (q_streams + 2) * groups](
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


_CHECKED: dict[Any, int] = {}  # head widths of calls whose shapes and types were found right


def _check(
    x: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k_out: Tensor | None,
    v_out: Tensor | None,
    heads: int,
    q_streams: int,
) -> int:
    """The head width. Raises ValueError for shapes and types that the kernels cannot serve."""
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
    return head_dim


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
    sections = q_streams + 2
    direct = unobserved(x, q_gain, k_gain)
    if direct:
        others = (cos, sin, q_gain, k_gain, k_out, v_out)
        kinds = tuple(None if t is None else (t.shape, t.dtype) for t in others)
        key = (x.shape, x.dtype, heads, q_streams, kinds)
        head_dim = _CHECKED.get(key)
        if head_dim is None:
            head_dim = _check(x, q_gain, k_gain, cos, sin, k_out, v_out, heads, q_streams)
            if len(_CHECKED) > 1024:
                _CHECKED.clear()
            _CHECKED[key] = head_dim
    else:
        head_dim = _check(x, q_gain, k_gain, cos, sin, k_out, v_out, heads, q_streams)
    rows = x.shape[0]
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
        if given is None:
            continue
        if given.dtype != x.dtype or _aligned_heads(given) is not given:
            raise ValueError(
                f"{name} of {given.dtype}, strides {given.stride()}: pass {x.dtype} with a dense "
                f"last axis and 16-byte rows and heads"
            )
        if heads * given.stride(1) >= 2**31:
            raise ValueError(
                f"heads of {name} lie {given.stride(1)} elements apart, beyond what a program "
                f"addresses: pass rows of [heads, {head_dim}]"
            )
    k = (
        torch.empty(rows, heads, head_dim, dtype=x.dtype, device=x.device)
        if k_out is None
        else k_out
    )
    if direct and k_out is None and v_out is None:
        q = _launch_forward(x, q_gain, k_gain, cos, sin, k, None, q_streams, eps)
    else:
        q = (_into if direct else _pack_into)(x, q_gain, k_gain, cos, sin, k, v_out, q_streams, eps)
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
    """Splits a fused projection, normalises q and k, rotates k: one Triton kernel; differentiable.

    Args:
        qkv: [T, (S + 2) H K] in bf16, fp16 or fp32: q of stream 0, k, v, q of the other streams.
        q_gain: [S, K], gains of the queries' RMS norm; None leaves them as they are.
        k_gain: [K]; None likewise.
        cos: fp32 [T, K/2], the keys' rotary angles.
        sin: fp32 [T, K/2].
        heads: H.
        q_streams: S.
        eps: of the RMS norms.
        k_out: strided [T, H, K] that k is written to, such as rows of a buffer that already holds
            lyric keys; no gradients then.
        v_out: the same for v. Without it and without gradients v is a view of qkv.

    Returns:
        q [T, S H, K], k and v [T, H, K].

    Raises:
        ValueError: for head widths that are no sum of at most two powers of two from 16 up, and for
            other shapes or dtypes.

    Source:
        Su et al. 2021 (arXiv 2104.09864); Henry et al. 2020, QK-norm (arXiv 2010.04245).

    Examples:
        >>> import torch
        >>> from mudit_engine.kernels.rotary import rope_table
        >>> cos, sin = rope_table(torch.arange(5.0), 64)
        >>> q, k, v = pack_qkv(torch.randn(5, 3 * 64), None, None, cos, sin, heads=1)
        >>> k.shape
        torch.Size([5, 1, 64])
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
    """Splits, normalises and rotates the cached side of cross-attention, by the same Triton kernel.

    Args:
        kv: [L, 2 H K] in bf16, fp16 or fp32: keys, then values.
        k_gain: [K], the gain of the keys' RMS norm; None leaves them as they are.
        cos: fp32 [L, K/2], rotary angles.
        sin: fp32 [L, K/2].
        heads: H.
        eps: of the RMS norm.
        k_out: strided [L, H, K] that k is written to.
        v_out: the same for v.

    Returns:
        k and v [L, H, K].

    Raises:
        ValueError: as pack_qkv does.

    Examples:
        >>> import torch
        >>> from mudit_engine.kernels.rotary import rope_table
        >>> tables = rope_table(torch.arange(5.0), 64)
        >>> k, v = pack_kv(torch.randn(5, 2 * 64), None, *tables, heads=1)
        >>> v.shape
        torch.Size([5, 1, 64])
    """
    return _run(kv, None, k_gain, cos, sin, k_out, v_out, heads, 0, eps)[1:]
