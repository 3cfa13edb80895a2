"""The `flash` backend: ragged attention by flash-attn's varlen kernel, or torch's own where
flash-attn is not installed.

    out = varlen_attention(q, k, v, segments, cos, sin, scale=None)

Segments of one stream become one call with cu_seqlens. Rows that lie end to end are passed as
views; others are gathered. The queries are rotated before the call: these kernels know no RoPE for
packed keys of another length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mudit_engine.availability import available
from mudit_engine.errors import InputError, MissingError
from mudit_engine.kernels.rotary import rotate_reference
from mudit_engine.kernels.worklist import Segments

# q, k, v [rows, H, K], cu_q, cu_k int32 [N + 1], longest q, longest k, scale -> [rows, H, K]
Varlen = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float], Tensor]


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    scale: float | None,
    kernel: Varlen | None = None,
) -> Tensor:
    """Same contract as kernels/attention.py. Raises InputError for what the kernels cannot do,
    MissingError when there is none.
    """
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise InputError(
            f"backend 'flash' takes float16 and bfloat16, not "
            f"{str(q.dtype).removeprefix('torch.')}: use 'triton' or 'eager'"
        )
    kernel = kernel or _kernel(q)
    heads = k.shape[1]
    out = q.new_zeros(q.shape)
    for stream in range(segments.streams):
        # a sequence without keys keeps its zeros: the kernels divide by an empty sum
        items = [item for item in segments.items if item[4] == stream and item[1] and item[3]]
        if not items:
            continue
        q_rows = _rows([(start, count) for start, count, *_ in items], q.device)
        k_rows = _rows([(start, count) for _, _, start, count, _ in items], q.device)
        columns = slice(stream * heads, (stream + 1) * heads)
        query = q[q_rows, columns]
        if cos is not None and sin is not None:
            query = rotate_reference(query, cos[stream][q_rows], sin[stream][q_rows])
        q_counts, k_counts = [item[1] for item in items], [item[3] for item in items]
        cu_q, cu_k = (_cumulative(counts, q.device) for counts in (q_counts, k_counts))
        softmax_scale = scale if scale is not None else q.shape[2] ** -0.5
        out[q_rows, columns] = kernel(
            query, k[k_rows], v[k_rows], cu_q, cu_k, max(q_counts), max(k_counts), softmax_scale
        )
    return out


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


def _kernel(q: Tensor) -> Varlen:
    if not q.is_cuda:
        raise MissingError("backend 'flash' needs a CUDA device: use 'eager' here")
    if available("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        def flash(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            cu_q: Tensor,
            cu_k: Tensor,
            max_q: int,
            max_k: int,
            scale: float,
        ) -> Tensor:
            packed = (q.contiguous(), k.contiguous(), v.contiguous(), cu_q, cu_k, max_q, max_k)
            result: Tensor = flash_attn_varlen_func(*packed, softmax_scale=scale)
            return result

        return flash
    from torch.nn.attention.varlen import varlen_attn

    def native(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        scale: float,
    ) -> Tensor:
        result: Tensor = varlen_attn(
            q.contiguous(), k.contiguous(), v.contiguous(), cu_q, cu_k, max_q, max_k, scale=scale
        )
        return result

    return native
