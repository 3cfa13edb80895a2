"""Every backend of attention that runs here, against float64, by the bar of the kernels' own tests;
and what each of them refuses.
"""

from __future__ import annotations

import functools

import pytest
import torch

from attention_cases import NAMES, Case, assert_close, make_case
from mudit_engine import ops
from mudit_engine.backends import registry
from mudit_engine.backends.registry import ATTENTION, Asked, asked
from mudit_engine.backends.varlen import varlen_attention
from mudit_engine.errors import InputError, MissingError
from mudit_engine.kernels.attention import attention_reference
from mudit_engine.kernels.worklist import Segments

FOREIGN = [name for name in ATTENTION if name not in ("eager", "triton")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = {
    "two-streams": ([70, 0, 1, 65], [33, 3, 9, 0]),
    "equal-lengths": ([40, 63, 40], None),
    "one-row": ([1], None),
    "no-keys": ([5, 7], [0, 0]),
}


def check(name: str, case: Case) -> None:
    needs_grad = torch.is_grad_enabled()
    call = asked(case.q.requires_grad_(needs_grad), case.k, case.v, case.segments)
    if (refused := ATTENTION[name].refuses(call)) is not None:
        pytest.skip(str(refused))

    def attend(q, k, v, segments, cos, sin):
        with ops.use(name):
            return ops.attention(q, k, v, segments, cos, sin)

    if needs_grad:
        found = [
            case.run(attend),
            case.run(attention_reference),
            case.run(attention_reference, torch.float64),
        ]
        with torch.no_grad():
            assert_close(*found, case.cancelling())
        return
    q, k, v = (x.detach() for x in (case.q, case.k, case.v))
    tables = (case.segments, case.cos, case.sin)
    assert_close(
        [attend(q, k, v, *tables)],
        [attention_reference(q, k, v, *tables)],
        [attention_reference(q.double(), k.double(), v.double(), *tables)],
    )


def slow(name: str, shape: str, dtype: torch.dtype) -> bool:
    """Without a compiler flex_attention takes seconds a call."""
    return name == "flex" and DEVICE == "cpu" and (shape, dtype) != ("two-streams", torch.float32)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        pytest.param(
            name,
            shape,
            dtype,
            id=f"{name}-{shape}-{NAMES[dtype]}",
            marks=[pytest.mark.slow] if slow(name, shape, dtype) else [],
        )
        for name in FOREIGN
        for shape in CASES
        for dtype in (torch.bfloat16, torch.float32)
    ],
)
def test_forward(name: str, shape: str, dtype: torch.dtype) -> None:
    lengths, keys = CASES[shape]
    with torch.inference_mode():
        check(name, make_case(lengths, keys=keys, head_dim=96, heads=2, dtype=dtype, device=DEVICE))


@pytest.mark.parametrize("name", FOREIGN)
def test_every_gradient(name: str) -> None:
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    check(name, make_case([40, 21], keys=[8, 0], head_dim=64, dtype=dtype, device=DEVICE))


@pytest.mark.parametrize("name", ["sdpa", "flex"])
def test_rows_of_no_segment_are_zero_and_scattered_ones_are_found(name: str) -> None:
    case = make_case([20, 30, 20], head_dim=64, heads=2)
    first, _, last = case.segments.items
    case.segments = Segments((last, first))
    with torch.no_grad(), ops.use(name):
        out = ops.attention(case.q, case.k, case.v, case.segments, case.cos, case.sin)
        want = attention_reference(case.q, case.k, case.v, case.segments, case.cos, case.sin)
    assert out[20:50].eq(0).all()
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)


def test_what_a_layout_fixes_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured step may copy nothing from the host."""
    case = make_case([9, 9, 4], keys=[3, 5, 2], head_dim=64, rotate=False)
    case.segments = Segments(case.segments.items[::-1])  # rows that are gathered

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, scale):
        return q * (cu_q[-1] + cu_k[-1] + max_q + max_k)

    for attend in (
        ATTENTION["sdpa"].attend,
        functools.partial(varlen_attention, kernel=kernel),
    ):
        call = functools.partial(attend, case.q, case.k, case.v, case.segments, None, None)
        with torch.no_grad():
            first = call(scale=None)
            with monkeypatch.context() as patch:
                patch.setattr(torch, "arange", None)
                patch.setattr(torch, "tensor", None)
                assert torch.equal(first, call(scale=None))


@pytest.mark.parametrize(
    ("name", "call", "error", "text"),
    [
        ("flash2", Asked("cuda", 75, torch.float16, 64, False), InputError, "capability 7.5"),
        ("flash3", Asked("cuda", 80, torch.bfloat16, 64, False), InputError, "has from 9.0"),
        ("flash3", Asked("cuda", 90, torch.bfloat16, 64, False), MissingError, "flash_attn_inter"),
        ("flash4", Asked("cuda", 90, torch.float32, 64, False), InputError, "not float32"),
        ("varlen", Asked("cuda", 90, torch.bfloat16, 260, False), InputError, "up to 256"),
        ("triton", Asked("cuda", 90, torch.bfloat16, 80, False), InputError, "64, 96, 128"),
        ("triton", Asked("cuda", 90, torch.float32, 64, True, True), InputError, "share"),
        ("hopper", Asked("cuda", 80, torch.bfloat16, 64, False), MissingError, "capability 8.0"),
        ("hopper", Asked("cuda", 90, torch.float32, 64, False), InputError, "not 64 in float32"),
        ("flex", Asked("cpu", 0, torch.float32, 64, True), InputError, "no gradients on a CPU"),
    ],
)
def test_what_is_refused_says_why(name: str, call: Asked, error: type, text: str) -> None:
    refused = ATTENTION[name].refuses(call)
    assert isinstance(refused, error) and text in str(refused)


def test_flash_is_the_newest_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Asked("cuda", 90, torch.bfloat16, 128, False)
    assert registry._flash_of(call) == "varlen"
    monkeypatch.setattr(registry, "_found", lambda module: module != "flash_attn.cute")
    assert registry._flash_of(call) == "flash3"
    assert registry._flash_of(Asked("cuda", 80, torch.bfloat16, 128, False)) == "flash2"
