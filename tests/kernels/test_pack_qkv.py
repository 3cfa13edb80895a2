"""Packing prologue (split, QK-RMSNorm, RoPE on keys) against float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from elementwise import DTYPES, EACH_DTYPE, compare, layouts, results
from mudit_engine.kernels import pack_qkv as packing
from mudit_engine.kernels.pack_qkv import (
    pack_kv,
    pack_kv_reference,
    pack_qkv,
    pack_qkv_reference,
    rms_norm_reference,
)
from mudit_engine.kernels.rotary import rope_table, rotate_reference
from mudit_engine.profiling import strict

QKV = ("q", "k", "v", "dqkv", "dq_gain", "dk_gain")


@pytest.fixture(autouse=True)
def few_processors(monkeypatch):
    """Programs with several heads at test sizes, as on a GPU at real ones."""
    monkeypatch.setattr(packing, "processors", lambda device: 1)


def table(rows, head_dim, device):
    """Float positions, as frames of resampled songs have them."""
    return rope_table(torch.rand(rows, device=device) * 2800, head_dim)


def qkv_inputs(rows, heads, head_dim, dtype, device, *, streams=1):
    qkv = torch.randn(rows, (streams + 2) * heads * head_dim, device=device).to(dtype)
    return (
        qkv,
        torch.randn(streams, head_dim, device=device).to(dtype),
        torch.randn(head_dim, device=device).to(dtype),
    )


def check_qkv(rows, heads, head_dim, dtype, device, *, streams=1, q_norm=True, k_norm=True):
    cos, sin = table(rows, head_dim, device)
    qkv, q_gain, k_gain = qkv_inputs(rows, heads, head_dim, dtype, device, streams=streams)
    inputs = [qkv] + [gain for gain, used in ((q_gain, q_norm), (k_gain, k_norm)) if used]
    names = [n for n in QKV if (q_norm or n != "dq_gain") and (k_norm or n != "dk_gain")]

    def call(function):
        def run(qkv, *gains):
            gains = list(gains)
            return function(
                qkv,
                gains.pop(0) if q_norm else None,
                gains.pop(0) if k_norm else None,
                cos,
                sin,
                heads=heads,
                q_streams=streams,
            )

        return run

    compare(names, call(pack_qkv), call(pack_qkv_reference), inputs)


@pytest.mark.parametrize("dtype", EACH_DTYPE)
@pytest.mark.parametrize("head_dim", [64, 96, 128], ids="K{}".format)
@pytest.mark.parametrize("rows", [0, 1, 65], ids="T{}".format)
def test_matches_float64(rows, head_dim, dtype, device):
    check_qkv(rows, 2, head_dim, dtype, device)


@pytest.mark.parametrize("rows", [63, 64, 100, 257], ids="T{}".format)
def test_every_length(rows, device):
    check_qkv(rows, 1, 96, torch.bfloat16, device)


@pytest.mark.parametrize("streams", [2, 3], ids="S{}".format)
def test_several_query_streams(streams, device):
    check_qkv(33, 3, 96, torch.bfloat16, device, streams=streams)


@pytest.mark.parametrize(
    ("q_norm", "k_norm"),
    [(False, False), (True, False), (False, True)],
    ids=["no_norm", "q_norm", "k_norm"],
)
def test_norms_are_optional(q_norm, k_norm, device):
    check_qkv(33, 2, 64, torch.bfloat16, device, q_norm=q_norm, k_norm=k_norm)


@pytest.mark.parametrize("dtype", EACH_DTYPE)
@pytest.mark.parametrize("head_dim", [64, 96, 128], ids="K{}".format)
def test_lyric_keys_match_float64(head_dim, dtype, device):
    cos, sin = table(40, head_dim, device)
    kv, k_gain = (
        torch.randn(40, 4 * head_dim, device=device).to(dtype),
        torch.randn(head_dim, device=device).to(dtype),
    )
    names = ("k", "v", "dkv", "dk_gain")
    compare(
        names,
        *(lambda x, g, f=f: f(x, g, cos, sin, heads=2) for f in (pack_kv, pack_kv_reference)),
        (kv, k_gain),
    )


@settings(max_examples=6)
@given(
    rows=st.integers(0, 40),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([16, 48, 64, 80, 96, 128, 160]),
    streams=st.integers(1, 2),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(rows, heads, head_dim, streams, dtype):
    check_qkv(
        rows, heads, head_dim, dtype, "cpu" if strict.INTERPRETED else "cuda", streams=streams
    )


@pytest.mark.parametrize("processors", [1, 108], ids=["all_heads", "one_head"])
def test_heads_of_a_program_do_not_change_the_bits(processors, device, monkeypatch):
    cos, sin = table(20, 96, device)
    inputs = qkv_inputs(20, 4, 96, torch.bfloat16, device)
    expected = pack_qkv(*inputs, cos, sin, heads=4)
    monkeypatch.setattr(packing, "processors", lambda device: processors)
    for got, want in zip(pack_qkv(*inputs, cos, sin, heads=4), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("head_dim", [64, 96], ids="K{}".format)
def test_writes_its_rows_of_a_joint_buffer(head_dim, device):
    """Frame keys before lyric keys, each packed where they belong, nothing else touched."""
    qkv, q_gain, k_gain = qkv_inputs(20, 2, head_dim, torch.bfloat16, device)
    kv = torch.randn(9, 4 * head_dim, device=device).bfloat16()
    frames, lyrics = table(20, head_dim, device), table(9, head_dim, device)
    joint_k, joint_v = torch.full((2, 32, 2, head_dim), 7.0, device=device, dtype=torch.bfloat16)
    expected_q, *expected = pack_qkv(qkv, q_gain, k_gain, *frames, heads=2)
    lyric = pack_kv(kv, k_gain, *lyrics, heads=2)
    q, k, v = pack_qkv(
        qkv, q_gain, k_gain, *frames, heads=2, k_out=joint_k[:20], v_out=joint_v[:20]
    )
    assert (
        k.data_ptr() == joint_k.data_ptr()
        and v.data_ptr() == joint_v.data_ptr()
        and torch.equal(q, expected_q)
    )
    pack_kv(kv, k_gain, *lyrics, heads=2, k_out=joint_k[20:29], v_out=joint_v[20:29])
    for joint, frame_rows, lyric_rows in zip((joint_k, joint_v), expected, lyric, strict=True):
        assert (
            torch.equal(joint[:20], frame_rows)
            and torch.equal(joint[20:29], lyric_rows)
            and (joint[29:] == 7).all()
        )


def test_v_is_a_view_without_gradients(device):
    inputs = qkv_inputs(5, 2, 64, torch.bfloat16, device)
    _, _, v = pack_qkv(*inputs, *table(5, 64, device), heads=2)
    assert v.untyped_storage().data_ptr() == inputs[0].untyped_storage().data_ptr()


@pytest.mark.parametrize("layout", ["rows", "columns", "odd_address", "odd_stride", "transposed"])
def test_strided_input(layout, device):
    qkv, q_gain, k_gain = qkv_inputs(20, 2, 96, torch.bfloat16, device)
    cos, sin = table(20, 96, device)
    strided = layouts(qkv)[layout]
    if layout == "transposed":
        strided = strided.as_strided(qkv.shape, strided.stride())
    expected = pack_qkv_reference(qkv, q_gain, k_gain, cos, sin, heads=2)[2]
    got = pack_qkv(strided, q_gain, k_gain, layouts(cos)["transposed"], sin, heads=2)
    for a, b in zip(got, pack_qkv(qkv, q_gain, k_gain, cos, sin, heads=2), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(got[2], expected)


def test_strided_gradients(device):
    """Attention may hand back gradients as slices, and sums as expanded scalars."""
    leaves = [t.requires_grad_() for t in qkv_inputs(20, 2, 96, torch.float32, device)]
    cos, sin = table(20, 96, device)
    outputs = pack_qkv(*leaves, cos, sin, heads=2)
    dq = torch.randn(20, 4, 96, device=device)[:, ::2]
    dk, dv = (
        torch.randn(96, 2, 20, device=device).permute(2, 1, 0),
        torch.ones((), device=device).expand(20, 2, 96),
    )
    strided = torch.autograd.grad(outputs, leaves, (dq, dk, dv), retain_graph=True)
    for a, b in zip(
        strided,
        torch.autograd.grad(outputs, leaves, [g.contiguous() for g in (dq, dk, dv)]),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.skipif(
    not strict.INTERPRETED, reason="the order of programs is chosen by the interpreter"
)
def test_order_of_programs_does_not_matter(device, monkeypatch):
    monkeypatch.setattr(packing, "processors", lambda device: 108)
    inputs, (cos, sin) = qkv_inputs(40, 2, 96, torch.bfloat16, device), table(40, 96, device)
    upstream = [torch.randn(40, 2, 96, device=device) for _ in range(3)]

    def call(*a):
        return pack_qkv(*a, cos, sin, heads=2)

    with strict.shuffled(1):
        shuffled = results(call, inputs, upstream, torch.bfloat16)
    for a, b in zip(results(call, inputs, upstream, torch.bfloat16), shuffled, strict=True):
        assert torch.equal(a, b)


def test_rotation_is_relative(device):
    """Scores depend on the distance of positions only, which is what makes it RoPE."""
    q, k = torch.randn(2, 1, 1, 96, dtype=torch.float64)
    scores = [
        (rotate_reference(q, *at(p + 7)) * rotate_reference(k, *at(p))).sum()
        for p in (0.0, 13.25, 2000.5)
        for at in [lambda position: rope_table(torch.tensor([position], dtype=torch.float64), 96)]
    ]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), rtol=1e-5, atol=1e-5)


def test_custom_ops_are_sound(device):
    qkv, q_gain, k_gain = (
        t.requires_grad_() for t in qkv_inputs(6, 2, 16, torch.float32, device, streams=2)
    )
    cos, sin = table(6, 16, device)
    k, v = torch.zeros(2, 6, 2, 16, device=device)
    ops, plain = torch.ops.mudit, [t.detach() for t in (qkv, q_gain, k_gain)]
    opcheck(ops.pack.default, (qkv, q_gain, k_gain, cos, sin, 2, 2, 1e-6))
    opcheck(ops.pack_into.default, (*plain, cos, sin, k, v, 2, 1e-6))
    opcheck(ops.pack_into.default, (*plain, cos, sin, k, None, 2, 1e-6))
    opcheck(
        ops.pack_backward.default,
        (torch.randn(6, 4, 16, device=device), k, v, *plain, cos, sin, 1e-6),
    )


def test_traces_whole(device):
    inputs, (cos, sin) = qkv_inputs(6, 2, 16, torch.float32, device), table(6, 16, device)

    def block(*a):
        return pack_qkv(*a, cos, sin, heads=2)

    torch.testing.assert_close(
        torch.compile(block, backend="aot_eager", fullgraph=True)(*inputs), block(*inputs)
    )


def test_gradcheck_of_the_references():
    x, gain = (
        torch.randn(3, 2, 12, dtype=torch.float64, requires_grad=True),
        torch.randn(12, dtype=torch.float64, requires_grad=True),
    )
    cos, sin = rope_table(torch.rand(3) * 9, 12)
    assert torch.autograd.gradcheck(lambda x: rotate_reference(x, cos.double(), sin.double()), (x,))
    assert torch.autograd.gradcheck(rms_norm_reference, (x, gain))
    qkv = torch.randn(3, 3 * 24, dtype=torch.float64, requires_grad=True)
    q_gain = torch.randn(1, 12, dtype=torch.float64, requires_grad=True)
    pack = pack_qkv_reference
    assert torch.autograd.gradcheck(
        lambda *a: pack(*a, cos.double(), sin.double(), heads=2), (qkv, q_gain, gain)
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 5}, "does not split"),
        ({"qkv": torch.zeros(4, 3 * 2 * 112), "heads": 2}, "head_dim=112"),
        ({"qkv": torch.zeros(4, 3 * 2 * 8), "heads": 2}, "head_dim=8"),
        ({"qkv": torch.zeros(4, 3 * 128, dtype=torch.float64)}, "float64"),
        ({"cos": torch.zeros(4, 31)}, "cos of shape"),
        ({"cos": torch.zeros(4, 32).bfloat16()}, "pass float32"),
        ({"k_gain": torch.zeros(2, 64)}, "k_gain of shape"),
        ({"k_out": torch.zeros(5, 2, 64)}, "k_out of shape"),
        ({"k_out": torch.zeros(4, 2, 65)[:, :, 1:]}, "16-byte"),
        (
            {"qkv": torch.zeros(4, 3 * 128, requires_grad=True), "k_out": torch.zeros(4, 2, 64)},
            "autograd cannot follow",
        ),
    ],
    ids=[
        "heads",
        "three_chunks",
        "narrow_head",
        "dtype",
        "cos",
        "cos_dtype",
        "k_gain",
        "k_out",
        "k_out_layout",
        "k_out_grad",
    ],
)
def test_refuses_what_it_cannot_do(change, says):
    given = {
        "qkv": torch.zeros(4, 3 * 128),
        "k_gain": None,
        "cos": torch.zeros(4, 32),
        "heads": 2,
        "k_out": None,
        **change,
    }
    with pytest.raises(ValueError, match=says):
        pack_qkv(
            given["qkv"],
            None,
            given["k_gain"],
            given["cos"],
            torch.zeros(4, 32),
            heads=given["heads"],
            k_out=given["k_out"],
        )


@pytest.mark.parametrize("case", ["v_out is k_out", "k_out overlaps x", "k_out repeats a row"])
def test_outputs_that_programs_would_race_for_are_refused(case, device):
    x, table = torch.randn(5, 96, device=device), torch.randn(5, 8, device=device)
    outs = torch.randn(2, 5, 2, 16, device=device)
    k_out, v_out = outs
    if case == "v_out is k_out":
        v_out = k_out
    elif case == "k_out overlaps x":
        k_out = x.view(5, 3, 2, 16)[:, 1]
    else:
        k_out = k_out[:1].expand(5, 2, 16)
    with torch.no_grad(), pytest.raises(ValueError, match="shares memory|reaches elements twice"):
        pack_qkv(x, None, None, table, table, heads=2, k_out=k_out, v_out=v_out)
    with torch.no_grad():
        q, k, v = pack_qkv(x, None, None, table, table, heads=2, k_out=outs[0], v_out=outs[1])
        want = pack_qkv(x, None, None, table, table, heads=2)
    assert k is outs[0] or k.data_ptr() == outs[0].data_ptr()
    for a, b in zip((q, k, v), want, strict=True):
        assert torch.equal(a, b)
