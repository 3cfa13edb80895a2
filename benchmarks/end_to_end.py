"""Seconds of one denoising step against a strong peer, interleaved in one run, with the share of
the GEMM peak of that same run.

    rows = run(["published-1536"], rounds=3)         # or: mudit bench e2e

Before anything is timed a batch is checked against each of its songs alone, by a network of the
same size and two blocks (layouts do not depend on the depth), which warms the machine up as well; a
failure stops the run. The first round packs the batch, too. CPU seconds are those of all threads:
where others use the machine they say more than seconds do.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from mudit_engine.benchmarks.peers import StableAudioPeer
from mudit_engine.benchmarks.workloads import WORKLOADS, Workload, step_flops
from mudit_engine.config import DitConfig, PathConfig, SamplerConfig, load_config
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.errors import GateError, InputError
from mudit_engine.hardware import keep_freed_memory
from mudit_engine.models.dit import DiT
from mudit_engine.runtime.denoiser import Denoiser, SongInputs, SongState

GEMM_SIZE = (1536, 1536, 6144)  # the MLP's product at 1,536 frames: the shape most of the work has
GATE = 1e-4
GATE_BLOCKS = 2


@dataclass(frozen=True)
class Row:
    """One workload. Seconds are medians over the rounds; peak memory is the process's, peer
    included.
    """

    workload: str
    runtime: str
    seconds_p50: float
    seconds_p20: float
    seconds_p80: float
    peer: str
    peer_seconds_p50: float
    ratio_to_peer: float
    cpu_ratio_to_peer: float
    tflop: float
    gemm_peak_gflops: float
    gemm_peak_fraction: float
    gemm_cpu_fraction: float
    rounds: int
    threads: int
    peak_memory_mib: int


def gemm_gflops() -> tuple[float, float]:
    """GFLOP/s of the best of five fp32 products of GEMM_SIZE, now: by the clock, and a CPU second
    of one thread.
    """
    m, k, n = GEMM_SIZE
    a, b = torch.randn(m, k), torch.randn(k, n)
    walls, cpus = zip(*(seconds_of(lambda: a @ b) for _ in range(5)), strict=True)
    return 2e-9 * m * k * n / min(walls), 2e-9 * m * k * n / min(cpus)


def seconds_of(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call: by the clock, and of all its threads."""
    start, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - used


def make_network(preset: str | DitConfig) -> DiT:
    """The preset's network with random weights; nothing is left at adaLN-Zero's zeros, which would
    make the work trivially denormal.
    """
    torch.manual_seed(0)
    keep_freed_memory()  # as opening a model does; the peers of the process have it as well
    config = load_config(preset).dit if isinstance(preset, str) else preset
    dit = DiT(config).eval().requires_grad_(False)
    for parameter in dit.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    return dit


def make_states(denoiser: Denoiser, workload: Workload, *, steps: int) -> list[SongState]:
    """The workload's songs, prepared for `steps` steps."""
    config = denoiser.dit.config
    table = sampler_table(
        PathConfig(), SamplerConfig(steps=steps, guidance=3.0 if workload.guidance else 1.0)
    )
    g = torch.Generator().manual_seed(2)
    return [
        denoiser.prepare(
            SongInputs(
                frames=frames,
                seconds=frames / 5.86,
                table=table,
                seed=seed,
                descriptions=torch.zeros(0, config.description_width),
                negative=torch.zeros(0, config.description_width),
                lyric_ids=torch.randint(0, config.vocabulary_size, (lyrics,), generator=g).tolist(),
            )
        )
        for seed, (frames, lyrics) in enumerate(workload.songs)
    ]


def check(denoiser: Denoiser, workload: Workload, *, limit: float = GATE) -> float:
    """The largest relative distance of a song of the batch from the song alone. Raises GateError
    above the limit.
    """
    worst = 0.0
    together = make_states(denoiser, workload, steps=2)
    denoiser.step(together)
    for state, alone in zip(together, make_states(denoiser, workload, steps=2), strict=True):
        denoiser.step([alone])
        error = float((state.x_TC - alone.x_TC).norm() / alone.x_TC.norm())
        if not error <= limit:
            raise GateError(
                f"a song of {state.frames} frames differs from itself alone by {error:.1e} (limit "
                f"{limit:.0e}): no speed is reported"
            )
        worst = max(worst, error)
    return worst


def run(
    names: Sequence[str], *, rounds: int = 3, progress: Callable[[str], None] | None = None
) -> list[Row]:
    """Rows of the named workloads. Raises InputError for an unknown name, GateError when the
    engine's result is wrong.
    """
    for name in names:
        if name not in WORKLOADS:
            raise InputError(f"unknown workload '{name}': choose from {', '.join(WORKLOADS)}")
    return [
        _run(name, WORKLOADS[name], rounds, progress or (lambda message: None)) for name in names
    ]


def _run(name: str, workload: Workload, rounds: int, progress: Callable[[str], None]) -> Row:
    config = load_config(workload.preset).dit
    progress(f"{name}: checking")
    shallow = config.model_copy(update={"blocks": min(config.blocks, GATE_BLOCKS)})
    check(Denoiser(make_network(shallow)), workload)
    denoiser = Denoiser(make_network(config))
    peer = StableAudioPeer(config)
    states = make_states(denoiser, workload, steps=rounds)
    peer_step = peer.prepare(workload.songs, guidance=workload.guidance)
    peak, ours, theirs = [gemm_gflops()], [], []
    for i in range(rounds):
        progress(f"{name}: round {i + 1} of {rounds}")
        ours.append(seconds_of(lambda: denoiser.step(states)))
        theirs.append(seconds_of(peer_step))
        peak.append(gemm_gflops())
    flops = step_flops(config, workload.songs, guidance=workload.guidance)
    p20, p50, p80 = _quantiles([wall for wall, _ in ours])
    by_clock, by_cpu = (statistics.median(column) for column in zip(*peak, strict=True))
    return Row(
        workload=name,
        runtime="torch",
        seconds_p50=p50,
        seconds_p20=p20,
        seconds_p80=p80,
        peer=peer.name,
        peer_seconds_p50=statistics.median(wall for wall, _ in theirs),
        ratio_to_peer=_ratio(theirs, ours, 0),
        cpu_ratio_to_peer=_ratio(theirs, ours, 1),
        tflop=flops / 1e12,
        gemm_peak_gflops=by_clock,
        gemm_peak_fraction=flops / 1e9 / p50 / by_clock,
        gemm_cpu_fraction=flops / 1e9 / statistics.median(cpu for _, cpu in ours) / by_cpu,
        rounds=rounds,
        threads=torch.get_num_threads(),
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def _ratio(
    theirs: Sequence[tuple[float, ...]], ours: Sequence[tuple[float, ...]], clock: int
) -> float:
    """The median over the rounds, by the clock (0) or by CPU seconds (1)."""
    return statistics.median(t[clock] / o[clock] for t, o in zip(theirs, ours, strict=True))


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[1], statistics.median(values), tenths[7]


def as_documents(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]
