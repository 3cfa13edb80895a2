"""Every benchmark of the project under one name, in one form: what it measures, what it needs, and
rows of one format.

    for benchmark in BENCHMARKS.values(): print(benchmark.name, benchmark.about)
    rows = run("step", Options(size="small", rounds=5))           # or: mudit bench run step

A benchmark is a function (options) -> list[Row]. It holds results to a reference before it
times anything and raises GateError when they are wrong; then it runs its providers in turns
(benchmarks/timing.py), ours beside strong peers, in one process.

Listing imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mudit_engine.availability import available, require
from mudit_engine.errors import InputError

if TYPE_CHECKING:
    from mudit_engine.benchmarks.timing import Times

SIZES = ("tiny", "small", "published")
DTYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class Options:
    """What one run is asked for; a benchmark reads what concerns it. None: its own default."""

    size: str = "small"
    rounds: int | None = None
    seconds: float | None = None
    folder: Path | None = None
    peers: bool = True
    dtype: str = "fp32"
    compile: bool = False
    report: Callable[[str], None] = lambda text: None


@dataclass
class Row:
    """One provider at one case. Ratios say how many times as fast as `reference` it is; None where
    a figure does not apply.

    seconds_*: quantiles over the rounds; error and limit: the gate that it passed; flops: of one
    call, counted; figures: what only this benchmark has.
    """

    benchmark: str
    case: str
    provider: str
    role: str
    """ours, peer, or step (a rung of a waterfall)."""
    seconds_p50: float | None = None
    seconds_p20: float | None = None
    seconds_p80: float | None = None
    seconds_p90: float | None = None
    seconds_p99: float | None = None
    cpu_seconds_p50: float | None = None
    reference: str | None = None
    ratio: float | None = None
    cpu_ratio: float | None = None
    error: float | None = None
    limit: float | None = None
    flops: float | None = None
    gemm_peak_gflops: float | None = None
    gemm_peak_fraction: float | None = None
    gemm_cpu_fraction: float | None = None
    """As gemm_peak_fraction, by CPU seconds: what other work on the machine disturbs little."""
    audio_seconds: float | None = None
    audio_seconds_per_second: float | None = None
    real_time_factor: float | None = None
    memory_bytes: int | None = None
    joules: float | None = None
    parameters: int | None = None
    rounds: int | None = None
    threads: int | None = None
    note: str | None = None
    samples: list[float] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Benchmark:
    """An entry of the registry. `needs` are packages without which there is nothing to compare;
    `gpu` says that it times a CUDA device only.
    """

    name: str
    about: str
    where: str
    """module:function under mudit_engine.benchmarks"""
    peers: str
    needs: tuple[str, ...] = ()
    gpu: bool = False
    minutes: int = 1
    """About, at the size `small`, on two cores."""

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.needs if not available(name))

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "peers": self.peers,
            "gpu": self.gpu,
            "minutes": self.minutes,
            "missing": list(self.missing),
        }


_ENTRIES = (
    Benchmark(
        "step",
        "one guided denoising step of a mixed batch",
        "step_peers:run",
        "diffusers StableAudioDiT, AceStep, LongCatAudioDiT; torch.compile",
        needs=("diffusers",),
    ),
    Benchmark(
        "waterfall",
        "what each idea of the engine brings to a step: padded, ragged, prepared, fused, bf16, "
        "other runtimes",
        "waterfall:run",
        "each rung against the first",
    ),
    Benchmark(
        "memory",
        "memory of a guided denoising step of a mixed batch, a process each",
        "step_memory:run",
        "diffusers StableAudioDiT, padded",
        needs=("diffusers",),
    ),
    Benchmark(
        "decode",
        "latents to audio, a codec of the same rate and size beside it",
        "decode_peers:run",
        "diffusers AutoencoderOobleck, transformers DacModel",
        needs=("diffusers", "transformers"),
    ),
    Benchmark(
        "stages",
        "a whole song by stages: read, text, prepare, step, decode, save",
        "stages:run",
        "StableAudioDiTModel with AutoencoderOobleck, A/B/A",
        needs=("diffusers",),
    ),
    Benchmark(
        "train",
        "one training step of the song transformer: forward, backward, AdamW",
        "train_peers:run",
        "diffusers StableAudioDiTModel on a padded batch; torch.compile",
        needs=("diffusers",),
    ),
    Benchmark(
        "data",
        "a training batch of songs from shards",
        "data_peers:run",
        "a file a song (safetensors, numpy), padded",
    ),
    Benchmark(
        "plan-time",
        "`mudit plan`'s time of a training step on this machine's CPU, on one rank and on two",
        "plan_time:run",
        "the measured steps",
        needs=("deepspeed",),
        minutes=2,
    ),
    Benchmark(
        "save-stall",
        "what a checkpoint every 50 steps takes of the step's thread, on two ranks",
        "save_stall:run",
        "the same files written between the steps",
        needs=("deepspeed",),
        minutes=4,
    ),
    Benchmark(
        "lora-memory",
        "the most that training a LoRA holds, and what the plan says of it",
        "lora_memory:run",
        "training all weights",
        needs=("peft",),
    ),
    Benchmark(
        "serve",
        "a short song that arrives while a long one runs",
        "joining:run",
        "one after the other; a batch padded to the longest",
    ),
    Benchmark(
        "serve-load",
        "songs of 3 to 60 s that arrive at random, in real time",
        "serving_rows:load",
        "one song at a time; static batches",
        minutes=5,
    ),
    Benchmark(
        "serve-soak",
        "requests of every kind against a running service, and what must hold after them",
        "serving_rows:soak",
        "nobody: answers are held to the song made alone",
        needs=("fastapi", "uvicorn", "httpx"),
        minutes=2,
    ),
    Benchmark(
        "cold-start",
        "from Enter to the first result, a process each time",
        "cold_start:run",
        "import torch, import diffusers' StableAudioPipeline",
    ),
    Benchmark(
        "kernels",
        "every kernel on this machine's GPU",
        "registered:kernels",
        "SDPA, flash-attn, Liger-Kernel, torch.compile",
        gpu=True,
        minutes=5,
    ),
    Benchmark(
        "kernels-static",
        "every kernel compiled for sm_80 and sm_90: registers, spills, ceilings",
        "registered:kernels_static",
        "Triton's tutorial, flash-attn, Liger-Kernel",
        minutes=15,
    ),
    Benchmark(
        "e2e",
        "a step of the published size",
        "registered:e2e",
        "diffusers StableAudioDiTModel",
        needs=("diffusers",),
        minutes=10,
    ),
    Benchmark(
        "runtimes",
        "steps, decodes and songs of a deployment folder (--folder) by every CPU runtime",
        "registered:runtimes",
        "ONNX Runtime, OpenVINO, torch in bf16",
        needs=("onnxruntime", "openvino"),
        minutes=5,
    ),
)
BENCHMARKS = {entry.name: entry for entry in _ENTRIES}


def known(name: str) -> Benchmark:
    """The entry of this name. Raises InputError that lists the names."""
    if name not in BENCHMARKS:
        raise InputError(f"no benchmark '{name}': choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def run(name: str, options: Options) -> list[Row]:
    """Rows of one benchmark. Raises InputError for an unknown name, MissingError for a package or
    device that it needs, GateError when a result is wrong.
    """
    entry = known(name)
    if options.size not in SIZES:
        raise InputError(f"size '{options.size}' is unknown: choose from {', '.join(SIZES)}")
    if options.dtype not in DTYPES:
        raise InputError(f"dtype '{options.dtype}' is unknown: choose from {', '.join(DTYPES)}")
    for package in entry.needs:
        require(package, f"benchmark '{name}'")
    module, _, function = entry.where.partition(":")
    found = importlib.import_module(f"mudit_engine.benchmarks.{module}")
    rows: list[Row] = getattr(found, function)(options)
    return rows


def rows_of(
    benchmark: str,
    case: str,
    times: Mapping[str, Times],
    *,
    reference: str,
    roles: Mapping[str, str],
    audio_seconds: float | None = None,
    flops: Mapping[str, float] | None = None,
    gemm: tuple[Times, float] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """A row a provider: quantiles, ratios to the reference, shares of the GEMM rate of the same
    rounds (its times, and the FLOPs of its call).
    """
    import torch

    from mudit_engine.benchmarks.timing import ratio

    rows = []
    for name, found in times.items():
        row = Row(benchmark, case, name, roles.get(name, "peer"))
        row.seconds_p20, row.seconds_p50, row.seconds_p80, row.seconds_p90, row.seconds_p99 = (
            found.quantile(share) for share in (0.2, 0.5, 0.8, 0.9, 0.99)
        )
        row.cpu_seconds_p50 = found.cpu_p50
        row.reference = reference
        row.ratio = ratio(times, name, reference)
        row.cpu_ratio = ratio(times, name, reference, cpu=True)
        row.rounds, row.threads = len(found.walls), torch.get_num_threads()
        row.samples = [round(value, 6) for value in found.walls]
        if found.joules:
            row.joules = sum(found.joules) / len(found.joules)
        if flops and name in flops:
            row.flops = flops[name]
            if gemm:
                pair, share = {"gemm": gemm[0], name: found}, flops[name] / gemm[1]
                row.gemm_peak_gflops = gemm[1] / gemm[0].p50 / 1e9
                row.gemm_peak_fraction = share * ratio(pair, name, "gemm")
                row.gemm_cpu_fraction = share * ratio(pair, name, "gemm", cpu=True)
        if audio_seconds:
            row.audio_seconds = audio_seconds
            row.audio_seconds_per_second = audio_seconds / row.seconds_p50
            row.real_time_factor = row.seconds_p50 / audio_seconds
        for key, value in (more or {}).get(name, {}).items():
            setattr(row, key, value)
        rows.append(row)
    return rows
