"""Stage of benchmarks/gpu_run.py that decides on the warp-specialised attention of an H100.

    hopper(StageRun("hopper", folder, seconds=200, dry=False))

First numerics: forward and gradients against float64, twice for the same bits, over ragged songs,
one row, no lyrics, and key lengths around a tile; the gradients of keys and values come from the
Triton kernel or, where this Triton compiles it, from a Hopper kernel of their own. Then time beside
the Triton kernels, in turns, in the shapes of the stage `attention`: the forward, and the forward
with its gradients. A kernel that hangs is ended with its stage. A rehearsal runs it in the
simulator.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mudit_engine.benchmarks import measure_kernels as kernels_benchmark
from mudit_engine.benchmarks.gpu_kernels import BF16_ERROR, self_attention, truth_of
from mudit_engine.benchmarks.gpu_stage import StageRun
from mudit_engine.benchmarks.measure_kernels_cases import EAGER, FULL, OURS, cases
from mudit_engine.benchmarks.measure_kernels_cases import Size as CaseSize
from mudit_engine.kernels import attention_hopper_backward
from mudit_engine.kernels.attention import attention, attention_reference
from mudit_engine.kernels.attention_hopper import attention_hopper, refusal
from mudit_engine.kernels.attention_hopper_backward import attention_hopper_grad
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling.simulator import simulated

HOPPER, HOPPER_GRAD = "hopper", "hopper-grad"
# (frames, lyric tokens) of each song
EDGES = ((1, 1), (127, 0), (128, 65), (129, 257), (0, 3), (1291, 483), (700, 0), (64, 128))
TINY = ((130, 9), (1, 0))
Kernel = Callable[..., Tensor]
SHAPES = {
    "dense 4x2048": [2048] * 4,
    "dense 1x16384": [16384],
    "ragged 8 songs": [323, 646, 1292, 2800] * 2,
}


def hopper(run: StageRun) -> None:
    """Whether the kernels are right on this card, and then how fast."""
    with contextlib.ExitStack() as rehearsal:
        if run.dry:
            rehearsal.enter_context(simulated())
            rehearsal.enter_context(simulated(backward=True))
        kernels: dict[str, Kernel] = {}
        for name, kernel, why_not in (
            (HOPPER, attention_hopper, refusal),
            (HOPPER_GRAD, attention_hopper_grad, attention_hopper_backward.refusal),
        ):
            if (reason := why_not(torch.device(run.device))) is not None:
                run.emit(name, skipped=reason)
            else:
                kernels[name] = kernel
        sizes = (
            {"tiny": CaseSize(TINY, 64, 96)}
            if run.dry
            else {
                "edges": CaseSize(EDGES, 1536, 96),
                "full": FULL,
            }
        )
        dtypes = (torch.bfloat16,) if run.dry else (torch.bfloat16, torch.float16)
        for held, sized, dtype, head_dim in itertools.product(
            kernels.items(), sizes.items(), dtypes, run.head_dims
        ):
            work = partial(_hold, run, held, sized, head_dim, dtype)
            run.attempt(f"{held[0]} numerics K{head_dim} {dtype} {sized[0]}", work)
        timed = {"": _time} if HOPPER in kernels else {}
        if HOPPER_GRAD in kernels:
            timed["training "] = _time_training
        shapes = {"tiny": [33, 5]} if run.dry else SHAPES
        for (what, time), head_dim, (shape, lengths) in itertools.product(
            timed.items(), run.head_dims, shapes.items()
        ):
            run.attempt(f"{what}{shape} K{head_dim}", partial(time, run, shape, lengths, head_dim))


def _hold(
    run: StageRun,
    held: tuple[str, Kernel],
    sized: tuple[str, CaseSize],
    head_dim: int,
    dtype: torch.dtype,
) -> None:
    """A row for forward and gradients: the error against float64, and whether bits repeat."""
    (name, kernel), (size_name, size) = held, sized
    (case,) = cases(size, ops=("attention",), head_dims=(head_dim,), dtype=dtype, device=run.device)
    frames = size.frames
    segments = Segments.self_attention(frames) + Segments.cross_attention(
        frames, [tokens for _, tokens in size.songs], k_offset=sum(frames), stream=1
    )
    positions = torch.cat([torch.arange(n) for n in frames]).float().to(run.device)
    cos, sin = (torch.stack((t, t)) for t in rope_table(positions, head_dim))

    def provider(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (kernel(q, k, v, segments, cos, sin),)

    results = kernels_benchmark.results
    truth = results(case, case.providers[EAGER], torch.float64)
    eager = results(case, case.providers[EAGER], None)
    got, again = (results(case, provider, None) for _ in range(2))
    for way, tensors in got.items():
        error, ratio = kernels_benchmark.distance(tensors, eager[way], truth[way])
        same = all(torch.equal(a, b) for a, b in zip(tensors, again[way], strict=True))
        run.emit(
            "numerics", op=f"attention_{name}_{way}", head_dim=head_dim, dtype=str(dtype),
            size=size_name, error=error, ratio_to_bar=ratio, same_bits=same, ok=ratio <= 1 and same,
        )  # fmt: skip


def _time(run: StageRun, shape: str, lengths: Sequence[int], head_dim: int) -> None:
    """Rows of the Hopper and of the Triton forward, rotation included, in turns."""
    given = self_attention(run, lengths, head_dim)
    truth = truth_of(given, rotated=True)
    providers: dict[str, Kernel] = {
        f"{HOPPER}+rope": attention_hopper,
        f"{OURS}+rope": attention,
        f"{HOPPER}+rope again": attention_hopper,
    }
    arguments = (given.q, given.k, given.v, given.segments, given.cos, given.sin)

    def forward(kernel: Kernel) -> tuple[Tensor, ...]:
        return (kernel(*arguments),)

    with torch.no_grad():
        _in_turns(run, "attention_fwd", providers, forward, (truth,), given.flops, shape, head_dim)


def _time_training(run: StageRun, shape: str, lengths: Sequence[int], head_dim: int) -> None:
    """Rows of forward and gradients together, by each kernel, in turns; the error is that of the
    gradients of q, k and v.
    """
    given = self_attention(run, lengths, head_dim)
    g = torch.Generator(device=run.device).manual_seed(1)
    d_out = torch.randn(given.q.shape, generator=g, device=run.device).bfloat16()
    asked = [x.requires_grad_() for x in (given.q, given.k, given.v)]
    arguments = (given.segments, given.cos, given.sin)
    exact = [x.detach().float().requires_grad_() for x in asked]
    q, k, v = exact
    truth = torch.autograd.grad(attention_reference(q, k, v, *arguments), exact, d_out.float())

    def gradients(kernel: Kernel) -> tuple[Tensor, ...]:
        return torch.autograd.grad(kernel(*asked, *arguments), asked, d_out)

    providers: dict[str, Kernel] = {
        f"{HOPPER_GRAD}+rope": attention_hopper_grad,
        f"{HOPPER}+rope": attention_hopper,
        f"{OURS}+rope": attention,
        f"{HOPPER_GRAD}+rope again": attention_hopper_grad,
    }
    flops = 3.5 * given.flops
    _in_turns(run, "attention_fwd_bwd", providers, gradients, truth, flops, shape, head_dim)


def _in_turns(
    run: StageRun, what: str, providers: dict[str, Kernel],
    work: Callable[[Kernel], tuple[Tensor, ...]], truth: tuple[Tensor, ...], flops: float,
    shape: str, head_dim: int,
) -> None:  # fmt: skip
    """A row of each provider: how far its work is from the truth, and where that is near, its
    times.
    """
    for name, kernel in providers.items():
        pairs = zip(work(kernel), truth, strict=True)
        error = max(float((got.float() - true).norm() / true.norm()) for got, true in pairs)
        row = {"provider": name, "shape": shape, "head_dim": head_dim, "error": error}
        if not error < BF16_ERROR:
            run.emit("wrong", **row, ok=False)
            continue
        times = run.milliseconds(partial(work, kernel))
        run.emit(what, **row, **run.rates(flops, times))
