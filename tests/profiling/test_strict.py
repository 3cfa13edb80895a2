"""The strict interpreter itself: it rounds like a GPU,
and it catches what the stock one lets pass.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from mudit_engine.profiling import strict

pytestmark = pytest.mark.skipif(not strict.INTERPRETED, reason="the interpreter is off")


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, PRECISION: tl.constexpr, N: tl.constexpr):
    tile = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile), input_precision=PRECISION)
    tl.store(out_ptr + tile, product.to(out_ptr.dtype.element_ty))


@triton.jit
def _bf16_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    cols = tl.arange(0, N)
    a, b = tl.load(a_ptr + cols), tl.load(b_ptr + cols)
    tl.store(out_ptr + cols, tl.where(a > b, a + b, a * b))


@triton.jit
def _copy_kernel(x_ptr, out_ptr, n, SHIFT: tl.constexpr, FILL: tl.constexpr, N: tl.constexpr):
    cols = tl.program_id(0) * N + tl.arange(0, N)
    x = (
        tl.load(x_ptr + cols, mask=cols < n, other=0.0)
        if FILL
        else tl.load(x_ptr + cols, mask=cols < n)
    )
    tl.store(out_ptr + cols - tl.program_id(0) * SHIFT, x)


@triton.jit
def _sum_kernel(x_ptr, n_ptr, out_ptr):
    total = 0.0
    for i in range(tl.load(n_ptr)):
        total += tl.load(x_ptr + i)
    tl.store(out_ptr, total)


def test_a_loop_takes_its_bound_from_memory():
    """Triton 3.6 converts it in a way that numpy 2.4 refuses (make test-floor)."""
    out = torch.empty(1)
    _sum_kernel[(1,)](torch.arange(1.0, 6.0), torch.tensor([4], dtype=torch.int32), out)
    assert out.item() == 10.0


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"]
)
def test_dot_matches_float64(dtype):
    a, b = torch.randn(2, 32, 32).to(dtype)
    out = torch.empty(32, 32, dtype=torch.float32)
    _dot_kernel[(1,)](a, b, out, "ieee", 32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


def test_tf32_loses_the_low_mantissa_bits():
    a, b = torch.randn(2, 32, 32)
    out = torch.empty(32, 32)
    _dot_kernel[(1,)](a, b, out, "tf32", 32)
    error = (out.double() - a.double() @ b.double()).norm() / out.norm()
    assert 1e-4 < error < 2e-3


def test_bf16_elementwise_equals_torch():
    a, b = torch.randn(2, 256).bfloat16()
    out = torch.empty(256, dtype=torch.bfloat16)
    _bf16_kernel[(1,)](a, b, out, 256)
    assert torch.equal(out, torch.where(a > b, a + b, a * b))


def test_bf16_rounds_to_nearest_even():
    x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.0e38, float("nan"), 1e-40])
    assert torch.equal(
        torch.from_numpy(strict.widen(strict.round_bf16(x.numpy()))).nan_to_num(7),
        x.bfloat16().float().nan_to_num(7),
    )
    assert strict.cut_tf32(np.float32([1 + 2**-11]))[0] == 1


def test_masked_load_without_other_is_nan():
    x, out = torch.ones(8), torch.empty(16)
    _copy_kernel[(1,)](x, out, 8, 0, False, 16)
    assert out[:8].eq(1).all() and out[8:].isnan().all()


def test_fresh_memory_is_nan():
    assert (
        torch.empty(4).isnan().all()
        and torch.empty_like(torch.ones(3, dtype=torch.bfloat16)).isnan().all()
    )


@pytest.mark.parametrize(
    ("x", "out", "n", "shift", "message"),
    [
        (torch.ones(15), torch.ones(16), 16, 0, "reads outside x_ptr"),
        (torch.ones(16), torch.ones(15), 16, 0, "writes outside out_ptr"),
        (torch.ones(16, 2)[:, 0], torch.ones(16), 16, 0, "reads outside x_ptr"),
        (torch.ones(32), torch.ones(32), 32, 8, "another program writes"),
    ],
    ids=["read-past-end", "write-past-end", "gap-between-strided-rows", "two-writers"],
)
def test_memory_faults(x, out, n, shift, message):
    with pytest.raises(InterpreterError, match=message):
        _copy_kernel[(n // 16,)](x, out, n, shift, True, 16)


def test_reading_what_another_program_writes():
    x = torch.ones(48)
    with pytest.raises(InterpreterError, match="another program"):
        _copy_kernel[(2,)](x, x, 48, 8, True, 16)


def test_shuffled_order_covers_the_grid():
    x, out = torch.randn(64), torch.empty(64)
    with strict.shuffled(5):
        _copy_kernel[(4,)](x, out, 64, 0, True, 16)
    assert torch.equal(x, out)
