"""Seconds of a denoising step, of a decoded chunk and of a whole song on the CPU, by every runtime
of a deployment folder, interleaved.

    # or: mudit bench runtimes
    rows = run(Path("deploy"), runtimes=("onnxruntime", "openvino"), lengths=(30.0,), rounds=5)

torch is this package in fp32, torch-bf16 the same with its networks in bf16; torch.stft, where the
codec searches for phases, is the same search by torch.stft and torch.istft on whole songs, as
torchaudio has it.

A round runs each runtime once, in an order that turns from round to round. Nothing is timed before
its result was held to PyTorch's (export/parity.py's limits; BF16_LIMITS). CPU seconds are what the
process used, all threads together: on a machine that others use too they say more than seconds do.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mudit_engine.benchmarks.peers import PlainPhaseSearch
from mudit_engine.config import ModelConfig, load_config
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.errors import GateError
from mudit_engine.export.parity import AUDIO_LIMIT, FEW_STEPS, LATENTS_LIMIT, relative, synthesised
from mudit_engine.names import GRAPH_RUNTIMES
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.runtime.decode import decode_frames
from mudit_engine.runtime.denoiser import SongInputs
from mudit_engine.runtime.graph_denoiser import GraphDecoder
from mudit_engine.sizes import song_frames

BF16, PEER = "torch-bf16", "torch.stft"
PEER_LIMIT = 1.15  # the peer's spectra may be that much nearer to those asked for, or farther
# of latents after a step, of audio, and of latents after all steps, along which roundings to 8 bits
# add up
BF16_LIMITS = {"step": 1e-2, "decode": 1e-1, "song": 2e-1}
WORKS = ("step", "decode", "song")
TOKENS_PER_SECOND = 4.0  # lyric tokens of an ordinary song
LYRICS = "[verse]\n月亮升起来\n风吹过海面\n[chorus]\n我想和你看天亮\n"


@dataclass(frozen=True)
class Row:
    """One runtime at one piece of work. Ratios are torch / runtime, the median over rounds."""

    model: str
    work: (
        str  # "step", "decode" (a chunk of runtime/decode.py's decode_frames with its halo), "song"
    )
    song_seconds: float
    frames: int
    guided: bool
    runtime: str
    seconds_p50: float
    cpu_seconds_p50: float
    ratio_to_torch: float
    cpu_ratio_to_torch: float
    # relative L2 against PyTorch in fp32; None for the peer, which searches for other phases
    difference: float | None
    rounds: int
    threads: int


def run(
    folder: Path,
    *,
    runtimes: Sequence[str] = GRAPH_RUNTIMES,
    lengths: Sequence[float] = (30.0,),
    rounds: int = 5,
    guided: bool = True,
    works: Sequence[str] = WORKS,
    report: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Rows of a deployment folder. Raises GateError when a runtime's result is not PyTorch's."""
    report("opening")
    pipelines = {
        "torch": SongPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32),
        BF16: SongPipeline.from_pretrained(folder, device="cpu", dtype=torch.bfloat16),
        **{name: SongPipeline.from_pretrained(folder, runtime=name) for name in runtimes},
    }
    config = load_config(folder)
    rows = []
    for seconds in lengths:
        frames = song_frames(config.vae, seconds)
        make: dict[str, Callable[[], dict[str, Call]]] = {
            "step": partial(_steps, config, pipelines, seconds, guided=guided),
            "decode": partial(_decodes, config, pipelines, report),
            "song": partial(_songs, pipelines, seconds),
        }
        for name in works:
            report(f"{name} of {seconds:g} s")
            limit = AUDIO_LIMIT if name == "decode" else LATENTS_LIMIT
            limits = {one: BF16_LIMITS[name] if one == BF16 else limit for one in pipelines}
            found = _measure(
                make[name](),
                rounds,
                limits,
                first=_few_steps(config, pipelines) if name == "decode" else None,
            )
            fixed: dict[str, Any] = {
                "model": config.name,
                "work": name,
                "song_seconds": seconds,
                "frames": frames,
                "guided": guided,
            }
            rows += [
                Row(**fixed, **one, rounds=rounds, threads=torch.get_num_threads()) for one in found
            ]
    return rows


Call = Callable[[], torch.Tensor]


def _steps(
    config: ModelConfig, pipelines: dict[str, SongPipeline], seconds: float, *, guided: bool
) -> dict[str, Call]:
    sampler = config.sampler.model_copy(update={"guidance": 3.0 if guided else 1.0})
    generator = torch.Generator().manual_seed(1)
    tokens = round(seconds * TOKENS_PER_SECOND)
    inputs = SongInputs(
        frames=song_frames(config.vae, seconds),
        seconds=seconds,
        table=sampler_table(config.path, sampler),
        seed=0,
        descriptions=torch.nn.functional.normalize(
            torch.randn(3, config.dit.description_width, generator=generator), dim=-1
        ),
        negative=torch.zeros(0, config.dit.description_width),
        lyric_ids=torch.randint(
            8, config.dit.vocabulary_size, (tokens,), generator=generator
        ).tolist(),
    )

    def call(pipeline: SongPipeline) -> Call:
        state = pipeline.runtime.prepare(inputs)
        first = state.x_TC.clone()

        def once() -> torch.Tensor:
            state.step, state.x_TC = 0, first
            pipeline.runtime.step([state])
            latents: torch.Tensor = state.x_TC
            return latents

        return once

    return {name: call(pipeline) for name, pipeline in pipelines.items()}


def _decodes(
    config: ModelConfig, pipelines: dict[str, SongPipeline], report: Callable[[str], None]
) -> dict[str, Call]:
    halo = pipelines["torch"].vae.receptive_field
    latents = torch.randn(
        1,
        decode_frames(halo) + 2 * halo,
        config.vae.latent_channels,
        generator=torch.Generator().manual_seed(2),
    )

    def call(pipeline: SongPipeline) -> Call:
        def once() -> torch.Tensor:
            with torch.inference_mode():
                return pipeline.decoder.decode(latents)

        return once

    calls = {name: call(pipeline) for name, pipeline in pipelines.items()}
    if config.vae.phase_refinements and config.vae.channels == 1:
        peer = PlainPhaseSearch(pipelines["torch"].vae)
        ours, theirs = peer.inconsistency(latents)
        report(
            f"spectra of the audio differ from those asked for by {ours:.3f}, the peer's by "
            f"{theirs:.3f}"
        )
        if not theirs / PEER_LIMIT <= ours <= theirs * PEER_LIMIT:
            raise GateError(
                f"the phase search ends {ours:.3f} from what was asked for, the peer's "
                f"{theirs:.3f}: they do not do equal work"
            )
        calls[PEER] = partial(peer.decode, latents)
    return calls


def _few_steps(
    config: ModelConfig, pipelines: dict[str, SongPipeline]
) -> dict[str, torch.Tensor] | None:
    """Audio to compare where the codec searches for phases: after all of its steps no two runtimes
    agree (export/parity.py).
    """
    if not (steps := min(config.vae.phase_refinements, FEW_STEPS)):
        return None
    vae = pipelines["torch"].vae
    latents = torch.randn(
        1,
        2 * vae.receptive_field,
        config.vae.latent_channels,
        generator=torch.Generator().manual_seed(2),
    )
    found = {}
    for name, pipeline in pipelines.items():
        if isinstance(pipeline.decoder, GraphDecoder):
            found[name] = pipeline.decoder.decode(latents, refinements=steps)
        else:
            found[name] = synthesised(pipeline.vae, latents, steps=steps)
    return found


def _songs(pipelines: dict[str, SongPipeline], seconds: float) -> dict[str, Call]:
    request = SongRequest(
        description="流行抒情，钢琴，女声", lyrics=LYRICS, seconds=seconds, seed=1
    )

    def call(pipeline: SongPipeline) -> Call:
        return lambda: torch.from_numpy(pipeline.generate([request])[0].latents)

    return {name: call(pipeline) for name, pipeline in pipelines.items()}


def _measure(
    calls: dict[str, Call],
    rounds: int,
    limits: dict[str, float],
    first: dict[str, torch.Tensor] | None = None,
) -> list[dict[str, Any]]:
    """What a Row says of every call, those in `limits` held to PyTorch; `first` is what to compare
    where it is not what the calls give.
    """
    # also the warm-up: compilation, pages, thread pools
    results = {name: call().clone() for name, call in calls.items()}
    results = first or results
    difference = {name: relative(results[name], results["torch"]) for name in limits}
    for name, error in difference.items():
        if not error <= limits[name]:
            raise GateError(
                f"{name} differs from PyTorch by {error:.1e} (limit {limits[name]:.0e}): no speed "
                f"is reported"
            )
    walls: dict[str, list[float]] = {name: [] for name in calls}
    cpus: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)

    def ratio(times: dict[str, list[float]], name: str) -> float:
        return statistics.median(
            torch_s / own for torch_s, own in zip(times["torch"], times[name], strict=True)
        )

    return [
        {
            "runtime": name,
            "seconds_p50": statistics.median(walls[name]),
            "cpu_seconds_p50": statistics.median(cpus[name]),
            "ratio_to_torch": ratio(walls, name),
            "cpu_ratio_to_torch": ratio(cpus, name),
            "difference": difference.get(name),
        }
        for name in names
    ]


def as_documents(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows, and how busy the machine was."""
    return {
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "rows": [asdict(row) for row in rows],
    }
