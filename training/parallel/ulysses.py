"""Sequence parallelism by DeepSpeed Ulysses: `shares` ranks in a row work on the same songs
(layouts/sharded.py has the layout).

    # all ranks call it; None when every rank has its own songs
    dit.exchange = make_exchange(strategy)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mudit_engine.training.ranks import gather_rows

if TYPE_CHECKING:
    from mudit_engine.layouts.sharded import Local
    from mudit_engine.training.parallel.strategy import Strategy


class UlyssesExchange:
    """mudit_engine.layouts.sharded.Exchange over a process group."""

    def __init__(self, group: Any, *, rank: int, ranks: int) -> None:
        from deepspeed.sequence.layer import DistributedAttention

        self.group, self.rank, self.ranks = group, rank, ranks
        self._attention = DistributedAttention(_Call(), group, scatter_idx=2, gather_idx=1)

    def attention(self, local: Local, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self._attention(q, k, v, 0, None, local)
        return out

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        return gather_rows(rows, counts, self.group)


class _Call(nn.Module):
    """DistributedAttention takes one attention for good; ours depends on the batch."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, local: Local) -> Tensor:
        return local(q, k, v)


def make_exchange(strategy: Strategy) -> UlyssesExchange | None:
    """The exchange of this rank's group of sharing ranks. Every rank makes every group, as
    torch.distributed asks.
    """
    if strategy.shares == 1:
        return None
    from torch import distributed as dist

    shares, me = strategy.shares, strategy.ranks.rank
    mine = None
    for first in range(0, strategy.ranks.world, shares):
        group = dist.new_group(list(range(first, first + shares)))
        if first <= me < first + shares:
            mine = group
    return UlyssesExchange(mine, rank=me % shares, ranks=shares)
