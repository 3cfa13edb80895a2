"""Length buckets: the sizes for which engines are built, and to which a song is padded. Padding is
masked, so it changes no result.

    # an eighth, a quarter, a half and the whole of the longest song
    buckets = default_buckets(config)
    bucket = choose(buckets, frames=323, tokens=180, reference=0)
    # [{"x": (smallest, usual, largest), ...}], one a bucket
    profiles(config, buckets, "step")

A step of a bucket has fixed numbers of target rows and lyric keys; its other rows are the
descriptions alone or descriptions and a whole reference; guidance doubles its sequences. Everything
else is small, and one profile serves all lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mudit_engine.config import ModelConfig
from mudit_engine.errors import InputError
from mudit_engine.models.outline import TOKENS, outline_width

ROWS = 64  # frames and tokens are multiples of this: the tile of attention kernels
NULL_KEYS = 8  # places before the lyric keys: the null key, and padding to a multiple of 8
TOKENS_PER_SECOND = 7.0  # what lyrics of a dense song need
REFERENCE_SECONDS = 30.0
CHUNK = 256  # latent frames decoded at once
CHUNK_STEP = 32  # frames between chunk lengths of songs that are shorter
MODULATION_ROWS = 2048  # sampler rows times guidance branches

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class Bucket:
    """A song of at most `frames` latent frames, `tokens` lyric tokens and `reference` frames of
    reference audio.
    """

    frames: int
    tokens: int
    reference: int

    @property
    def lyrics(self) -> int:
        """Lyric keys of a step: the null key's places and the tokens."""
        return NULL_KEYS + self.tokens


def make_bucket(config: ModelConfig, seconds: float, *, tokens: int | None = None) -> Bucket:
    """The bucket of songs of up to `seconds`. Raises InputError for a length the model does not
    make.
    """
    if not 0 < seconds <= config.max_seconds:
        raise InputError(
            f"a bucket of {seconds:g} s: model '{config.name}' makes songs of up to "
            f"{config.max_seconds:g} s, ask for no more"
        )
    rate = config.vae.frame_rate
    frames = _up(seconds * rate)
    return Bucket(
        frames,
        tokens or _up(seconds * TOKENS_PER_SECOND),
        min(frames, _up(REFERENCE_SECONDS * rate)),
    )


def default_buckets(config: ModelConfig) -> tuple[Bucket, ...]:
    """Four lengths, each twice the one before; shorter ones than 15 s are left out."""
    lengths = [config.max_seconds / part for part in (8, 4, 2, 1)]
    return tuple(
        dict.fromkeys(
            make_bucket(config, seconds)
            for seconds in lengths
            if seconds >= min(15.0, config.max_seconds)
        )
    )


def parse_buckets(config: ModelConfig, texts: Sequence[str]) -> tuple[Bucket, ...]:
    """Buckets of SECONDS or SECONDS:TOKENS, shortest first. Raises InputError for anything else."""
    found = []
    for text in texts:
        seconds, _, tokens = text.partition(":")
        try:
            found.append(
                make_bucket(config, float(seconds), tokens=_up(int(tokens)) if tokens else None)
            )
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"bucket '{text}' cannot be read: write SECONDS or SECONDS:TOKENS, such as 60 or "
                f"60:512"
            ) from None
    return tuple(sorted(dict.fromkeys(found), key=lambda bucket: (bucket.frames, bucket.tokens)))


def choose(buckets: Sequence[Bucket], *, frames: int, tokens: int, reference: int = 0) -> Bucket:
    """The smallest bucket that holds a song. Raises InputError when none does."""
    for bucket in buckets:
        if frames <= bucket.frames and tokens <= bucket.tokens and reference <= bucket.reference:
            return bucket
    largest = max(buckets, key=lambda bucket: bucket.frames)
    raise InputError(
        f"a song of {frames} frames, {tokens} lyric tokens and {reference} reference frames fits "
        f"no engine (at most {largest.frames}, "
        f"{largest.tokens} and {largest.reference}): shorten it, or build larger ones with `mudit "
        f"export tensorrt --bucket SECONDS:TOKENS`"
    )


def profiles(config: ModelConfig, buckets: Sequence[Bucket], graph: str) -> list[Profile]:
    """Smallest, usual and largest shapes of every input of a graph, a profile at a time."""
    c, most = config.dit, max(bucket.tokens for bucket in buckets)
    longest = max(bucket.reference for bucket in buckets)
    match graph:
        case "step":
            return [_step(config, bucket) for bucket in buckets]
        case "lyric_kv":
            widths = {
                "ids": (),
                "mask": (),
                "token_tables": (c.lyric_head_dim,),
                "share_tables": (c.head_dim,),
            }
            return [{name: ((1, *w), (most // 4, *w), (most, *w)) for name, w in widths.items()}]
        case "modulation":
            widths = {"times": (), "seconds": (), "user": ()} | (
                {"pooled": (c.description_width,)} if c.pooled_description else {}
            )
            return [
                {
                    name: ((1, *width), (64, *width), (MODULATION_ROWS, *width))
                    for name, width in widths.items()
                }
            ]
        case "conditions" if c.outline:
            return [_conditions(config, bucket, bucket.reference) for bucket in buckets]
        case "conditions":
            return [_conditions(config, buckets[-1], longest)]
        case "vae_decode":
            whole = (1, CHUNK, c.latent_channels)
            return [{"latents": ((1, 1, c.latent_channels), whole, whole)}]
        case "chinmu_text":
            few, longest = c.max_fragments, config.chinmu.max_characters
            # what a captured song launches
            sizes: tuple[Shape, ...] = (
                (1, 1),
                (few, longest),
                (few, longest),
            )
            tables = tuple((length, config.chinmu.head_dim) for _, length in sizes)
            return [dict.fromkeys(("characters", "pairs", "mask"), sizes) | {"tables": tables}]  # type: ignore[list-item]
    raise InputError(f"graph '{graph}' has no profiles")


def step_shapes(
    config: ModelConfig, bucket: Bucket, *, sequences: int, others: int
) -> dict[str, Shape]:
    """Shapes of the step graph's inputs, for one song."""
    c = config.dit
    s, b, t, e, k = 1, sequences, bucket.frames, others, bucket.lyrics
    base = (6 * c.width,) if c.modulation == "shared" else (c.blocks, 6 * c.width)
    shapes: dict[str, Shape] = dict.fromkeys(("x", "kept", "noise"), (s, t, c.latent_channels))
    shapes |= {"coefficients": (s, 7), "song": (b,), "unconditional": (s,)}
    shapes |= {
        "target_rows": (b, t, c.width),
        "other_rows": (b, e, c.width),
        "target_mask": (b, t),
        "other_mask": (b, e),
    }
    shapes |= {"target_tables": (b, t, 2 * c.head_dim), "other_tables": (b, e, 2 * c.head_dim)}
    shapes |= dict.fromkeys(("lyric_keys", "lyric_values"), (c.blocks, b, k, c.heads, c.head_dim))
    return {**shapes, "lyric_mask": (b, k), "base": (b, *base), "final": (b, 2 * c.width)}


def _step(config: ModelConfig, bucket: Bucket) -> Profile:
    """One song, with or without a second sequence for guidance."""
    few = config.dit.max_fragments
    smallest = step_shapes(config, bucket, sequences=1, others=few)
    usual = step_shapes(config, bucket, sequences=2, others=few)
    largest = step_shapes(config, bucket, sequences=2, others=few + bucket.reference)
    return {name: (smallest[name], usual[name], largest[name]) for name in usual}


def _conditions(config: ModelConfig, bucket: Bucket, longest: int) -> Profile:
    c = config.dit
    described = (c.max_fragments, c.description_width)
    profile: Profile = {
        "descriptions": (described, described, described),
        "reference": ((1, c.latent_channels), (1, c.latent_channels), (longest, c.latent_channels)),
        "reference_kind": ((1,), (1,), (1,)),
    }
    if c.outline:
        shapes = {
            "features": (bucket.frames, outline_width(c)),
            "tokens": (bucket.frames, TOKENS),
            "weights": (bucket.frames, TOKENS),
        }
        profile |= {
            name: (shape, shape, shape)
            for name, shape in {**shapes, "lyrics": (bucket.tokens, c.lyric_width)}.items()
        }
    return profile


def _up(count: float) -> int:
    return math.ceil(count / ROWS) * ROWS
