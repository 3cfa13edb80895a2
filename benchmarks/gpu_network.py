"""Stages of benchmarks/gpu_run.py that run the network: a step, a song, training.

    step(StageRun("step", folder, seconds=200, dry=False))

The network is musit-380m with random weights, none of them zero, in bf16. A provider is a backend
of ops.use, and `triton+captured` the captured step that the runtime takes on a GPU by itself.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mudit_engine import ops
from mudit_engine.benchmarks.gpu_stage import StageRun
from mudit_engine.benchmarks.workloads import step_flops
from mudit_engine.config import ModelConfig, SamplerConfig, load_config
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.models.dit import DiT, DitBatch
from mudit_engine.runtime.denoiser import Denoiser, SongInputs, SongState, denoise

Songs = list[tuple[int, int]]  # frames and lyric tokens of each

FRAMES_PER_SECOND = 10.77
LENGTHS = {30: (323, 120), 60: (646, 240), 120: (1292, 480), 260: (2800, 1024)}
BATCHES = {
    "1x30": [30],
    "1x260": [260],
    "30+60+120+260": [30, 60, 120, 260],
    "4x260 padded": [260] * 4,
}


def _network(run: StageRun, dtype: torch.dtype) -> tuple[ModelConfig, DiT]:
    """musit-380m with random weights that are not zero anywhere."""
    config = load_config("musit-380m")
    if run.dry:
        small = {"width": 128, "heads": 2, "blocks": 1, "lyric_width": 64, "lyric_blocks": 1}
        config = config.model_copy(
            update={"dit": config.dit.model_copy(update=small), "vae": load_config("tiny").vae}
        )
    torch.manual_seed(0)
    with torch.device(run.device):
        dit = DiT(config.dit)
    for parameter in dit.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return config, dit.to(dtype)


def _songs(run: StageRun, seconds: Sequence[int]) -> Songs:
    return [(one // 60 + 2, 3) if run.dry else LENGTHS[one] for one in seconds]


def _states(
    run: StageRun,
    denoiser: Denoiser,
    config: ModelConfig,
    songs: Songs,
    steps: int,
) -> list[SongState]:
    c, g = denoiser.dit.config, torch.Generator().manual_seed(2)
    table = sampler_table(config.path, SamplerConfig(steps=steps, guidance=3.0))
    return [
        denoiser.prepare(
            SongInputs(
                frames=frames,
                seconds=frames / FRAMES_PER_SECOND,
                table=table,
                seed=i,
                descriptions=torch.randn(4, c.description_width, generator=g),
                negative=torch.zeros(0, c.description_width),
                lyric_ids=torch.randint(0, c.vocabulary_size, (lyrics,), generator=g).tolist(),
            )
        )
        for i, (frames, lyrics) in enumerate(songs)
    ]


@contextlib.contextmanager
def _runtime(run: StageRun, dit: DiT, provider: str) -> Iterator[Denoiser]:
    """A denoiser on the backend that the provider names, its steps captured or not."""
    backend, _, captured = provider.partition("+")
    denoiser = Denoiser(dit, captures=bool(captured) and not run.dry)
    with ops.use(backend):
        yield denoiser


def step(run: StageRun) -> None:
    """One guided step: launch by launch, captured, and on other backends."""
    config, dit = _network(run, torch.bfloat16)
    dit.eval().requires_grad_(False)
    for batch in ("30+60+120+260",) if run.dry else BATCHES:
        songs = _songs(run, BATCHES[batch])
        for provider in ("triton+captured", "triton", "eager", *(() if run.dry else ("flash",))):
            run.attempt(
                f"step {batch} {provider}", partial(_step, run, config, dit, batch, songs, provider)
            )


def _step(
    run: StageRun, config: ModelConfig, dit: DiT, batch: str, songs: Songs, provider: str
) -> None:
    with _runtime(run, dit, provider) as denoiser:
        states = _states(run, denoiser, config, songs, 4 if run.dry else 60)

        def take() -> None:
            if states[0].step == len(states[0].table.times) - 1:
                for state in states:  # real numbers every time: NaN runs cooler
                    state.step, state.x_TC = 0, torch.randn_like(state.x_TC)
            denoiser.step(states)

        ms = run.milliseconds(take, 20)
        extra = {} if run.dry else _launches(take)
    rates = run.rates(step_flops(config.dit, songs, guidance=True), ms)
    run.emit("step", batch=batch, provider=provider, **rates, **extra)


def _launches(call: Callable[[], None]) -> dict[str, Any]:
    """Kernels, copies and waits of one call, and how long the device was busy."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    events = profile.key_averages()
    device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    longest = sorted(device, key=lambda e: -e.self_device_time_total)[:10]
    return {
        "kernels": sum(e.count for e in device),
        "copies": sum(e.count for e in device if "Memcpy" in e.key),
        "waits": sum(e.count for e in events if "Synchronize" in e.key) - 1,
        "device_busy_ms": sum(e.self_device_time_total for e in device) / 1e3,
        "longest": [
            (e.key[:60], round(e.self_device_time_total / 1e3, 3), e.count) for e in longest
        ],
        "peak_memory_mib": torch.cuda.max_memory_allocated() >> 20,
    }


def song(run: StageRun) -> None:
    """Whole songs, step by step and captured, and their decoding."""
    config, dit = _network(run, torch.bfloat16)
    dit.eval().requires_grad_(False)
    truth: dict[str, Tensor] = {}
    for batch in ("1x30",) if run.dry else ("1x30", "1x260", "30+60+120+260"):
        for provider in ("eager", "triton", "triton+captured"):
            run.attempt(
                f"song {batch} {provider}", partial(_song, run, config, dit, batch, provider, truth)
            )
    run.attempt("decode", partial(_decode, run, config))


def _song(
    run: StageRun,
    config: ModelConfig,
    dit: DiT,
    batch: str,
    provider: str,
    truth: dict[str, Tensor],
) -> None:
    songs, steps, times = _songs(run, BATCHES[batch]), 2 if run.dry else 20, []
    with _runtime(run, dit, provider) as denoiser:
        for _ in range(1 if run.dry else 3):
            states = _states(run, denoiser, config, songs, steps)
            run.wait()
            start = time.perf_counter()
            latents = torch.cat(denoise(denoiser, states))
            run.wait()
            times.append(time.perf_counter() - start)
    first = truth.setdefault(batch, latents.double())
    audio = sum(frames for frames, _ in songs) / FRAMES_PER_SECOND
    run.emit(
        "song",
        batch=batch,
        provider=provider,
        steps=steps,
        seconds=min(times),
        first_seconds=times[0],
        audio_seconds_per_second=audio / min(times),
        latents_against_eager=float((latents.double() - first).norm() / first.norm()),
    )


def _decode(run: StageRun, config: ModelConfig) -> None:
    from mudit_engine.models.vae import SpectralVAE
    from mudit_engine.runtime.decode import TorchDecoder, decode_chunked

    with torch.device(run.device):
        vae = SpectralVAE(config.vae).eval().requires_grad_(False)
        latents = torch.randn(40 if run.dry else 2800, config.vae.latent_channels)
    decoder = TorchDecoder(vae)
    with torch.inference_mode():
        for chunk in (16,) if run.dry else (128, 512, 2800):
            ms = run.milliseconds(partial(decode_chunked, decoder, latents, chunk_frames=chunk), 3)
            run.emit("decode", chunk_frames=chunk, frames=len(latents), **ms)


def training(run: StageRun) -> None:
    """Forward and backward at a fixed batch, then at ever new lengths."""
    _, dit = _network(run, torch.float32)
    dit.train()
    g, songs = torch.Generator().manual_seed(3), _songs(run, [30, 60, 120, 260])
    songs = songs if run.dry else songs * 4
    fixed = _training_batch(run, dit, songs, g)
    for backend, kept in (
        ("triton", "none"),
        ("triton", "selective"),
        ("triton", "full"),
        ("eager", "none"),
    ):
        run.attempt(
            f"training {backend} {kept}", partial(_training, run, dit, fixed, songs, backend, kept)
        )
    run.attempt("ever new lengths", partial(_new_lengths, run, dit, g))


def _training(
    run: StageRun, dit: DiT, batch: DitBatch, songs: Songs, backend: str, kept: Any
) -> None:
    if not run.dry:
        torch.cuda.reset_peak_memory_stats()
    with ops.use(backend):
        ms = run.milliseconds(lambda: _forward_backward(run, dit, batch, kept), 5)
    memory = 0 if run.dry else torch.cuda.max_memory_allocated() >> 20
    rates = run.rates(3 * step_flops(dit.config, songs, guidance=False), ms)
    run.emit(
        "forward_backward", backend=backend, checkpointing=kept, peak_memory_mib=memory, **rates
    )


def _forward_backward(run: StageRun, dit: DiT, batch: DitBatch, kept: Any = "none") -> None:
    dit.zero_grad(set_to_none=True)
    with torch.autocast(run.device, torch.bfloat16):
        loss = dit(batch, checkpointing=kept).float().square().mean()
    loss.backward()


def _new_lengths(run: StageRun, dit: DiT, g: torch.Generator) -> None:
    """A batch of other lengths at every step: does one of them wait for a compiler?"""
    draw, times = random.Random(0), []
    with ops.use("triton"):
        for _ in range(2 if run.dry else 24):
            count = 2 if run.dry else draw.randint(4, 20)
            longest = 9 if run.dry else 2800
            songs = [
                (draw.randint(3, longest), draw.randint(4, longest // 3 + 4)) for _ in range(count)
            ]
            batch = _training_batch(run, dit, songs, g)
            run.wait()
            start = time.perf_counter()
            _forward_backward(run, dit, batch)
            run.wait()
            times.append(round(1e3 * (time.perf_counter() - start), 1))
    run.emit("new_lengths", ms=times, ms_median=statistics.median(times), ms_longest=max(times))


def _training_batch(run: StageRun, dit: DiT, songs: Songs, g: torch.Generator) -> DitBatch:
    c, count = dit.config, len(songs)

    def random_rows(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(run.device)

    lyrics = [tokens for _, tokens in songs]
    return DitBatch(
        latents_TC=random_rows(sum(frames for frames, _ in songs), c.latent_channels),
        frames=[frames for frames, _ in songs],
        times_B=torch.rand(count, generator=g).to(run.device),
        seconds_B=torch.tensor([f / FRAMES_PER_SECOND for f, _ in songs], device=run.device),
        user_B=torch.zeros(count, dtype=torch.int64, device=run.device),
        descriptions=random_rows(4 * count, c.description_width),
        fragments=[4] * count,
        lyric_ids=torch.randint(0, c.vocabulary_size, (sum(lyrics),), generator=g).to(run.device),
        lyrics=lyrics,
        references=torch.zeros(0, c.latent_channels, device=run.device),
        reference_frames=[0] * count,
        reference_kinds=[0] * count,
    )
