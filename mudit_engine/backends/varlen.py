"""Ragged attention by kernels that take packed rows and cumulative lengths: flash-attention 2, 3
and 4, or torch's own.

    out = varlen_attention(q, k, v, segments, cos, sin, scale=None, kernel=torch_varlen())

Segments of one stream become one call with cu_seqlens, which are made once a layout and kept in
segments.plans, so that a captured step copies nothing. Rows that lie end to end are passed as
views; others are gathered. The queries are rotated before the call: these kernels know no RoPE for
packed keys of another length.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mudit_engine.kernels.rotary import rotate_reference
from mudit_engine.kernels.worklist import Segments

# q, k, v [rows, H, K], cu_q, cu_k int32 [N + 1], longest q, longest k, scale -> [rows, H, K]
Varlen = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float], Tensor]


@dataclass(frozen=True)
class Rows:
    """Where the rows of one stream lie, and how long its sequences are."""

    queries: slice | Tensor
    keys: slice | Tensor
    cu_q: Tensor
    cu_k: Tensor
    longest_q: int
    longest_k: int


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    scale: float | None,
    kernel: Varlen,
) -> Tensor:
    """Same contract as kernels/attention.py."""
    heads = k.shape[1]
    out = q.new_zeros(q.shape)
    for stream in range(segments.streams):
        rows = stream_rows(segments, stream, q.device)
        if rows is None:
            continue
        columns = slice(stream * heads, (stream + 1) * heads)
        query = q[rows.queries, columns]
        if cos is not None and sin is not None:
            query = rotate_reference(query, cos[stream][rows.queries], sin[stream][rows.queries])
        softmax_scale = scale if scale is not None else q.shape[2] ** -0.5
        keys, values = k[rows.keys].contiguous(), v[rows.keys].contiguous()
        lengths = (rows.cu_q, rows.cu_k, rows.longest_q, rows.longest_k)
        out[rows.queries, columns] = kernel(
            query.contiguous(), keys, values, *lengths, softmax_scale
        )
    return out


def stream_rows(segments: Segments, stream: int, device: torch.device) -> Rows | None:
    """The rows of a stream, made once; None when no segment of it has both queries and keys."""
    key = ("varlen", stream, device)
    if key not in segments.plans:
        # a sequence without keys keeps its zeros: the kernels divide by an empty sum
        items = [item for item in segments.items if item[4] == stream and item[1] and item[3]]
        q_counts, k_counts = [item[1] for item in items], [item[3] for item in items]
        segments.plans[key] = items and Rows(
            _rows([(start, count) for start, count, *_ in items], device),
            _rows([(start, count) for _, _, start, count, _ in items], device),
            _cumulative(q_counts, device),
            _cumulative(k_counts, device),
            max(q_counts),
            max(k_counts),
        )
    return segments.plans[key] or None


def _rows(spans: Sequence[tuple[int, int]], device: torch.device) -> slice | Tensor:
    """A slice where the spans lie end to end, else the rows' indices."""
    if all(
        start + count == following for (start, count), (following, _) in itertools.pairwise(spans)
    ):
        return slice(spans[0][0], spans[-1][0] + spans[-1][1])
    return torch.cat([torch.arange(start, start + count) for start, count in spans]).to(device)


def _cumulative(counts: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(
        list(itertools.accumulate(counts, initial=0)), dtype=torch.int32, device=device
    )


@cache
def torch_varlen() -> Varlen:
    """torch.nn.attention.varlen, which calls the flash-attention that torch was built with."""
    from torch.nn.attention.varlen import varlen_attn

    def native(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
        scale: float,
    ) -> Tensor:  # fmt: skip
        result: Tensor = varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale)
        return result

    return native


@cache
def package_varlen(module: str) -> Varlen:
    """flash_attn_varlen_func of a flash-attention package: "flash_attn" (2), "flash_attn_interface"
    (3) or "flash_attn.cute" (4). Their signatures differ by release: what one does not name is not
    passed, and of (out, softmax sums) the first is taken.
    """
    function = __import__(module, fromlist=["flash_attn_varlen_func"]).flash_attn_varlen_func
    known = set(inspect.signature(function).parameters)

    def packaged(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
        scale: float,
    ) -> Tensor:  # fmt: skip
        named = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "softmax_scale": scale}
        named |= {"max_seqlen_q": max_q, "max_seqlen_k": max_k}
        result = function(q, k, v, **{name: x for name, x in named.items() if name in known})
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return packaged
