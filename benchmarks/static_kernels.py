"""Every kernel, compiled for every architecture and read: ours and other packages', in one list of
rows, on a machine with no GPU.

    # or: mudit bench kernels --static
    rows = run(arches=("sm_80", "sm_90"), ops=("attention", "norm"), head_dims=(96,))

Compiling and interpreting (which counts the bytes of row-wise kernels) exclude each other in a
process, so each has worker processes of its own, whatever TRITON_INTERPRET is here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from mudit_engine.errors import InputError

OPS = {
    "attention": ("attention_fwd", "attention_bwd_dq", "attention_bwd_dkv"),
    "pack": ("pack_fwd", "pack_bwd"),
    "norm": ("norm_fwd", "norm_bwd"),
    "gelu": ("bias_gelu_fwd", "bias_gelu_bwd"),
    "guided_step": ("guided_step",),
}
"""Family -> its kernels. Sums of partial gradients (segment_sum) come with whichever op launches
them.
"""
HEAD_DIMS = (64, 96, 128)
DTYPES = ("bf16", "fp16", "fp32")
INTERPRET = "TRITON_INTERPRET"


@dataclass(frozen=True)
class Job:
    """What one worker does at once. kind: "attention", "elementwise" or a peer's counterpart; arch
    None: count bytes.
    """

    kind: str
    name: str
    arch: str | None
    dtype: str
    head_dim: int | None = None

    @property
    def text(self) -> str:
        where = self.arch or "bytes"
        return " ".join(
            str(part) for part in (self.name, self.head_dim, self.dtype, where) if part is not None
        )


def plan(
    *,
    arches: Sequence[str],
    ops: Sequence[str],
    head_dims: Sequence[int],
    dtypes: Sequence[str],
    peers: bool,
) -> tuple[list[Job], list[dict[str, Any]]]:
    """The jobs, and a row for each peer that cannot be had. Raises InputError for what is not
    known.
    """
    from mudit_engine.benchmarks.peers_kernels import FLASH_ATTN_HINT, flash_attn_folder
    from mudit_engine.benchmarks.peers_kernels import peers as all_peers
    from mudit_engine.benchmarks.static_elementwise import VARIANTS
    from mudit_engine.benchmarks.static_figures import PEER, skipped
    from mudit_engine.profiling.aot import ARCHITECTURES

    for what, given, known in (
        ("arch", arches, ARCHITECTURES),
        ("op", ops, OPS),
        ("dtype", dtypes, DTYPES),
        ("head width", head_dims, HEAD_DIMS),
    ):
        for one in given:
            if one not in known:
                raise InputError(
                    f"{what} '{one}' is not known: choose from {', '.join(map(str, known))}"
                )
    # pack/96/joint and its like name their head width
    widths = {
        name: int(name.split("/")[1].split("x")[0]) for name in VARIANTS if name.startswith("pack/")
    }
    families = {
        name: "pack"
        if name in widths
        else "gelu"
        if name == "bias_gelu"
        else name
        if name in OPS
        else "norm"
        for name in VARIANTS
    }
    variants = [
        name
        for name in VARIANTS
        if families[name] in ops and widths.get(name, head_dims[0]) in head_dims
    ]
    jobs, missing = [], []
    for dtype in dtypes:
        for arch in arches:
            if "attention" in ops:
                jobs += [
                    Job("attention", "attention", arch, dtype, head_dim) for head_dim in head_dims
                ]
                if arch == "sm_90" and dtype != "fp32":
                    jobs += [
                        Job("hopper", "attention hopper", arch, dtype, head_dim)
                        for head_dim in head_dims
                    ]
            jobs += [Job("elementwise", name, arch, dtype) for name in variants]
        jobs += [Job("elementwise", name, None, dtype) for name in variants]
    for name, peer in all_peers(head_dims).items() if peers else ():
        if not {peer.ours[0]} & {kernel for op in ops for kernel in OPS[op]}:
            continue
        if reason := peer.missing():
            variant, head_dim = f"{PEER}{peer.package}", peer.head_dim
            missing += [
                skipped(
                    op=op,
                    variant=variant,
                    arch=arch,
                    dtype=dtype,
                    head_dim=head_dim,
                    reason=reason,
                )
                for op in peer.ours
                for arch in arches
                for dtype in dtypes
            ]
        else:
            jobs += [
                Job("peer", name, arch, dtype, peer.head_dim)
                for dtype in dtypes
                for arch in (*arches, None)
            ]
    if peers and "attention" in ops and "bf16" in dtypes:
        for arch in arches:
            for head_dim in head_dims:
                jobs.append(Job("tutorial", "tutorial", arch, "bf16", head_dim))
                if flash_attn_folder() is not None:
                    jobs.append(Job("flash-attn", "flash-attn", arch, "bf16", head_dim))
                else:
                    variant = f"{PEER}flash-attn"
                    missing.append(
                        skipped(
                            op="attention_fwd",
                            variant=variant,
                            arch=arch,
                            dtype="bf16",
                            head_dim=head_dim,
                            reason=FLASH_ATTN_HINT,
                        )
                    )
    return jobs, missing


def work(job: Job) -> list[Any]:
    """Runs one job in a worker: rows of what was compiled, or (requested, distinct) bytes of what
    was interpreted.
    """
    if job.kind == "attention":
        from mudit_engine.benchmarks.static_attention import ours

        assert job.arch and job.head_dim
        return ours(job.arch, job.head_dim, "tf32" if job.dtype == "fp32" else job.dtype)
    if job.kind == "hopper":
        from mudit_engine.benchmarks.static_attention import hopper, hopper_keys

        assert job.head_dim
        return hopper(job.head_dim, job.dtype) + hopper_keys(job.head_dim, job.dtype)
    if job.kind == "elementwise":
        from mudit_engine.benchmarks.static_elementwise import compiled, traffic

        return (
            compiled(job.arch, job.name, job.dtype)
            if job.arch
            else _bytes(traffic(job.name, job.dtype))
        )
    assert job.arch or job.kind == "peer"
    from mudit_engine.benchmarks import peers_kernels
    from mudit_engine.benchmarks.static_elementwise import PROCESSORS_SHARE

    if job.kind == "peer":
        peer = peers_kernels.peers([job.head_dim] if job.head_dim else ())[job.name]
        return (
            peer.compiled(job.arch, job.dtype)
            if job.arch
            else _bytes(peer.traffic(job.dtype, PROCESSORS_SHARE))
        )
    from mudit_engine.benchmarks.static_attention import tutorial

    assert job.arch and job.head_dim
    return (
        tutorial(job.arch, job.head_dim)
        if job.kind == "tutorial"
        else peers_kernels.flash_attention(job.arch, job.head_dim)
    )


def _bytes(launches: Sequence[Any]) -> list[tuple[int, int]]:
    return [(launch.requested, launch.distinct) for launch in launches]


def _prepare(interpret: bool) -> None:
    """First thing in a worker, before anything imports triton."""
    os.environ[INTERPRET] = "1" if interpret else "0"
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def _workers(processes: int, *, interpret: bool) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_prepare, initargs=(interpret,)
    )
    try:
        yield pool
    finally:  # on Ctrl-C nothing that waits is begun
        pool.shutdown(wait=True, cancel_futures=True)


def run(
    *,
    arches: Sequence[str] = ("sm_80", "sm_90"),
    ops: Sequence[str] = tuple(OPS),
    head_dims: Sequence[int] = HEAD_DIMS,
    dtypes: Sequence[str] = ("bf16",),
    peers: bool = True,
    processes: int = 1,
    started: Callable[[int], Callable[[str], None]] | None = None,
) -> list[dict[str, Any]]:
    """Rows of every kernel, peers after ours; `processes` compile at once, and as many interpret.

    `started` is told the number of jobs and returns what to call with the text of each that ends.
    Raises InputError for an unknown architecture, op, head width or dtype.
    """
    jobs, missing = plan(arches=arches, ops=ops, head_dims=head_dims, dtypes=dtypes, peers=peers)
    report = started(len(jobs)) if started else lambda text: None
    results: dict[Job, list[Any]] = {}
    with (
        _workers(processes, interpret=False) as compiling,
        _workers(processes, interpret=True) as counting,
    ):
        futures: dict[Future[list[Any]], Job] = {
            (compiling if job.arch else counting).submit(work, job): job for job in jobs
        }
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            report(futures[future].text)
    return merge(jobs, results) + missing


def merge(jobs: Sequence[Job], results: Mapping[Job, list[Any]]) -> list[dict[str, Any]]:
    """Rows in the order of jobs, bytes filled in; a peer's attention has the work of ours."""
    from mudit_engine.benchmarks.static_elementwise import distinct

    streaming: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for job in jobs:
        if job.arch is None:
            continue
        rows = results[job]
        counted = results.get(Job(job.kind, job.name, None, job.dtype, job.head_dim))
        for found, moved in zip(rows, counted or [None] * len(rows), strict=True):
            if moved:
                found["bytes_moved"], found["bytes_minimum"] = moved
        (streaming if job.kind == "elementwise" else others).extend(rows)
    work_of = {(r["op"], r["head_dim"]): r for r in others if r["variant"] == "bf16"}
    for found in others:
        same = work_of.get((found["op"], found["head_dim"]))
        if same and "skipped" not in found and found["op"].startswith("attention"):
            found |= {figure: same[figure] for figure in ("flops", "bytes_minimum", "intensity")}
    ours = [r for r in others if not r["variant"].startswith("peer:")] + distinct(streaming)
    return ours + [r for r in others if r["variant"].startswith("peer:")]
