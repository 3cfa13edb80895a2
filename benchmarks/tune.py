"""Which backend is fastest on this very device, by measurement: the table that `auto` follows.

    table = tune(Tuning(seconds=60, report=print))                    # or: mudit bench tune
    write(table, path_of(table.device))

For every op, width, dtype and bucket of length, each backend that can serve the call is held to
float64 first, by the bar of the kernels' tests (twice the error of the plain reference in the same
dtype, and rounding); those that pass run in turns. What our own kernel does inside is part of
another one's time: the rotation of the queries, the packing of its rows. The usual backend stays
first unless another one is WORTH times as fast, by the median of the ratios within a round.

Lengths are those of guided songs: pairs of sequences that differ by the description's rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.backends.epilogues import LINEAR_GELU
from mudit_engine.backends.registry import ATTENTION, asked
from mudit_engine.backends.table import (
    LENGTHS,
    OPS,
    Device,
    Table,
    bucket,
    dtype_name,
    this_device,
)
from mudit_engine.benchmarks.timing import interleave, ratio
from mudit_engine.hardware import environment
from mudit_engine.kernels.attention import HEAD_DIMS, attention_reference
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.kernels.worklist import Segments

WORTH = 1.05
SONGS = {0: (300, 160), 1: (1292, 646), 2: (4000, 2800), 3: (10000,)}
"""Frames of the songs that stand for a bucket of LENGTHS."""
WIDTH = 1536
DESCRIPTION = 4


@dataclass(frozen=True)
class Tuning:
    """What is measured. seconds: of all cases together, about; what is left out then says so."""

    device: str = "cpu"
    ops: tuple[str, ...] = OPS
    head_dims: tuple[int, ...] = HEAD_DIMS
    widths: tuple[int, ...] = (WIDTH,)
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    songs: Mapping[int, Sequence[int]] = field(default_factory=lambda: SONGS)
    """Frames of the songs of each bucket that is measured."""
    heads: int | None = None
    """None: as many as make WIDTH columns."""
    rounds: int = 20
    seconds: float = 120.0
    report: Callable[[str], None] = lambda text: None


@dataclass
class Contest:
    """A case: its inputs, what computes it, its float64 truth, and the usual backend."""

    op: str
    width: int
    dtype: torch.dtype
    bucket: int
    providers: dict[str, Callable[[], Any]]
    skipped: dict[str, str]
    reference: Callable[[torch.dtype], Sequence[Tensor]]
    usual: str


def tune(tuning: Tuning) -> Table:
    """The table of this device. Raises nothing for a backend that fails: its row says why."""
    device: Device = this_device(tuning.device)
    deadline = time.monotonic() + tuning.seconds
    rows = []
    for contest in contests(tuning):
        case = f"{contest.op} {contest.width} {dtype_name(contest.dtype)} {_length(contest.bucket)}"
        if time.monotonic() > deadline:
            tuning.report(f"{case}: left out, the {tuning.seconds:g} s are over")
            continue
        row = measure(contest, rounds=tuning.rounds)
        tuning.report(f"{case}: {', '.join(row['order']) or 'nothing serves it'}")
        rows.append(row)
    orders = {
        (row["op"], row["width"], row["dtype"], row["bucket"]): tuple(row["order"]) for row in rows
    }
    return Table(device, orders, rows, environment())


def measure(contest: Contest, *, rounds: int) -> dict[str, Any]:
    """A row of the table: who is right, how long each takes, and the order of `auto`."""
    with torch.set_grad_enabled(contest.op.endswith("_grad")):
        truth, plain = contest.reference(torch.float64), contest.reference(contest.dtype)
        errors, wrong, right = {}, dict(contest.skipped), {}
        for name, call in contest.providers.items():
            try:
                errors[name], bar = distance(call(), plain, truth)
            except Exception as error:  # a package that does not fit this card or torch
                wrong[name] = f"{type(error).__name__}: {error}"[:300]
                continue
            if errors[name] <= bar:
                right[name] = call
            else:
                wrong[name] = f"its error is {errors[name]:.1e}, and {bar:.1e} is the bar"
        times = interleave(right, rounds=rounds) if right else {}
    usual = contest.usual if contest.usual in right else next(iter(right), "")
    speed = {name: ratio(times, name, usual) for name in times}
    worthy = sorted((n for n in speed if speed[n] >= WORTH), key=lambda n: -speed[n])
    order = [*worthy, *([usual] if usual and usual not in worthy else [])]
    order += sorted((n for n in speed if n not in order), key=lambda n: -speed[n])
    return {
        "op": contest.op,
        "width": contest.width,
        "dtype": dtype_name(contest.dtype),
        "bucket": contest.bucket,
        "rows_up_to": LENGTHS[contest.bucket] if contest.bucket < len(LENGTHS) else None,
        "order": order,
        "usual": usual,
        "backends": {
            name: {
                "seconds_p50": times[name].p50,
                "cpu_seconds_p50": times[name].cpu_p50,
                "ratio_to_usual": speed[name],
                "error": errors[name],
            }
            for name in times
        },
        "left_out": wrong,
    }


def distance(
    got: Sequence[Tensor], plain: Sequence[Tensor], truth: Sequence[Tensor]
) -> tuple[float, float]:
    """The largest relative error of a backend's tensors, and the bar of that tensor."""
    worst = (0.0, 1.0)
    for own, same, want in zip(got, plain, truth, strict=True):
        scale = float(want.norm()) or 1.0
        error = float((own.double() - want).norm()) / scale
        eps = torch.finfo(own.dtype).eps
        bar = 2 * float((same.double() - want).norm()) / scale + 0.5 * eps + 5e-7
        if not error / bar <= worst[0] / worst[1]:  # a NaN is worse than anything
            worst = (error, bar)
    return worst


def contests(tuning: Tuning) -> Iterator[Contest]:
    """Every case that was asked for, short ones first."""
    for place in tuning.songs:
        for dtype in tuning.dtypes:
            for op in tuning.ops:
                if op == "linear_gelu":
                    yield from (_linear(tuning, width, dtype, place) for width in tuning.widths)
                else:
                    grad = op == "attention_grad"
                    yield from (
                        _attention(tuning, width, dtype, place, grad=grad)
                        for width in tuning.head_dims
                    )


def _attention(
    tuning: Tuning, head_dim: int, dtype: torch.dtype, place: int, *, grad: bool
) -> Contest:
    frames = tuning.songs[place]
    lengths = [*(n + DESCRIPTION for n in frames), *frames]
    rows, heads = sum(lengths), tuning.heads or WIDTH // head_dim
    segments = Segments.self_attention(lengths)
    g = torch.Generator().manual_seed(head_dim)
    q, k, v, upstream = (
        torch.randn(rows, heads, head_dim, generator=g).to(tuning.device, dtype) for _ in range(4)
    )
    positions = torch.cat([torch.arange(n) for n in lengths]).float()
    cos, sin = (t[None].to(tuning.device) for t in rope_table(positions, head_dim))

    def run(attend: Callable[..., Tensor], wide: torch.dtype, **options: Any) -> list[Tensor]:
        leaves = [x.to(wide).detach().requires_grad_(grad) for x in (q, k, v)]
        out = attend(*leaves, segments, cos, sin, **options)
        if not grad:
            return [out]
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(wide))]

    with torch.set_grad_enabled(grad):
        call = asked(q.detach().requires_grad_(grad), k, v, segments)
    providers: dict[str, Callable[[], Any]] = {}
    skipped = {}
    for name, backend in ATTENTION.items():
        # stands for one of the others; or differs from another in its gradients alone
        if name == "flash" or (name == "hopper-grad" and not grad):
            continue
        if (refused := backend.refuses(call)) is not None:
            skipped[name] = str(refused)
        elif tuning.device == "cpu" and name == "triton":
            skipped[name] = "it is interpreted here"
        elif tuning.device == "cpu" and name == "flex" and place:
            skipped[name] = "on a CPU it holds all scores in memory"
        else:
            providers[name] = partial(run, backend.attend, dtype, scale=None)
    return Contest(
        "attention_grad" if grad else "attention", head_dim, dtype, bucket(max(lengths)),
        providers, skipped, lambda wide: run(attention_reference, wide), _usual(tuning),
    )  # fmt: skip


def _linear(tuning: Tuning, width: int, dtype: torch.dtype, place: int) -> Contest:
    rows, g = max(tuning.songs[place]), torch.Generator().manual_seed(width)
    x, weight, bias = (
        torch.randn(shape, generator=g).mul(scale).to(tuning.device, dtype)
        for shape, scale in (
            ((rows, width), 1.0),
            ((4 * width, width), width**-0.5),
            ((4 * width,), 1.0),
        )
    )
    providers: dict[str, Callable[[], Any]] = {}
    skipped = {}
    for name, call in LINEAR_GELU.items():
        if name != "eager" and tuning.device != "cuda":
            skipped[name] = "needs a CUDA device"
        else:
            providers[name] = partial(_alone, call, x, weight, bias)

    def reference(wide: torch.dtype) -> list[Tensor]:
        return [F.gelu(F.linear(*(t.to(wide) for t in (x, weight, bias))), approximate="tanh")]

    return Contest(
        "linear_gelu", width, dtype, bucket(rows), providers, skipped, reference, _usual(tuning)
    )


def _alone(call: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    return [call(*given)]


def _usual(tuning: Tuning) -> str:
    return "triton" if tuning.device == "cuda" else "eager"


def _length(place: int) -> str:
    return f"to {LENGTHS[place]} rows" if place < len(LENGTHS) else f"above {LENGTHS[-1]} rows"
