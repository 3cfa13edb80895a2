"""Ragged attention by torch's flex_attention: a block mask says which rows see which.

    out = flex(q, k, v, segments, cos, sin, scale=None)

On a CUDA device it is compiled, once for all lengths; elsewhere it runs as plain tensor operations
with all scores in memory, which is for checking it alone. The queries are rotated before the call.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mudit_engine.kernels.rotary import rotate_reference
from mudit_engine.kernels.worklist import Segments


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    scale: float | None,
) -> Tensor:
    """Same contract as kernels/attention.py, for segments that do not share rows of keys."""
    heads, outs = k.shape[1], []
    for stream in range(q.shape[1] // heads):
        query = q[:, stream * heads : (stream + 1) * heads]
        if not any(item[1] and item[3] for item in segments.items if item[4] == stream):
            outs.append(torch.zeros_like(query))
            continue
        if cos is not None and sin is not None:
            query = rotate_reference(query, cos[stream], sin[stream])
        mask = _mask(segments, stream, q.shape[0], k.shape[0], q.device)
        parts = (x.transpose(0, 1)[None] for x in (query, k, v))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
            y = _function(q.device.type)(*parts, block_mask=mask, scale=scale)
        outs.append(y[0].transpose(0, 1))
    return torch.cat(outs, 1) if len(outs) != 1 else outs[0].contiguous()


@cache
def _function(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


def _mask(segments: Segments, stream: int, rows: int, keys: int, device: torch.device) -> Any:
    """The block mask of a stream, made once a layout: a row sees the keys that carry its number."""
    key = ("flex", stream, rows, keys, device)
    if key not in segments.plans:
        from torch.nn.attention.flex_attention import create_block_mask

        of_row, of_key = torch.full((rows,), -1), torch.full((keys,), -2)
        for number, (q_start, q_rows, k_start, k_rows, own) in enumerate(segments.items):
            if own == stream:
                of_row[q_start : q_start + q_rows] = number
                of_key[k_start : k_start + k_rows] = number
        of_row, of_key = of_row.to(device), of_key.to(device)

        def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return of_row[i] == of_key[j]

        segments.plans[key] = create_block_mask(sees, None, None, rows, keys, device=str(device))
    return segments.plans[key]
