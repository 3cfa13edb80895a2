"""What a song costs as it grows: a step against the song's length, songs in a batch and the size of
the model, with the fitted law.

    step(T) = a + b T + c T^2        T latent frames: c is attention's share, b everything else's
    memory(T) = m + n T              nothing of attention is kept

    document = scale(Options(size="small", rounds=3))                # or: mudit bench scale

FLOPs are counted in closed form at every point and for the presets up to 3 B; seconds and the bytes
that live at once are measured where the size allows. Each figure says which it is. Seconds have a
law of their own: attention and products run at different shares of the peak.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mudit_engine.benchmarks.end_to_end import make_network, make_states
from mudit_engine.benchmarks.registry import Options
from mudit_engine.benchmarks.timing import interleave
from mudit_engine.benchmarks.workloads import Workload, network_config, step_flops
from mudit_engine.config import DitConfig, load_config
from mudit_engine.hardware import environment
from mudit_engine.models.dit import DiT
from mudit_engine.profiling.ledger import Ledger
from mudit_engine.runtime.denoiser import Denoiser

SECONDS = (10, 30, 60, 120, 240, 360, 600)
FRAME_RATE, TOKENS_PER_SECOND = 44100 / 4096, 4.0
BATCHES = (1, 2, 4, 8)
PRESETS = ("tiny", "musit-380m", "musit-1b", "musit-3b")
LONGEST_TIMED = {"tiny": 600, "small": 240, "published": 60}


def song(seconds: float) -> tuple[int, int]:
    """(frames, lyric tokens) of a song of this length."""
    return math.ceil(seconds * FRAME_RATE), round(seconds * TOKENS_PER_SECOND)


def fit(lengths: Sequence[float], values: Sequence[float], *, power: int) -> list[float]:
    """Coefficients of 1, T, ... T^power, none negative, that fit best by relative error."""
    x = np.array(lengths, np.float64)
    y = np.array(values, np.float64)
    columns = [x**k / y for k in range(power + 1)]
    kept = list(range(power + 1))
    while True:
        matrix = np.stack([columns[k] for k in kept], 1)
        found = np.linalg.lstsq(matrix, np.ones_like(y), rcond=None)[0]
        if (found >= 0).all() or len(kept) == 1:
            break
        kept.remove(kept[int(found.argmin())])
    result = [0.0] * (power + 1)
    for k, value in zip(kept, found, strict=True):
        result[k] = float(max(value, 0.0))
    return result


def worst_miss(lengths: Sequence[float], values: Sequence[float], law: Sequence[float]) -> float:
    """The largest relative distance of a value from the law."""
    return max(
        abs(sum(c * t**k for k, c in enumerate(law)) / value - 1)
        for t, value in zip(lengths, values, strict=True)
    )


def stepper(denoiser: Denoiser, songs: Sequence[tuple[int, int]]) -> Any:
    """The first step of songs, again and again."""
    states = make_states(denoiser, Workload("", tuple(songs), True, ""), steps=1)
    begin = [(state.x_TC.clone(), state.kept_TC.clone()) for state in states]

    def once() -> None:
        for state, (x, kept) in zip(states, begin, strict=True):
            state.step, state.x_TC, state.kept_TC = 0, x.clone(), kept.clone()
        denoiser.step(states)

    return once


def counted_peak(denoiser: Denoiser, songs: Sequence[tuple[int, int]]) -> int:
    """Most bytes that live at once in a step, the weights and the songs' plans left out."""
    once = stepper(denoiser, songs)
    once()
    with Ledger() as ledger:
        ledger.claim(denoiser.dit.parameters(), "weights")
        once()
    return ledger.peak_bytes - ledger.live["weights"]


def scale(options: Options) -> dict[str, Any]:
    """The document of all three: length, batch, model."""
    config = network_config(options.size)
    denoiser = Denoiser(make_network(config))
    return {
        "env": environment(),
        "size": options.size,
        "threads": torch.get_num_threads(),
        "length": by_length(config, denoiser, options),
        "batch": by_batch(config, denoiser, options),
        "model": by_model(options),
    }


def by_length(config: DitConfig, denoiser: Denoiser, options: Options) -> dict[str, Any]:
    """Rows of 10 s to 600 s, and the laws."""
    limit = options.seconds or LONGEST_TIMED[options.size]
    timed = [seconds for seconds in SECONDS if seconds <= limit]
    calls = {str(seconds): stepper(denoiser, [song(seconds)]) for seconds in timed}
    options.report(f"timing {len(calls)} lengths")
    times = interleave(calls, rounds=options.rounds or 3)
    rows: list[dict[str, Any]] = []
    for seconds in SECONDS:
        frames, tokens = song(seconds)
        row: dict[str, Any] = {
            "seconds_of_song": seconds,
            "frames": frames,
            "flops": step_flops(config, [(frames, tokens)], guidance=True),
        }
        if seconds in timed:
            options.report(f"counting {seconds} s")
            row["memory_bytes"] = counted_peak(denoiser, [song(seconds)])
            found = times[str(seconds)]
            row |= {
                "seconds_p50": found.p50,
                "seconds_least": min(found.walls),
                "cpu_seconds_least": min(found.cpus),
            }
        rows.append(row)
    every = [row["frames"] for row in rows]
    measured = [row for row in rows if "cpu_seconds_least" in row]
    lengths = [row["frames"] for row in measured]
    laws = {
        "flops": fit(every, [row["flops"] for row in rows], power=2),
        "cpu_seconds": fit(lengths, [row["cpu_seconds_least"] for row in measured], power=2),
        "memory_bytes": fit(lengths, [row["memory_bytes"] for row in measured], power=1),
    }
    misses = {
        "flops": worst_miss(every, [row["flops"] for row in rows], laws["flops"]),
        "cpu_seconds": worst_miss(
            lengths, [row["cpu_seconds_least"] for row in measured], laws["cpu_seconds"]
        ),
        "memory_bytes": worst_miss(
            lengths, [row["memory_bytes"] for row in measured], laws["memory_bytes"]
        ),
    }
    return {"rows": rows, "laws": laws, "worst_miss": misses}


def by_batch(config: DitConfig, denoiser: Denoiser, options: Options) -> list[dict[str, Any]]:
    """Songs of 30 s in one step: cost a song and memory."""
    one = song(30)
    calls = {str(count): stepper(denoiser, [one] * count) for count in BATCHES}
    options.report(f"timing {len(calls)} batches")
    times = interleave(calls, rounds=options.rounds or 3)
    return [
        {
            "songs": count,
            "flops": step_flops(config, [one] * count, guidance=True),
            "cpu_seconds_a_song": min(times[str(count)].cpus) / count,
            "seconds_a_song": statistics.median(times[str(count)].walls) / count,
            "memory_bytes": counted_peak(denoiser, [one] * count),
        }
        for count in BATCHES
    ]


def by_model(options: Options) -> list[dict[str, Any]]:
    """Presets by count: parameters and FLOPs of a guided step of 30, 120 and 260 s."""
    rows = []
    for preset in PRESETS:
        options.report(f"counting {preset}")
        config = load_config(preset).dit
        with torch.device("meta"):
            parameters = sum(p.numel() for p in DiT(config).parameters())
        row: dict[str, Any] = {"preset": preset, "parameters": parameters}
        for seconds in (30, 120, 260):
            flops = step_flops(config, [song(seconds)], guidance=True)
            frames, tokens = song(seconds)
            attention = (
                config.blocks * 4 * config.width * (2 * frames * frames + frames * tokens) / flops
            )
            row |= {f"tflop_{seconds}s": flops / 1e12, f"attention_share_{seconds}s": attention}
        rows.append(row)
    return rows
