"""Rotary position embedding: the tables of angles, and the rotation itself.

    (a, b) -> (a cos - b sin, a sin + b cos)  angle of pair i at position p: p / base^(2 i / K)

Pairs are half-split inside the chunks of a head: 64 -> (64,), 96 -> (64, 32), 128 -> (128,), so
that a head of 96 is two matrix products of 64 and 32 with no padded columns. Angles are computed in
fp64 and kept in fp32: in bf16 they drift over a song of minutes.

    cos, sin = rope_table(positions, 96)
    rotated = rotate_reference(x_THK, cos, sin)

Source: Su et al. 2021, "RoFormer".
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_chunks(head_dim: int) -> tuple[int, ...]:
    """Widths of the half-split chunks of one head: the largest power of two, then the rest."""
    chunks = []
    while head_dim:
        width = 1 << (head_dim.bit_length() - 1)
        chunks.append(width)
        head_dim -= width
    return tuple(chunks)


def rope_table(positions: Tensor, head_dim: int, *, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary angles.

    Frequency i is base^(-2i/K), i counted through the chunks of the head width.

    Args:
        positions: float [T], places of the rows, of any unit.
        head_dim: K.
        base: of the frequencies.

    Returns:
        cos and sin, fp32 [T, K/2].

    Source:
        Su et al. 2021 (arXiv 2104.09864).

    Examples:
        >>> import torch
        >>> cos, sin = rope_table(torch.arange(10.0), 64)
        >>> cos.shape, float(cos[0, 0]), float(sin[0, 0])
        (torch.Size([10, 32]), 1.0, 0.0)
    """
    frequency = base ** (
        -torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    )
    angle = positions.to(torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate_reference(x_THK: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotates the pairs of x [..., T, H, K] by tables [..., T, K/2] (or [..., T, H, K/2], an angle
    per head). Returns a new tensor of x's dtype."""
    if cos.dim() < x_THK.dim():
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if inverse:
        sin = -sin
    wide = torch.promote_types(x_THK.dtype, torch.float32)
    halves = [width // 2 for width in rope_chunks(x_THK.shape[-1])]
    # splits rather than slices: a slice's gradient is as large as x
    x_parts = x_THK.to(wide).split([half for half in halves for _ in range(2)], -1)
    parts = []
    for number, (c, s) in enumerate(
        zip(cos.to(wide).split(halves, -1), sin.to(wide).split(halves, -1), strict=True)
    ):
        a, b = x_parts[2 * number : 2 * number + 2]
        parts += [a * c - b * s, a * s + b * c]
    return torch.cat(parts, -1).to(x_THK.dtype)
