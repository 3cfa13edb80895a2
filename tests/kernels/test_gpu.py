"""The kernels on a real device, compiled: what the interpreter can't see (schedules, TMA, streams,
graphs). On a GPU: TRITON_INTERPRET=0 pytest tests/kernels -m gpu.

Every test is skipped where there is no CUDA device, or where TRITON_INTERPRET=1 has replaced the
compiler.
"""

from __future__ import annotations

import pytest
import torch

from attention_cases import NAMES, assert_close, make_case
from mudit_engine import ops
from mudit_engine.benchmarks.measure_kernels import measure
from mudit_engine.benchmarks.measure_kernels_cases import OURS, Case, Size, cases
from mudit_engine.kernels.attention import attention, attention_reference
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling import strict

ABSENT = "needs a CUDA device and TRITON_INTERPRET=0 (on a GPU machine)"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(strict.INTERPRETED or not torch.cuda.is_available(), reason=ABSENT),
]

HEADS = (64, 96, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# a short and a long song, one frame, no lyrics: every edge of a tile, and loops long enough to be
# pipelined
MEDIUM = Size(((323, 120), (1, 0), (1291, 483), (64, 7), (700, 0)), width=1536, channels=96)


def one(op: str, head_dim: int, dtype: str, device: str) -> list[Case]:
    return list(cases(MEDIUM, ops=(op,), head_dims=(head_dim,), dtype=DTYPES[dtype], device=device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
@pytest.mark.parametrize("op", ["attention", "pack"])
def test_ops_with_heads_match_float64(op: str, head_dim: int, dtype: str, device: str) -> None:
    for case in one(op, head_dim, dtype, device):
        measure(case, dtype, peers=False, rounds=1, peak=None)  # raises GateError


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["norm", "gelu", "guided_step"])
def test_row_wise_ops_match_float64(op: str, dtype: str, device: str) -> None:
    for case in one(op, 96, dtype, device):
        measure(case, dtype, peers=False, rounds=1, peak=None)


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=NAMES.get)
@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
@pytest.mark.parametrize(
    "length", [0, 1, 63, 64, 65, 100, 127, 128, 129, 257, 1000], ids="T{}".format
)
def test_attention_around_the_edges_of_tiles(
    length: int, head_dim: int, dtype: torch.dtype, device: str
) -> None:
    case = make_case(
        [length, 17], keys=[33, length], head_dim=head_dim, dtype=dtype, heads=2, device=device
    )
    kernel = case.run(attention, precision="ieee")
    assert_close(
        kernel,
        case.run(attention_reference),
        case.run(attention_reference, torch.float64),
        case.cancelling(),
    )


@pytest.mark.parametrize("head_dim", HEADS, ids="K{}".format)
def test_the_same_bits_every_time(head_dim: int, device: str) -> None:
    """No atomics anywhere: forty launches, while another stream keeps the device busy in
    between.
    """
    case = make_case(
        [700, 65, 300],
        keys=[120, 0, 40],
        head_dim=head_dim,
        dtype=torch.bfloat16,
        heads=4,
        device=device,
    )
    first = case.run(attention)
    noise, side = torch.randn(2048, 2048, device=device), torch.cuda.Stream()
    for _ in range(40):
        with torch.cuda.stream(side):
            noise @ noise
        assert all(torch.equal(a, b) for a, b in zip(first, case.run(attention), strict=True))


def test_row_wise_gradients_have_the_same_bits_every_time(device: str) -> None:
    for op in ("norm", "gelu", "pack"):
        for case in one(op, 96, "bf16", device):
            runs = []
            for _ in range(5):
                leaves = [x.detach().requires_grad_() for x in case.inputs]
                outputs = case.providers[OURS](*leaves)
                runs.append(
                    torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])
                )
            assert all(
                torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True)
            ), case.op


def test_rows_of_neighbours_stay_out(device: str) -> None:
    """NaN rows of one song, on both sides of another, change nothing in it:
    no tile reads across.
    """
    case = make_case([130, 65, 90], head_dim=96, dtype=torch.bfloat16, heads=2, device=device)
    clean = case.run(attention)[0][130:195]
    for x in (case.q, case.k, case.v):
        x[:130], x[195:] = float("nan"), float("nan")
    with torch.no_grad():
        assert torch.equal(
            attention(case.q, case.k, case.v, case.segments, case.cos, case.sin)[130:195], clean
        )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_tensors_of_another_device(device: str) -> None:
    """The current device is 0, the tensors are on 1."""
    for op in ("attention", "norm", "pack", "gelu", "guided_step"):
        for case in one(op, 96, "bf16", "cuda:1"):
            measure(case, "bf16", peers=False, rounds=1, peak=None)
    assert torch.cuda.current_device() == 0


def test_one_graph_for_every_step(device: str) -> None:
    """Attention and the sampler update are captured into a CUDA graph and replayed on other
    numbers.
    """
    case = make_case(
        [323, 64], keys=[120, 9], head_dim=96, dtype=torch.bfloat16, heads=2, device=device
    )
    x, kept, noise = torch.randn(3, 387, 16, device=device)
    table, spans = torch.rand(1, 7, device=device), SongRows(((0, 387, 0, -1),))

    def step() -> tuple[torch.Tensor, ...]:
        out = ops.attention(case.q, case.k, case.v, case.segments, case.cos, case.sin)
        return out, *ops.guided_step(
            x, kept, out.flatten(1)[:, :16].contiguous(), noise, table, spans
        )

    with torch.no_grad():
        warm = torch.cuda.Stream()
        with torch.cuda.stream(warm):  # tiles go to the device once, before the capture
            step()
        torch.cuda.current_stream().wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        case.q.normal_()
        x.normal_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_compiled_by_inductor(device: str) -> None:
    case = make_case(
        [323, 65], keys=[120, 0], head_dim=96, dtype=torch.bfloat16, heads=2, device=device
    )

    def block(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, *tables: torch.Tensor
    ) -> torch.Tensor:
        return 2 * ops.attention(q, k, v, segments, *tables)

    plain, compiled = case.run(block), case.run(torch.compile(block, fullgraph=True))
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_every_backend_agrees(device: str) -> None:
    case = make_case(
        [323, 65], keys=[120, 0], head_dim=64, dtype=torch.bfloat16, heads=2, device=device
    )
    truth = case.run(attention_reference, torch.float64)[0]
    for backend in ("triton", "flash", "eager"):
        with ops.use(backend), torch.no_grad():
            out = ops.attention(case.q, case.k, case.v, case.segments, case.cos, case.sin)
        assert (out - truth).norm() <= 5e-3 * truth.norm(), backend
