"""The door to the kernels: naming a backend, refusing what it cannot serve, and the flash backend's
packing.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudit_engine import ops
from mudit_engine.backends.varlen import varlen_attention
from mudit_engine.errors import InputError, MissingError
from mudit_engine.kernels.attention import attention_reference
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.kernels.worklist import Segments

HEADS, WIDTH = 2, 32


def plain_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> Tensor:
    """What a varlen kernel promises, from its definition."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    out = torch.empty_like(q)
    q_counts, k_counts = cu_q.diff().tolist(), cu_k.diff().tolist()
    assert max_q == max(q_counts) and max_k == max(k_counts) and min(q_counts + k_counts) > 0
    for i in range(len(q_counts)):
        rows, keys = slice(int(cu_q[i]), int(cu_q[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))
        weights = (torch.einsum("qhd,khd->hqk", q[rows].float(), k[keys].float()) * scale).softmax(
            -1
        )
        out[rows] = torch.einsum("hqk,khd->qhd", weights, v[keys].float()).to(q.dtype)
    return out


@pytest.mark.parametrize(
    "segments",
    [
        Segments.self_attention([5, 9, 3]),
        Segments.cross_attention([5, 9, 3], [4, 0, 8]),
        Segments(((5, 9, 0, 12, 0), (0, 2, 3, 7, 0))),
        Segments(((0, 6, 0, 6, 0), (6, 4, 6, 4, 0), (0, 6, 10, 2, 1), (6, 4, 12, 0, 1))),
    ],
    ids=["self", "cross with no keys", "scattered and shared keys", "two streams"],
)
def test_flash_packing_against_the_reference(segments: Segments) -> None:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(17, HEADS * segments.streams, WIDTH, generator=g).bfloat16()
    k, v = (torch.randn(17, HEADS, WIDTH, generator=g).bfloat16() for _ in range(2))
    cos, sin = (t.expand(segments.streams, -1, -1) for t in rope_table(torch.arange(17.0), WIDTH))
    out = varlen_attention(q, k, v, segments, cos, sin, scale=None, kernel=plain_varlen)
    torch.testing.assert_close(
        out, attention_reference(q, k, v, segments, cos, sin), rtol=2e-2, atol=2e-2
    )


def test_a_named_backend_refuses_what_it_cannot_serve() -> None:
    x = torch.zeros(4, 2, 32).half()
    for name in ("flash", "flash2", "varlen", "cudnn"):
        with ops.use(name), pytest.raises(MissingError, match=f"'{name}' needs a CUDA device"):
            ops.attention(x, x, x, Segments.self_attention([4]))
    shared = Segments(((0, 2, 0, 4, 0), (2, 2, 0, 4, 0)))
    with ops.use("flex"), pytest.raises(InputError, match="keys of their own"):
        ops.attention(x, x, x, shared)


def test_unknown_backend_and_nesting() -> None:
    with pytest.raises(InputError, match="eager, triton, hopper, flash"), ops.use("cuda"):
        pass
    x = torch.zeros(1)
    assert ops.backend_of(x) == "eager"
    with ops.use("triton"):
        assert ops.backend_of(x) == "triton"
        with ops.use("eager"):
            assert ops.backend_of(x) == "eager"
        assert ops.backend_of(x) == "triton"
    assert ops.backend_of(x) == "eager"


def test_segments_leaving_the_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="leaves the buffers"):
        Segments(((0, 5, 0, 9, 0),)).check(q_rows=5, k_rows=8, streams=1)
    with pytest.raises(ValueError, match="share query rows"):
        Segments(((0, 5, 0, 2, 0), (4, 3, 2, 2, 0))).check(q_rows=9, k_rows=8, streams=1)
    with pytest.raises(ValueError, match="stream 1"):
        Segments(((0, 5, 0, 2, 1),)).check(q_rows=9, k_rows=8, streams=1)
