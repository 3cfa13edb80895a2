"""Stage of benchmarks/gpu_run.py that decides on the warp-specialised attention of an H100.

    hopper(StageRun("hopper", folder, seconds=200, dry=False))

First numerics: forward and gradients against float64, twice for the same bits, over ragged songs,
one row, no lyrics, and key lengths around a tile. Then time beside the Triton kernel, in turns, in
the shapes of the stage `attention`. A kernel that hangs is ended with its stage. A rehearsal runs
it in the simulator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mudit_engine.benchmarks import measure_kernels as kernels_benchmark
from mudit_engine.benchmarks.gpu_kernels import BF16_ERROR, self_attention, truth_of
from mudit_engine.benchmarks.gpu_stage import StageRun
from mudit_engine.benchmarks.measure_kernels_cases import EAGER, FULL, OURS, cases
from mudit_engine.benchmarks.measure_kernels_cases import Size as CaseSize
from mudit_engine.kernels.attention import attention
from mudit_engine.kernels.attention_hopper import attention_hopper, refusal
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling.simulator import simulated

HOPPER = "hopper"
# (frames, lyric tokens) of each song
EDGES = ((1, 1), (127, 0), (128, 65), (129, 257), (0, 3), (1291, 483), (700, 0), (64, 128))
TINY = ((130, 9), (1, 0))
SHAPES = {
    "dense 4x2048": [2048] * 4,
    "dense 1x16384": [16384],
    "ragged 8 songs": [323, 646, 1292, 2800] * 2,
}


def hopper(run: StageRun) -> None:
    """Whether the kernel is right on this card, and then how fast."""
    with simulated() if run.dry else contextlib.nullcontext():
        if (reason := refusal(torch.device(run.device))) is not None:
            run.emit("hopper", skipped=reason)
            return
        sizes = (
            {"tiny": CaseSize(TINY, 64, 96)}
            if run.dry
            else {
                "edges": CaseSize(EDGES, 1536, 96),
                "full": FULL,
            }
        )
        for name, size in sizes.items():
            for dtype in (torch.bfloat16,) if run.dry else (torch.bfloat16, torch.float16):
                for head_dim in run.head_dims:
                    work = partial(_hold, run, name, size, head_dim, dtype)
                    run.attempt(f"numerics K{head_dim} {dtype} {name}", work)
        for head_dim in run.head_dims:
            for shape, lengths in SHAPES.items():
                given = [n // 512 + 1 for n in lengths] if run.dry else lengths
                run.attempt(f"{shape} K{head_dim}", partial(_time, run, shape, given, head_dim))


def _hold(run: StageRun, name: str, size: CaseSize, head_dim: int, dtype: torch.dtype) -> None:
    """A row for forward and gradients: the error against float64, and whether bits repeat."""
    (case,) = cases(size, ops=("attention",), head_dims=(head_dim,), dtype=dtype, device=run.device)
    frames = size.frames
    segments = Segments.self_attention(frames) + Segments.cross_attention(
        frames, [tokens for _, tokens in size.songs], k_offset=sum(frames), stream=1
    )
    positions = torch.cat([torch.arange(n) for n in frames]).float().to(run.device)
    cos, sin = (torch.stack((t, t)) for t in rope_table(positions, head_dim))

    def provider(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (attention_hopper(q, k, v, segments, cos, sin),)

    results = kernels_benchmark.results
    truth = results(case, case.providers[EAGER], torch.float64)
    eager = results(case, case.providers[EAGER], None)
    got, again = (results(case, provider, None) for _ in range(2))
    for way, tensors in got.items():
        error, ratio = kernels_benchmark.distance(tensors, eager[way], truth[way])
        same = all(torch.equal(a, b) for a, b in zip(tensors, again[way], strict=True))
        run.emit(
            "numerics", op=f"attention_hopper_{way}", head_dim=head_dim, dtype=str(dtype),
            size=name, error=error, ratio_to_bar=ratio, same_bits=same, ok=ratio <= 1 and same,
        )  # fmt: skip


def _time(run: StageRun, shape: str, lengths: Sequence[int], head_dim: int) -> None:
    """Rows of the Hopper and of the Triton forward, rotation included, in turns."""
    given = self_attention(run, lengths, head_dim)
    truth = truth_of(given, rotated=True)
    providers = {
        f"{HOPPER}+rope": attention_hopper,
        f"{OURS}+rope": attention,
        f"{HOPPER}+rope again": attention_hopper,
    }
    arguments = (given.q, given.k, given.v, given.segments, given.cos, given.sin)
    with torch.no_grad():
        for name, provider in providers.items():
            error = float((provider(*arguments).float() - truth).norm() / truth.norm())
            row = {"provider": name, "shape": shape, "head_dim": head_dim, "error": error}
            if not error < BF16_ERROR:
                run.emit("wrong", **row, ok=False)
                continue
            times = run.milliseconds(partial(provider, *arguments))
            run.emit("attention_fwd", **row, **run.rates(given.flops, times))
