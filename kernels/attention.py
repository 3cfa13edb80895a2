"""Ragged attention over packed rows: self and cross, any number of streams, RoPE on the queries.

    o_i = sum_j softmax_j(scale R(p_i) q_i . k_j) v_j

The sum runs over the key rows j of i's segment; no keys give 0. Keys arrive rotated
(kernels/pack_qkv.py); scale is 1 / sqrt(K) unless given. The Triton kernels are in
attention_forward.py and attention_backward.py; here is what one calls, as custom operators that
torch.compile, export and activation checkpointing can see.

    out = attention(q, k, v, segments, cos, sin)  # q [T, S H, K], k and v [L, H, K] -> [T, S H, K]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import attention_forward
from .attention_backward import backward, backward_configs
from .attention_forward import Config, forward, forward_config
from .rotary import rotate_reference
from .rows import by_pieces, on_device, unobserved
from .worklist import Segments


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention of every segment. cos, sin are fp32 [S, T, K/2], a table for each stream (None:
    queries are not rotated).

    Rows of q that no segment covers come back 0. Source: Vaswani et al. 2017, eq. 1; Su et al. 2021
    for the rotation.
    """
    heads = k.shape[1]
    if by_pieces(q):
        return _attend_in_place(q, k, v, segments, cos, sin, scale)
    outs = []
    for stream, query in enumerate(q.unflatten(1, (-1, heads)).unbind(1)):
        items = sorted(item for item in segments.items if item[4] == stream and item[1])
        if cos is not None and sin is not None:
            query = rotate_reference(query, cos[stream], sin[stream])
        q_parts, covered = split_rows(query, [item[:2] for item in items])
        (k_parts, _), (v_parts, _) = (split_rows(x, [item[2:4] for item in items]) for x in (k, v))
        parts = []
        for part in zip(q_parts, k_parts, v_parts, strict=True):
            # [H, rows, K] views of the packed rows: nothing is padded and nothing is copied
            rows, keys, values = (x.transpose(0, 1)[None] for x in part)
            y = (
                F.scaled_dot_product_attention(rows, keys, values, scale=scale)
                if keys.shape[2]
                else torch.zeros_like(rows)
            )
            parts.append(y[0].transpose(0, 1))
        if covered:
            outs.append(torch.cat(parts) if len(parts) != 1 else parts[0])
        else:
            out = torch.zeros_like(query)
            for (start, count, *_), y in zip(items, parts, strict=True):
                out[start : start + count] = y
            outs.append(out)
    return torch.cat(outs, 1) if len(outs) != 1 else outs[0].contiguous()


def _attend_in_place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
) -> Tensor:
    """attention_reference where nothing needs a gradient: a segment's queries are rotated, and its
    output written where it belongs, before the next one's.
    """
    heads, out = k.shape[1], None
    for start, count, first, keys, stream in segments.items:
        if not count or not keys:
            continue
        rows, columns = slice(start, start + count), slice(stream * heads, (stream + 1) * heads)
        query = q[rows, columns]
        if cos is not None and sin is not None:
            query = rotate_reference(query, cos[stream, rows], sin[stream, rows])
        # [H, rows, K] views of the packed rows: nothing is padded and nothing is copied
        y = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            k[first : first + keys].transpose(0, 1)[None],
            v[first : first + keys].transpose(0, 1)[None],
            scale=scale,
        )
        if out is None:
            out = y.new_zeros(q.shape)  # of the type that autocast gives y
        out[rows, columns] = y[0].transpose(0, 1)
    return q.new_zeros(q.shape) if out is None else out


def split_rows(x: Tensor, spans: Sequence[tuple[int, ...]]) -> tuple[Sequence[Tensor], bool]:
    """Views of x at (start, count) spans, and whether they are all of x, end to end.

    Then it is one split, whose gradient is one concatenation; a slice's gradient is as large as x,
    for every slice.
    """
    ends = [start + count for start, count in spans]
    if [start for start, _ in spans] == [0, *ends[:-1]] and ends and ends[-1] == x.shape[0]:
        return x.split([count for _, count in spans]), True
    return [x[start:end] for (start, _), end in zip(spans, ends, strict=True)], False


HEAD_DIMS = (64, 96, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PRECISIONS = ("tf32", "ieee")


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor | None, sin: Tensor | None, q_tiles: Tensor,
    dq_tiles: Tensor, dkv_tiles: Tensor, scale: float, precision: str, q_covered: bool,
    k_covered: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out [T, S H, K] and lse [S H, T] (natural logarithm of the softmax sums, -inf without keys).
    dq_tiles, dkv_tiles: for gradients.
    """
    with on_device(q.device):
        config = forward_config(
            q.shape[-1], q.dtype, attention_forward.target_capability(), precision
        )
        return forward(
            q, k, v, cos, sin, q_tiles, config, scale=scale, precision=precision, covered=q_covered
        )


attention_fwd = torch.library.custom_op("mudit::attention_fwd", _forward, mutates_args=())


@attention_fwd.register_fake
def unwritten(
    q, k, v, cos, sin, q_tiles, dq_tiles, dkv_tiles, scale, precision, q_covered, k_covered
):
    """out and lse of a forward operator, as they are traced."""
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(
        (q.shape[1], q.shape[0]), dtype=torch.float32
    )


@torch.library.custom_op("mudit::attention_bwd", mutates_args=())
def attention_bwd(
    d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    cos: Tensor | None, sin: Tensor | None, dq_tiles: Tensor, dkv_tiles: Tensor, scale: float,
    precision: str, q_covered: bool, k_covered: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v. d_lse [S H, T] may be None (the softmax sums went nowhere)."""
    with on_device(q.device):
        configs = backward_configs(
            q.shape[-1], q.dtype, attention_forward.target_capability(), precision
        )
        return backward(
            d_out, d_lse, q, k, v, out, lse, cos, sin, dq_tiles, dkv_tiles, configs,
            scale=scale, precision=precision, q_covered=q_covered, k_covered=k_covered,
        )  # fmt: skip


@attention_bwd.register_fake
def _(
    d_out,
    d_lse,
    q,
    k,
    v,
    out,
    lse,
    cos,
    sin,
    dq_tiles,
    dkv_tiles,
    scale,
    precision,
    q_covered,
    k_covered,
):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """What the gradient of any forward operator with attention_fwd's arguments needs."""
    q, k, v, cos, sin, _, dq_tiles, dkv_tiles, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, cos, sin, dq_tiles, dkv_tiles, *output)
    ctx.set_materialize_grads(False)


def gradients(
    ctx: Any, d_out: Tensor | None, d_lse: Tensor | None, *, backward: Any = None
) -> tuple[Tensor | None, ...]:
    """Of what keep_for_backward() kept, by attention_bwd or another operator of its arguments."""
    q, k, v, cos, sin, dq_tiles, dkv_tiles, out, lse = ctx.saved_tensors
    if d_out is None:
        d_out = torch.zeros_like(out)
    grads = (backward or attention_bwd)(
        d_out, d_lse, q, k, v, out, lse, cos, sin, dq_tiles, dkv_tiles, *ctx.options
    )
    return *grads, *[None] * 9


attention_fwd.register_autograd(gradients, setup_context=keep_for_backward)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None,
    sin: Tensor | None,
    precision: str,
) -> None:
    """Raises ValueError for what the kernels cannot serve."""
    if (
        q.dim() != 3
        or k.dim() != 3
        or k.shape != v.shape
        or q.shape[2] != k.shape[2]
        or not k.shape[1]
        or q.shape[1] % k.shape[1]
    ):
        given = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"{given}: pass q [T, streams x H, K], and k and v [L, H, K]")
    if q.shape[2] not in HEAD_DIMS:
        raise ValueError(
            f"head_dim={q.shape[2]} has no triton kernel ({', '.join(map(str, HEAD_DIMS))}): pass "
            f"backend='eager'"
        )
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q {q.dtype}, k {k.dtype}, v {v.dtype}: pass all three as bfloat16, float16 or float32"
        )
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision={precision!r} is not known: pass 'tf32' (tensor cores) or 'ieee' (exact "
            f"fp32 products)"
        )
    if (cos is None) != (sin is None):
        raise ValueError(
            "cos and sin come together: pass both, or neither for queries that are not rotated"
        )
    streams = q.shape[1] // k.shape[1]
    wanted = (streams, q.shape[0], q.shape[2] // 2)
    for name, table in (("cos", cos), ("sin", sin)):
        if table is not None and (table.shape != wanted or table.dtype != torch.float32):
            raise ValueError(
                f"{name} is {table.dtype} {tuple(table.shape)}: pass a float32 table [streams, T, "
                f"K/2] = {wanted}"
            )
    segments.check(q_rows=q.shape[0], k_rows=k.shape[0], streams=streams)
    segments.check_reach(
        q_stride=max(q.stride(0), q.shape[1] * q.shape[2]), k_stride=max(k.stride(0), v.stride(0))
    )


def _blocks(
    head_dim: int, dtype: torch.dtype, precision: str, device: torch.device
) -> tuple[int, int, int]:
    """Rows of a tile of the forward, query-gradient and key-gradient kernel on a device."""
    with on_device(device):
        capability = attention_forward.target_capability()
    by_query, by_key = backward_configs(head_dim, dtype, capability, precision)
    return (
        forward_config(head_dim, dtype, capability, precision).block_q,
        by_query.block_q,
        by_key.block_k,
    )


# what torch.compiler.assume_constant_result sets; calling it would import all of dynamo along with
# this module
_blocks._dynamo_marked_constant = True  # type: ignore[attr-defined]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    precision: str,
    launch: Callable[..., tuple[Tensor, Tensor]] = forward,
    configure: Callable[..., Config] = forward_config,
) -> Tensor:
    """attention() where nothing is recorded: what shapes and strides decide is looked up in
    segments.plans, and the launcher is called as it is. launch, configure: another forward kernel
    with the arguments of attention_forward.forward and forward_config.
    """
    tables = None if cos is None or sin is None else (cos.shape, cos.dtype, sin.shape, sin.dtype)
    with on_device(q.device):
        key = (
            launch, q.shape, q.stride(), q.dtype, k.shape, k.stride(), k.dtype, v.shape,
            v.stride(), v.dtype, tables, q.device, scale, precision,
            attention_forward.target_capability(),
        )  # fmt: skip
        plan = segments.plans.get(key)
        if plan is None:
            _check(q, k, v, segments, cos, sin, precision)
            scale = _scale(scale, q.shape[2])
            config = configure(q.shape[2], q.dtype, key[-1], precision)
            streams = q.shape[1] // k.shape[1]
            covered, _ = segments.covers(q_rows=q.shape[0], k_rows=k.shape[0], streams=streams)
            tiles = segments.query_tiles(config.block_q, q.device)
            plan = segments.plans[key] = (tiles, config, scale, covered)
        tiles, config, scale, covered = plan
        if q.stride(-1) != 1 or k.stride(-1) != 1 or v.stride(-1) != 1:
            q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        if cos is not None and sin is not None:
            cos, sin = cos.contiguous(), sin.contiguous()
        return launch(
            q, k, v, cos, sin, tiles, config, scale=scale, precision=precision, covered=covered
        )[0]


def _scale(scale: float | None, head_dim: int) -> float:
    """1 / sqrt(K) unless given. Raises ValueError unless it is positive."""
    scale = head_dim**-0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(
            f"scale={scale}: pass a positive number (the running maximum is taken before scaling)"
        )
    return scale


def record(
    operator: Callable[..., tuple[Tensor, Tensor]],
    block_q: int | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float | None,
    precision: str,
    *,
    block_k: int | None = None,
) -> Tensor:
    """attention() by a forward operator with attention_fwd's arguments, where gradients or traces
    are wanted. block_q: rows of its query tiles, None for attention_fwd's own; block_k: of the
    tiles of the key gradients, None for attention_bwd's own.
    """
    _check(q, k, v, segments, cos, sin, precision)
    streams, head_dim = q.shape[1] // k.shape[1], q.shape[2]
    scale = _scale(scale, head_dim)
    block_fwd, block_dq, block_dkv = _blocks(head_dim, q.dtype, precision, q.device)
    q_tiles = segments.query_tiles(block_q or block_fwd, q.device)
    dq_tiles = dkv_tiles = q_tiles[:0]
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        segments.check_keys_apart()
        dq_tiles, dkv_tiles = (
            segments.query_tiles(block_dq, q.device),
            segments.key_tiles(block_k or block_dkv, q.device),
        )
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    cos, sin = (None if x is None else x.contiguous() for x in (cos, sin))
    covered = segments.covers(q_rows=q.shape[0], k_rows=k.shape[0], streams=streams)
    return operator(q, k, v, cos, sin, q_tiles, dq_tiles, dkv_tiles, scale, precision, *covered)[0]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    scale: float | None = None,
    precision: str = "tf32",
) -> Tensor:
    """Attention of every segment by the Triton kernels: what attention_reference() computes.

    Differentiable in q, k and v if no two segments share key rows. Needs a GPU, or
    TRITON_INTERPRET=1.

    Args:
        q: [T, S H, K] in bf16, fp16 or fp32, K 64, 96 or 128. Rows and heads may be strided; the
            last axis is copied if it is.
        k: [L, H, K] of the same dtype, already rotated.
        v: [L, H, K].
        segments: which rows see which.
        cos: fp32 [S, T, K/2], rotary angles of the queries; None rotates nothing.
        sin: fp32 [S, T, K/2].
        scale: what q k is multiplied by, positive; None is 1 / sqrt(K).
        precision: of fp32 products, "tf32" or "ieee".

    Returns:
        A contiguous [T, S H, K] of q's dtype.

    Raises:
        ValueError: for other shapes, dtypes or head widths, or segments that leave the buffers.

    Source:
        Dao 2023, FlashAttention-2 (arXiv 2307.08691).

    Examples:
        >>> import torch
        >>> q, k, v = torch.randn(3, 8, 1, 64).unbind()
        >>> segments = Segments.self_attention([3, 5])
        >>> y = attention(q, k, v, segments, precision="ieee")
        >>> bool(torch.allclose(y, attention_reference(q, k, v, segments), atol=1e-5))
        True
    """
    if unobserved(q, k, v):
        return attend(q, k, v, segments, cos, sin, scale, precision)
    return record(attention_fwd, None, q, k, v, segments, cos, sin, scale, precision)
