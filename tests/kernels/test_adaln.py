"""LayerNorm + modulation and the gated residual against float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from elementwise import DTYPES, EACH_DTYPE, compare, layouts, results
from mudit_engine.kernels import adaln
from mudit_engine.kernels import rows as row_helpers
from mudit_engine.kernels.adaln import (
    layer_norm_modulate,
    layer_norm_modulate_reference,
    residual_norm,
    residual_norm_reference,
)
from mudit_engine.kernels.runs import Runs
from mudit_engine.profiling import strict

TABLE_ROWS = 4
MIXED = ((63, 2), (0, 1), (100, 0), (1, 2), (65, 3))
# (gate, shift and scale)
KINDS = {
    "plain": (False, False),
    "modulated": (False, True),
    "gated": (True, False),
    "gated_modulated": (True, True),
}


@pytest.fixture(autouse=True)
def few_processors(monkeypatch):
    """Tiles of several rows at test sizes, as on a GPU at real ones."""
    monkeypatch.setattr(adaln, "processors", lambda device: 2)


def norm_cases(runs, modulated):
    def call(function):
        if not modulated:
            return lambda x: (function(x, None, None, None),)
        return lambda x, mod: (function(x, mod[:, 0], mod[:, 1], runs),)

    return call(layer_norm_modulate), call(layer_norm_modulate_reference)


def residual_cases(runs, gated, modulated):
    def call(function):
        if not gated and not modulated:
            return lambda x, y: function(x, y, None, None, None, None)
        if not modulated:
            return lambda x, y, mod: function(x, y, mod[:, 0], None, None, runs)
        return lambda x, y, mod: function(
            x, y, mod[:, 0] if gated else None, mod[:, 1], mod[:, 2], runs
        )

    return call(residual_norm), call(residual_norm_reference)


def draw(rows, width, dtype, device):
    x, y = (torch.randn(2, rows, width, device=device) + 0.5).to(dtype)
    return x, y, torch.randn(TABLE_ROWS, 6, width, device=device).to(dtype)


def check_norm(items, width, dtype, device, *, modulated=True):
    x, _, mod = draw(sum(n for n, _ in items), width, dtype, device)
    compare(
        ("h", "dx", "dmod")[: 2 + modulated],
        *norm_cases(Runs(items), modulated),
        (x, mod) if modulated else (x,),
    )


def check_residual(items, width, dtype, device, kind="gated_modulated"):
    *inputs, mod = draw(sum(n for n, _ in items), width, dtype, device)
    if kind != "plain":
        inputs.append(mod[: 1 + max(r for _, r in items)])
    compare(
        ("sum", "h", "dx", "dy", "dmod")[: 2 + len(inputs)],
        *residual_cases(Runs(items), *KINDS[kind]),
        inputs,
    )


@pytest.mark.parametrize("dtype", EACH_DTYPE)
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 100, 257], ids="T{}".format)
def test_residual_matches_float64(rows, dtype, device):
    check_residual(((rows, 3),), 72, dtype, device)


@pytest.mark.parametrize("dtype", EACH_DTYPE)
@pytest.mark.parametrize("kind", KINDS)
def test_residual_of_mixed_runs(kind, dtype, device):
    check_residual(MIXED, 72, dtype, device, kind)


@pytest.mark.parametrize("dtype", EACH_DTYPE)
@pytest.mark.parametrize("modulated", [False, True], ids=["plain", "modulated"])
def test_norm_of_mixed_runs(modulated, dtype, device):
    check_norm(MIXED, 72, dtype, device, modulated=modulated)


def test_the_reference_gives_the_same_in_pieces(monkeypatch):
    """Large inputs without gradients: a run at a time."""
    runs = Runs(MIXED)
    x, shift, scale = torch.randn(runs.rows, 24), *torch.randn(2, TABLE_ROWS, 24)
    found = []
    for piece in (1, 1 << 40):
        monkeypatch.setattr(row_helpers, "PIECE", piece)
        with torch.no_grad():
            found.append(layer_norm_modulate_reference(x, shift, scale, runs))
    assert torch.equal(*found)


@pytest.mark.parametrize("width", [8, 64, 264, 1536, 1544, 8192], ids="D{}".format)
def test_every_width_that_8_divides(width, device):
    check_residual(((1, 1), (3, 0)), width, torch.bfloat16, device)


@settings(max_examples=8)
@given(
    items=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, TABLE_ROWS - 1)), min_size=1, max_size=5
    ).map(tuple),
    eighths=st.integers(1, 16),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from([k for k in KINDS if k != "plain"]),
)
def test_any_shape(items, eighths, dtype, kind):
    check_residual(items, 8 * eighths, dtype, "cpu" if strict.INTERPRETED else "cuda", kind)


def test_rows_far_from_zero_keep_their_variance(device):
    x = 30 + torch.randn(5, 264, device=device)
    compare(("h", "dx"), *norm_cases(None, False), (x,), cancelling=30)


@pytest.mark.parametrize("layout", ["rows", "columns", "odd_address", "odd_stride", "transposed"])
def test_strided_inputs(layout, device):
    x, y, mod = draw(66, 64, torch.bfloat16, device)
    runs, tables = Runs(((60, 1), (6, 0))), tuple(mod[:, i] for i in range(3))
    strided = tuple(layouts(t.contiguous())[layout] for t in tables)
    with torch.no_grad():
        expected = residual_norm(x, y, *tables, runs)
        for got in (
            residual_norm(layouts(x)[layout], layouts(y)[layout], *strided, runs),
            residual_norm(x, y, *strided, runs),
        ):
            assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("layout", ["dense", "rows", "columns", "odd_address"])
def test_in_place_writes_over_x(layout, device):
    x, y, mod = draw(66, 64, torch.bfloat16, device)
    runs = Runs(((60, 1), (6, 0)))
    with torch.no_grad():
        expected = residual_norm(x, y, mod[:, 0], mod[:, 1], mod[:, 2], runs)
        target = x.clone() if layout == "dense" else layouts(x)[layout]
        total, h = residual_norm(target, y, mod[:, 0], mod[:, 1], mod[:, 2], runs, inplace=True)
    assert total is target and torch.equal(target, expected[0]) and torch.equal(h, expected[1])


def test_one_output_used_gives_the_gradients_of_that_one(device):
    x, y, mod = draw(30, 64, torch.float32, device)
    kernel, reference = residual_cases(Runs(((30, 2),)), True, True)
    for output in (0, 1):
        got, exact = (
            torch.autograd.grad(function(*leaves)[output].sin().sum(), leaves)
            for function, dtype in ((kernel, torch.float32), (reference, torch.float64))
            for leaves in [
                [t.to(dtype).requires_grad_() for t in (x.clone(), y.clone(), mod.clone())]
            ]
        )
        torch.testing.assert_close([g.double() for g in got], list(exact), rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(
    not strict.INTERPRETED, reason="the order of programs is chosen by the interpreter"
)
def test_order_of_programs_does_not_matter(device):
    inputs = draw(sum(n for n, _ in MIXED), 72, torch.bfloat16, device)
    kernel, upstream = (
        residual_cases(Runs(MIXED), True, True)[0],
        [torch.randn_like(inputs[0]) for _ in range(2)],
    )
    with strict.shuffled(1):
        shuffled = results(kernel, inputs, upstream, torch.bfloat16)
    for a, b in zip(results(kernel, inputs, upstream, torch.bfloat16), shuffled, strict=True):
        assert torch.equal(a, b)


def test_tiles_cover_each_run_once():
    tiles, offsets = Runs(MIXED).tiles("cpu", tile_rows=16, table_rows=TABLE_ROWS)
    owner = torch.full((229,), -1)
    for start, count, r in tiles.tolist():
        assert count <= 16 and (owner[start : start + count] == -1).all()
        owner[start : start + count] = r
    assert torch.equal(owner.int(), Runs(MIXED).tensor("cpu"))
    for r in range(TABLE_ROWS):
        assert (tiles[offsets[r] : offsets[r + 1], 2] == r).all()


def test_custom_ops_are_sound(device):
    x, y, mod = draw(12, 64, torch.float32, device)
    tiles, offsets = Runs(((5, 1), (7, 3))).tiles(device, tile_rows=4, table_rows=TABLE_ROWS)
    gate, shift, scale = (mod[:, i].contiguous().requires_grad_() for i in range(3))
    x, y, ops = x.requires_grad_(), y.requires_grad_(), torch.ops.mudit
    opcheck(ops.layer_norm_modulate.default, (x, shift, scale, tiles, offsets, 4, 1e-6))
    opcheck(ops.layer_norm_modulate.default, (x, None, None, None, None, 4, 1e-6))
    opcheck(ops.residual_norm.default, (x, y, gate, shift, scale, tiles, offsets, 4, 1e-6))
    plain = [t.detach() for t in (x, y, gate, shift, scale)]
    opcheck(ops.residual_norm_.default, (*plain, tiles, 4, 1e-6))
    stats = torch.stack((x.detach().mean(1), 1 / x.detach().std(1)))
    opcheck(
        ops.norm_backward.default,
        (
            plain[1],
            plain[0],
            plain[0],
            stats,
            plain[1],
            plain[2],
            plain[4],
            tiles,
            offsets,
            4,
            torch.float32,
        ),
    )


@pytest.mark.parametrize("narrow", ["gate", "shift", "scale", "all but gate"])
def test_tables_of_mixed_types(narrow, device):
    """As autocast makes them: a projection's rows are bf16, a parameter's fp32."""
    x, y, mod = draw(150, 96, torch.float32, device)
    runs = Runs(((63, 2), (0, 1), (87, 0)))
    tables = {name: mod[:, i].clone() for i, name in enumerate(("gate", "shift", "scale"))}
    for name in ("shift", "scale") if narrow == "all but gate" else (narrow,):
        tables[name] = tables[name].bfloat16()
    leaves = [t.requires_grad_() for t in (x, y.bfloat16(), *tables.values())]
    outs, grads = [], []
    for function in (residual_norm, residual_norm_reference):
        out = function(*leaves, runs)
        outs.append(out)
        weights = [torch.ones_like(out[0]), torch.arange(96.0, device=device).expand(150, 96)]
        grads.append(torch.autograd.grad(out, leaves, weights))
    torch.testing.assert_close(outs[0], outs[1], rtol=2e-5, atol=2e-5)
    for leaf, got, want in zip(leaves, *grads, strict=True):
        assert got.dtype == leaf.dtype
        assert (got.float() - want.float()).norm() <= 5e-3 * want.float().norm()
    with torch.no_grad():
        again = residual_norm(*leaves, runs)
        inplace = residual_norm(x.detach().clone(), *leaves[1:], runs, inplace=True)
    for a, b, c in zip(outs[0], again, inplace, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("case", ["y overlaps x", "x repeats a row", "a table is x"])
def test_in_place_refuses_memory_that_programs_would_race_for(case, device):
    both = torch.randn(33, 64, device=device)
    x, y, gate = both[:-1], torch.randn(32, 64, device=device), None
    runs = Runs(((32, 0),))
    if case == "y overlaps x":
        y = both[1:]
    elif case == "x repeats a row":
        x = both[:1].expand(32, 64)
    else:
        gate = both[:1]
    with torch.no_grad(), pytest.raises(ValueError, match="shares memory|reaches elements twice"):
        residual_norm(x, y, gate, None, None, runs, inplace=True)
    with torch.no_grad():
        x = both[:-1].clone()
        doubled = residual_norm(x, x, None, None, None, None, inplace=True)[0]  # its own rows: fine
    torch.testing.assert_close(doubled, 2 * both[:-1])


def test_traces_whole(device):
    x, y, mod = draw(12, 64, torch.float32, device)
    runs = Runs(((5, 1), (7, 3)))

    def block(x, y, mod):
        return residual_norm(x, y, mod[:, 0], mod[:, 1], mod[:, 2], runs)[1]

    torch.testing.assert_close(
        torch.compile(block, backend="aot_eager", fullgraph=True)(x, y, mod), block(x, y, mod)
    )


def test_gradcheck_of_the_references():
    x, y, gate, shift, scale = (
        t.double().requires_grad_() for t in (*torch.randn(2, 5, 8), *torch.randn(3, 2, 8))
    )
    runs = Runs(((2, 1), (3, 0)))
    assert torch.autograd.gradcheck(
        lambda *a: residual_norm_reference(*a, runs), (x, y, gate, shift, scale)
    )
    assert torch.autograd.gradcheck(
        lambda *a: layer_norm_modulate_reference(*a, runs), (x, shift, scale)
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, t: layer_norm_modulate(x[:, :12], None, None, None), "multiple of 8"),
        (lambda x, t: layer_norm_modulate(torch.zeros(1, 8200), None, None, None), "8192"),
        (lambda x, t: layer_norm_modulate(x, t, t, Runs(((3, 0),))), "must add up"),
        (lambda x, t: layer_norm_modulate(x, t, t, Runs(((4, 2),))), "table rows exist"),
        (
            lambda x, t: layer_norm_modulate(x, t, t.double(), Runs(((4, 0),))),
            "tables of torch",
        ),
        (lambda x, t: residual_norm(x, x, t, None, None, None), "needs runs"),
        (lambda x, t: residual_norm(x, x[:2], None, None, None, None), "equal shapes"),
        (
            lambda x, t: residual_norm(x.requires_grad_(), x, None, None, None, None, inplace=True),
            "inplace=False",
        ),
    ],
    ids=[
        "width",
        "too_wide",
        "rows",
        "table_row",
        "table_dtype",
        "no_runs",
        "y_shape",
        "inplace_grad",
    ],
)
def test_refuses_what_it_cannot_do(call, says):
    with pytest.raises(ValueError, match=says):
        call(torch.zeros(4, 16), torch.zeros(2, 16))
