"""What the tests of the row-wise kernels share: the error bar and awkward layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from mudit_engine.profiling import strict

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# the same as cases of tests: fp16 differs from bf16 only in rounding, and the tests of drawn shapes
# draw it too, so that where kernels are interpreted the rest of its cases is slow
EACH_DTYPE = [
    pytest.param(
        dtype,
        id=NAMES[dtype],
        marks=[pytest.mark.slow] if strict.INTERPRETED and dtype == torch.float16 else [],
    )
    for dtype in DTYPES
]


def error(actual: Tensor, exact: Tensor) -> float:
    """Relative L2 distance."""
    return float((actual.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def hold(
    names: Sequence[str],
    kernel: Sequence[Tensor],
    eager: Sequence[Tensor],
    exact: Sequence[Tensor],
    *,
    cancelling: float = 0.0,
) -> None:
    """err(kernel) <= 2 err(eager) + rounding for every tensor, against float64; bf16 at most 3e-3
    where an average means something.

    `cancelling`: how many times as large as the results the numbers are whose difference they are;
    these are rounded as well.
    """
    for name, k, e, x in zip(names, kernel, eager, exact, strict=True):
        assert k.dtype == e.dtype and k.shape == e.shape, name
        assert torch.isfinite(k).all(), f"{name} has elements that were never written"
        eps = torch.finfo(k.dtype).eps
        bar = 2 * error(e, x) + eps / 8 + cancelling * eps / 2
        assert error(k, x) <= bar, f"{name}: {error(k, x):.2e} against {bar:.2e}"
        if k.dtype == torch.bfloat16 and k.numel() >= 1000:
            assert error(k, x) <= 3e-3, name


def results(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Outputs of function(*inputs) and the gradients of all inputs,
    everything computed in `dtype`.
    """
    leaves = [t.detach().to(dtype).clone().requires_grad_() for t in inputs]
    outputs = function(*leaves)
    return [o.detach() for o in outputs] + list(
        torch.autograd.grad(outputs, leaves, [g.to(dtype) for g in upstream])
    )


def compare(
    names: Sequence[str],
    kernel: Callable[..., tuple[Tensor, ...]],
    reference: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    *,
    cancelling: float = 0.0,
) -> list[Tensor]:
    """Holds outputs and every gradient of `kernel` to the bar; returns them."""
    dtype = inputs[0].dtype
    with torch.no_grad():
        upstream = [torch.randn_like(o) for o in reference(*inputs)]
    got = results(kernel, inputs, upstream, dtype)
    hold(
        names,
        got,
        results(reference, inputs, upstream, dtype),
        results(reference, inputs, upstream, torch.float64),
        cancelling=cancelling,
    )
    return got


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of x [T, D] in memory layouts that callers produce."""
    rows, width = x.shape
    every_other = x.new_full((2 * rows, width), float("nan"))[::2]
    column_slice = x.new_full((rows, width + 16), float("nan"))[:, 8 : 8 + width]
    odd_address = x.new_full((rows * width + 1,), float("nan"))[1:].view(rows, width)
    odd_stride = x.new_full((rows, width + 1), float("nan"))[:, :width]
    transposed = x.new_empty(width, rows).t()
    made = {
        "rows": every_other,
        "columns": column_slice,
        "odd_address": odd_address,
        "odd_stride": odd_stride,
        "transposed": transposed,
    }
    return {name: view.copy_(x) for name, view in made.items()}
