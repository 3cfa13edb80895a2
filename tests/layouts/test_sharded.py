"""A batch over several ranks gives what one gives: rows, heads and songs that no rank boundary
respects. Ranks are threads here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mudit_engine.config import DitConfig
from mudit_engine.layouts.packed import Span, make_layout
from mudit_engine.layouts.sharded import Local, shard
from mudit_engine.models.dit import DiT
from small_dits import MIXED, make_model


class Meeting:
    """Threads that hand each other tensors."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.barrier, self.table = ranks, threading.Barrier(ranks), [None] * ranks  # type: ignore[var-annotated]

    def all(self, rank: int, thing: Any) -> list[Any]:
        self.table[rank] = thing
        self.barrier.wait(60)
        found = list(self.table)
        self.barrier.wait(60)
        return found


class ThreadExchange:
    """mudit_engine.layouts.sharded.Exchange between threads."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.ranks = meeting, rank, meeting.ranks

    def _heads(self, x: Tensor) -> Tensor:
        """All rows of this rank's heads."""
        everyone = self.meeting.all(self.rank, x)
        return torch.cat([part.chunk(self.ranks, 2)[self.rank] for part in everyone], 1)

    def attention(self, local: Local, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = local(self._heads(q), self._heads(k), self._heads(v))
        everyone = self.meeting.all(self.rank, out)
        return torch.cat([part.chunk(self.ranks, 1)[self.rank] for part in everyone], 2)

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        everyone = self.meeting.all(self.rank, rows)
        assert [len(part) for part in everyone] == list(counts)
        return torch.cat(everyone)


def on_ranks(model: DiT, ranks: int) -> list[Tensor]:
    meeting, outs = Meeting(ranks), [torch.empty(0)] * ranks
    copies = []
    for rank in range(ranks):
        copy = DiT(model.config)
        copy.load_state_dict(model.state_dict())
        copy.exchange = ThreadExchange(meeting, rank)
        copies.append(copy.eval())

    def run(rank: int) -> None:
        with torch.no_grad():
            outs[rank] = copies[rank](MIXED)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return outs


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    "changes", [{}, {"cross_attention": "parallel"}], ids=["serial", "parallel"]
)
def test_every_rank_has_the_whole_output(changes: dict[str, object], ranks: int) -> None:
    model = make_model(heads=4, width=64, **changes)
    with torch.no_grad():
        alone = model(MIXED)
    for out in on_ranks(model, ranks):
        torch.testing.assert_close(out, alone, rtol=1e-5, atol=1e-6)


def test_rows_are_dealt_out_once() -> None:
    """13 rows on 4 ranks: 4 each, the last with padding that no segment covers and no rank
    predicts.
    """
    config = DitConfig(latent_channels=4, width=32, heads=4)
    layout = make_layout([Span(2, 1, 4, 0, 3, 0), Span(0, 0, 6, 3, 2, 1)], config)
    shards = [shard(layout, ThreadExchange(Meeting(4), rank), lyric_rows=5) for rank in range(4)]
    assert [one.rows for one in shards] == [4] * 4 and [one.lyric_rows for one in shards] == [2] * 4
    rows = torch.arange(13.0)[:, None]
    assert torch.cat([one.own(rows) for one in shards])[:13].equal(rows)
    assert torch.cat([one.own_lyrics(rows[:5]) for one in shards]).flatten().tolist() == [
        0,
        1,
        2,
        3,
        4,
        0,
        0,
        0,
    ]
    assert [one.runs.items for one in shards] == [
        ((4, 0),),
        ((3, 0), (1, 1)),
        ((4, 1),),
        ((1, 1), (3, 0)),
    ]
    assert shards[0].target_counts == (1, 4, 4, 1) and sum(len(one.targets) for one in shards) == 10
    assert torch.cat([one.cos for one in shards], 1)[:, :13].equal(layout.cos)
