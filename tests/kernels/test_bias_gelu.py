"""Bias + tanh-GELU against float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from elementwise import DTYPES, EACH_DTYPE, compare, layouts, results
from mudit_engine.kernels.bias_gelu import bias_gelu, bias_gelu_reference
from mudit_engine.profiling import strict

OUTPUTS = ("h", "dx", "dbias")


def kernel(x, bias):
    return (bias_gelu(x, bias),)


def reference(x, bias):
    return (bias_gelu_reference(x, bias),)


def inputs(rows, width, dtype, device):
    return (2 * torch.randn(rows, width, device=device)).to(dtype), torch.randn(
        width, device=device
    ).to(dtype)


@pytest.mark.parametrize("dtype", EACH_DTYPE)
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 100, 257], ids="T{}".format)
def test_matches_float64(rows, dtype, device):
    compare(OUTPUTS, kernel, reference, inputs(rows, 136, dtype, device))


@pytest.mark.parametrize("width", [8, 256, 264, 1544], ids="D{}".format)
def test_every_width_that_8_divides(width, device):
    compare(OUTPUTS, kernel, reference, inputs(7, width, torch.bfloat16, device))


@settings(max_examples=8)
@given(rows=st.integers(0, 70), eighths=st.integers(1, 40), dtype=st.sampled_from(DTYPES))
def test_any_shape(rows, eighths, dtype):
    compare(
        OUTPUTS,
        kernel,
        reference,
        inputs(rows, 8 * eighths, dtype, "cpu" if strict.INTERPRETED else "cuda"),
    )


def test_far_values_stay_finite(device):
    x = torch.tensor([[-1e4, -100.0, -12.0, -6.0, 6.0, 12.0, 100.0, 1e4]], device=device)
    compare(OUTPUTS, kernel, reference, (x, torch.zeros(8, device=device)))


@pytest.mark.parametrize("layout", ["rows", "columns", "odd_address", "odd_stride", "transposed"])
def test_strided_input(layout, device):
    x, bias = inputs(65, 64, torch.bfloat16, device)
    assert torch.equal(bias_gelu(layouts(x)[layout], bias), bias_gelu(x, bias))


def test_expanded_gradient(device):
    x, bias = (t.requires_grad_() for t in inputs(65, 64, torch.float32, device))
    dx, dbias = torch.autograd.grad(bias_gelu(x, bias).sum(), (x, bias))
    exact = torch.autograd.grad(bias_gelu_reference(x.double(), bias.double()).sum(), (x, bias))
    torch.testing.assert_close((dx, dbias), exact)


@pytest.mark.skipif(
    not strict.INTERPRETED, reason="the order of programs is chosen by the interpreter"
)
def test_order_of_programs_does_not_matter(device):
    x, bias = inputs(130, 264, torch.bfloat16, device)
    upstream = [torch.randn_like(x)]
    with strict.shuffled(1):
        shuffled = results(kernel, (x, bias), upstream, x.dtype)
    for a, b in zip(results(kernel, (x, bias), upstream, x.dtype), shuffled, strict=True):
        assert torch.equal(a, b)


def test_custom_ops_are_sound(device):
    x, bias = inputs(20, 64, torch.float32, device)
    opcheck(torch.ops.mudit.bias_gelu.default, (x.requires_grad_(), bias.requires_grad_()))
    opcheck(
        torch.ops.mudit.bias_gelu_backward.default, (torch.randn_like(x), x.detach(), bias.detach())
    )


def test_gradcheck_of_the_reference():
    x, bias = (
        torch.randn(3, 8, dtype=torch.float64, requires_grad=True),
        torch.randn(8, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(bias_gelu_reference, (x, bias))


@pytest.mark.parametrize(
    ("x", "bias", "says"),
    [
        (torch.zeros(2, 12), torch.zeros(12), "multiple of 8"),
        (torch.zeros(2, 16), torch.zeros(8), "one value per column"),
        (torch.zeros(2, 16, dtype=torch.float64), torch.zeros(16), "float64"),
    ],
    ids=["width", "bias", "dtype"],
)
def test_refuses_what_it_cannot_do(x, bias, says):
    with pytest.raises(ValueError, match=says):
        bias_gelu(x, bias)
