"""The dense layout: sequences padded to one length, boolean masks over keys. It is what leaves PyTorch (ONNX, TensorRT).

    rows of B sequences of N lie end to end, [B N, ...]; only attention and the modulation of a sequence unfold them
    a sequence is [target | description | reference | padding]: order is free, since positions are explicit

A sequence without lyrics sees one null lyric key, whose value is 0: its cross-attention is 0, as in the packed layout.

    layout = DenseLayout(cos, sin, cross_cos, cross_sin, DenseKeys(mask_BN), DenseKeys(lyric_mask_BL), targets=322)
    out_TC = dit.trunk(x_ND, modulation, kv, layout)              # target rows of all sequences, [B 322, C]

Shapes: B sequences, N rows of each, L lyric keys of each, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.kernels.adaln import EPS
from mudit_engine.kernels.rope import rotate_reference


@dataclass(frozen=True)
class DenseKeys:
    """Which keys the queries of each sequence see, bool [B, N]. `expanded` repeats the mask for every query, as ONNX Attention wants it."""

    mask_BN: Tensor
    expanded: bool = False


@dataclass(frozen=True)
class DenseStreams:
    """Keys of several streams, end to end in one buffer (a parallel block: self-attention, then lyrics)."""

    streams: tuple[DenseKeys, ...]


@dataclass(frozen=True)
class PerSequence:
    """The modulation row of a packed row is the number of its sequence."""

    batch: int


@dataclass(frozen=True)
class DenseLayout:
    """What models/layout.py's Layout is to packed rows. Tables are fp32 [1, B N, K/2]."""

    cos: Tensor
    sin: Tensor
    cross_cos: Tensor
    cross_sin: Tensor
    self_segments: DenseKeys
    cross_segments: DenseKeys
    targets: int

    @property
    def batch(self) -> int:
        return self.self_segments.mask_BN.shape[0]

    @property
    def rows(self) -> int:
        return self.cos.shape[1]

    @property
    def runs(self) -> PerSequence:
        return PerSequence(self.batch)

    def joint_segments(self, lyric_offset: int) -> DenseStreams:
        """Self- and cross-attention of one call."""
        return DenseStreams((self.self_segments, self.cross_segments))

    def gather_targets(self, x_ND: Tensor) -> Tensor:
        """Target rows of all sequences, end to end."""
        return x_ND.unflatten(0, (self.batch, -1))[:, : self.targets].flatten(0, 1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, keys: DenseKeys | DenseStreams, cos: Tensor | None, sin: Tensor | None, *, scale: float | None = None
) -> Tensor:
    """Contract of kernels/attention.py: q [B N, S H, K], k and v of all streams [sum of B M, H, K] -> [B N, S H, K]."""
    streams = keys.streams if isinstance(keys, DenseStreams) else (keys,)
    queries = q.unflatten(1, (len(streams), -1)).unbind(1)
    bounds = [0]
    for one in streams:
        bounds.append(bounds[-1] + one.mask_BN.shape[0] * one.mask_BN.shape[1])
    outs = []
    for number, (query, one) in enumerate(zip(queries, streams, strict=True)):
        if cos is not None and sin is not None:
            query = rotate_reference(query, cos[number], sin[number])
        stream = slice(bounds[number], bounds[number + 1]) if len(streams) > 1 else slice(None)
        rows, keys_, values = (x.unflatten(0, (one.mask_BN.shape[0], -1)).transpose(1, 2) for x in (query, k[stream], v[stream]))
        mask = one.mask_BN[:, None, None]
        if one.expanded:
            mask = mask.expand(-1, 1, rows.shape[2], -1)
        y = F.scaled_dot_product_attention(rows, keys_, values, attn_mask=mask, scale=scale)
        outs.append(y.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs, 1) if len(outs) != 1 else outs[0]


def layer_norm_modulate(x_ND: Tensor, shift_BD: Tensor | None, scale_BD: Tensor | None, runs: PerSequence) -> Tensor:
    """Contract of kernels/adaln.py."""
    normed = F.layer_norm(x_ND, (x_ND.shape[1],), eps=EPS)
    if shift_BD is None or scale_BD is None:
        return normed
    return (normed.unflatten(0, (runs.batch, -1)) * (1 + scale_BD)[:, None] + shift_BD[:, None]).flatten(0, 1)


def residual_norm(
    x_ND: Tensor, y_ND: Tensor, gate_BD: Tensor | None, shift_BD: Tensor | None, scale_BD: Tensor | None, runs: PerSequence
) -> tuple[Tensor, Tensor]:
    """Contract of kernels/adaln.py."""
    if gate_BD is not None:
        y_ND = (y_ND.unflatten(0, (runs.batch, -1)) * gate_BD[:, None]).flatten(0, 1)
    x_ND = x_ND + y_ND
    return x_ND, layer_norm_modulate(x_ND, shift_BD, scale_BD, runs)


def pad_rows(parts: Sequence[Tensor], length: int) -> Tensor:
    """[B, length, ...] of rows [n, ...] each, zeros behind them."""
    return torch.stack([F.pad(part, (0, 0) * (part.dim() - 1) + (0, length - len(part))) for part in parts])
