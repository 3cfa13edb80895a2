"""Guidance + sampler update against float64: ragged songs, every kind of coefficient row, unwritten
`kept`.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from elementwise import DTYPES, EACH_DTYPE, hold, layouts
from mudit_engine.kernels.guided_step import SongRows, guided_step, guided_step_reference
from mudit_engine.profiling import strict

# guided, guided but empty, not guided, a single frame; rows 63-69 belong to no song
MIXED = ((0, 63, 0, 200), (63, 0, 0, 0), (70, 100, 63, -1), (170, 1, 163, 263))


def draw(items, channels, dtype, device, *, rows=None, out_rows=None):
    rows = rows or max((start + count for start, count, _, _ in items), default=0)
    out_rows = out_rows or max(
        (max(cond, uncond) + count for _, count, cond, uncond in items), default=0
    )
    x, kept, noise = torch.randn(3, rows, channels, device=device)
    return (
        x,
        kept,
        torch.randn(out_rows, channels, device=device).to(dtype),
        noise,
        torch.randn(len(items), 7, device=device),
    )


def check(x, kept, out, noise, coefficients, spans):
    got = guided_step(x, kept, out, noise, coefficients, spans)
    eager = guided_step_reference(x, kept, out, noise, coefficients, spans)
    exact = guided_step_reference(
        x.double(),
        kept.double(),
        out,
        None if noise is None else noise.double(),
        coefficients.double(),
        spans,
    )
    hold(("x", "kept"), got, eager, exact)
    return got


@pytest.mark.parametrize("dtype", EACH_DTYPE)
@pytest.mark.parametrize("channels", [8, 96, 104], ids="C{}".format)
def test_matches_float64(channels, dtype, device):
    check(*draw(MIXED, channels, dtype, device, rows=175), SongRows(MIXED))


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 100, 257], ids="T{}".format)
def test_every_length(rows, device):
    items = ((0, rows, 0, rows),)
    check(*draw(items, 24, torch.bfloat16, device), SongRows(items))


@settings(max_examples=8)
@given(
    songs=st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=5),
    eighths=st.integers(1, 13),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(songs, eighths, dtype):
    items, total = [], sum(count for count, _ in songs)
    start = 0
    for count, guided in songs:
        items.append((start, count, start, total + start if guided else -1))
        start += count
    check(
        *draw(
            items, 8 * eighths, dtype, "cpu" if strict.INTERPRETED else "cuda", out_rows=2 * total
        ),
        SongRows(tuple(items)),
    )


def test_unwritten_kept_is_not_read_until_a_row_says_so(device):
    x, kept, out, noise, coefficients = draw(MIXED, 96, torch.bfloat16, device, rows=175)
    kept[:63] = float("nan")
    coefficients[0, 2] = 0
    new_x, new_kept = guided_step(x, kept, out, noise, coefficients, SongRows(MIXED))
    assert torch.isfinite(new_x).all() and torch.isfinite(new_kept).all()


def test_noise_is_optional_while_d_is_zero(device):
    x, kept, out, _, coefficients = draw(MIXED, 96, torch.bfloat16, device, rows=175)
    coefficients[:, 3] = 0
    check(x, kept, out, None, coefficients, SongRows(MIXED))


def test_missing_noise_is_an_error_or_nan_but_never_silent(device):
    x, kept, out, _, coefficients = draw(MIXED, 96, torch.bfloat16, device, rows=175)
    if device == "cpu":
        with pytest.raises(ValueError, match="no noise was given"):
            guided_step(x, kept, out, None, coefficients, SongRows(MIXED))
    spans = SongRows(MIXED)
    new_x, _ = torch.ops.mudit.guided_step(
        x, kept, out, None, coefficients, spans.tensor(device), 100, False
    )
    assert new_x[:63].isnan().all() and torch.equal(new_x[63:70], x[63:70])


def test_rows_of_no_song_stay(device):
    x, kept, out, noise, coefficients = draw(MIXED, 96, torch.bfloat16, device, rows=175)
    new_x, new_kept = guided_step(x, kept, out, noise, coefficients, SongRows(MIXED))
    for rows in (slice(63, 70), slice(171, 175)):
        assert torch.equal(new_x[rows], x[rows]) and torch.equal(new_kept[rows], kept[rows])


@pytest.mark.parametrize("layout", ["dense", "rows", "columns"])
def test_in_place_equals_new_tensors(layout, device):
    x, kept, out, noise, coefficients = draw(MIXED, 96, torch.bfloat16, device, rows=175)
    expected = guided_step(x, kept, out, noise, coefficients, SongRows(MIXED))
    x, kept = (t.clone() if layout == "dense" else layouts(t)[layout] for t in (x, kept))
    got = guided_step(x, kept, out, noise, coefficients, SongRows(MIXED), inplace=True)
    assert (
        got[0] is x
        and got[1] is kept
        and torch.equal(x, expected[0])
        and torch.equal(kept, expected[1])
    )


@pytest.mark.parametrize("layout", ["rows", "columns", "odd_address", "odd_stride", "transposed"])
def test_strided_inputs(layout, device):
    x, kept, out, noise, coefficients = draw(MIXED, 96, torch.bfloat16, device, rows=175)
    expected = guided_step(x, kept, out, noise, coefficients, SongRows(MIXED))
    x, kept, out, noise = (layouts(t)[layout] for t in (x, kept, out, noise))
    got = guided_step(x, kept, out, noise, coefficients, SongRows(MIXED))
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_in_place_on_columns_of_one_buffer(device):
    x, kept, out, noise, coefficients = draw(MIXED, 96, torch.bfloat16, device, rows=175)
    expected = guided_step(x, kept, out, noise, coefficients, SongRows(MIXED))
    own = torch.cat((x, kept), 1)
    guided_step(own[:, :96], own[:, 96:], out, noise, coefficients, SongRows(MIXED), inplace=True)
    assert torch.equal(own, torch.cat(expected, 1))


@pytest.mark.parametrize(
    "case", ["kept is x", "kept overlaps x", "out is x", "noise is x", "x repeats a row"]
)
def test_in_place_refuses_memory_that_programs_would_race_for(case, device):
    x, kept, out, noise, coefficients = draw(MIXED, 96, torch.float32, device, rows=175)
    both = torch.randn(176, 96, device=device)
    if case == "kept is x":
        kept = x
    elif case == "kept overlaps x":
        x, kept = both[:-1], both[1:]
    elif case == "out is x":
        out = torch.randn(400, 96, device=device)
        x = out[100:275]
    elif case == "noise is x":
        noise = x
    else:
        x = x[:1].expand(175, 96)
    before = x.clone()
    with pytest.raises(ValueError, match="shares memory|reaches elements twice"):
        guided_step(x, kept, out, noise, coefficients, SongRows(MIXED), inplace=True)
    assert torch.equal(x, before)
    # without inplace they are only read, and may lie anywhere
    got = guided_step(x, kept, out, noise, coefficients, SongRows(MIXED))
    want = guided_step_reference(x, kept, out, noise, coefficients, SongRows(MIXED))
    torch.testing.assert_close(got, want)


@pytest.mark.skipif(
    not strict.INTERPRETED, reason="the order of programs is chosen by the interpreter"
)
def test_order_of_programs_does_not_matter(device):
    arguments = draw(MIXED, 96, torch.bfloat16, device, rows=175)
    with strict.shuffled(1):
        shuffled = guided_step(*arguments, SongRows(MIXED))
    for a, b in zip(guided_step(*arguments, SongRows(MIXED)), shuffled, strict=True):
        assert torch.equal(a, b)


def test_custom_ops_are_sound(device):
    items = ((0, 3, 0, 4), (3, 1, 3, -1))
    x, kept, out, noise, coefficients = draw(items, 16, torch.float32, device)
    spans = SongRows(items).tensor(device)
    opcheck(
        torch.ops.mudit.guided_step.default, (x, kept, out, noise, coefficients, spans, 3, True)
    )
    opcheck(torch.ops.mudit.guided_step_.default, (x, kept, out, noise, coefficients, spans, 3))


def test_traces_whole(device):
    items = ((0, 3, 0, 4), (3, 1, 3, -1))
    arguments, spans = draw(items, 16, torch.float32, device), SongRows(items)
    compiled = torch.compile(lambda *a: guided_step(*a, spans), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), guided_step(*arguments, spans))


def test_gradcheck_of_the_reference():
    items = ((0, 3, 0, 4), (3, 1, 3, -1))
    x, kept, out, noise, coefficients = (
        t.double().requires_grad_() for t in draw(items, 8, torch.float32, "cpu")
    )
    assert torch.autograd.gradcheck(
        lambda *a: guided_step_reference(*a, coefficients.detach(), SongRows(items)),
        (x, kept, out, noise),
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(4, 12)}, "multiple of 8"),
        ({"x": torch.zeros(4, 16, dtype=torch.bfloat16)}, "float32"),
        ({"out": torch.zeros(8, 24)}, "pass out"),
        ({"rows": torch.zeros(2, 7)}, "B, 7"),
        ({"spans": SongRows(((0, 5, 0, 0),))}, "leaves the buffers"),
        ({"spans": SongRows(((0, 4, 6, 0),))}, "leaves the buffers"),
        (
            {
                "x": torch.zeros(1, 16).expand(2**28, 16),
                "out": torch.zeros(1, 16).expand(2**28, 16),
                "spans": SongRows(((0, 2**28, 0, -1),)),
            },
            "more than 2147482624 elements",
        ),
        (
            {"spans": SongRows(((0, 3, 0, 0), (2, 2, 0, 0))), "rows": torch.zeros(2, 7)},
            "share latent rows",
        ),
    ],
    ids=["channels", "dtype", "out", "rows", "span", "out_span", "counts", "overlap"],
)
def test_refuses_what_it_cannot_do(change, says):
    given = {
        "x": torch.zeros(4, 16),
        "out": torch.zeros(8, 16),
        "rows": torch.zeros(1, 7),
        "spans": SongRows(((0, 4, 0, 4),)),
        **change,
    }
    with pytest.raises(ValueError, match=says):
        guided_step(
            given["x"],
            given["x"],
            given["out"],
            None,
            given["rows"],
            given["spans"],
        )
