"""Values of several songs end to end, with their lengths on the host.

    latents = Ragged.pack([song_a, song_b])        # values [Ta + Tb, C], lengths (Ta, Tb)
    a, b = latents.unpack()

Lengths stay on the host, so that launch sizes and slices need no device synchronisation; `cu_seqlens` is made on demand.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """values [sum(lengths), ...]; sequence i holds rows offsets[i] to offsets[i + 1]."""

    values: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(n < 0 for n in self.lengths) or sum(self.lengths) != self.values.shape[0]:
            raise ValueError(f"lengths {self.lengths} (sum {sum(self.lengths)}) do not fit {self.values.shape[0]} rows")

    @classmethod
    def pack(cls, sequences: Sequence[Tensor]) -> Ragged:
        """Lays sequences [Ti, ...] end to end."""
        return cls(torch.cat(list(sequences)), tuple(s.shape[0] for s in sequences))

    @property
    def offsets(self) -> tuple[int, ...]:
        return tuple(itertools.accumulate(self.lengths, initial=0))

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 [B + 1] on the values' device, as varlen attention kernels take it."""
        return torch.tensor(self.offsets, dtype=torch.int32, device=self.values.device)

    def unpack(self) -> tuple[Tensor, ...]:
        """Views of the sequences."""
        return self.values.split(list(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)
