"""A step of the torch runtime as one captured graph: all the host does for a step is to start it.

    graphs = GraphCache(denoiser.dit, CudaCapture(), budget_bytes=2 << 30)
    graphs.step(states, place)        # captures the layout's step the first time, then replays it

What a step reads lives in buffers on the device, filled when songs enter the graph: conditions,
lyric keys and values, the modulation and the sampler row of every step, the noise of an SDE, the
latents, and each song's step number, which the graph itself raises. So songs at different steps of
different samplers replay one graph, and nothing is copied or launched from the host between two
steps.

A graph belongs to a layout: the row counts of every sequence, in order, and which songs are guided.
Other songs of the same layout take the same graph; their buffers are filled anew. Or a graph
belongs to a bucket, which many layouts share (runtime/bucketed.py). Graphs are kept until their
bytes exceed the budget, the longest unused going first.

Shapes: B songs, R sequences, N packed rows, T target rows, C channels, D width, S sampler rows.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mudit_engine import ops
from mudit_engine.errors import MuditError
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.layouts.packed import Layout
from mudit_engine.models.dit import DiT, JointKeys, Modulation, joint_keys

if TYPE_CHECKING:
    from mudit_engine.runtime.denoiser import SongState

SAMPLER_ROWS = 64  # buffers hold a multiple of this many rows, so that samplers share graphs


class CaptureError(MuditError):
    """The device did not make a graph of a step."""


class Capture(Protocol):
    """What makes a graph of work on the device."""

    def capture(self, work: Callable[[], None]) -> tuple[Callable[[], None], int]:
        """`work` as one graph: its replay, and the bytes it holds. Whatever the first runs of
        `work` leave in its buffers does not matter.
        """


class CudaCapture:
    """CUDA graphs on the current device, out of one memory pool: they never run at once, and what
    outlives a replay lies in buffers of its own.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, work: Callable[[], None]) -> tuple[Callable[[], None], int]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(2):  # compiles kernels, loads libraries, uploads worklists
                work()
        current.wait_stream(side)
        torch.cuda.synchronize()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=side):
            work()
        return graph.replay, max(torch.cuda.memory_reserved() - before, 0)


@dataclass(frozen=True)
class Home:
    """Where a song's latent and kept output live while a graph runs it."""

    graph: StepGraph
    x_TC: Tensor
    kept_TC: Tensor


@dataclass(frozen=True)
class Placing:
    """Where the sequences of a batch lie (Denoiser makes it, for its own step and for this one)."""

    layout: Layout
    target_rows: Tensor
    spans: SongRows


@dataclass(frozen=True)
class Room:
    """What the buffers of a graph hold: songs, sequences, packed rows, latent rows, lyric rows and
    an SDE's draws.
    """

    songs: int
    sequences: int
    rows: int
    frames: int
    lyrics: int
    draws: int


class StepGraph:
    """Buffers and graph of one layout. Songs of that layout live here one batch after another."""

    def __init__(
        self,
        dit: DiT,
        capture: Capture,
        placing: Placing,
        states: Sequence[SongState],
        steps: int,
        room: Room | None = None,
    ) -> None:
        self.dit, self.placing, self.steps = dit, placing, steps
        self.frames = [state.frames for state in states]
        self.sequences = sequences_of(states)
        self.room = room = room or Room(
            len(states),
            len(self.sequences),
            placing.layout.rows,
            sum(self.frames),
            sum(state.spans[0].lyrics for state in states),
            draws_of(states),
        )
        first, channels = states[0], dit.config.latent_channels
        device, songs, rows, draws = first.rows.device, room.songs, room.frames, room.draws
        buffers: list[Tensor] = []

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            buffers.append(torch.zeros(shape, dtype=dtype, device=device))
            return buffers[-1]

        def stacked(like: Tensor) -> Tensor:
            return buffer(room.sequences * steps, *like.shape[1:], dtype=like.dtype)

        self.x, self.kept = buffer(rows, channels), buffer(rows, channels)
        self.step = buffer(songs, dtype=torch.int64)
        self.rows = buffer(songs * steps, 7)
        # which of a song's draws a sampler row takes
        self.draw = buffer(songs * steps, dtype=torch.int64)
        self.noise = buffer(draws, rows, channels) if draws else None
        modulation, embedded = first.modulation[0], first.conditions[0]
        self.base, self.final = stacked(modulation.base), stacked(modulation.final)
        self.conditions = buffer(room.rows, *embedded.shape[1:], dtype=embedded.dtype)
        self.kv = lyric_room(dit, first, room)
        # a joint buffer belongs to every block, and counts once
        own = {t.data_ptr(): t for one in self.kv for t in one[:2]}
        buffers += own.values()
        self.lay_frames()
        self.song_first = (torch.arange(songs) * steps).to(device)
        self.sequence_first = (torch.arange(room.sequences) * steps).to(device)
        self.row_number = torch.arange(rows).to(device)
        self.index(states, device)
        # samplers without noise read one row of zeros, over and over
        self.silence = torch.zeros(1, channels, device=device).expand(rows, channels)
        self.tenants: list[weakref.ref[SongState]] = []
        self.filled: list[tuple[int, bool]] = []
        try:
            with torch.inference_mode():
                self.replay, held = capture.capture(self.work)
        except RuntimeError as error:
            raise CaptureError(f"the step could not be captured ({error})") from error
        self.bytes = held + sum(b.numel() * b.element_size() for b in buffers)

    def lay_frames(self) -> None:
        """Latent rows of the songs, end to end."""
        self.starts = list(itertools.accumulate(self.frames, initial=0))

    def index(self, states: Sequence[SongState], device: torch.device) -> None:
        """Which latent row each target row takes; the song of each sequence and latent row."""
        sources = [torch.arange(self.starts[i], self.starts[i + 1]) for i, _ in self.sequences]
        self.source_rows = torch.cat(sources).to(device)
        self.sequence_song = torch.tensor([i for i, _ in self.sequences]).to(device)
        songs = torch.arange(len(states))
        self.row_song = songs.repeat_interleave(torch.tensor(self.frames)).to(device)

    def arrange(self, states: Sequence[SongState], place: Callable[[], Placing]) -> None:
        """Called when other songs move in, or guidance begins or ends: a layout stays as it is."""

    def embedded(self) -> Tensor:
        """Packed rows [N, D] of the network's input."""
        latents = self.dit.target_in(self.x.to(self.conditions.dtype))
        return self.conditions.index_add(
            0, self.placing.target_rows, latents.index_select(0, self.source_rows)
        )

    def work(self) -> None:
        """One step of every song, on buffers alone: what is captured."""
        row = self.song_first + self.step
        at = self.sequence_first + self.step.index_select(0, self.sequence_song)
        modulation = Modulation(self.base.index_select(0, at), self.final.index_select(0, at))
        out_NC = self.dit.trunk(self.embedded(), modulation, self.kv, self.placing.layout)
        noise = self.silence
        if self.noise is not None:
            draw = self.draw.index_select(0, row).index_select(0, self.row_song)
            noise = self.noise.flatten(0, 1).index_select(
                0, draw * len(self.row_number) + self.row_number
            )
        rows = self.rows.index_select(0, row)
        spans = self.placing.spans
        ops.guided_step(self.x, self.kept, out_NC, noise, rows, spans, inplace=True)
        self.step.add_(1)

    def holds(self, states: Sequence[SongState]) -> bool:
        """Whether these very songs, in this order, live here."""
        return len(states) == len(self.tenants) and all(
            one() is state and state.home is not None and state.home.graph is self
            for one, state in zip(self.tenants, states, strict=True)
        )

    def fill(self, states: Sequence[SongState], place: Callable[[], Placing]) -> None:
        """Moves songs in; whoever lived here keeps a copy of what was computed."""
        batch = [(state.serial, state.guided) for state in states]
        if self.filled != batch:
            self.filled = []  # whatever goes wrong on the way
            self.arrange(states, place)
            self._fill_conditions(states)
            self._fill_tables(states)
            self.filled = batch
        if not self.holds(states):
            # copies first: a song may move from one place of this graph to another
            latents = [(state.x_TC, state.kept_TC) for state in states]
            self.leave()
            for state, x, kept, (own_x, own_kept) in zip(
                states,
                self.x[: self.starts[-1]].split(self.frames),
                self.kept[: self.starts[-1]].split(self.frames),
                latents,
                strict=True,
            ):
                x.copy_(own_x)
                kept.copy_(own_kept)
                state.move_in(Home(self, x, kept))
            self.tenants = [weakref.ref(state) for state in states]
        numbers = [state.step for state in states] + [0] * (self.room.songs - len(states))
        self.step.copy_(torch.tensor(numbers), non_blocking=True)

    def _fill_conditions(self, states: Sequence[SongState]) -> None:
        counts = [len(states[song].conditions[branch]) for song, branch in self.sequences]
        rows = self.conditions[: sum(counts)].split(counts)
        for (song, branch), own in zip(self.sequences, rows, strict=True):
            own.copy_(states[song].conditions[branch])
        counts = [len(state.kv[0][0]) for state in states]
        for block, held in enumerate(self.kv):
            first = held.offset if isinstance(held, JointKeys) else 0
            k, v = (t[first : first + sum(counts)].split(counts) for t in held[:2])
            for state, own_k, own_v in zip(states, k, v, strict=True):
                own_k.copy_(state.kv[block][0])
                own_v.copy_(state.kv[block][1])

    def _fill_tables(self, states: Sequence[SongState]) -> None:
        for i, state in enumerate(states):
            count, first = len(state.table.times), i * self.steps
            self.rows[first : first + count].copy_(state.rows)
            if self.noise is not None:
                draws = torch.tensor(state.table.needs_noise).cumsum(0).sub(1).clamp_min(0)
                self.draw[first : first + count].copy_(draws, non_blocking=True)
                if any(state.table.needs_noise):
                    drawn = state.draw_all()
                    self.noise[: len(drawn), self.starts[i] : self.starts[i + 1]].copy_(drawn)
        for i, (song, branch) in enumerate(self.sequences):
            modulation, first = states[song].modulation[branch], i * self.steps
            self.base[first : first + len(modulation.base)].copy_(modulation.base)
            self.final[first : first + len(modulation.final)].copy_(modulation.final)

    def leave(self) -> None:
        """Every song that lives here moves out, with copies of its own."""
        for one in self.tenants:
            state = one()
            if state is not None and state.home is not None and state.home.graph is self:
                state.move_out()
        self.tenants = []


def sequences_of(states: Sequence[SongState]) -> list[tuple[int, int]]:
    """(song, branch) of every sequence of a step, in the order in which they are packed."""
    songs = range(len(states))
    return [(i, b) for b in (0, 1) for i in songs if b == 0 or states[i].guided]


def table_rows(states: Sequence[SongState]) -> int:
    """Sampler rows of a song's buffer: a multiple of SAMPLER_ROWS."""
    rows = max(len(state.table.times) for state in states)
    return -(-rows // SAMPLER_ROWS) * SAMPLER_ROWS


def draws_of(states: Sequence[SongState]) -> int:
    """The most draws of noise that a song of the batch takes."""
    return max(sum(state.table.needs_noise) for state in states)


def lyric_room(dit: DiT, like: SongState, room: Room) -> list[tuple[Tensor, Tensor] | JointKeys]:
    """Buffers for the lyric keys and values of every block, as pack_lyrics lays them."""
    if dit.config.cross_attention == "parallel":
        blank = [
            tuple(t.new_zeros(1, *t.shape[1:]).expand(room.lyrics, *t.shape[1:]) for t in kv)
            for kv in like.kv
        ]
        return joint_keys([blank], room.rows)
    return [
        (k.new_zeros(room.lyrics, *k.shape[1:]), v.new_zeros(room.lyrics, *v.shape[1:]))
        for k, v in like.kv
    ]


Bucketing = Callable[
    [DiT, Capture, Callable[[], Placing], "Sequence[SongState]"],
    tuple[tuple[Any, ...], Callable[[], StepGraph]],
]
"""What a batch's bucket is known by, and what captures its graph (bucketed.bucket_graph)."""


def pack_lyrics(
    dit: DiT, states: Sequence[SongState], rows: int
) -> list[tuple[Tensor, Tensor] | JointKeys]:
    """Lyric keys and values of all songs, block by block: end to end, or behind `rows` rows for the
    sequences where a block attends to both at once. The songs keep views of them.
    """
    counts = [len(state.kv[0][0]) for state in states]
    if dit.config.cross_attention == "parallel":
        packed = joint_keys([state.kv for state in states], rows)
        for block, held in enumerate(packed):
            first = held.offset if isinstance(held, JointKeys) else 0
            k, v = (t[first : first + sum(counts)].split(counts) for t in held[:2])
            _share(states, block, k, v)
        return packed
    kv = []
    for block in range(len(dit.blocks)):
        k = torch.cat([state.kv[block][0] for state in states])
        v = torch.cat([state.kv[block][1] for state in states])
        _share(states, block, k.split(counts), v.split(counts))
        kv.append((k, v))
    return list(kv)


def _share(
    states: Sequence[SongState], block: int, k: Sequence[Tensor], v: Sequence[Tensor]
) -> None:
    for state, own_k, own_v in zip(states, k, v, strict=True):
        state.kv[block] = (own_k, own_v)


class GraphCache:
    """The captured steps of a network, by layout, or by bucket where `bucketing` is given and the
    Triton kernels run.

    budget_bytes bounds what graphs and their buffers hold, except that the one in use stays.
    """

    def __init__(
        self,
        dit: DiT,
        capture: Capture,
        *,
        budget_bytes: int,
        bucketing: Bucketing | None = None,
    ) -> None:
        self.dit, self.capture, self.budget_bytes = dit, capture, budget_bytes
        self.bucketing = bucketing
        self._graphs: OrderedDict[tuple[Any, ...], StepGraph] = OrderedDict()
        self._expected: tuple[Any, StepGraph] | None = None

    @property
    def bytes(self) -> int:
        return sum(graph.bytes for graph in self._graphs.values())

    def __len__(self) -> int:
        return len(self._graphs)

    def step(self, states: Sequence[SongState], place: Callable[[], Placing]) -> None:
        """Advances every song by one row of its table. `place` lays the batch out, where no graph
        of its layout is left.
        """
        batch = [(state.serial, state.step, state.guided) for state in states]
        expected, self._expected = self._expected, None  # whatever goes wrong, the next starts anew
        if expected is not None and expected[0] == batch and expected[1].holds(states):
            graph = expected[1]
        else:
            graph = self._graph(states, place)
            graph.fill(states, place)
        graph.replay()
        for state in states:
            state.drew()
            state.step += 1
            if state.done:
                state.move_out()
        if not any(state.done for state in states):
            following = [(state.serial, state.step, state.guided) for state in states]
            if [one[2] for one in following] == [one[2] for one in batch]:
                self._expected = (following, graph)

    def clear(self) -> None:
        """Drops every graph. Songs on their way keep what they have."""
        for graph in self._graphs.values():
            graph.leave()
        self._graphs.clear()
        self._expected = None

    def _graph(self, states: Sequence[SongState], place: Callable[[], Placing]) -> StepGraph:
        backend = ops.backend_of(states[0].rows)
        key: tuple[Any, ...]
        if self.bucketing is not None and backend == "triton":
            key, capture = self.bucketing(self.dit, self.capture, place, states)
        else:
            steps = table_rows(states)
            layout = tuple(state.spans[: 1 + state.guided] for state in states)
            key = (layout, steps, draws_of(states))

            def capture() -> StepGraph:
                return StepGraph(self.dit, self.capture, place(), states, steps)

        key = (
            *key,
            states[0].conditions[0].dtype,
            backend,
            # a graph reads the weights where they were when it was captured
            tuple(parameter.data_ptr() for parameter in self.dit.parameters()),
        )
        graph = self._graphs.get(key)
        if graph is None:
            graph = capture()
            self._graphs[key] = graph
            while self.bytes > self.budget_bytes and len(self._graphs) > 1:
                self._graphs.popitem(last=False)[1].leave()
        self._graphs.move_to_end(key)
        return graph
