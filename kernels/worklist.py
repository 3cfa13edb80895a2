"""Ragged attention as a list of segments: which query rows see which key rows.

A segment is (q_start, q_rows, k_start, k_rows, stream): rows [q_start, q_start + q_rows) of q
attend to rows [k_start, k_start + k_rows) of k and v, with the heads of stream s being heads [s H,
(s + 1) H) of q. Songs, guidance branches, self- and cross-attention are all just segments, so one
launch serves any mix of them.

    segments = Segments.self_attention([176, 352])          # two songs packed end to end
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .rows import overwrite


@dataclass(frozen=True)
class Segments:
    """Which query rows see which key rows: the one description of a batch that attention takes.

    Kept on the host (launch sizes are never read back from the device) and, on demand, as an int32
    tensor [N, 5].

    Args:
        items: (q_start, q_rows, k_start, k_rows, stream) of each segment, in rows.
        plans: what launchers worked out for these segments, kept by them; leave it out.

    Examples:
        Two songs of 3 and 5 rows, and their lyrics of 2 and 4 tokens:

        >>> own = Segments.self_attention([3, 5])
        >>> own.items
        ((0, 3, 0, 3, 0), (3, 5, 3, 5, 0))
        >>> Segments.cross_attention([3, 5], [2, 4]).items
        ((0, 3, 0, 2, 0), (3, 5, 2, 4, 0))
    """

    items: tuple[tuple[int, int, int, int, int], ...]
    _tensors: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)
    _tables: dict[tuple[int, bool, torch.device], Tensor] = field(
        default_factory=dict, compare=False, repr=False
    )
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What launchers found out about these segments and tensors of a kind, so that it is checked
    once and not at every call of every step."""

    @classmethod
    def self_attention(cls, lengths: Sequence[int], *, stream: int = 0) -> Segments:
        """Sequences of `lengths` rows packed end to end, each attending to itself."""
        items, start = [], 0
        for rows in lengths:
            items.append((start, rows, start, rows, stream))
            start += rows
        return cls(tuple(items))

    @classmethod
    def cross_attention(
        cls,
        q_lengths: Sequence[int],
        k_lengths: Sequence[int],
        *,
        k_offset: int = 0,
        stream: int = 0,
    ) -> Segments:
        """Sequence i of q attends to sequence i of k; the keys start at row `k_offset`. Zero keys
        give zero output.
        """
        items, q_start, k_start = [], 0, k_offset
        for q_rows, k_rows in zip(q_lengths, k_lengths, strict=True):
            items.append((q_start, q_rows, k_start, k_rows, stream))
            q_start, k_start = q_start + q_rows, k_start + k_rows
        return cls(tuple(items))

    def __add__(self, other: Segments) -> Segments:
        return Segments(self.items + other.items)

    @property
    def streams(self) -> int:
        """How many streams of heads the segments name."""
        return 1 + max([0, *(item[4] for item in self.items)])

    def tensor(self, device: torch.device | str) -> Tensor:
        """int32 [N, 5] on `device`, made once."""
        device = torch.device(device)
        if device not in self._tensors:
            self._tensors[device] = (
                torch.tensor(self.items, dtype=torch.int32)
                .reshape(-1, 5)
                .to(device, non_blocking=True)
            )
        return self._tensors[device]

    @classmethod
    def from_tensor(cls, table: Tensor) -> Segments:
        """The segments of an int32 tensor [N, 5], as `tensor` gives it."""
        return cls(
            tuple((int(a), int(b), int(c), int(d), int(e)) for a, b, c, d, e in table.tolist())
        )

    def take(self, other: Segments) -> None:
        """Writes the tiles of `other` over those that were made of these segments, for launches
        that were captured with them. Tiles that are left have no rows and do nothing; `items` stay
        what they were. Raises ValueError for more tiles than there are.
        """
        for (block, by_keys, _), table in self._tables.items():
            overwrite(table, other._tiles(block, torch.device("cpu"), by_keys=by_keys))
        for table in self._tensors.values():
            overwrite(table, other.tensor("cpu"))

    def check(self, *, q_rows: int, k_rows: int, streams: int) -> None:
        """Raises ValueError when a segment leaves the buffers, or two segments write the same rows
        of the output.
        """
        seen: list[tuple[int, int, int]] = []
        for q_start, q_count, k_start, k_count, stream in self.items:
            if (
                min(q_start, q_count, k_start, k_count, stream) < 0
                or q_start + q_count > q_rows
                or k_start + k_count > k_rows
            ):
                item = (q_start, q_count, k_start, k_count, stream)
                raise ValueError(
                    f"segment {item} leaves the buffers of {q_rows} query and {k_rows} key rows"
                )
            if stream >= streams:
                raise ValueError(
                    f"segment of stream {stream}, but q has {streams} stream(s): q heads = streams "
                    f"x key heads"
                )
            if q_count:
                seen.append((stream, q_start, q_start + q_count))
        seen.sort()
        for (s1, _, end), (s2, start, _) in pairwise(seen):
            if s1 == s2 and start < end:
                raise ValueError(f"two segments of stream {s1} share query rows from {start}")

    def check_keys_apart(self) -> None:
        """Raises ValueError when two segments share key rows: their gradients would have to be
        summed across programs.
        """
        ranges = sorted(
            (k_start, k_start + k_rows) for _, _, k_start, k_rows, _ in self.items if k_rows
        )
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                raise ValueError(
                    f"two segments share key rows from {start}, which has no gradient kernel: give "
                    f"each its own copy of the rows "
                    "(torch.cat, index_select), run under torch.no_grad(), or pass backend='eager'"
                )

    def covers(self, *, q_rows: int, k_rows: int, streams: int) -> tuple[bool, bool]:
        """Whether the segments reach every row of q in every stream, and every row of k (if no two
        share one).
        """
        return sum(item[1] for item in self.items) == q_rows * streams, sum(
            item[3] for item in self.items
        ) == k_rows

    def check_reach(self, *, q_stride: int, k_stride: int) -> None:
        """Raises ValueError when an element of a segment lies 2^31 elements or more behind the
        segment's first: kernels count inside a segment in 32 bits.
        """
        for name, stride, rows in (
            ("queries", q_stride, max([0, *(item[1] for item in self.items)])),
            ("keys", k_stride, max([0, *(item[3] for item in self.items)])),
        ):
            # the last tile reaches up to a tile beyond the last row
            if (rows + 256) * stride >= 2**31:
                raise ValueError(
                    f"a segment of {rows} {name} in rows {stride} elements apart reaches beyond "
                    f"2^31 elements, which the kernels cannot address: pass contiguous tensors, "
                    f"shorter segments, or backend='eager'"
                )

    def executed_pairs(self, block_q: int, block_k: int) -> tuple[int, int]:
        """(query, key) pairs that tiles of block_q x block_k compute, and those that count. Their
        ratio is the work lost to tile edges.
        """
        executed = sum(
            -(-q // block_q) * block_q * -(-k // block_k) * block_k for _, q, _, k, _ in self.items
        )
        return executed, sum(q * k for _, q, _, k, _ in self.items)

    def query_tiles(self, block: int, device: torch.device | str) -> Tensor:
        """int32 [n, 6]: tiles of at most `block` query rows, most keys first: (first q row, q rows
        left, k start, k rows, stream, index).

        "Rows left" counts to the end of the segment, so it exceeds `block` on all but the last
        tile; index is the tile's place in it. Longest first keeps a long song's last tile from
        running alone at the end of the launch.
        """
        return self._tiles(block, torch.device(device), by_keys=False)

    def key_tiles(self, block: int, device: torch.device | str) -> Tensor:
        """int32 [n, 6]: tiles of at most `block` key rows, most queries first: (first k row, rows
        left, q start, q rows, stream, index).
        """
        return self._tiles(block, torch.device(device), by_keys=True)

    def _tiles(self, block: int, device: torch.device, *, by_keys: bool) -> Tensor:
        key = (block, by_keys, device)
        if key not in self._tables:
            tiles = []
            for q_start, q_rows, k_start, k_rows, stream in self.items:
                start, rows, other = (
                    (k_start, k_rows, (q_start, q_rows))
                    if by_keys
                    else (q_start, q_rows, (k_start, k_rows))
                )
                tiles += [
                    (start + i * block, rows - i * block, *other, stream, i)
                    for i in range(-(-rows // block))
                ]
            # stable: tiles of one segment stay together, which is kind to the L2 cache
            tiles.sort(key=lambda tile: -tile[3])
            self._tables[key] = (
                torch.tensor(tiles, dtype=torch.int32).reshape(-1, 6).to(device, non_blocking=True)
            )
        return self._tables[key]
