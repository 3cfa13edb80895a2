"""How a batch of sequences lies in packed rows: what attention, norms and RoPE need to know, made
once per batch.

One sequence is [description | reference | target] rows; it attends to itself and to its lyric
tokens, which lie in a buffer of their own and may be shared (a guidance branch without lyrics has
none).

    span = Span(description=3, reference=0, target=322, lyric_start=0, lyrics=97, row=0)
    layout = make_layout([span], config)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mudit_engine.config import DitConfig
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments


@dataclass(frozen=True)
class Span:
    """Row counts of one sequence. `row` is its row in the modulation table; `lyric_start` its first
    row in the lyric buffer.
    """

    description: int
    reference: int
    target: int
    lyric_start: int
    lyrics: int
    row: int

    @property
    def rows(self) -> int:
        return self.description + self.reference + self.target


@dataclass(frozen=True)
class Layout:
    """Packing of a batch. Slices are over packed rows, in the order of the sequences."""

    rows: int
    spans: tuple[Span, ...]
    descriptions: tuple[slice, ...]
    references: tuple[slice, ...]
    targets: tuple[slice, ...]
    self_segments: Segments
    cross_segments: Segments
    runs: Runs
    cos: Tensor  # fp32 [1, T, K/2] self-attention, by frame
    sin: Tensor
    cross_cos: Tensor  # fp32 [1, T, K/2] cross-attention, by share of the song
    cross_sin: Tensor
    _joint: dict[int, Segments] = field(default_factory=dict, compare=False, repr=False)
    _tables: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False, repr=False)

    @property
    def has_lyrics(self) -> bool:
        return any(span.lyrics for span in self.spans)

    def joint_segments(self, lyric_offset: int) -> Segments:
        """Self-attention as stream 0 and cross-attention as stream 1 of one launch, the lyric keys
        from row `lyric_offset` on. Made once, as the worklists that it keeps.
        """
        if lyric_offset not in self._joint:
            cross = tuple(
                (q, n, k + lyric_offset, m, 1) for q, n, k, m, _ in self.cross_segments.items
            )
            self._joint[lyric_offset] = Segments(self.self_segments.items + cross)
        return self._joint[lyric_offset]

    def joint_tables(self) -> tuple[Tensor, Tensor]:
        """Angles of both streams, fp32 [2, T, K/2] each. Made once."""
        if not self._tables:
            self._tables.append(
                (torch.cat((self.cos, self.cross_cos)), torch.cat((self.sin, self.cross_sin)))
            )
        return self._tables[0]

    def gather_targets(self, x_TD: Tensor) -> Tensor:
        """Target rows of all sequences, end to end."""
        counts = [
            count
            for span in self.spans
            for count in (span.description + span.reference, span.target)
        ]
        parts = x_TD.split(counts)[1::2]  # one split: its gradient is one concatenation
        return torch.cat(parts) if len(parts) != 1 else parts[0]


def lyric_positions(counts: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """Where each lyric token stands in its song, as a share in (0, 1): (j + 1/2) / tokens. fp32
    [L].
    """
    parts = [(torch.arange(n, dtype=torch.float32) + 0.5) / n for n in counts if n]
    return (torch.cat(parts) if parts else torch.zeros(0)).to(device, non_blocking=True)


def make_layout(
    spans: Sequence[Span], config: DitConfig, *, device: torch.device | str = "cpu"
) -> Layout:
    """Lays sequences end to end. Frames of a reference stand at the same positions as the target's,
    so that they align in time.

    Its copies to the device wait for nothing.
    """
    start = 0
    descriptions, references, targets, frames, shares, runs = [], [], [], [], [], []
    for span in spans:
        bounds = [
            start,
            start + span.description,
            start + span.description + span.reference,
            start + span.rows,
        ]
        descriptions.append(slice(bounds[0], bounds[1]))
        references.append(slice(bounds[1], bounds[2]))
        targets.append(slice(bounds[2], bounds[3]))
        reference, target = (
            torch.arange(span.reference, dtype=torch.float32),
            torch.arange(span.target, dtype=torch.float32),
        )
        frames += [torch.zeros(span.description), reference, target]
        shares += [
            torch.zeros(span.description),
            (reference + 0.5) / max(span.reference, 1),
            (target + 0.5) / max(span.target, 1),
        ]
        runs.append((span.rows, span.row))
        start = bounds[3]
    cos, sin = rope_table(torch.cat(frames), config.head_dim, base=config.rope_base)
    cross_cos, cross_sin = rope_table(
        torch.cat(shares) * config.lyric_rope_scale, config.head_dim, base=config.rope_base
    )
    q_starts = [rows.start for rows in descriptions]
    return Layout(
        rows=start,
        spans=tuple(spans),
        descriptions=tuple(descriptions),
        references=tuple(references),
        targets=tuple(targets),
        self_segments=Segments(
            tuple((q, s.rows, q, s.rows, 0) for q, s in zip(q_starts, spans, strict=True))
        ),
        cross_segments=Segments(
            tuple(
                (q, s.rows, s.lyric_start, s.lyrics, 0)
                for q, s in zip(q_starts, spans, strict=True)
            )
        ),
        runs=Runs(tuple(runs)),
        cos=cos[None].to(device, non_blocking=True),
        sin=sin[None].to(device, non_blocking=True),
        cross_cos=cross_cos[None].to(device, non_blocking=True),
        cross_sin=cross_sin[None].to(device, non_blocking=True),
    )
