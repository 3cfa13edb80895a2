"""What a step of the song transformer costs, in seconds and in bytes: what the batcher plans with.

    seconds(step) = base + sum over sequences of (a T + b T^2)
        T: rows of a sequence, target and reference

    cost = measure_cost(runtime, config)  # a few steps of songs of noise, at start
    cost.observe(rows, seconds)           # and what every later step took
    predicted_bytes(config.dit, frames=646, tokens=300, steps=25)  # of a song in flight

`base` is what a step costs whatever is in it (launches on a GPU, Python on a CPU): the only thing
that batching saves, so the curve says how many songs are worth stepping together.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mudit_engine.config import DitConfig, ModelConfig, SamplerConfig
from mudit_engine.diffusion.samplers import sampler_table

if TYPE_CHECKING:
    from mudit_engine.runtime.denoiser import SongInputs

# rows of the songs that are stepped to measure: short, and long enough to see attention
PROBES = (16, 64, 192)
REMEMBERED = 256  # steps that the curve is fitted to
REFIT = 16  # steps between fits


def sequence_rows(song: SongInputs, step: int) -> list[int]:
    """Rows of a song's sequences at a step: its own, and without guidance's where it is guided."""
    rows = [song.frames + (0 if song.reference is None else len(song.reference))]
    guided = step < len(song.table.guided) and song.table.guided[step]
    return [*rows, song.frames] if guided else rows


@dataclass
class StepCost:
    """seconds = base + a T + b T^2, fitted to the steps that ran. Safe to use from several
    threads.
    """

    base: float = 0.0
    a: float = 1e-5
    b: float = 0.0
    _seen: deque[tuple[float, float, float]] = field(
        default_factory=lambda: deque(maxlen=REMEMBERED), repr=False
    )
    _unfitted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def sequence(self, rows: int) -> float:
        """Seconds that one sequence adds to a step."""
        return self.a * rows + self.b * rows * rows

    def step(self, rows: Sequence[int]) -> float:
        """Seconds of a step with sequences of these numbers of rows."""
        return self.base + sum(map(self.sequence, rows))

    def left(self, song: SongInputs, step: int) -> float:
        """Seconds of the song's steps from `step` on, each alone."""
        guided = song.table.guided
        left, plain = max(len(guided) - step, 0), sequence_rows(song, len(guided))[0]
        sequences = left * self.sequence(plain) + sum(guided[step:]) * self.sequence(song.frames)
        return left * self.base + sequences

    def observe(self, rows: Sequence[int], seconds: float) -> None:
        """A step that ran. Every few steps the curve is fitted again."""
        with self._lock:
            self._seen.append((float(sum(rows)), float(sum(r * r for r in rows)), seconds))
            self._unfitted += 1
            if self._unfitted >= REFIT:
                self.fit()

    def fit(self) -> None:
        """Least squares of relative errors over the remembered steps; terms below zero are left
        out, the square first.
        """
        self._unfitted = 0
        seen = np.array(self._seen)
        if not len(seen):
            return
        columns = np.stack((np.ones(len(seen)), seen[:, 0], seen[:, 1]), 1) / seen[:, 2:]
        for chosen in ((0, 1, 2), (0, 1), (1, 2), (1,)):
            found = np.linalg.lstsq(columns[:, chosen], np.ones(len(seen)), rcond=None)[0]
            if (found >= 0).all() and found[chosen.index(1)] > 0:
                terms = dict(zip(chosen, map(float, found), strict=True))
                self.base, self.a, self.b = terms.get(0, 0.0), terms[1], terms.get(2, 0.0)
                return


def measure_cost(runtime: Any, config: ModelConfig, *, probes: Sequence[int] = PROBES) -> StepCost:
    """The curve of this runtime on this machine, from guided steps of songs of noise. Lengths
    beyond the model's longest song are left out.
    """
    cost = StepCost()
    longest = int(config.max_seconds * config.vae.frame_rate)
    for frames in [length for length in probes if length <= longest] or [max(longest, 1)]:
        steps = 3
        state = runtime.prepare(noise_song(config, frames, steps=steps))
        for step in range(steps):
            started = time.perf_counter()
            runtime.step([state])
            if step:  # the first one allocates, compiles and captures
                cost.observe([frames, frames], time.perf_counter() - started)
    with cost._lock:
        cost.fit()
    return cost


def noise_song(config: ModelConfig, frames: int, *, steps: int) -> SongInputs:
    """A song of nothing but noise, guided at every step: to measure a runtime with."""
    from mudit_engine.runtime.denoiser import SongInputs

    name = "ddim" if config.path.kind == "ddpm" else "ode-euler"
    width = config.dit.description_width
    return SongInputs(
        frames=frames,
        seconds=frames / config.vae.frame_rate,
        table=sampler_table(config.path, SamplerConfig(name=name, steps=steps, guidance=2.0)),
        seed=0,
        descriptions=torch.full((1, width), width**-0.5),
        negative=torch.zeros(0, width),
        texts=("noise",),
    )


def predicted_bytes(
    config: DitConfig,
    *,
    frames: int,
    tokens: int = 0,
    steps: int,
    reference: int = 0,
    fragments: int = 0,
    element: int = 4,
) -> int:
    """Bytes of a song in flight: what `prepare` keeps, its share of a packed batch and of the
    widest moment of a step. `element`: bytes of a weight.
    """
    width, rows = config.width, frames + reference + fragments
    blocks = config.blocks if config.modulation == "per_block" else 1
    lyrics = 2 * config.blocks * tokens * width
    conditions = (rows + frames) * width
    modulation = 2 * steps * (6 * blocks + 2) * width
    latents = 4 * 2 * frames * config.latent_channels
    # residual stream, norm, q, k, v, attention, its projection and the MLP's hidden layer
    activations = (rows + frames) * (8 + 2 * config.mlp_ratio) * width
    kept = element * (2 * lyrics + 2 * conditions + modulation) + latents
    return int(kept + element * activations)


def predicted_bytes_of(config: DitConfig, song: SongInputs, *, element: int = 4) -> int:
    """`predicted_bytes` of a song that was read."""
    return predicted_bytes(
        config,
        frames=song.frames,
        tokens=len(song.lyric_ids),
        steps=len(song.table.times),
        reference=0 if song.reference is None else len(song.reference),
        fragments=len(song.descriptions),
        element=element,
    )
