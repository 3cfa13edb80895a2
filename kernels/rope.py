"""Packing prologue of attention: split the fused projection, RMS-normalise queries and keys, rotate the keys.

    q = rms(x Wq) gq        k = R(p) (rms(x Wk) gk)        v = x Wv

Queries are rotated inside the attention kernel, once per tile; keys here, once per song, so that cross-attention keys can be cached.
R(p) turns the pair (a, b) by p / base^(i / n). Pairs are half-split inside the chunks of a head: 64 -> (64,), 96 -> (64, 32), 128 -> (128,),
so that a head of 96 is two matrix products of 64 and 32 with no padded columns.

    cos, sin = rope_table(positions, 96)
    q, k, v = pack_qkv(qkv, q_gain, k_gain, cos, sin, heads=16)
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6


def rope_chunks(head_dim: int) -> tuple[int, ...]:
    """Widths of the half-split chunks of one head: the largest power of two, then the rest."""
    chunks = []
    while head_dim:
        width = 1 << (head_dim.bit_length() - 1)
        chunks.append(width)
        head_dim -= width
    return tuple(chunks)


def rope_table(positions: Tensor, head_dim: int, *, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [T, K/2] in fp32 for float positions [T]. Frequency i is base^(-2i/K), i counted through the chunks."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim)
    angle = positions.to(torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate_reference(x_THK: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotates the pairs of x [T, H, K] by tables [T, K/2] (or [T, H, K/2], an angle per head). Returns a new tensor of x's dtype."""
    if cos.dim() == 2:
        cos, sin = cos[:, None], sin[:, None]
    if inverse:
        sin = -sin
    wide = torch.promote_types(x_THK.dtype, torch.float32)
    cos, sin, start = cos.to(wide), sin.to(wide), 0
    parts = []
    for width in rope_chunks(x_THK.shape[-1]):
        half = width // 2
        a, b = x_THK[..., start : start + half].to(wide), x_THK[..., start + half : start + width].to(wide)
        c, s = cos[..., start // 2 : start // 2 + half], sin[..., start // 2 : start // 2 + half]
        parts += [a * c - b * s, a * s + b * c]
        start += width
    return torch.cat(parts, -1).to(x_THK.dtype)


def rms_norm_reference(x: Tensor, gain: Tensor | None, *, eps: float = EPS) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis, computed in at least fp32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (y if gain is None else y * gain.to(y.dtype)).to(x.dtype)


def pack_qkv_reference(
    qkv: Tensor, q_gain: Tensor | None, k_gain: Tensor | None, cos: Tensor, sin: Tensor, *, heads: int, q_streams: int = 1, eps: float = EPS
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits qkv [T, (S + 2) H K], laid out q of stream 0, k, v, q of the other streams, into q [T, S H, K], k and v [T, H, K].

    Gains are [K] for k and [S, K] for q (one per stream), or None for no normalisation. k comes back rotated by cos, sin [T, K/2]; q does not.
    """
    rows = qkv.shape[0]
    x = qkv.view(rows, q_streams + 2, heads, qkv.shape[1] // ((q_streams + 2) * heads))
    q = torch.cat((x[:, :1], x[:, 3:]), 1) if q_streams > 1 else x[:, :1]
    k, v = x[:, 1], x[:, 2]
    if q_gain is not None:
        q = rms_norm_reference(q, q_gain[:, None], eps=eps)
    if k_gain is not None:
        k = rms_norm_reference(k, k_gain, eps=eps)
    return q.reshape(rows, q_streams * heads, x.shape[-1]), rotate_reference(k, cos, sin), v


def pack_kv_reference(kv: Tensor, k_gain: Tensor | None, cos: Tensor, sin: Tensor, *, heads: int, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Splits kv [L, 2 H K] into a normalised, rotated k and v, both [L, H, K]: the cached side of cross-attention."""
    k, v = kv.view(kv.shape[0], 2, heads, kv.shape[1] // (2 * heads)).unbind(1)
    if k_gain is not None:
        k = rms_norm_reference(k, k_gain, eps=eps)
    return rotate_reference(k, cos, sin), v
