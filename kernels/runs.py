"""Which table row each packed row takes, in run-length form, as the launchers of the norms want it.

    runs = Runs(((200, 0), (400, 1)))          # 200 rows take row 0 of the tables, 400 take row 1
    tiles, offsets = runs.tiles("cuda", tile_rows=32, table_rows=2)

Rows of one song share their modulation, so that a batch has as many runs as sequences. What lies on
a device is made once and kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .rows import overwrite


@dataclass(frozen=True)
class Runs:
    """Run-length form of the row index: (number of packed rows, row of the modulation table). On a
    device it is int32 [T].
    """

    items: tuple[tuple[int, int], ...]
    _tensors: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)
    _tiles: dict[tuple[torch.device, int, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What launchers found out about these runs and tensors of a kind, so that it is checked once
    and not at every call of every step."""

    def tensor(self, device: torch.device | str) -> Tensor:
        """int32 [T]: the modulation row of every packed row, made once."""
        device = torch.device(device)
        if device not in self._tensors:
            counts, rows = zip(*self.items, strict=True) if self.items else ((), ())
            index = torch.tensor(rows, dtype=torch.int32).repeat_interleave(
                torch.tensor(counts, dtype=torch.int64)
            )
            self._tensors[device] = index.to(device, non_blocking=True)
        return self._tensors[device]

    def tiles(
        self, device: torch.device | str, *, tile_rows: int, table_rows: int
    ) -> tuple[Tensor, Tensor]:
        """int32 [N, 3] (first packed row, rows, table row), no tile across runs, sorted by table
        row; int32 [R + 1]: their bounds.
        """
        key = (torch.device(device), tile_rows, table_rows)
        if key not in self._tiles:
            tiles = [
                (start, min(tile_rows, rows.stop - start), r)
                for rows, r in self.slices()
                for start in range(rows.start, rows.stop, tile_rows)
            ]
            tiles.sort(key=lambda tile: tile[2])
            counts = torch.bincount(
                torch.tensor([tile[2] for tile in tiles], dtype=torch.int64), minlength=table_rows
            )
            offsets = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
            table = torch.tensor(tiles, dtype=torch.int32).reshape(-1, 3)
            self._tiles[key] = (
                table.to(key[0], non_blocking=True),
                offsets.to(key[0], non_blocking=True),
            )
        return self._tiles[key]

    def take(self, other: Runs) -> None:
        """Writes the tiles of `other` over those that were made of these runs, for launches that
        were captured with them; tiles that are left have no rows. Gradients' bounds are not
        written. Raises ValueError for more tiles than there are.
        """
        for (_, tile_rows, table_rows), (table, _) in self._tiles.items():
            overwrite(table, other.tiles("cpu", tile_rows=tile_rows, table_rows=table_rows)[0])
        for index in self._tensors.values():
            overwrite(index, other.tensor("cpu"))

    def check(self, *, rows: int, table_rows: int) -> None:
        """Raises ValueError unless the runs cover exactly `rows` packed rows and name rows of a
        table of `table_rows`.
        """
        if self.rows != rows or any(
            count < 0 or not 0 <= r < table_rows for count, r in self.items
        ):
            raise ValueError(
                f"runs {self.items} for {rows} packed rows and a table of {table_rows}: the counts "
                f"must add up, the table rows exist"
            )

    def slices(self) -> Iterator[tuple[slice, int]]:
        start = 0
        for count, row in self.items:
            yield slice(start, start + count), row
            start += count

    def split(self, x_TD: Tensor) -> Iterator[tuple[Tensor, int]]:
        """(rows, table row) of every run: one split, whose gradient is one concatenation."""
        parts = x_TD.split([count for count, _ in self.items])
        return zip(parts, (row for _, row in self.items), strict=True)

    @property
    def rows(self) -> int:
        return sum(count for count, _ in self.items)
