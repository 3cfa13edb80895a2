"""Epilogue of the first MLP projection: gelu_tanh(x + bias).

    gelu_tanh(u) = u / 2 (1 + tanh z) = u sigmoid(2 z)        z = sqrt(2 / pi) (u + 0.044715 u^3)
    gelu_tanh'(u) = s (1 + 2 u (1 - s) z'(u))        s = sigmoid(2 z)

    h = bias_gelu(x, bias)

A program takes a block of columns of 64 rows: the bias is read once, and backward leaves one
partial row of its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .rows import aligned, cdiv, check_rows, on_device, row_pointers, segment_sums, unobserved

# 64 rows amortise the bias and, backward, one fp32 partial row of its gradient to 2-3 % of the
# traffic
TILE_ROWS = 64
BLOCK_D = 256
MAX_ROWS = 65535 * TILE_ROWS  # of the grid's second axis


def bias_gelu_reference(x_TD: Tensor, bias_D: Tensor) -> Tensor:
    """tanh-GELU of x [T, D] + bias [D]. Source: Hendrycks and Gimpel 2016, eq. 2."""
    return F.gelu(x_TD + bias_D, approximate="tanh")


@triton.jit
def _exp_minus_2z(u):
    """e = exp(-2 z), so that s = 1 / (1 + e) and 1 - s = e s without cancellation. The clamp (s ~
    1e-35) keeps e s finite.
    """
    return tl.exp(tl.minimum(-1.5957691216057308 * u * (1.0 + 0.044715 * u * u), 80.0))


def _metadata(grid: tuple[int, ...], metadata: Any, args: dict[str, Any]) -> dict[str, Any]:
    x, backward = args["x_ptr"], "dx_ptr" in args
    return {
        "name": f"bias_gelu_{'bwd' if backward else 'fwd'}_{tuple(x.shape)}",
        "flops32": x.numel() * (20 if backward else 9),
        "bytes": x.numel() * x.element_size() * (3 if backward else 2),
    }


@triton.jit(launch_metadata=_metadata, do_not_specialize=["n_rows"])
def _bias_gelu_fwd_kernel(
    x_ptr,
    bias_ptr,
    h_ptr,
    stride_x_row,
    n_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
):
    start = tl.program_id(1).to(tl.int64) * TILE_ROWS
    cols = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = cols < D
    bias = tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    for first in range(0, tl.minimum(TILE_ROWS, n_rows - start), ROW_BLOCK):
        rows = start + first + tl.arange(0, ROW_BLOCK)
        mask = (rows < n_rows)[:, None] & inside[None, :]
        u = (
            tl.load(
                row_pointers(x_ptr, rows, stride_x_row) + cols[None, :], mask=mask, other=0.0
            ).to(tl.float32)
            + bias
        )
        h = u / (1.0 + _exp_minus_2z(u))
        tl.store(
            row_pointers(h_ptr, rows, D) + cols[None, :], h.to(h_ptr.dtype.element_ty), mask=mask
        )


@triton.jit(launch_metadata=_metadata, do_not_specialize=["n_rows"])
def _bias_gelu_bwd_kernel(
    x_ptr,
    bias_ptr,
    dh_ptr,
    dx_ptr,
    parts_ptr,
    stride_x_row,
    stride_dh_row,
    n_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
):
    tile = tl.program_id(1).to(tl.int64)
    start = tile * TILE_ROWS
    cols = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = cols < D
    bias = tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    dbias = tl.zeros((ROW_BLOCK, BLOCK_D), tl.float32)
    for first in range(0, tl.minimum(TILE_ROWS, n_rows - start), ROW_BLOCK):
        rows = start + first + tl.arange(0, ROW_BLOCK)
        mask = (rows < n_rows)[:, None] & inside[None, :]
        u = (
            tl.load(
                row_pointers(x_ptr, rows, stride_x_row) + cols[None, :], mask=mask, other=0.0
            ).to(tl.float32)
            + bias
        )
        dh = tl.load(
            row_pointers(dh_ptr, rows, stride_dh_row) + cols[None, :], mask=mask, other=0.0
        ).to(tl.float32)
        e = _exp_minus_2z(u)
        s = 1.0 / (1.0 + e)
        dx = dh * s * (1.0 + u * (e * s) * 1.5957691216057308 * (1.0 + 0.134145 * u * u))
        tl.store(
            row_pointers(dx_ptr, rows, D) + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask
        )
        dbias += dx
    tl.store(parts_ptr + tile * D + cols, tl.sum(dbias, axis=0), mask=inside)


def _forward(x: Tensor, bias: Tensor) -> Tensor:
    rows, width = x.shape
    h = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    if rows:
        x, bias = aligned(x), aligned(bias)
        grid = (cdiv(width, BLOCK_D), cdiv(rows, TILE_ROWS))
        with on_device(x.device):
            _bias_gelu_fwd_kernel[grid](
                x,
                bias,
                h,
                x.stride(0),
                rows,
                D=width,
                BLOCK_D=BLOCK_D,
                TILE_ROWS=TILE_ROWS,
                ROW_BLOCK=8,
                num_warps=4,
            )
    return h


_bias_gelu = torch.library.custom_op("mudit::bias_gelu", _forward, mutates_args=())


@_bias_gelu.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("mudit::bias_gelu_backward", mutates_args=())
def _bias_gelu_backward(dh: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    dx = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    tiles = cdiv(rows, TILE_ROWS)
    parts = torch.empty(1, tiles, width, dtype=torch.float32, device=x.device)
    if rows:
        x, bias, dh = aligned(x), aligned(bias), aligned(dh)
        with on_device(x.device):
            _bias_gelu_bwd_kernel[cdiv(width, BLOCK_D), tiles](
                x,
                bias,
                dh,
                dx,
                parts,
                x.stride(0),
                dh.stride(0),
                rows,
                D=width,
                BLOCK_D=BLOCK_D,
                TILE_ROWS=TILE_ROWS,
                ROW_BLOCK=8,
                num_warps=4,
            )
    return dx, segment_sums(parts, dtype=bias.dtype)[0, 0]


@_bias_gelu_backward.register_fake
def _(dh: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor]:
    return _bias_gelu_backward(dh, *ctx.saved_tensors)


_bias_gelu.register_autograd(_differentiate, setup_context=_save)


def bias_gelu(x_TD: Tensor, bias_D: Tensor) -> Tensor:
    """Bias and the tanh form of GELU in one pass by Triton; differentiable.

        h = gelu_tanh(x + bias)

    Args:
        x_TD: [T, D] in bf16, fp16 or fp32, D a multiple of 8; rows may be strided.
        bias_D: [D].

    Returns:
        [T, D] of x's dtype.

    Raises:
        ValueError: for another width or dtype, or a bias of another shape.

    Source:
        Hendrycks and Gimpel 2016, eq. 2 (arXiv 1606.08415).

    Examples:
        >>> import torch
        >>> x, bias = torch.randn(5, 8), torch.randn(8)
        >>> bool(torch.allclose(bias_gelu(x, bias), bias_gelu_reference(x, bias), atol=1e-5))
        True
    """
    check_rows("x", x_TD)
    if x_TD.shape[0] > MAX_ROWS:
        raise ValueError(f"x has {x_TD.shape[0]} rows: a launch takes {MAX_ROWS}, split them")
    if bias_D.shape != x_TD.shape[1:]:
        raise ValueError(
            f"bias of shape {tuple(bias_D.shape)} for x {tuple(x_TD.shape)}: pass one value per "
            f"column"
        )
    return (_forward if unobserved(x_TD, bias_D) else _bias_gelu)(x_TD, bias_D)
