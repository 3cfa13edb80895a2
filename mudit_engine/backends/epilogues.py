"""The MLP's first product with bias and GELU: what can compute it.

    h = LINEAR_GELU["cublaslt"](x, weight, bias)           # gelu_tanh(x W^T + b)

`eager` adds the bias in the product and applies GELU in place; `triton` leaves bias and GELU to one
pass of ours; `cublaslt` has both in the product's epilogue, so that the widest tensor of a step is
written once and read by nobody in between. Its GELU is the tanh form on a CUDA device alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The CPU's GEMM adds the bias for nothing."""
    u = F.linear(x, weight, bias)
    if torch.is_grad_enabled() and u.requires_grad:
        return F.gelu(u, approximate="tanh")
    return torch.ops.aten.gelu_(u, approximate="tanh")


def triton(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from mudit_engine.kernels.bias_gelu import bias_gelu

    return bias_gelu(F.linear(x, weight), bias)


def cublaslt(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Inference on a CUDA device alone: the operator has no gradient, and on a CPU its GELU is the
    exact one.
    """
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)


LINEAR_GELU = {"eager": eager, "triton": triton, "cublaslt": cublaslt}
