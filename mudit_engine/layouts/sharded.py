"""One batch over several ranks (Ulysses): each holds a run of the packed rows; attention trades
rows for heads and back.

    [N / n rows, H heads] -> all-to-all -> [N rows, H / n heads] -> attention of whole songs
                          -> all-to-all -> [N / n rows, H heads]

Everything else in a block works row by row, so it needs no other rank. Rows are padded to a
multiple of n; no segment covers the padding. Source: Jacobs et al. 2023 (DeepSpeed Ulysses). What
exchanges is handed in (training/parallel/ulysses.py): nothing here knows of processes.

    layout = shard(make_layout(spans, config), exchange, lyric_rows=97)
    x = layout.own(x_ND)                       # this rank's rows
    out_TC = layout.collect(out_local)         # target rows of all ranks

Shapes: N packed rows, n rows of a rank, L lyric rows, m lyric rows of a rank, S streams, H heads, K
head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.kernels.rotary import rotate_reference
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments

if TYPE_CHECKING:
    from mudit_engine.layouts.packed import Layout

# q, k, v with all rows and a share of the heads -> [S, rows, heads, K]
Local = Callable[[Tensor, Tensor, Tensor], Tensor]


class Exchange(Protocol):
    """The ranks that share songs, in the order of their rows."""

    rank: int
    ranks: int

    def attention(self, local: Local, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [S, n, H, K], k and v [1, m, H, K] of this rank -> [S, n, H, K]; `local` sees all rows
        of H / ranks heads.
        """

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of every rank end to end (`counts` of each); their gradient goes back to the rank
        they came from, summed.
        """


@dataclass(frozen=True)
class ShardedSegments:
    """Segments over the rows of all ranks. `k_order` puts gathered key rows, which come rank by
    rank, into the order of the segments.
    """

    whole: Segments
    exchange: Exchange
    k_order: Tensor | None = None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: ShardedSegments,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    scale: float | None,
    whole: Callable[..., Tensor],
) -> Tensor:
    """Contract of kernels/attention.py for this rank's rows: q [n, S H, K], k and v [m, H, K],
    tables [S, n, K/2]. `whole` attends.
    """
    heads = k.shape[1]
    q_SnHK = q.unflatten(1, (-1, heads)).transpose(0, 1)
    if cos is not None and sin is not None:
        # before the exchange: each rank has the tables of its own rows
        q_SnHK = torch.stack(
            [rotate_reference(query, cos[s], sin[s]) for s, query in enumerate(q_SnHK.unbind(0))]
        )

    def local(q_SNhK: Tensor, k_1MhK: Tensor, v_1MhK: Tensor) -> Tensor:
        keys, values = k_1MhK[0], v_1MhK[0]
        if segments.k_order is not None:
            keys, values = keys[segments.k_order], values[segments.k_order]
        out = whole(q_SNhK.transpose(0, 1).flatten(1, 2), keys, values, segments.whole, scale=scale)
        return out.unflatten(1, (q_SNhK.shape[0], -1)).transpose(0, 1).contiguous()

    out_SnHK = segments.exchange.attention(
        local, q_SnHK.contiguous(), k[None].contiguous(), v[None].contiguous()
    )
    return out_SnHK.transpose(0, 1).flatten(1, 2).contiguous()


@dataclass(frozen=True)
class ShardedLayout:
    """This rank's rows of a Layout: what a block asks a layout for."""

    rows: int
    self_segments: ShardedSegments
    cross_segments: ShardedSegments
    runs: Runs
    cos: Tensor  # fp32 [1, n, K/2]
    sin: Tensor
    cross_cos: Tensor
    cross_sin: Tensor
    whole: Layout
    lyric_rows: int  # of this rank
    targets: Tensor  # which of this rank's rows are target rows
    target_counts: tuple[int, ...]  # of every rank

    @property
    def exchange(self) -> Exchange:
        return self.self_segments.exchange

    def joint_tables(self) -> tuple[Tensor, Tensor]:
        """Angles of both streams, fp32 [2, n, K/2] each."""
        return torch.cat((self.cos, self.cross_cos)), torch.cat((self.sin, self.cross_sin))

    def joint_segments(self, lyric_offset: int) -> ShardedSegments:
        """Self-attention as stream 0 and cross-attention as stream 1; each rank's lyric keys lie
        behind its own rows.
        """
        n, m, ranks = self.rows, self.lyric_rows, self.exchange.ranks
        assert lyric_offset == n, "a block puts its lyric keys right behind its rows"
        rank_start = torch.arange(ranks)[:, None] * (n + m)
        order = torch.cat(
            [(rank_start + torch.arange(n)).flatten(), (rank_start + n + torch.arange(m)).flatten()]
        )
        return ShardedSegments(
            self.whole.joint_segments(n * ranks), self.exchange, order.to(self.cos.device)
        )

    def own(self, rows: Tensor) -> Tensor:
        """This rank's rows of [N, ...]."""
        return _own(rows, self.exchange, self.rows)

    def own_lyrics(self, rows: Tensor) -> Tensor:
        """This rank's rows of [L, ...]."""
        return _own(rows, self.exchange, self.lyric_rows)

    def gather_targets(self, x: Tensor) -> Tensor:
        """This rank's target rows."""
        return x[self.targets]

    def collect(self, out: Tensor) -> Tensor:
        """The target rows of all ranks, in the order of the songs."""
        return self.exchange.gather(out, self.target_counts)


def shard(layout: Layout, exchange: Exchange, *, lyric_rows: int) -> ShardedLayout:
    """The rows of `layout` that this rank works on. `lyric_rows` is L."""
    ranks = exchange.ranks
    n, m = -(-layout.rows // ranks), -(-lyric_rows // ranks)
    low, high = exchange.rank * n, (exchange.rank + 1) * n
    runs, start = [], 0
    for count, row in (*layout.runs.items, (n * ranks - layout.rows, 0)):
        here = min(start + count, high) - max(start, low)
        if here > 0:
            runs.append((here, row))
        start += count
    target = torch.zeros(n * ranks, dtype=torch.bool)
    for rows in layout.targets:
        target[rows] = True
    return ShardedLayout(
        rows=n,
        self_segments=ShardedSegments(layout.self_segments, exchange),
        cross_segments=ShardedSegments(layout.cross_segments, exchange),
        runs=Runs(tuple(runs)),
        cos=_own(layout.cos[0], exchange, n)[None],
        sin=_own(layout.sin[0], exchange, n)[None],
        cross_cos=_own(layout.cross_cos[0], exchange, n)[None],
        cross_sin=_own(layout.cross_sin[0], exchange, n)[None],
        whole=layout,
        lyric_rows=m,
        targets=target[low:high].nonzero()[:, 0].to(layout.cos.device, non_blocking=True),
        target_counts=tuple(int(part.sum()) for part in target.split(n)),
    )


def _own(rows: Tensor, exchange: Exchange, count: int) -> Tensor:
    pad = count * exchange.ranks - rows.shape[0]
    padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, pad)) if pad else rows
    return padded[exchange.rank * count : (exchange.rank + 1) * count]
