"""What the end-to-end benchmark runs: one named workload a row, the same songs for the engine and
its peer.

WORKLOADS["published-1536"].songs          # ((frames, lyric tokens), ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mudit_engine.config import DitConfig, load_config


@dataclass(frozen=True)
class Workload:
    """One denoising step of `songs` (frames, lyric tokens) by the network of `preset`."""

    preset: str
    songs: tuple[tuple[int, int], ...]
    guidance: bool
    about: str


WORKLOADS = {
    "published-1536": Workload(
        "published",
        ((1536, 1024),),
        False,
        "one forward of the published size, 1,536 frames, 1,024 lyric tokens",
    ),
    "published-mixed": Workload(
        "published",
        # 30, 60, 120 and 260 s at 5.86 frames a second
        ((176, 120), (352, 240), (703, 480), (1523, 1024)),
        True,
        "one guided step of four songs of 30, 60, 120 and 260 s",
    ),
}


def network_config(size: str) -> DitConfig:
    """The network that a benchmark of this size runs: `tiny` ships with the package, `published` is
    the paper's code, `small` lies between and takes seconds on two cores.
    """
    if size == "small":
        return DitConfig(width=512, blocks=6, heads=8, lyric_width=256, lyric_blocks=2)
    return load_config(size).dit


def mixed_songs(size: str) -> tuple[tuple[int, int], ...]:
    """(frames, lyric tokens) of four songs whose lengths differ by nine: those of published-mixed,
    at a quarter of the length in the smaller sizes.
    """
    songs = WORKLOADS["published-mixed"].songs
    return songs if size == "published" else tuple((f // 4, n // 4) for f, n in songs)


def step_flops(config: DitConfig, songs: Sequence[tuple[int, int]], *, guidance: bool) -> float:
    """Useful floating-point operations of one step: products of target rows only, lyric keys and
    values cached.

    A product of [m, k] and [k, n] counts 2 m k n; softmax, norms and pointwise work count nothing.
    """
    sequences = list(songs) + ([(frames, 0) for frames, _ in songs] if guidance else [])
    d, edge = config.width, 2 * config.width * config.latent_channels
    # both branches of a song share its projected latents
    total = float(edge * sum(frames for frames, _ in songs))
    for frames, lyrics in sequences:
        # qkv and out; cross q and out; MLP
        projections = 2 * frames * d * (4 * d + 2 * d + 2 * config.mlp_width)
        total += config.blocks * (projections + 4 * frames * frames * d + 4 * frames * lyrics * d)
        total += edge * frames
    return total
