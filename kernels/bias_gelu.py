"""Epilogue of the first MLP projection: gelu_tanh(x + bias).

    gelu_tanh(u) = u / 2 (1 + tanh(sqrt(2 / pi) (u + 0.044715 u^3)))

    h = bias_gelu_reference(x, bias)
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bias_gelu_reference(x_TD: Tensor, bias_D: Tensor) -> Tensor:
    """tanh-GELU of x [T, D] + bias [D]. Source: Hendrycks and Gimpel 2016, eq. 2."""
    return F.gelu(x_TD + bias_D, approximate="tanh")
