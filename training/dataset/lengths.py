"""How long the songs are that a cluster is planned for: a data set's own lengths, a file of
seconds, or a stated mix.

    read_lengths("songs", config)               # the mix below
    read_lengths("data/latents", config)        # an encoded data set
    read_lengths("seconds.txt", config)         # a number of seconds a line

The mix "songs": lognormal seconds of median 215 and spread 0.28, cut at 30 s and at the model's
longest song; phonemes lognormal around 517 for 215 s with a spread of 0.44 (median 517, 90th
percentile 908 in the published training set), growing with the song; 5 % without lyrics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mudit_engine.config import ModelConfig
from mudit_engine.errors import InputError
from mudit_engine.files import read_text

MIX = "songs"
MEDIAN_SECONDS, SPREAD, SHORTEST = 215.0, 0.28, 30.0
MEDIAN_TOKENS, TOKEN_SPREAD, MOST_TOKENS = 517.0, 0.44, 4096
INSTRUMENTAL = 0.05
SAMPLE = 20_000  # songs drawn from a mix, and taken of a larger data set


@dataclass(frozen=True)
class Lengths:
    """A sample of songs: latent frames and lyric tokens of each, and how many songs the source
    holds in all (None: a mix).
    """

    source: str
    frames: np.ndarray
    tokens: np.ndarray
    songs: int | None
    frame_rate: float

    def describe(self) -> dict[str, float | int | str | None]:
        seconds = self.frames / self.frame_rate
        p5, p50, p95 = (float(v) for v in np.percentile(seconds, (5, 50, 95)))
        return {
            "source": self.source,
            "songs": self.songs,
            "sample": len(self.frames),
            "mean_frames": float(self.frames.mean()),
            "longest_frames": int(self.frames.max()),
            "seconds_p5": round(p5, 1),
            "seconds_p50": round(p50, 1),
            "seconds_p95": round(p95, 1),
            "mean_lyric_tokens": float(self.tokens.mean()),
        }


def read_lengths(source: str, config: ModelConfig, *, seed: int = 0) -> Lengths:
    """Lengths by name or path. Raises InputError for what cannot be read."""
    rate = config.vae.frame_rate
    if source == MIX:
        return _mix(config, seed=seed)
    path = Path(source)
    if path.is_dir():
        return _data_set(path, rate, seed=seed)
    if not path.exists():
        raise InputError(
            f"no lengths '{source}': give '{MIX}', a folder written by `mudit data encode`, or a "
            f"file of seconds, one a line"
        )
    seconds = _seconds(path)
    generator = np.random.default_rng(seed)
    songs = len(seconds)
    seconds = seconds[_sample(songs, generator)]
    return Lengths(
        source,
        np.maximum(1, np.ceil(seconds * rate)).astype(np.int64),
        _tokens(seconds, generator),
        songs,
        rate,
    )


def _mix(config: ModelConfig, *, seed: int) -> Lengths:
    generator = np.random.default_rng(seed)
    longest = config.max_seconds
    shortest = min(SHORTEST, longest / 2)
    # a model of short songs: the same mix, scaled
    median = min(MEDIAN_SECONDS, 0.7 * longest)
    seconds = np.exp(math.log(median) + SPREAD * generator.standard_normal(3 * SAMPLE))
    seconds = seconds[(seconds >= shortest) & (seconds <= longest)][:SAMPLE]
    frames = np.ceil(seconds * config.vae.frame_rate).astype(np.int64)
    return Lengths(MIX, frames, _tokens(seconds, generator), None, config.vae.frame_rate)


def _tokens(seconds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    tokens = (
        MEDIAN_TOKENS
        * seconds
        / MEDIAN_SECONDS
        * np.exp(TOKEN_SPREAD * generator.standard_normal(len(seconds)))
    )
    tokens[generator.random(len(seconds)) < INSTRUMENTAL] = 0
    return np.clip(np.round(tokens), 0, MOST_TOKENS).astype(np.int64)


def _data_set(path: Path, rate: float, *, seed: int) -> Lengths:
    from mudit_engine.training.dataset.shards import Shards

    shards = Shards(path)
    numbers = np.asarray(shards.numbers("train"))
    for name in ("latents", "phonemes"):
        if name not in shards.fields:
            raise InputError(
                f"'{path}' holds no {name}: a plan for the song transformer needs a data set of "
                f"latents and phonemes"
            )
    if not len(numbers):
        raise InputError(f"'{path}' holds no song of the split 'train'")
    chosen = numbers[_sample(len(numbers), np.random.default_rng(seed))]
    frames, tokens = (
        np.asarray(shards.rows(name))[chosen].astype(np.int64) for name in ("latents", "phonemes")
    )
    return Lengths(str(path), frames, tokens, len(numbers), rate)


def _seconds(path: Path) -> np.ndarray:
    values = []
    for number, line in enumerate(read_text(path, "lengths").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = float(line)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise InputError(
                f"lengths file '{path}', line {number}: {line.strip()!r} is not a positive number "
                f"of seconds"
            )
        values.append(value)
    if not values:
        raise InputError(f"lengths file '{path}' is empty: write one number of seconds a line")
    return np.array(values)


def _sample(count: int, generator: np.random.Generator) -> np.ndarray:
    return (
        np.arange(count)
        if count <= SAMPLE
        else np.sort(generator.choice(count, SAMPLE, replace=False))
    )
