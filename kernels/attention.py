"""Ragged attention over packed rows: self and cross, any number of streams, RoPE on the queries.

    o_i = sum_j softmax_j(scale R(p_i) q_i . k_j) v_j        over the key rows j of i's segment; no keys give 0

Keys arrive rotated (kernels/rope.py); scale is 1 / sqrt(K) unless given.

    out = attention_reference(q, k, v, segments, cos, sin)          # q [T, S H, K], k and v [L, H, K] -> [T, S H, K]
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .rope import rotate_reference
from .worklist import Segments


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, cos: Tensor | None = None, sin: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """Attention of every segment. cos, sin are fp32 [S, T, K/2], a table for each stream (None: queries are not rotated).

    Rows of q that no segment covers come back 0. Source: Vaswani et al. 2017, eq. 1; Su et al. 2021 for the rotation.
    """
    heads = k.shape[1]
    out = q.new_zeros(q.shape)
    for q_start, q_rows, k_start, k_rows, stream in segments.items:
        if not q_rows or not k_rows:
            continue
        rows, columns = slice(q_start, q_start + q_rows), slice(stream * heads, (stream + 1) * heads)
        query = q[rows, columns]
        if cos is not None and sin is not None:
            query = rotate_reference(query, cos[stream, rows], sin[stream, rows])
        keys = slice(k_start, k_start + k_rows)
        # [H, rows, K] views of the packed rows: nothing is padded and nothing is copied
        y = F.scaled_dot_product_attention(query.transpose(0, 1)[None], k[keys].transpose(0, 1)[None], v[keys].transpose(0, 1)[None], scale=scale)
        out[rows, columns] = y[0].transpose(0, 1)
    return out
