"""Profiles of songs, of training steps and of a serving batcher: the same work run several times,
each time watched by something else.

    # or: mudit profile generate
    document = profile_generate(pipeline, [request], Settings(rounds=3))
    page.html(document)                                                    # profiling/page.py

    clock     stages alone, with a clock at their ends: what the work takes when nobody looks closer
    ledger    every operation with its time, FLOPs and bytes, and what lives in memory
    trace     torch.profiler, for Perfetto, with the stages as ranges (NVTX ranges where CUDA is)

The clock's and the ledger's runs take turns, `rounds` of each; a stage and an operation are taken
at their fastest. The GEMM and copy rates are measured between them.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mudit_engine import ops as engine_ops
from mudit_engine.benchmarks.stages import watch_pipeline
from mudit_engine.benchmarks.timing import Copy, Gemm, interleave
from mudit_engine.errors import MissingError
from mudit_engine.files import atomic_path
from mudit_engine.hardware import environment
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.profiling import summary
from mudit_engine.profiling.ledger import Ledger
from mudit_engine.profiling.ranges import Clock, Marks, Span, Watch
from mudit_engine.profiling.summary import Rates, Stage

OPS = (
    "attention",
    "pack_qkv",
    "pack_kv",
    "rms_norm",
    "layer_norm_modulate",
    "residual_norm",
    "linear_gelu",
    "guided_step",
)
OTHER = "between"
"""The name of the time that lies in no stage."""


@dataclass(frozen=True)
class Settings:
    """How to watch. trace: a file for torch.profiler's trace (.json or .json.gz); proton: a name
    for Triton's profiler, which needs a GPU.
    """

    rounds: int = 3
    trace: Path | None = None
    proton: Path | None = None
    report: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Work:
    """What is profiled: `run` does it once; `watch` puts ranges around its stages; `modules` are
    looked into; `weights` are what lives throughout.
    """

    title: str
    run: Callable[[], object]
    watch: Callable[[Watch], None]
    modules: Sequence[tuple[nn.Module, int]]
    weights: Callable[[], dict[str, list[Tensor]]]
    device: torch.device
    dtype: torch.dtype
    claims: Callable[[Ledger], contextlib.AbstractContextManager[None]] | None = None
    audio_seconds: float | None = None
    about: dict[str, Any] | None = None


def profile(work: Work, settings: Settings) -> dict[str, Any]:
    """The document of a profile. Raises MissingError where Proton is wanted without a GPU."""
    if settings.proton is not None and work.device.type != "cuda":
        raise MissingError(
            "Proton profiles kernels on a GPU, and this run has none: leave --proton out, or run "
            "it on a machine with one"
        )
    settings.report("warming up")
    work.run()
    rates_found: list[tuple[float, float, float, float]] = []
    clocks, ledgers = [], []
    for number in range(settings.rounds):
        settings.report(f"round {number + 1} of {settings.rounds}")
        rates_found += _rates(work)
        clocks.append(_clocked(work))
        ledgers.append(_counted(work))
    load, cores = os.getloadavg()[0], torch.get_num_threads()
    busy = load > 1.5 * cores and work.device.type == "cpu"
    best = [max(column) for column in zip(*rates_found, strict=True)]
    flops, moved = (max(best[0], best[2]), max(best[1], best[3])) if busy else best[:2]
    rates = Rates(flops, moved, str(work.device))
    stages, spans = _stages(clocks, by_cpu=busy)
    operations = summary.fastest([ledger.ops for ledger in ledgers], by_cpu=busy)
    found = summary.group(_known(operations, stages))
    costs = summary.avoidable_costs(found, stages, rates)
    ledger = ledgers[-1]
    trace = _traced(work, settings)
    if settings.proton is not None:
        _proton(work, settings.proton)
    return {
        "title": work.title,
        "env": environment(),
        "about": work.about or {},
        "threads": cores,
        "load": load,
        "busy": busy,
        "rounds": settings.rounds,
        "rates": {"flops": rates.flops, "bytes": rates.bytes, "device": rates.device},
        "audio_seconds": work.audio_seconds,
        "stages": summary.stage_documents(stages, found, rates),
        "spans": spans,
        "waterfall": summary.ideal_to_actual(found, stages, rates),
        "costs": [vars(cost) for cost in costs if cost.seconds > 0],
        "operations": [one.document(rates) for one in found],
        "memory": {
            "peak_bytes": ledger.peak_bytes,
            "peak": ledger.peak.bytes if ledger.peak else {},
            "peak_place": ledger.peak.place if ledger.peak else "",
            "captured_graph_bytes": _captured(work),
            "timeline": summary.memory_timeline(ledger.moments),
        },
        "gpu": trace,
        "trace": str(settings.trace) if settings.trace else None,
    }


def _rates(work: Work) -> list[tuple[float, float, float, float]]:
    """Three measurements of (FLOP/s, bytes/s) by the clock, and the same by processor time."""
    gemm = Gemm.of(work.dtype, device=str(work.device), repeats=1)
    copy = Copy.of(device=str(work.device))
    found = []
    for _ in range(3):
        times = interleave({"gemm": gemm.call, "copy": copy.call}, rounds=1)
        found.append(
            (
                gemm.flops / times["gemm"].p50,
                copy.bytes / times["copy"].p50,
                gemm.flops / max(times["gemm"].cpu_p50, 1e-9),
                copy.bytes / max(times["copy"].cpu_p50, 1e-9),
            )
        )
    return found


def _clocked(work: Work) -> Clock:
    clock = Clock()
    with Watch(clock) as watch:
        work.watch(watch)
        with watch.range("run"):
            work.run()
    return clock


def _counted(work: Work) -> Ledger:
    ledger = Ledger(timed=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ledger)
        for kind, tensors in work.weights().items():
            ledger.claim(tensors, kind)
        if work.claims is not None:
            stack.enter_context(work.claims(ledger))
        watch = stack.enter_context(Watch(ledger))
        work.watch(watch)
        for root, depth in work.modules:
            watch.modules(root, depth=depth)
        for name in OPS:
            watch.function(engine_ops, name)
        work.run()
    return ledger


def _traced(work: Work, settings: Settings) -> dict[str, Any] | None:
    """Writes the trace; what the GPU did by it."""
    if settings.trace is None and work.device.type != "cuda":
        return None
    settings.report("tracing")
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if work.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with (
        torch.profiler.profile(activities=kinds, record_shapes=True) as profiler,
        Watch(Marks()) as watch,
    ):
        work.watch(watch)
        for root, depth in work.modules:
            watch.modules(root, depth=depth)
        work.run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        text = path.read_bytes()
    if settings.trace is not None:
        with atomic_path(settings.trace) as aside:
            aside.write_bytes(gzip.compress(text) if settings.trace.suffix == ".gz" else text)
    return summary.launch_gaps(json.loads(text))


def _proton(work: Work, path: Path) -> None:
    """Triton's own profile of the kernels, with their FLOPs and bytes (launch_metadata)."""
    import triton.profiler as proton

    proton.start(str(path.with_suffix("")), hook="triton")
    try:
        work.run()
    finally:
        proton.finalize()


def _captured(work: Work) -> int:
    if work.device.type != "cuda":
        return 0
    return summary.captured_graph_bytes(torch.cuda.memory_snapshot())


def _stages(clocks: Sequence[Clock], *, by_cpu: bool) -> tuple[list[Stage], list[dict[str, Any]]]:
    """Every stage with each of its calls at its fastest, what lies between them as a stage of its
    own, and the spans of the fastest round.
    """

    def took(span: Span) -> float:
        return min(span.seconds, span.cpu_seconds) if by_cpu else span.seconds

    rounds = []
    for clock in clocks:
        tops = [span for span in clock.spans if span.place.count("/") == 1]
        whole = next(span for span in clock.spans if span.place == "run")
        rounds.append((whole, tops))
    names = list(dict.fromkeys(_stage(span) for span in rounds[0][1]))
    stages = []
    for name in names:
        own = [[span for span in tops if _stage(span) == name] for _, tops in rounds]
        stages.append(
            Stage(
                name,
                sum(min(map(took, calls)) for calls in zip(*own, strict=False)),
                sum(min(s.cpu_seconds for s in calls) for calls in zip(*own, strict=False)),
                len(own[0]),
            )
        )
    rest = min(whole.seconds - sum(s.seconds for s in tops) for whole, tops in rounds)
    cpu = min(whole.cpu_seconds - sum(s.cpu_seconds for s in tops) for whole, tops in rounds)
    rest = min(rest, cpu) if by_cpu else rest
    stages.append(Stage(OTHER, max(rest, 0.0), max(cpu, 0.0), 1))
    whole, tops = min(rounds, key=lambda one: one[0].seconds)
    spans = [
        {"stage": _stage(s), "start": s.start - whole.start, "seconds": s.seconds} for s in tops
    ]
    return stages, spans


def _stage(span: Span) -> str:
    return span.place.split("/")[1]


def _known(operations: Sequence[Any], stages: Sequence[Stage]) -> list[Any]:
    """Operations outside every stage belong to what lies between them."""
    names = {stage.name for stage in stages}
    return [
        op if op.place.split("/")[0] in names else replace(op, place=f"{OTHER}/{op.place}")
        for op in operations
    ]


def profile_generate(
    pipeline: SongPipeline, requests: Sequence[SongRequest], settings: Settings
) -> dict[str, Any]:
    """A profile of songs made in one batch and written to files."""
    networks = networks_of(pipeline)
    with tempfile.TemporaryDirectory() as place:

        def run() -> None:
            for number, song in enumerate(pipeline.generate(requests)):
                song.save(Path(place) / f"{number}.wav")

        seconds = sum(song.seconds for song in pipeline.generate(requests))
        work = Work(
            title=f"{pipeline.config.name}: {len(requests)} song{'s' * (len(requests) > 1)}, "
            f"{seconds:.0f} s of audio, {pipeline.runtime_name} in "
            f"{str(pipeline.precision).removeprefix('torch.')}",
            run=run,
            watch=lambda watch: watch_pipeline(watch, pipeline),
            modules=[(networks[0], 2), (pipeline.vae.decoder, 2)],
            weights=lambda: {"weights": [t for n in networks for t in tensors_of(n)]},
            claims=lambda ledger: plans(ledger, pipeline),
            device=pipeline.vae.latent_mean.device,
            dtype=pipeline.precision,
            audio_seconds=seconds,
            about={"model": pipeline.config.name, "songs": len(requests)},
        )
        return profile(work, settings)


def networks_of(pipeline: SongPipeline) -> list[nn.Module]:
    """The networks that torch runs, the denoising one first: a runtime of graphs has none."""
    dit = getattr(pipeline.runtime, "dit", None)
    return [*([dit] if isinstance(dit, nn.Module) else []), pipeline.vae, pipeline.chinmu]


def tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@contextlib.contextmanager
def plans(ledger: Ledger, pipeline: SongPipeline) -> Iterator[None]:
    """What prepare leaves is the plan, and in it the lyric keys and values; steps run uncaptured,
    since a captured graph hides its operations.
    """
    runtime: Any = pipeline.runtime
    plain = runtime.prepare

    def prepare(song: Any) -> Any:
        state = plain(song)
        tensors = list(_tensors_in(state))
        ledger.claim(tensors, "plan")
        ledger.claim([t for pair in getattr(state, "kv", ()) for t in pair], "K/V")
        return state

    object.__setattr__(runtime, "prepare", prepare)
    uncaptured = getattr(runtime, "graphs", None) is not None
    if uncaptured:
        object.__setattr__(runtime, "step", torch.inference_mode()(runtime._step))
    try:
        yield
    finally:
        object.__delattr__(runtime, "prepare")
        if uncaptured:
            object.__delattr__(runtime, "step")


def _tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for one in value.values():
            yield from _tensors_in(one, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors_in(one, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        yield from _tensors_in(vars(value), depth - 1)
