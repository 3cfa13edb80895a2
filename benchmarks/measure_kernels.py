"""Kernels timed on a CUDA device against SDPA, flash-attn, Liger-Kernel and torch.compile, launch
by launch in turns.

Results are held to float64 first: err <= 2 err(eager in the same dtype) + rounding, outputs and
every gradient. Ours outside stops the run; a peer outside gets no time. Then each provider runs
once a round with the L2 cache flushed; rows carry quantiles over the rounds, the share of this
run's own GEMM (or copy) peak, and the peak memory.

    rows = run(ops=("attention",), head_dims=(96,), dtypes=("bf16",))  # or: mudit bench kernels
    # no GPU: same code, tiny songs, Triton interpreted; measured is False, nothing is timed
    rows = run(interpret=True)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mudit_engine.benchmarks.measure_kernels_cases import (
    COMPILED,
    EAGER,
    FULL,
    OURS,
    TINY,
    Case,
    Provider,
    cases,
)
from mudit_engine.benchmarks.static_figures import DTYPES
from mudit_engine.benchmarks.static_kernels import HEAD_DIMS, OPS
from mudit_engine.errors import GateError, InputError, MissingError
from mudit_engine.profiling import strict

COLUMNS = {
    "op": "op", "head_dim": "head", "dtype": "dtype", "provider": "provider", "rows": "rows",
    "error": "error", "error_eager": "eager's", "ms_p50": "ms p50", "ms_p20": "p20",
    "ms_p80": "p80", "tflops": "TFLOP/s", "gemm_peak_fraction": "of GEMM peak",
    "gigabytes_per_second": "GB/s", "copy_peak_fraction": "of copy peak",
    "speedup_of_ours": "ours is faster by", "peak_memory_mib": "peak MiB", "note": "note",
}  # fmt: skip
GEMM = 8192
COPY_BYTES = 1 << 29
FLUSH_BYTES = 1 << 28
"""More than any L2 cache."""
Call = Callable[[], object]


def need_device(*, interpret: bool) -> str:
    """The device to run on. Raises MissingError where there is none, naming what works without."""
    if interpret:
        if not strict.INTERPRETED:
            raise InputError(
                "Triton was loaded as a compiler in this process: set TRITON_INTERPRET=1 before it "
                "starts"
            )
        strict.install()
        return "cpu"
    if not torch.cuda.is_available():
        build = (
            "" if torch.version.cuda else f" (this torch {torch.__version__} is built without CUDA)"
        )
        raise MissingError(
            f"timing kernels needs a CUDA device, and torch finds none{build}. On a machine with "
            f"an NVIDIA GPU: make gpu. Here:"
            " `mudit bench kernels --static` compiles them for any GPU and reads the machine code,"
            " `mudit bench kernels --interpret` runs this benchmark in the interpreter and checks "
            "the numbers"
        )
    if strict.INTERPRETED:
        raise InputError(
            "TRITON_INTERPRET=1 is set, which replaces the compiler: unset it to time kernels, or "
            "pass --interpret"
        )
    return "cuda"


def run(
    *,
    ops: Sequence[str] | None = None,
    head_dims: Sequence[int] = HEAD_DIMS,
    dtypes: Sequence[str] = ("bf16",),
    peers: bool = True,
    rounds: int = 50,
    interpret: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """A row for every op, direction and provider. Raises InputError, MissingError (no device) and
    GateError (our results are wrong).
    """
    for what, given, known in (
        ("op", ops or (), OPS),
        ("dtype", dtypes, DTYPES),
        ("head width", head_dims, HEAD_DIMS),
    ):
        for one in given:
            if one not in known:
                raise InputError(
                    f"{what} '{one}' is not known: choose from {', '.join(map(str, known))}"
                )
    device = need_device(interpret=interpret)
    peak = None if interpret else machine_peak(DTYPES[dtypes[0]])
    rows: list[dict[str, Any]] = []
    for dtype in dtypes:
        for case in cases(
            TINY if interpret else FULL,
            ops=ops or tuple(OPS),
            head_dims=head_dims,
            dtype=DTYPES[dtype],
            device=device,
        ):
            progress(
                " ".join(str(part) for part in (case.op, case.head_dim, dtype) if part is not None)
            )
            rows += measure(case, dtype, peers=peers, rounds=rounds, peak=peak)
    return rows


def measure(
    case: Case, dtype: str, *, peers: bool, rounds: int, peak: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    """Rows of one case: forward, and backward where there is one.
    Without a peak nothing is timed.
    """
    providers = {name: f for name, f in case.providers.items() if peers or name in (OURS, EAGER)}
    missing = dict(case.missing) if peers else {}
    if peak is None and COMPILED in providers:
        del providers[COMPILED]
        missing[COMPILED] = "compiles for a device; nothing is timed here"
    truth = results(case, case.providers[EAGER], torch.float64)
    eager = results(case, case.providers[EAGER], None)
    base = {
        "op": case.op,
        "head_dim": case.head_dim,
        "dtype": dtype,
        "rows": case.rows,
        "measured": peak is not None,
    }
    rows, calls = [], {}
    for name, provider in providers.items():
        if name == COMPILED:
            provider = torch.compile(provider, dynamic=False)
        try:
            got = eager if name == EAGER else results(case, provider, None)
        except Exception as error:
            # whatever a peer raises is its row's note, not the end of the run
            if name == OURS:
                raise
            message = str(error).strip() or "no message"
            missing[name] = f"{type(error).__name__}: {message.splitlines()[0][:200]}"
            continue
        for direction in got:
            worst, bound = distance(got[direction], eager[direction], truth[direction])
            row = (
                base | _blank() | {"op": f"{case.op}_{direction}", "provider": name, "error": worst}
            )
            row["error_eager"] = distance(eager[direction], eager[direction], truth[direction])[0]
            if bound > 1.0:
                note = f"error is {bound:.2g} times what eager's allows: no time is given"
                if name == OURS:
                    raise GateError(f"{row['op']} {case.head_dim or ''} {dtype}: {note}")
                row["note"] = note
            else:
                calls[row["op"], name] = callable_of(case, provider, direction)
            rows.append(row)
    if peak is not None:
        times, memory = timed(calls, rounds=rounds)
        for row in rows:
            if ms := times.get((row["op"], row["provider"])):
                row |= speeds(case, row["op"], ms, times[row["op"], OURS], peak) | {
                    "peak_memory_mib": memory[row["op"], row["provider"]]
                }
    rows.sort(key=lambda row: row["op"], reverse=True)  # forward before backward
    return rows + [
        base | _blank() | {"provider": name, "note": reason} for name, reason in missing.items()
    ]


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns in which any row says something: without a device, there are no times."""
    return {
        key: title for key, title in COLUMNS.items() if any(row[key] is not None for row in rows)
    }


def _blank() -> dict[str, Any]:
    return {key: None for key in COLUMNS if key not in ("op", "head_dim", "dtype", "rows")}


def leaves_of(case: Case, dtype: torch.dtype | None) -> list[Tensor]:
    return [
        x.detach().to(dtype or x.dtype).requires_grad_(case.differentiable) for x in case.inputs
    ]


def upstream_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    return [
        torch.randn(o.shape, generator=g).to(o.device, torch.float32).to(o.dtype) for o in outputs
    ]


def results(case: Case, provider: Provider, dtype: torch.dtype | None) -> dict[str, list[Tensor]]:
    """{"fwd": outputs, "bwd": gradients of the inputs}, computed in `dtype` (None: as given)."""
    leaves = leaves_of(case, dtype)
    outputs = provider(*leaves)
    found = {"fwd": [o.detach() for o in outputs]}
    if case.differentiable:
        # the same numbers in every precision: those that the case's own dtype can hold
        upstream = [
            u.to(case.inputs[0].dtype).to(o.dtype)
            for u, o in zip(upstream_of(outputs), outputs, strict=True)
        ]
        found["bwd"] = list(torch.autograd.grad(outputs, leaves, upstream))
    return found


def distance(
    got: Sequence[Tensor], eager: Sequence[Tensor], truth: Sequence[Tensor]
) -> tuple[float, float]:
    """Largest relative L2 error, and the largest ratio of an error to its bound 2 err(eager) +
    rounding (above 1: wrong).
    """
    worst, ratio = 0.0, 0.0
    for a, b, exact in zip(got, eager, truth, strict=True):
        norm = float(exact.norm())
        if not norm:
            ratio = max(ratio, 0.0 if not a.any() else float("inf"))
            continue
        error, bar = (float((x.double() - exact).norm()) / norm for x in (a, b))
        bound = 2 * bar + 0.5 * torch.finfo(a.dtype).eps + 4 * torch.finfo(torch.float32).eps
        # NaN compares as neither: it must not pass
        worst, ratio = (
            (max(worst, error), max(ratio, error / bound))
            if error == error
            else (float("inf"), float("inf"))
        )
    return worst, ratio


def callable_of(case: Case, provider: Provider, direction: str) -> Call:
    """What is timed: the forward pass without a graph, or the backward pass alone."""
    leaves = leaves_of(case, None)
    if direction == "fwd":

        def forward() -> object:
            with torch.no_grad():
                return provider(*leaves)

        return forward
    outputs = provider(*leaves)
    upstream = upstream_of(outputs)
    return lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)


def timed(
    calls: Mapping[Any, Call], *, rounds: int
) -> tuple[dict[Any, list[float]], dict[Any, int]]:
    """Milliseconds of every call in each round, all in turns, and the memory that each holds at its
    peak, in MiB.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    memory = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        memory[name] = (torch.cuda.max_memory_allocated() - before) >> 20
    events: dict[Any, list[tuple[Any, Any]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()  # a cold cache, and time for the host to get ahead of the device
            start.record()
            call()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {
        name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()
    }, memory


def machine_peak(dtype: torch.dtype) -> dict[str, float]:
    """This device, now: TFLOP/s of a large product, GB/s of a large copy; the best of 20."""
    a, b = (torch.randn(GEMM, GEMM, device="cuda").to(dtype) for _ in range(2))
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times, _ = timed({"gemm": lambda: a @ b, "copy": lambda: target.copy_(source)}, rounds=20)
    return {
        "tflops": 2e-9 * GEMM**3 / min(times["gemm"]),
        "gigabytes": 2e-6 * COPY_BYTES / min(times["copy"]),
    }


def speeds(
    case: Case, op: str, ms: Sequence[float], ours: Sequence[float], peak: Mapping[str, float]
) -> dict[str, float]:
    """Figures of one provider. Attention: useful FLOP (backward 2.5 times forward). Others: bytes
    that must be read and written once.
    """
    backward = op.endswith("_bwd")
    p20, p50, p80 = quantiles(ms)
    found = {
        "ms_p50": p50,
        "ms_p20": p20,
        "ms_p80": p80,
        "speedup_of_ours": statistics.median(t / o for t, o in zip(ms, ours, strict=True)),
    }
    if case.flops:
        tflops = case.flops * (2.5 if backward else 1.0) / p50 / 1e9
        return found | {"tflops": tflops, "gemm_peak_fraction": tflops / peak["tflops"]}
    rate = least_bytes(case, backward=backward) / p50 / 1e6
    return found | {"gigabytes_per_second": rate, "copy_peak_fraction": rate / peak["gigabytes"]}


def least_bytes(case: Case, *, backward: bool) -> int:
    """Inputs and outputs once; backward: inputs, gradients of the outputs,
    gradients of the inputs.
    """
    with torch.no_grad():
        outputs = case.providers[EAGER](*case.inputs)
    moved = sum(x.numel() * x.element_size() for x in (*case.inputs, *outputs))
    return moved + backward * sum(x.numel() * x.element_size() for x in case.inputs)


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p20, p50, p80."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[1], statistics.median(values), tenths[7]
