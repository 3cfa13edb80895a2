"""Ragged attention by kernels that take dense batches: segments of equal shape become one batch.

    out = grouped_attention(q, k, v, segments, cos, sin, scale=None, backend="cudnn")

No row is padded: a batch holds what has equally many queries and equally many keys (both branches
of a guided song, songs of one length), and a song of its own length is a batch of one. The
queries are rotated before the calls.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.kernels.rotary import rotate_reference
from mudit_engine.kernels.worklist import Segments


@dataclass(frozen=True)
class Group:
    """Segments of equal shape: the first rows, or all rows where they do not lie evenly."""

    songs: int
    queries: slice | Tensor
    keys: slice | Tensor


def grouped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    scale: float | None,
    backend: str | None = None,
) -> Tensor:
    """Same contract as kernels/attention.py. backend: of torch's SDPA, "cudnn"; None lets torch
    choose.
    """
    heads = k.shape[1]
    out = q.new_zeros(q.shape)
    with _chosen(backend):
        for stream in range(segments.streams):
            columns = slice(stream * heads, (stream + 1) * heads)
            query = q[:, columns]
            if cos is not None and sin is not None:
                query = rotate_reference(query, cos[stream], sin[stream])
            for group in groups(segments, stream, q.device):
                parts = (
                    x[rows].unflatten(0, (group.songs, -1)).transpose(1, 2)
                    for x, rows in ((query, group.queries), (k, group.keys), (v, group.keys))
                )
                y = F.scaled_dot_product_attention(*parts, scale=scale)
                out[group.queries, columns] = y.transpose(1, 2).flatten(0, 1)
    return out


def groups(segments: Segments, stream: int, device: torch.device) -> list[Group]:
    """The batches of a stream, made once a layout."""
    key = ("grouped", stream, device)
    if key not in segments.plans:
        alike: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for q_start, q_rows, k_start, k_rows, own in segments.items:
            if own == stream and q_rows and k_rows:
                alike.setdefault((q_rows, k_rows), []).append((q_start, k_start))
        segments.plans[key] = [
            Group(
                len(starts),
                _rows([q for q, _ in starts], q_rows, device),
                _rows([k for _, k in starts], k_rows, device),
            )
            for (q_rows, k_rows), starts in alike.items()
        ]
    found: list[Group] = segments.plans[key]
    return found


def _rows(starts: list[int], count: int, device: torch.device) -> slice | Tensor:
    if starts == [starts[0] + i * count for i in range(len(starts))]:
        return slice(starts[0], starts[0] + len(starts) * count)
    return torch.cat([torch.arange(start, start + count) for start in starts]).to(device)


def _chosen(backend: str | None) -> contextlib.AbstractContextManager[Any]:
    if backend is None:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel({"cudnn": SDPBackend.CUDNN_ATTENTION}[backend])
