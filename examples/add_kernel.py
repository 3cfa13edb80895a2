"""A new kernel, written and proven as every kernel of the house: a gated activation,

    h = silu(g) * x        silu(g) = g s, s = sigmoid(g)
    dx = dh silu(g)        dg = dh x (s + g s (1 - s))

    python examples/add_kernel.py            # numerics in the strict interpreter, then machine code

A kernel file holds, in this order: docstring with the formula, reference, forward kernel, backward
kernel, launcher and autograd, public function. Below them is the proof, which in the house is a
file in tests/kernels. To add a kernel for good, put the first part into kernels/, give it a door in
mudit_engine/ops.py, and the second part into tests/kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

if "--compile" not in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton.jit when a kernel is defined

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.kernels.rows import aligned, check_rows, on_device

BLOCK = 1024


def gated_silu_reference(g_TD: Tensor, x_TD: Tensor) -> Tensor:
    """silu(g) * x of [T, D]; also runs in float64."""
    return F.silu(g_TD) * x_TD


@triton.jit
def _gated_silu_fwd_kernel(g_ptr, x_ptr, h_ptr, n_values, BLOCK: tl.constexpr):
    # ids become int64 before they multiply: a batch may have more than 2^31 values
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < n_values
    g = tl.load(g_ptr + place, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    h = g * tl.sigmoid(g) * x
    tl.store(h_ptr + place, h.to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_silu_bwd_kernel(g_ptr, x_ptr, dh_ptr, dg_ptr, dx_ptr, n_values, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < n_values
    g = tl.load(g_ptr + place, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    dh = tl.load(dh_ptr + place, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    dg, dx = dh * x * (s + g * s * (1.0 - s)), dh * g * s
    tl.store(dg_ptr + place, dg.to(dg_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("mudit_example::gated_silu", mutates_args=())
def _gated_silu(g: Tensor, x: Tensor) -> Tensor:
    g, x = aligned(g.contiguous()), aligned(x.contiguous())
    h = torch.empty_like(x)
    if x.numel():
        with on_device(x.device):
            _gated_silu_fwd_kernel[(triton.cdiv(x.numel(), BLOCK),)](
                g, x, h, x.numel(), BLOCK=BLOCK
            )
    return h


@_gated_silu.register_fake
def _(g: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("mudit_example::gated_silu_backward", mutates_args=())
def _gated_silu_backward(dh: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    g, x, dh = (aligned(t.contiguous()) for t in (g, x, dh))
    dg, dx = torch.empty_like(g), torch.empty_like(x)
    if x.numel():
        with on_device(x.device):
            _gated_silu_bwd_kernel[(triton.cdiv(x.numel(), BLOCK),)](
                g, x, dh, dg, dx, x.numel(), BLOCK=BLOCK
            )
    return dg, dx


@_gated_silu_backward.register_fake
def _(dh: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return g.new_empty(g.shape), x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor]:
    return _gated_silu_backward(dh, *ctx.saved_tensors)


_gated_silu.register_autograd(_differentiate, setup_context=_save)


def gated_silu(g_TD: Tensor, x_TD: Tensor) -> Tensor:
    """silu(g) * x of [T, D] by Triton, differentiable; D a multiple of 8.

    Raises ValueError for other shapes or types. Source: Shazeer 2020 (arXiv 2002.05202).
    """
    check_rows("g", g_TD)
    check_rows("x", x_TD)
    if g_TD.shape != x_TD.shape:
        raise ValueError(
            f"g of shape {tuple(g_TD.shape)} for x {tuple(x_TD.shape)}: pass two of one shape"
        )
    return _gated_silu(g_TD, x_TD)


def results(function: Any, leaves: list[Tensor], dh: Tensor) -> list[Tensor]:
    """The output and the gradients of both inputs, computed in the dtype of the leaves."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    h = function(*leaves)
    return [h.detach(), *torch.autograd.grad(h, leaves, dh.to(h.dtype))]


def check_numerics() -> None:
    """err(kernel) <= 2 err(reference, same dtype) + rounding, against float64; every access is
    watched, and programs run in a random order.
    """
    from mudit_engine.profiling import strict

    strict.install()
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 63, 130):  # odd numbers of rows
            torch.manual_seed(rows)
            leaves = [(2 * torch.randn(rows, 40)).to(dtype) for _ in range(2)]
            dh = torch.randn(rows, 40).to(dtype)
            with strict.checked(), strict.shuffled(rows):
                kernel = results(gated_silu, leaves, dh)
            eager = results(gated_silu_reference, leaves, dh)
            exact = results(gated_silu_reference, [leaf.double() for leaf in leaves], dh)
            for name, k, e, x in zip(("h", "dg", "dx"), kernel, eager, exact, strict=True):
                errors = [float((t.double() - x).norm() / x.norm()) for t in (k, e)]
                bar = 2 * errors[1] + torch.finfo(dtype).eps / 8
                if errors[0] > bar:
                    raise SystemExit(
                        f"{name}, {dtype}, {rows} rows: {errors[0]:.1e} above {bar:.1e}"
                    )
    print("numerics hold: forward and both gradients, fp32 and bf16, against float64")


def check_machine_code(architectures: tuple[str, ...] = ("sm_80", "sm_90")) -> None:
    """Compiled with no GPU and no driver: nothing spills."""
    from mudit_engine.profiling.aot import compile_for

    x = torch.zeros(256, 64, dtype=torch.bfloat16)
    for arch in architectures:
        with compile_for(arch) as builds:
            results(gated_silu, [x, x], x)
        for build in builds:
            if build.spill_bytes:
                raise SystemExit(f"{build.kernel} spills {build.spill_bytes} bytes on {arch}")
            print(f"{arch} {build.kernel}: {build.registers} registers, no spills")


if __name__ == "__main__":
    if "--compile" in sys.argv:
        check_machine_code()
    else:
        check_numerics()
        # a process of its own: this one has interpreted the kernels
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        done = subprocess.run([sys.executable, __file__, "--compile"], env=environment, check=False)
        raise SystemExit(done.returncode)
