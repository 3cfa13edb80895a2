"""The dense layout: sequences padded to one length, boolean masks over keys. It is what leaves
PyTorch (ONNX, TensorRT).

Rows are [B, N, ...] where the packed layout has [N, ...]; every layer takes both, and the functions
below stand in for the kernels. A sequence is [target | description | reference | padding]: its
order is free, since positions are explicit.

A sequence without lyrics sees one null lyric key, whose value is 0: its cross-attention is 0, as in
the packed layout.

    keys, lyrics = DenseKeys(mask_BN), DenseKeys(lyric_mask_BL)
    layout = DenseLayout(cos, sin, cross_cos, cross_sin, keys, lyrics, targets=322)
    out_BTC = dit.trunk(x_BND, modulation, kv, layout)  # target rows of all sequences, [B, 322, C]

Never B N rows end to end: products of symbolic sizes make tracing three times as slow, and its
guards fail.

Shapes: B sequences, N rows of each, L lyric keys of each, S streams, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.kernels.adaln import EPS
from mudit_engine.kernels.rotary import rotate_reference


@dataclass(frozen=True)
class DenseKeys:
    """Which keys the queries of each sequence see, bool [B, N]. `expanded` repeats the mask for
    every query, as ONNX Attention wants it.
    """

    mask_BN: Tensor
    expanded: bool = False


@dataclass(frozen=True)
class DenseStreams:
    """Keys of several streams, end to end in one buffer (a parallel block: self-attention, then
    lyrics).
    """

    streams: tuple[DenseKeys, ...]


@dataclass(frozen=True)
class PerSequence:
    """The modulation row of a sequence is the sequence's number."""


@dataclass(frozen=True)
class DenseLayout:
    """What mudit_engine/layouts/packed.py's Layout is to packed rows. Tables are fp32 [1, B, N,
    K/2].
    """

    cos: Tensor
    sin: Tensor
    cross_cos: Tensor
    cross_sin: Tensor
    self_segments: DenseKeys
    cross_segments: DenseKeys
    targets: int
    runs: PerSequence = PerSequence()

    @property
    def rows(self) -> int:
        return self.cos.shape[2]

    def joint_tables(self) -> tuple[Tensor, Tensor]:
        """Angles of both streams, fp32 [2, B, N, K/2] each."""
        return torch.cat((self.cos, self.cross_cos)), torch.cat((self.sin, self.cross_sin))

    def joint_segments(self, lyric_offset: int) -> DenseStreams:
        """Self- and cross-attention of one call."""
        return DenseStreams((self.self_segments, self.cross_segments))

    def gather_targets(self, x_BND: Tensor) -> Tensor:
        """Target rows of every sequence, [B, T, D]."""
        return x_BND[:, : self.targets]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: DenseKeys | DenseStreams,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Contract of kernels/attention.py: q [B, N, S H, K], k and v of all streams [B, sum of M, H,
    K], tables [S, B, N, K/2] -> as q.
    """
    streams = keys.streams if isinstance(keys, DenseStreams) else (keys,)
    counts = [one.mask_BN.shape[1] for one in streams]
    k_parts, v_parts = (x.split(counts, 1) if len(streams) > 1 else (x,) for x in (k, v))
    queries = q.unflatten(2, (len(streams), k.shape[2])).unbind(2)
    outs = []
    for number, (query, own_k, own_v, one) in enumerate(
        zip(queries, k_parts, v_parts, streams, strict=True)
    ):
        if cos is not None and sin is not None:
            query = rotate_reference(query, cos[number], sin[number])
        mask = one.mask_BN[:, None, None]
        if one.expanded:
            mask = mask.expand(-1, 1, query.shape[1], -1)
        rows, own_k, own_v = (x.transpose(1, 2) for x in (query, own_k, own_v))
        outs.append(
            F.scaled_dot_product_attention(
                rows, own_k, own_v, attn_mask=mask, scale=scale
            ).transpose(1, 2)
        )
    return torch.cat(outs, 2) if len(outs) != 1 else outs[0]


def layer_norm_modulate(x_BND: Tensor, shift_BD: Tensor | None, scale_BD: Tensor | None) -> Tensor:
    """Contract of kernels/adaln.py, a modulation row a sequence."""
    normed = F.layer_norm(x_BND, (x_BND.shape[-1],), eps=EPS)
    return (
        normed
        if shift_BD is None or scale_BD is None
        else normed * (1 + scale_BD)[:, None] + shift_BD[:, None]
    )


def residual_norm(
    x_BND: Tensor,
    y_BND: Tensor,
    gate_BD: Tensor | None,
    shift_BD: Tensor | None,
    scale_BD: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Contract of kernels/adaln.py, a modulation row a sequence."""
    x_BND = x_BND + (y_BND if gate_BD is None else y_BND * gate_BD[:, None])
    return x_BND, layer_norm_modulate(x_BND, shift_BD, scale_BD)
