"""Randomness as a pure function of what it is for, so that a resumed run and any world size draw
the same numbers.

seed64(seed, "noise", step, song_id) -> int below 2^63        (BLAKE2b of the parts)

noise = torch.randn(T, C, generator=generator(seed, "noise", step, song_id))
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed64(*parts: int | str) -> int:
    """A 63-bit seed from integers and strings; different parts (or another order) give unrelated
    seeds.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU torch generator seeded by `parts`: noise is drawn on the CPU so that every device sees
    the same.
    """
    import torch

    return torch.Generator().manual_seed(seed64(*parts))


def chooser(*parts: int | str) -> random.Random:
    """A Python generator seeded by `parts`, for choices (dropout of conditions, fragments,
    crops).
    """
    return random.Random(seed64(*parts))


def permutation(count: int, *parts: int | str) -> np.ndarray:
    """int64 [count]: a shuffle of 0..count-1. Built on the raw Philox stream, which NumPy keeps
    stable between releases.
    """
    keys = np.random.Philox(key=seed64(*parts)).random_raw(count)
    return np.argsort(keys, kind="stable")
