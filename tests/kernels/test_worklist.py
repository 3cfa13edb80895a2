"""Segments and their tiles: every row once, longest first, little lost to tile edges."""

from __future__ import annotations

import heapq
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mudit_engine.kernels.worklist import Segments

FRAMES_PER_SECOND = 10.77
SONGS = [round(seconds * FRAMES_PER_SECOND) for seconds in (30, 60, 120, 260)]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 200)), max_size=6),
    st.sampled_from([32, 64, 128]),
)
def test_tiles_cover_every_row_once_and_longest_first(songs, block):
    q, k = [s[0] for s in songs], [s[1] for s in songs]
    segments = Segments.self_attention(q) + Segments.cross_attention(
        q, k, k_offset=sum(q), stream=1
    )
    for tiles, rows in (
        (segments.query_tiles(block, "cpu"), 2 * sum(q)),
        (segments.key_tiles(block, "cpu"), sum(q) + sum(k)),
    ):
        seen = [
            (tile[4] if rows == 2 * sum(q) else 0, tile[0] + i)
            for tile in tiles.tolist()
            for i in range(min(block, tile[1]))
        ]
        if tiles is segments.query_tiles(block, "cpu"):
            assert len(seen) == len(set(seen)) == rows
        else:
            assert sorted(row for _, row in seen) == list(range(rows))
        assert (tiles[1:, 3] <= tiles[:-1, 3]).all() if len(tiles) else tiles.shape == (0, 6)


def test_tiles_are_made_once():
    segments = Segments.self_attention([100, 50])
    assert segments.query_tiles(64, "cpu") is segments.query_tiles(64, "cpu")
    assert segments.query_tiles(64, "cpu") is not segments.query_tiles(32, "cpu")
    assert segments.query_tiles(64, "cpu").dtype == torch.int32


@pytest.mark.parametrize(("block_q", "block_k"), [(128, 64), (128, 128)], ids=["128x64", "128x128"])
def test_little_is_lost_to_tile_edges(block_q, block_k):
    """A 30, 60, 120 and 260 s song: what counts is at least 94 % of what is computed, against a
    third when padded to the longest.
    """
    executed, useful = Segments.self_attention(SONGS).executed_pairs(block_q, block_k)
    assert useful / executed >= 0.94
    assert useful / (len(SONGS) * max(SONGS) ** 2) < 0.35


def makespan(durations: list[int], slots: int) -> int:
    """When the last of `slots` workers ends, each taking the next item of the list as soon as it is
    free.
    """
    workers = [0] * slots
    for duration in durations:
        heapq.heappush(workers, heapq.heappop(workers) + duration)
    return max(workers)


def test_longest_first_keeps_the_machine_busy():
    """Songs drawn between 30 and 260 s on 108 processors with two blocks each: at least 90 % of the
    slots' time is work, on average.
    """
    busy, unsorted = [], []
    for seed in range(10):
        lengths = [
            round(FRAMES_PER_SECOND * random.Random(100 * seed + i).uniform(30, 260))
            for i in range(8)
        ]
        tiles = Segments.self_attention(lengths).query_tiles(128, "cpu")[:, 3].tolist()
        ordered, given_order = (
            [t for t in tiles for _ in range(12)],
            [n for n in lengths for _ in range(-(-n // 128) * 12)],
        )
        busy.append(sum(ordered) / (216 * makespan(ordered, 216)))
        unsorted.append(sum(given_order) / (216 * makespan(given_order, 216)))
    assert sum(busy) / len(busy) >= 0.9
    assert sum(busy) > sum(unsorted)


def test_executed_pairs_counts_tiles():
    assert Segments(((0, 65, 0, 1, 0), (65, 0, 1, 10, 0))).executed_pairs(64, 32) == (128 * 32, 65)


def test_shared_keys_are_named():
    shared = Segments(((0, 4, 0, 10, 0), (4, 4, 9, 5, 0)))
    with pytest.raises(ValueError, match="share key rows from 9"):
        shared.check_keys_apart()
    Segments(((0, 4, 0, 10, 0), (4, 4, 10, 5, 0), (8, 4, 3, 0, 0))).check_keys_apart()


def test_covers():
    both = Segments.self_attention([4, 6]) + Segments.cross_attention(
        [4, 6], [3, 0], k_offset=10, stream=1
    )
    assert both.covers(q_rows=10, k_rows=13, streams=2) == (True, True)
    assert both.covers(q_rows=10, k_rows=14, streams=3) == (False, False)
