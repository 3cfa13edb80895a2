"""What attention promises beyond its numbers: isolation, determinism, zeros, torch's machinery, and
errors that say what to do.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from attention_cases import Case, assert_close, make_case
from mudit_engine.kernels import attention_forward, rows
from mudit_engine.kernels.attention import (
    _blocks,
    attention,
    attention_bwd,
    attention_fwd,
    attention_reference,
)
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling import strict


def test_programs_in_any_order_give_the_same_bits(device):
    if not strict.INTERPRETED:
        pytest.skip("the order of programs is the GPU's")
    case = make_case(
        [130, 0, 20], keys=[20, 5, 0], head_dim=64, heads=2, dtype=torch.bfloat16, device=device
    )
    straight = case.run(attention)
    with strict.shuffled(1):
        for name, a, b in zip(
            ("out", "dq", "dk", "dv"), straight, case.run(attention), strict=True
        ):
            assert torch.equal(a, b), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("capability", [80, 90], ids=["pointers", "descriptors"])
def test_a_song_is_blind_to_its_neighbours(capability, monkeypatch, device):
    if strict.INTERPRETED:
        monkeypatch.setattr(attention_forward, "target_capability", lambda: capability)
    case = make_case([100, 50, 70], head_dim=64, dtype=torch.bfloat16, device=device)
    middle = slice(100, 150)
    clean = case.run(attention)
    for x in (case.q, case.k, case.v, case.d_out):
        x[:100], x[150:] = float("nan"), float("inf")
    for a, b in zip(clean, case.run(attention), strict=True):
        assert torch.equal(a[middle], b[middle])


def test_a_song_alone_equals_the_song_in_a_batch(device):
    batch = make_case([90, 100, 33], head_dim=128, dtype=torch.bfloat16, device=device)
    rows = slice(90, 190)
    alone = Case(
        batch.q[rows],
        batch.k[rows],
        batch.v[rows],
        batch.d_out[rows],
        Segments.self_attention([100]),
        batch.cos[:, rows],
        batch.sin[:, rows],
    )
    for a, b in zip(batch.run(attention), alone.run(attention), strict=True):
        assert torch.equal(a[rows], b)


def test_no_keys_give_zero_and_zero_gradients(device):
    case = make_case([64, 5], keys=[0, 0], head_dim=64, device=device)
    out, dq, _, _ = case.run(attention)
    assert out[:, 1].eq(0).all() and dq[:, 1].eq(0).all() and out[:, 0].ne(0).any()


def test_rows_outside_every_segment_are_zero(device):
    case = make_case([40, 30, 20], head_dim=64, device=device)
    case.segments = Segments((case.segments.items[0], case.segments.items[2]))
    kernel = case.run(attention, precision="ieee")
    assert all(x[40:70].eq(0).all() for x in kernel)
    assert_close(
        kernel, case.run(attention_reference), case.run(attention_reference, torch.float64)
    )


def test_nothing_at_all(device):
    case = make_case([], head_dim=64, rotate=False, device=device)
    assert [x.shape[0] for x in case.run(attention)] == [0, 0, 0, 0]


def test_shared_keys_serve_inference_only(device):
    case = make_case([20, 20], head_dim=64, device=device)
    case.segments = Segments(((0, 20, 0, 40, 0), (20, 20, 0, 40, 0)))
    with torch.no_grad():
        out = attention(case.q, case.k, case.v, case.segments, case.cos, case.sin, precision="ieee")
        torch.testing.assert_close(
            out, attention_reference(case.q, case.k, case.v, case.segments, case.cos, case.sin)
        )
    with pytest.raises(ValueError, match="share key rows from 0.*no_grad"):
        case.run(attention)


def operator_arguments(case: Case) -> tuple:
    block_q, block_dq, block_dkv = _blocks(64, torch.float32, "ieee", case.q.device)
    device, segments = case.q.device, case.segments
    tiles = (
        segments.query_tiles(block_q, device),
        segments.query_tiles(block_dq, device),
        segments.key_tiles(block_dkv, device),
    )
    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    return *leaves, case.cos, case.sin, *tiles, 0.125, "ieee", True, True


def test_gradient_of_the_softmax_sums(device):
    case = make_case([37], head_dim=64, rotate=False, device=device)
    arguments = operator_arguments(case)
    q, k, v = arguments[:3]
    _, lse = attention_fwd(*arguments)
    expected = torch.logsumexp(torch.einsum("qhk,lhk->hql", q, k) * 0.125, -1)
    torch.testing.assert_close(lse, expected)
    weight = torch.randn(lse.shape, device=device)
    got = torch.autograd.grad((lse * weight).sum(), (q, k, v))
    want = torch.autograd.grad((expected * weight).sum(), (q, k))
    torch.testing.assert_close(got[:2], want)
    assert got[2].eq(0).all()


def test_opcheck(device):
    case = make_case([9, 3], keys=[5, 0], head_dim=64, device=device)
    arguments = operator_arguments(case)
    torch.library.opcheck(attention_fwd, arguments)
    with torch.no_grad():
        out, lse = attention_fwd(*arguments)
    q, k, v, cos, sin, _, *rest = (
        x.detach() if isinstance(x, torch.Tensor) else x for x in arguments
    )
    torch.library.opcheck(
        attention_bwd,
        (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, cos, sin, *rest),
    )


def test_reference_gradcheck():
    case = make_case([5, 0, 3], keys=[2, 1, 0], head_dim=96)
    leaves = [x.double().requires_grad_() for x in (case.q, case.k, case.v)]
    assert torch.autograd.gradcheck(
        lambda *x: attention_reference(*x, case.segments, case.cos, case.sin),
        leaves,
        fast_mode=True,
    )


@pytest.mark.parametrize("wrapper", ["compile", "checkpoint"])
def test_torch_sees_one_operator(wrapper, device):
    case = make_case([33, 7], keys=[20, 0], head_dim=64, device=device)
    wrap = {
        "compile": torch.compile(attention, backend="aot_eager", fullgraph=True),
        "checkpoint": lambda *x: checkpoint(attention, *x, use_reentrant=False),
    }[wrapper]
    for a, b in zip(case.run(attention), case.run(wrap), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("which", ["k", "v", "q"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_rows_beyond_32_bits_are_refused_before_any_launch(which, training):
    rows = 2**17
    given = {name: torch.empty(rows, 1, 64, device="meta") for name in "qkv"}
    given[which] = torch.empty_strided((rows, 1, 64), (2**14, 64, 1), device="meta")
    if training:
        given["q"] = given["q"].requires_grad_()
    with pytest.raises(ValueError, match="reaches beyond 2.31 elements"):
        attention(given["q"], given["k"], given["v"], Segments.self_attention([rows]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q": torch.zeros(8, 1, 80), "k": torch.zeros(8, 1, 80), "v": torch.zeros(8, 1, 80)},
            "head_dim=80 has no triton kernel",
        ),
        (
            {"q": torch.zeros(8, 3, 64), "k": torch.zeros(8, 2, 64), "v": torch.zeros(8, 2, 64)},
            "pass q \\[T, streams x H, K\\]",
        ),
        ({"k": torch.zeros(8, 1, 64, dtype=torch.bfloat16)}, "pass all three as"),
        ({"precision": "fast"}, "precision='fast' is not known"),
        ({"scale": -1.0}, "pass a positive number"),
        ({"cos": torch.zeros(1, 8, 32)}, "cos and sin come together"),
        ({"cos": torch.zeros(1, 8, 64), "sin": torch.zeros(1, 8, 64)}, "pass a float32 table"),
        ({"segments": Segments.self_attention([9])}, "leaves the buffers"),
        ({"segments": Segments.self_attention([8], stream=1)}, "segment of stream 1"),
    ],
    ids=[
        "head-width",
        "heads",
        "mixed-dtypes",
        "precision",
        "scale",
        "half-a-table",
        "table-shape",
        "too-long",
        "stream",
    ],
)
def test_errors_say_what_to_do(change, message):
    given = (
        {name: torch.zeros(8, 1, 64) for name in "qkv"}
        | {"segments": Segments.self_attention([8])}
        | change
    )
    with pytest.raises(ValueError, match=message):
        attention(given.pop("q"), given.pop("k"), given.pop("v"), given.pop("segments"), **given)


@pytest.mark.parametrize("rotate", [True, False])
def test_the_reference_gives_the_same_in_pieces(rotate, monkeypatch):
    """Large inputs without gradients: a segment at a time, with rows that no segment covers and
    segments without keys.
    """
    case = make_case([33, 5, 17], keys=[9, 0, 30], head_dim=64, heads=2, rotate=rotate)
    covered = case.segments
    uncovered = Segments(tuple((q + 2, n, k, m, s) for q, n, k, m, s in covered.items[:1]))
    for segments in (covered, uncovered):
        found = []
        for piece in (1, 1 << 40):
            monkeypatch.setattr(rows, "PIECE", piece)
            with torch.no_grad():
                found.append(
                    attention_reference(case.q, case.k, case.v, segments, case.cos, case.sin)
                )
        assert torch.equal(*found)
        assert not found[0].isnan().any()
