"""Attention kernels against float64: forward and every gradient, over lengths, head widths, dtypes
and both instruction paths.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from attention_cases import NAMES, Case, assert_close, make_case
from elementwise import EACH_DTYPE
from mudit_engine.kernels import attention_forward
from mudit_engine.kernels.attention import attention, attention_reference
from mudit_engine.profiling import strict

MIXED = ([100, 0, 1, 65], [70, 3, 9, 0])
HEADS = (64, 96, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LENGTHS = (0, 1, 63, 64, 65, 100, 257)


@pytest.fixture(params=[80, 90], ids=["pointers", "descriptors"])
def capability(request, monkeypatch) -> int:
    """Runs the launch that an A100 or an H100 would get."""
    if strict.INTERPRETED:
        monkeypatch.setattr(attention_forward, "target_capability", lambda: request.param)
    return request.param


def check(case: Case, precision: str = "ieee") -> None:
    dtype = case.q.dtype
    kernel, eager = case.run(attention, precision=precision), case.run(attention_reference)
    assert_close(kernel, eager, case.run(attention_reference, torch.float64), case.cancelling())
    assert kernel[0].dtype == dtype


@pytest.mark.parametrize("dtype", EACH_DTYPE)
@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
def test_self_and_cross_in_one_launch(head_dim, dtype, capability, device):
    if capability == 90 and dtype != torch.bfloat16:
        pytest.skip("fp32 takes no descriptors, and fp16 differs from bf16 only in rounding")
    check(make_case(MIXED[0], keys=MIXED[1], head_dim=head_dim, dtype=dtype, device=device))


@pytest.mark.parametrize("length", LENGTHS, ids="T{}".format)
def test_lengths_around_a_tile(length, device):
    check(make_case([length], head_dim=64, dtype=torch.bfloat16, device=device))


@pytest.mark.parametrize("left", [0, 1, 65], ids="left{}".format)
@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
def test_two_query_tiles_a_trip(head_dim, left, monkeypatch, device):
    """An H100's key-gradient kernel takes 128 queries a trip, and none, one or two tiles of what is
    left before.
    """
    if strict.INTERPRETED:
        monkeypatch.setattr(attention_forward, "target_capability", lambda: 90)
    check(make_case([128 + left], keys=[1], head_dim=head_dim, dtype=torch.bfloat16, device=device))


@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
def test_tf32_is_between_fp32_and_bf16(head_dim, device):
    case = make_case([100], head_dim=head_dim, device=device)
    truth = case.run(attention_reference, torch.float64)
    for got, want in zip(case.run(attention), truth, strict=True):
        assert 1e-5 < (got - want).norm() / want.norm() < 3e-3


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 3], ids="H{}".format)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
@pytest.mark.parametrize("length", LENGTHS, ids="T{}".format)
def test_every_length_head_and_dtype(length, head_dim, dtype, heads, capability, device):
    check(
        make_case(
            [length, 17],
            keys=[33, length],
            head_dim=head_dim,
            dtype=dtype,
            heads=heads,
            device=device,
        )
    )


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(
    songs=st.lists(st.tuples(st.integers(0, 140), st.integers(0, 70)), min_size=1, max_size=2),
    head_dim=st.sampled_from(HEADS),
    dtype=st.sampled_from(DTYPES),
    rotate=st.booleans(),
)
# the frame sees itself alone: the gradient of its query cancels in stream 0, and not in stream 1
@example(songs=[(1, 54)], head_dim=96, dtype=torch.float32, rotate=True)
def test_drawn_shapes(songs, head_dim, dtype, rotate):
    with strict.checked() if strict.INTERPRETED else torch.no_grad():
        device = "cpu" if strict.INTERPRETED else "cuda"
        lengths, keys = (list(x) for x in zip(*songs, strict=True))
        with torch.enable_grad():
            check(
                make_case(
                    lengths, keys=keys, head_dim=head_dim, dtype=dtype, rotate=rotate, device=device
                )
            )


def test_scale_and_no_rotation(device):
    case = make_case([70], head_dim=64, rotate=False, device=device)
    kernel, eager = (
        case.run(attention, scale=0.4, precision="ieee"),
        case.run(attention_reference, scale=0.4),
    )
    assert_close(kernel, eager, case.run(attention_reference, torch.float64, scale=0.4))


def test_large_scores_do_not_overflow(device):
    case = make_case([65], head_dim=64, dtype=torch.float16, device=device)
    case.q, case.k = case.q * 40, case.k * 40
    check(case)


def test_padding_keys_stay_out_when_every_score_is_very_negative(capability, device):
    """lse near -150: the exponential of a padding key's score, 0, would be infinite."""
    case = make_case([70], head_dim=64, dtype=torch.bfloat16, rotate=False, device=device)
    case.q, case.k = 5 * case.q.abs(), -5 * case.k.abs()
    check(case)


@pytest.mark.parametrize("layout", ["fused", "heads-first", "odd-address", "strided-columns"])
def test_strided_inputs(layout, capability, device):
    case = make_case([65, 30], head_dim=96, heads=2, dtype=torch.bfloat16, device=device)
    if layout == "fused":  # the views that the packing prologue hands over
        fused = torch.cat((case.q, case.k, case.v), 1)
        case.q, case.k, case.v = fused.split(2, 1)
    elif layout == "heads-first":
        case.q, case.k, case.v = (
            x.transpose(0, 1).contiguous().transpose(0, 1) for x in (case.q, case.k, case.v)
        )
    elif layout == "odd-address":  # 2 bytes off: no descriptor may point there
        case.k, case.v = (
            torch.cat((x.new_zeros(1), x.flatten()))[1:].view_as(x) for x in (case.k, case.v)
        )
    else:
        case.q, case.k, case.v = (
            x.repeat_interleave(2, 2)[..., ::2] for x in (case.q, case.k, case.v)
        )
    q, k, v = (x.contiguous() for x in (case.q, case.k, case.v))
    d_out = case.d_out.transpose(0, 1).contiguous().transpose(0, 1)
    plain = Case(q, k, v, d_out, case.segments, case.cos, case.sin)
    with torch.no_grad():
        assert torch.equal(
            *(attention(c.q, c.k, c.v, c.segments, c.cos, c.sin) for c in (case, plain))
        )
    check(case)
    check(plain)
