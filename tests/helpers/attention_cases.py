"""Shared by the attention tests: inputs with a float64 truth, and the tolerance every kernel is
held to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mudit_engine.kernels.rotary import rope_table, rotate_reference
from mudit_engine.kernels.worklist import Segments

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass
class Case:
    """q, k, v and a gradient of the output, with the segments and RoPE tables that go with them."""

    q: Tensor
    k: Tensor
    v: Tensor
    d_out: Tensor
    segments: Segments
    cos: Tensor | None = None
    sin: Tensor | None = None

    def run(self, function, dtype: torch.dtype | None = None, **options) -> list[Tensor]:
        """Output and gradients of q, k and v, computed by `function` in `dtype`."""
        leaves = [
            x.detach().to(dtype or x.dtype).requires_grad_() for x in (self.q, self.k, self.v)
        ]
        out = function(*leaves, self.segments, self.cos, self.sin, **options)
        if not out.requires_grad:  # no segment has both queries and keys
            return [out, *(torch.zeros_like(x) for x in leaves)]
        return [out.detach(), *torch.autograd.grad(out, leaves, self.d_out.to(out.dtype))]

    def cancelling(self) -> list[float]:
        """How large the terms are whose difference is the gradient of q and k (0: nothing cancels):
        scale (do v) k and scale (do v) q.

        With one key the difference is exactly 0, and all that is left is their rounding.
        """
        q, k, v, d_out = (float(x.double().norm()) for x in (self.q, self.k, self.v, self.d_out))
        weight = self.q.shape[-1] ** -0.5 * d_out * v
        return [0.0, weight * k, weight * q, 0.0]


def make_case(
    lengths,
    *,
    keys=None,
    head_dim: int = 64,
    heads: int = 1,
    dtype: torch.dtype = torch.float32,
    rotate: bool = True,
    device: str = "cpu",
) -> Case:
    """Songs of `lengths` attending to themselves (stream 0) and, with `keys`, to lyrics behind them
    in the key buffer (stream 1).
    """
    rows, streams = sum(lengths), 1 if keys is None else 2
    segments = Segments.self_attention(lengths)
    if keys is not None:
        segments += Segments.cross_attention(lengths, keys, k_offset=rows, stream=1)
    generator = torch.Generator().manual_seed(rows * 1000 + head_dim)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    cos = sin = None
    if rotate:
        positions = (
            torch.cat([torch.arange(n) for n in lengths]).float() if lengths else torch.zeros(0)
        )
        # another table for each stream, as for self- and length-aware cross-attention
        tables = [
            rope_table(positions * (1.0 + 0.37 * stream), head_dim) for stream in range(streams)
        ]
        cos, sin = (torch.stack(x).to(device) for x in zip(*tables, strict=True))
    key_rows = rows + sum(keys or ())
    q, d_out = random(rows, streams * heads, head_dim), random(rows, streams * heads, head_dim)
    return Case(
        q,
        random(key_rows, heads, head_dim),
        random(key_rows, heads, head_dim),
        d_out,
        segments,
        cos,
        sin,
    )


def assert_close(
    kernel: list[Tensor],
    eager: list[Tensor],
    truth: list[Tensor],
    cancelling: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
) -> None:
    """err(kernel) <= 2 err(eager in the same dtype) + rounding of the result, in L2 and in the
    largest element; bf16 within 3e-3.

    A row whose gradient is exactly 0 has no rounding of its own: it may keep the fp32 rounding of
    what cancels (Case.cancelling).
    """
    for name, got, same, want, terms in zip(
        ("out", "dq", "dk", "dv"), kernel, eager, truth, cancelling, strict=False
    ):
        assert got.dtype == same.dtype and got.shape == want.shape
        assert got.isfinite().all(), (
            f"{name} has {int((~got.isfinite()).sum())} elements that are not finite"
        )
        got, same, eps = got.double(), same.double(), torch.finfo(got.dtype).eps
        if terms:
            cancelled = ~want.any(-1)
            left = float(torch.linalg.vector_norm(got[cancelled]))
            assert left <= 4 * torch.finfo(torch.float32).eps * terms, (
                f"{name}: {left:.3e} is left where everything cancels"
            )
            got, same, want = (x[~cancelled] for x in (got, same, want))
        # half a unit for the cast at the store; and probabilities come from exp(s - lse) with both
        # in fp32, so an exponent of size 8 that eager (which keeps its probabilities) never forms
        # leaves 4 fp32 units
        rounding = 0.5 * eps + 4 * torch.finfo(torch.float32).eps
        for norm in (torch.linalg.vector_norm, lambda x: x.abs().amax() if x.numel() else x.sum()):
            error, bound = norm(got - want), 2 * norm(same - want) + rounding * norm(want)
            assert error <= bound, (
                f"{name}: error {error:.3e} exceeds {bound:.3e} (eager {norm(same - want):.3e})"
            )
        if name == "out" and eps == torch.finfo(torch.bfloat16).eps and want.norm():
            assert (got - want).norm() / want.norm() <= 3e-3


def softmax_sums(case: Case) -> torch.Tensor:
    """lse [S H, T] in float64."""
    heads = case.k.shape[1]
    lse = torch.zeros(case.q.shape[1], case.q.shape[0], dtype=torch.float64)
    for q_start, q_rows, k_start, k_rows, stream in case.segments.items:
        rows = slice(q_start, q_start + q_rows)
        for head in range(heads):
            # one key of zeros beside the values' unit vectors would do; the scores are plainer
            q_head = stream * heads + head
            q = rotated(case)[rows, q_head].double()
            s = q @ case.k[k_start : k_start + k_rows, head].double().T * q.shape[1] ** -0.5
            lse[q_head, rows] = s.logsumexp(1) if k_rows else -torch.inf
    return lse


def rotated(case: Case) -> torch.Tensor:
    """The queries after their rotation, rounded as the kernel rounds them."""
    if case.cos is None:
        return case.q
    parts = case.q.float().unflatten(1, (-1, case.k.shape[1])).unbind(1)
    turned = [rotate_reference(x, case.cos[i], case.sin[i]) for i, x in enumerate(parts)]
    return torch.cat(turned, 1).to(case.q.dtype)
