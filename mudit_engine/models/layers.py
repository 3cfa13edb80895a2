"""Small pieces the networks share: Fourier features of scalars, and a pre-norm transformer block on
packed rows.

features = fourier_features(times, 256)
x = EncoderBlock(512, head_dim=64)(x, segments, cos, sin)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mudit_engine import ops
from mudit_engine.kernels.worklist import Segments
from mudit_engine.layouts.dense import DenseKeys


def fourier_features(x_B: Tensor, width: int, *, max_period: float = 10000.0) -> Tensor:
    """cos and sin [B, width] of x at geometric frequencies from 1 to 1 / max_period. Computed in
    fp32: half precision would alias x.
    """
    frequency = torch.exp(
        -math.log(max_period)
        * torch.arange(width // 2, dtype=torch.float32, device=x_B.device)
        / (width // 2)
    )
    angle = x_B.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), -1)


def linear_gelu(linear: nn.Module, x: Tensor) -> Tensor:
    """gelu_tanh(linear(x)): fused for a plain layer; one that LoRA has wrapped is called."""
    if type(linear) is nn.Linear:
        return ops.linear_gelu(x, linear.weight, linear.bias)
    u: Tensor = linear(x)
    return nn.functional.gelu(u, approximate="tanh")


class EncoderBlock(nn.Module):
    """x += Attn(LN x); x += MLP(LN x), with QK-RMSNorm and RoPE, on rows of several sequences
    packed end to end.
    """

    def __init__(self, width: int, *, head_dim: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_gain = nn.Parameter(torch.ones(1, head_dim))
        self.k_gain = nn.Parameter(torch.ones(head_dim))
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, int(mlp_ratio * width))
        self.down = nn.Linear(int(mlp_ratio * width), width)

    def forward(
        self, x_TD: Tensor, segments: Segments | DenseKeys, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """x [T, D] (dense [B, T, D]); cos, sin fp32 [..., K/2] of each row's position in its own
        sequence.
        """
        q, k, v = ops.pack_qkv(
            self.qkv(self.norm1(x_TD)), self.q_gain, self.k_gain, cos, sin, heads=self.heads
        )
        x_TD = x_TD + self.out(ops.attention(q, k, v, segments, cos[None], sin[None]).flatten(-2))
        return x_TD + self.down(ops.linear_gelu(self.norm2(x_TD), self.up.weight, self.up.bias))
