"""The Hopper kernel of the key gradients in the simulator: results against float64 under random
schedules, and proof that the simulator notices each synchronisation that is missing.
"""

from __future__ import annotations

import math

import pytest
import torch

from attention_cases import NAMES, Case, assert_close, make_case, rotated, softmax_sums
from hopper_mutations import mutations, noticed
from mudit_engine.kernels import attention_hopper_backward as hopper
from mudit_engine.kernels.attention import attention_reference
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling import simulator
from mudit_engine.profiling.simulator import simulated

HEADS = (64, 96, 128)
# songs and lyrics: a tile and a bit, one row, nothing, several tiles that end inside one
RAGGED = ([130, 0, 1, 65], [3, 9, 0, 257])
LONG = ([300, 1, 500, 70], [0, 128, 1, 387])


def launch(case: Case, *, programs: int | None = None) -> list[torch.Tensor]:
    """dk and dv of a case, its items shared by `programs`; what the kernel of the query gradients
    leaves is made by the reference.
    """
    out, _, _, _ = case.run(attention_reference)
    delta = (case.d_out.float() * out.float()).sum(-1).T
    state = torch.stack((softmax_sums(case).float() * math.log2(math.e), delta), -1).contiguous()
    dk, dv = (torch.full_like(x, torch.nan) for x in (case.k, case.v))
    hopper.key_gradients(
        rotated(case), case.k, case.v, case.d_out, state, dk, dv,
        case.segments.key_tiles(hopper.BLOCK_K, "cpu"), scale=case.q.shape[-1] ** -0.5,
        programs=programs,
    )  # fmt: skip
    return [dk, dv]


def hold(case: Case, *, programs: int | None = None) -> None:
    eager, truth = (case.run(attention_reference, one) for one in (case.q.dtype, torch.float64))
    got = [eager[0], eager[1], *launch(case, programs=programs)]
    assert_close(got, eager, truth, case.cancelling())


def case_of(lengths, keys, head_dim, dtype=torch.bfloat16, heads=1, rotate=True) -> Case:
    return make_case(lengths, keys=keys, head_dim=head_dim, heads=heads, dtype=dtype, rotate=rotate)


@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
def test_ragged_songs_and_lyrics(head_dim):
    with simulated(seed=head_dim, backward=True):
        hold(case_of(*RAGGED, head_dim), programs=2)


def test_fp16_and_queries_that_are_not_rotated():
    with simulated(backward=True):
        hold(case_of([100], [130], 64, torch.float16, rotate=False))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("programs", [1, 3, None], ids="P{}".format)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=NAMES.get)
@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
def test_every_head_dtype_and_share_of_the_work(head_dim, dtype, programs, seed):
    with simulated(seed, backward=True):
        hold(case_of(*LONG, head_dim, dtype, heads=2, rotate=seed % 3 != 2), programs=programs)


@pytest.mark.slow
@pytest.mark.parametrize("queries", [1, 63, 64, 65, 127, 128, 129, 300], ids="T{}".format)
def test_query_lengths_around_a_tile(queries):
    for head_dim in (64, 128):
        with simulated(queries, backward=True):
            hold(case_of([queries, 1, queries], [queries, 0, 5], head_dim))


def test_keys_and_values_without_a_descriptor_are_copied():
    case = case_of([65, 30], None, 64, heads=2)
    with simulated(backward=True):
        plain = launch(case)
        case.k, case.v = (
            torch.cat((x.new_zeros(1), x.flatten()))[1:].view_as(x) for x in (case.k, case.v)
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, launch(case), strict=True))


def test_gradients_of_attention_come_from_it(monkeypatch):
    case = case_of([70, 3], [9, 0], 64, heads=2)
    launches = []
    plain = simulator.Kernel.__getitem__
    monkeypatch.setattr(
        simulator.Kernel, "__getitem__", lambda own, grid: launches.append(own) or plain(own, grid)
    )
    with simulated() as forward, simulated(backward=True) as keys:
        got = case.run(hopper.attention_hopper_grad)
    assert launches == [forward, keys]
    eager, truth = (case.run(attention_reference, one) for one in (case.q.dtype, torch.float64))
    assert_close(got, eager, truth, case.cancelling())


def test_it_is_refused_with_a_reason_elsewhere(monkeypatch):
    q, k, v = torch.zeros(3, 4, 1, 64, dtype=torch.bfloat16).unbind()
    segments = Segments.self_attention([4])
    with pytest.raises(ValueError, match=r"NVIDIA H100.*take backend='triton' or 'eager'"):
        hopper.attention_hopper_grad(q, k, v, segments)
    monkeypatch.setattr(hopper, "OLD_TRITON", True)
    with pytest.raises(ValueError, match=r"compiled with Triton 3.7.*take backend='hopper'"):
        hopper.attention_hopper_grad(q, k, v, segments)


def test_a_neighbours_nan_stays_out():
    case = case_of([70, 60], None, 64)
    for x in (case.q, case.k, case.v, case.d_out):
        x[70:] = torch.nan
    with simulated(1, backward=True):
        dk, dv = launch(case, programs=1)
    assert dk[:70].isfinite().all() and dv[:70].isfinite().all()
    assert dk[70:].isnan().all() and dv[70:].isnan().all()


MUTATIONS = mutations(simulator.BACKWARD)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_missing_synchronisation_is_noticed(name):
    case = case_of([140, 129], [130, 0], MUTATIONS[name].head_dim)

    def run(seed, change):
        with simulated(seed, change=change, backward=True):
            hold(case, programs=2)

    assert noticed(MUTATIONS[name], run, seeds=20)


def test_there_are_mutations_of_every_kind():
    kinds = [mutation.kind for mutation in MUTATIONS.values()]
    assert {kind.split()[0] for kind in kinds} == {"remove", "later", "drop", "count", "once"}
    assert len(kinds) >= 25
