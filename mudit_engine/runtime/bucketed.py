"""A captured step that any batch up to a size takes: for songs that join and leave between steps.

    denoiser = Denoiser(dit, bucketed=True)        # what a continuous batcher steps, on a GPU

A continuous batcher has another layout almost every time a song joins or leaves, and a graph of its
own for each would be captured more often than replayed. So a graph is captured for a bucket: packed
rows, songs and lyric rows rounded up. Whatever tells one batch from another lies in buffers of that
size and is written anew when the batch changes: the tiles of attention and norms, rotary angles,
the song and the latent row of every packed row, spans and sampler rows.

What is left of a bucket is inert: tiles of no rows, spans of no rows, and packed rows that no
segment names. Rows of a song meet the same kernels with the same tiles as in a layout of its own,
so that its latents are the same bits wherever a matrix product rounds a row alike among more rows
(cuBLAS need not). The padding costs its share of the products: of a batch of more than FEW_ROWS at
most a quarter of the rows, a tenth on average.

Only the Triton kernels read their tiles from the device. Other backends of attention know a batch
by values on the host; where one is named, every layout is captured by itself.

Shapes: as in captured.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mudit_engine import ops
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments
from mudit_engine.layouts.packed import Layout
from mudit_engine.models.dit import DiT
from mudit_engine.runtime.captured import (
    Capture,
    Placing,
    Room,
    StepGraph,
    draws_of,
    sequences_of,
    table_rows,
)

if TYPE_CHECKING:
    from mudit_engine.runtime.denoiser import SongState

SONGS, ROWS, LYRICS, DRAWS = 8, 256, 1024, 8
"""The least of a bucket: songs, packed rows, lyric rows, draws of an SDE."""
FEW_ROWS = 2048
"""Up to here a product is bound by its weights, and padding costs little: sizes double."""


def bucket_of(states: Sequence[SongState]) -> Room:
    """The bucket of a batch: packed rows as `rounded` says; songs, lyric rows and draws, which cost
    memory alone, in powers of 4.
    """
    songs = _coarse(len(states), least=SONGS)
    rows = sum(states[song].spans[branch].rows for song, branch in sequences_of(states))
    # a tail of one row that nobody has, and a row for each sequence that the bucket may hold
    rows = rounded(max(rows, 2 * songs) + 1, least=ROWS)
    lyrics = _coarse(sum(state.spans[0].lyrics for state in states), least=LYRICS)
    draws = draws_of(states)
    return Room(songs, 2 * songs, rows, rows, lyrics, draws and _coarse(draws, least=DRAWS))


def rounded(count: int, *, least: int) -> int:
    """Packed rows rounded up: to powers of 2, and beyond FEW_ROWS to four sizes an octave.

    Examples:
        >>> [rounded(n, least=256) for n in (1, 257, 2048, 2049, 3000, 5000)]
        [256, 512, 2048, 2560, 3072, 5120]
    """
    if count <= least:
        return least
    octave = 1 << ((count - 1).bit_length() - 1)
    step = octave if count <= FEW_ROWS else octave // 4
    return -(-count // step) * step


def _coarse(count: int, *, least: int) -> int:
    while least < count:
        least *= 4
    return least


@dataclass(frozen=True)
class OpenLayout(Layout):
    """The layout of a bucket: as many tiles as any batch of it has, none of which holds until the
    batch's own are written over them.
    """

    def gather_targets(self, x_TD: Tensor) -> Tensor:
        """All rows: which ones are targets, the spans of the update say."""
        return x_TD

    def take(self, batch: Layout) -> None:
        """Writes a batch's tiles and angles over this layout's."""
        self.self_segments.take(batch.self_segments)
        self.cross_segments.take(batch.cross_segments)
        for offset, joint in self._joint.items():
            joint.take(batch.joint_segments(offset))
        pad = self.rows - batch.rows
        self.runs.take(Runs((*batch.runs.items, (pad, 0))))
        rows = slice(batch.rows)
        for name in ("cos", "sin", "cross_cos", "cross_sin"):
            getattr(self, name)[:, rows].copy_(getattr(batch, name))
        for own in self._tables:
            for table, given in zip(own, batch.joint_tables(), strict=True):
                table[:, rows].copy_(given)


def open_layout(room: Room, like: Layout, device: torch.device) -> OpenLayout:
    """The layout of a bucket. The number of its tiles suffices for any batch, whatever their size:
    n sequences of R rows have at most as many as n rows, each a sequence, and one of R - n.
    """
    sequences, last = room.sequences, room.rows - 1
    spread = [(i, 1) for i in range(sequences)] + [(sequences, last - sequences)]
    # no keys: nothing is computed until a batch is written over them
    own, cross = (Segments(tuple((start, n, 0, 0, 0) for start, n in spread)) for _ in range(2))
    # the tail is one run more
    runs = Runs((*((1, i) for i in range(sequences)), (1, 0), (last - sequences, 0)))
    cos, sin, cross_cos, cross_sin = (
        like.cos.new_zeros(1, room.rows, like.cos.shape[2]).to(device) for _ in range(4)
    )
    return OpenLayout(room.rows, (), (), (), (), own, cross, runs, cos, sin, cross_cos, cross_sin)


class BucketGraph(StepGraph):
    """Buffers and graph of a bucket. Any batch that fits lives here, one after another."""

    def __init__(
        self,
        dit: DiT,
        capture: Capture,
        place: Callable[[], Placing],
        states: Sequence[SongState],
        room: Room,
        steps: int,
    ) -> None:
        like, device = place().layout, states[0].rows.device
        layout = open_layout(room, like, device)
        spans = SongRows(((0, room.rows, 0, -1), *((room.rows, 0, 0, -1),) * (room.songs - 1)))
        spans.tensor(device)
        super().__init__(dit, capture, Placing(layout, torch.empty(0), spans), states, steps, room)

    def index(self, states: Sequence[SongState], device: torch.device) -> None:
        """Which latent row each packed row takes, and whether any; the song of each sequence and of
        each latent row.
        """
        rows, songs = self.room.rows, self.room.songs
        self.source_rows = torch.zeros(rows, dtype=torch.int64, device=device)
        self.is_target = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.sequence_song = torch.zeros(2 * songs, dtype=torch.int64, device=device)
        self.row_song = torch.zeros(rows, dtype=torch.int64, device=device)

    def work(self) -> None:
        with ops.use("triton"):
            super().work()

    def embedded(self) -> Tensor:
        latents = self.dit.target_in(self.x.to(self.conditions.dtype))
        x_ND = self.conditions + latents.index_select(0, self.source_rows)
        return torch.where(self.is_target, x_ND, self.conditions)

    def arrange(self, states: Sequence[SongState], place: Callable[[], Placing]) -> None:
        """Writes the batch's layout over that of whoever was here before."""
        self.frames = [state.frames for state in states]
        self.lay_frames()
        self.sequences = sequences_of(states)
        batch = place().layout
        layout = self.placing.layout
        assert isinstance(layout, OpenLayout)
        layout.take(batch)
        source, target = torch.zeros(batch.rows, dtype=torch.int64), torch.zeros(batch.rows, 1)
        firsts = {}
        for (song, branch), rows in zip(self.sequences, batch.targets, strict=True):
            source[rows] = torch.arange(self.starts[song], self.starts[song + 1])
            target[rows] = 1
            firsts[song, branch] = rows.start
        self.source_rows[: batch.rows].copy_(source, non_blocking=True)
        self.is_target.zero_()
        self.is_target[: batch.rows].copy_(target.bool(), non_blocking=True)
        song_of = torch.tensor([song for song, _ in self.sequences])
        self.sequence_song[: len(song_of)].copy_(song_of, non_blocking=True)
        row_song = torch.arange(len(states)).repeat_interleave(torch.tensor(self.frames))
        self.row_song[: len(row_song)].copy_(row_song, non_blocking=True)
        self.conditions.zero_()
        self.placing.spans.take(
            SongRows(
                tuple(
                    (self.starts[i], frames, firsts[i, 0], firsts.get((i, 1), -1))
                    for i, frames in enumerate(self.frames)
                )
            )
        )


def bucket_graph(
    dit: DiT, capture: Capture, place: Callable[[], Placing], states: Sequence[SongState]
) -> tuple[tuple[Room, int], Callable[[], BucketGraph]]:
    """What a batch's bucket is known by, and what captures its graph."""
    room, steps = bucket_of(states), table_rows(states)
    return (room, steps), lambda: BucketGraph(dit, capture, place, states, room, steps)
