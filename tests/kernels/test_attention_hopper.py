"""The Hopper kernel of attention in the simulator: results against float64 under random schedules,
and proof that the simulator notices each synchronisation that is missing.
"""

from __future__ import annotations

import copy

import pytest
import torch

from attention_cases import NAMES, Case, assert_close, make_case, softmax_sums
from hopper_mutations import mutations, noticed
from mudit_engine.kernels import attention_hopper as hopper
from mudit_engine.kernels.attention import attention_reference
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling import simulator
from mudit_engine.profiling.simulator import simulated

HEADS = (64, 96, 128)
# songs and lyrics: a tile and a bit, one row, nothing, several tiles that end inside one
RAGGED = ([130, 0, 1, 65], [3, 9, 0, 257])
LONG = ([300, 1, 640, 70], [0, 128, 1, 513])


def launch(case: Case, *, programs: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse of a case, its items shared by `programs`."""
    tiles = case.segments.query_tiles(hopper.CONFIG.block_q, "cpu")
    return hopper.forward(
        case.q, case.k, case.v, case.cos, case.sin, tiles, hopper.CONFIG,
        scale=case.q.shape[-1] ** -0.5, precision="tf32", covered=True, programs=programs,
    )  # fmt: skip


def hold(case: Case, *, programs: int | None = None) -> None:
    out, lse = launch(case, programs=programs)
    eager, truth = (
        case.run(attention_reference, dtype)[0] for dtype in (case.q.dtype, torch.float64)
    )
    assert_close([out], [eager], [truth])
    torch.testing.assert_close(lse.double(), softmax_sums(case), rtol=1e-5, atol=2e-5)


def case_of(lengths, keys, head_dim, dtype=torch.bfloat16, heads=1, rotate=True) -> Case:
    return make_case(lengths, keys=keys, head_dim=head_dim, heads=heads, dtype=dtype, rotate=rotate)


@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
def test_ragged_songs_and_lyrics(head_dim):
    with simulated(seed=head_dim):
        hold(case_of(*RAGGED, head_dim), programs=2)


def test_fp16_and_queries_that_are_not_rotated():
    with simulated():
        hold(case_of([100], [130], 64, torch.float16, rotate=False))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("programs", [1, 3, 7, None], ids="P{}".format)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=NAMES.get)
@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
def test_every_head_dtype_and_share_of_the_work(head_dim, dtype, programs, seed):
    with simulated(seed):
        hold(case_of(*LONG, head_dim, dtype, heads=2, rotate=seed % 3 != 2), programs=programs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keys", [1, 127, 128, 129, 255, 256, 384, 500], ids="L{}".format)
def test_key_lengths_around_a_tile(keys, seed):
    with simulated(seed):
        hold(case_of([64, 1, 129], [keys, 0, keys], 64))


def test_gradients_come_from_its_sums():
    case = case_of([70], [9], 64)
    with simulated():
        got = case.run(hopper.attention_hopper)
    truth = case.run(attention_reference, torch.float64)
    assert_close(got, case.run(attention_reference), truth, case.cancelling())


@pytest.mark.parametrize("layout", ["fused", "odd-address"])
def test_strided_inputs(layout):
    case = case_of([65, 30], None, 64, heads=2)
    plain = copy.copy(case)
    if layout == "fused":
        case.q, case.k, case.v = torch.cat((case.q, case.k, case.v), 1).split(2, 1)
    else:  # no descriptor may point there
        case.k, case.v = (
            torch.cat((x.new_zeros(1), x.flatten()))[1:].view_as(x) for x in (case.k, case.v)
        )
    with simulated(), torch.no_grad():
        assert torch.equal(
            *(
                hopper.attention_hopper(c.q, c.k, c.v, c.segments, c.cos, c.sin)
                for c in (case, plain)
            )
        )


def test_a_neighbours_nan_stays_out():
    case = case_of([70, 60], None, 64)
    for x in (case.q, case.k, case.v):
        x[70:] = torch.nan
    with simulated(1):
        out, lse = launch(case, programs=1)
    assert out[:70].isfinite().all() and lse[:, :70].isfinite().all()
    assert out[70:].isnan().all()


@pytest.mark.parametrize("programs", [1, 2, 5, 8])
@pytest.mark.parametrize("items", [1, 7, 16, 23])
def test_every_item_has_one_program(items, programs):
    item_of = simulator.load()["item_of"]
    taken = []
    for program in range(programs):
        simulator.Block.current = simulator.Block(program, programs, 0)
        taken += [item_of(turn, items) for turn in range(-(-items // programs))]
    assert sorted(item for item in taken if item < items) == list(range(items))


# ---- what the simulator notices


MUTATIONS = mutations(simulator.KERNELS)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_missing_synchronisation_is_noticed(name):
    case = case_of([300, 129], [140, 0], MUTATIONS[name].head_dim)

    def run(seed, change):
        with simulated(seed, change=change):
            hold(case, programs=2)

    assert noticed(MUTATIONS[name], run, seeds=20)


def test_there_are_mutations_of_every_kind():
    kinds = [mutation.kind for mutation in MUTATIONS.values()]
    assert {kind.split()[0] for kind in kinds} == {"remove", "later", "drop", "count", "once"}
    assert len(kinds) >= 31


# ---- where it runs


def test_it_is_refused_with_a_reason_elsewhere():
    q, k, v = torch.zeros(3, 4, 1, 64, dtype=torch.bfloat16).unbind()
    segments = Segments.self_attention([4])
    with pytest.raises(ValueError, match=r"NVIDIA H100.*take backend='triton' or 'eager'"):
        hopper.attention_hopper(q, k, v, segments)


def test_a_triton_without_gluon_is_named(monkeypatch):
    monkeypatch.setattr(hopper.importlib.util, "find_spec", lambda name: None)
    hopper._gluon.cache_clear()
    try:
        assert "has no triton.experimental.gluon" in hopper.refusal(torch.device("cpu"))
    finally:
        hopper._gluon.cache_clear()


def test_fp32_is_refused():
    q, k, v = torch.zeros(3, 4, 1, 64).unbind()
    with simulated(), pytest.raises(ValueError, match="no Hopper kernel"):
        hopper.attention_hopper(q, k, v, Segments.self_attention([4]))
