"""Captured steps of buckets: a song has the bits it has in a layout of its own, whoever joins and
leaves, and few graphs serve them all.

The recorder of tests/helpers stands in for CUDA graphs, Triton's interpreter for the kernels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional as F

from mudit_engine import ops
from mudit_engine.kernels import adaln
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling import strict
from mudit_engine.runtime import bucketed
from mudit_engine.runtime.bucketed import bucket_of, rounded
from mudit_engine.runtime.denoiser import Denoiser, SongState
from recorded_graph import RecordedCapture
from small_denoisers import make_denoiser, song


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Buckets of a few rows, and products that round a row alike among any number of rows, so that
    what differs is the captured step's doing.
    """
    if strict.INTERPRETED:
        strict.install()
    monkeypatch.setattr(bucketed, "ROWS", 80)
    monkeypatch.setattr(bucketed, "LYRICS", 8)
    monkeypatch.setattr(adaln, "processors", lambda device: 1)  # few programs, for the interpreter

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
        y = torch.cat([row @ weight.t() for row in x.split(1)]) if len(x) else x @ weight.t()
        return y if bias is None else y + bias

    monkeypatch.setattr(F, "linear", linear)
    with ops.use("triton"):
        yield


def pair(**changes: object) -> tuple[Denoiser, Denoiser, RecordedCapture]:
    capture = RecordedCapture()
    dit = make_denoiser(blocks=1, **changes).dit
    return Denoiser(dit, capture=capture, bucketed=True), Denoiser(dit, captures=False), capture


SONGS = {
    "lyrics": lambda: song(7, 3, seed=1, steps=2),
    "bare": lambda: song(5, 0, seed=3, steps=2, guidance=1.0),
    "reference": lambda: song(5, 4, seed=2, steps=2, reference=4, guidance_interval=(0.6, 1.0)),
    "noisy": lambda: song(6, 2, seed=4, name="sde-euler", steps=3, negative=1),
}


# each way of attending is held by one of the next two tests, ten seconds each
@pytest.mark.parametrize("cross", ["serial", pytest.param("parallel", marks=pytest.mark.slow)])
def test_a_song_is_the_same_whoever_joins_and_leaves(cross: str, small: None) -> None:
    denoiser, plain, capture = pair(cross_attention=cross)
    ours, theirs = ({n: d.prepare(make()) for n, make in SONGS.items()} for d in (denoiser, plain))
    batches = [
        ["lyrics", "noisy"],
        ["reference", "noisy", "bare"],
        ["bare", "lyrics", "noisy", "reference"],
    ]
    for names in batches:
        denoiser.step([ours[name] for name in names])
        for name in names:  # each by itself, unpadded and launch by launch
            plain.step([theirs[name]])
        for name in names:
            assert torch.equal(ours[name].x_TC, theirs[name].x_TC), name
            assert torch.equal(ours[name].kept_TC, theirs[name].kept_TC), name
    assert all(state.done for state in ours.values())
    assert ours["reference"].table.guided == (True, False)  # guidance ends on the way
    # the last batch has more rows of lyrics (9) than the first bucket holds (8)
    assert (capture.captures, capture.replays) == (2, len(batches))


@pytest.mark.parametrize("cross", [pytest.param("serial", marks=pytest.mark.slow), "parallel"])
def test_a_graph_serves_other_layouts_and_songs_without_a_capture(cross: str, small: None) -> None:
    denoiser, plain, capture = pair(cross_attention=cross)
    for frames, seed in ((7, 1), (5, 2)):  # of two descriptions and of three
        state, alone = (d.prepare(song(frames, 2, seed=seed, steps=2)) for d in (denoiser, plain))
        while not state.done:
            denoiser.step([state])
            plain.step([alone])
        assert torch.equal(state.x_TC, alone.x_TC)
    assert (capture.captures, capture.replays) == (1, 4)


class Nothing:
    """Captures nothing: what is counted is how often it is asked."""

    captures = 0

    def capture(self, work: Callable[[], None]) -> tuple[Callable[[], None], int]:
        self.captures += 1
        return (lambda: None), 0


def join_and_leave(denoiser: Denoiser, changes: int) -> set[tuple[object, ...]]:
    """Steps batches of songs of 20 to 900 frames, one joining or leaving before each step; returns
    the layouts there were.
    """
    draw, live, layouts = random.Random(0), [], set()
    for seed in range(changes):
        if live and (len(live) == 8 or draw.random() < 0.5):
            live.pop(draw.randrange(len(live)))
        if not live or draw.random() < 0.5:
            guidance = draw.choice((1.0, 2.0))
            made = song(
                draw.randint(20, 900), draw.randint(0, 200), seed=seed, steps=60, guidance=guidance
            )
            live.append(denoiser.prepare(made))
        draw.shuffle(live)
        with ops.use("triton"):
            denoiser.step(live)
        layouts.add(tuple(state.spans[: 1 + state.guided] for state in live))
        live = [state for state in live if not state.done]
    return layouts


def test_few_graphs_serve_two_hundred_changes() -> None:
    counts = {}
    for name in (True, False):
        capture = Nothing()
        denoiser = Denoiser(make_denoiser(blocks=1).dit, capture=capture, bucketed=name)
        layouts = join_and_leave(denoiser, 200)
        counts[name] = capture.captures
    assert len(layouts) > 150 and counts[False] >= len(layouts)
    assert counts[True] <= 25


def test_the_budget_bounds_the_graphs_of_buckets() -> None:
    capture = Nothing()
    denoiser = Denoiser(
        make_denoiser(blocks=1).dit, capture=capture, bucketed=True, graph_bytes=4 << 20
    )
    join_and_leave(denoiser, 60)
    assert denoiser.graphs is not None and len(denoiser.graphs) >= 1
    assert denoiser.graphs.bytes <= 4 << 20 or len(denoiser.graphs) == 1
    assert capture.captures > len(denoiser.graphs)


def test_padding_is_a_quarter_at_most() -> None:
    for count in range(1, 9000):
        limit = 1.25 * count if count > bucketed.FEW_ROWS else max(2 * count, 64)
        assert count <= rounded(count, least=64) <= limit
    denoiser = make_denoiser(blocks=1)
    states: list[SongState] = [denoiser.prepare(song(n, 3, seed=n)) for n in (100, 900, 300)]
    room = bucket_of(states)
    rows = sum(span.rows for state in states for span in state.spans)
    assert room.songs == 8 and rows < room.rows <= 1.25 * (rows + 1)


def test_other_backends_capture_layouts_as_they_are() -> None:
    capture = RecordedCapture()
    dit = make_denoiser(blocks=1).dit
    denoiser, plain = Denoiser(dit, capture=capture, bucketed=True), Denoiser(dit, captures=False)
    for frames in (7, 6):
        state, alone = (d.prepare(song(frames, 2, seed=1, steps=1)) for d in (denoiser, plain))
        denoiser.step([state])
        plain.step([alone])
        assert torch.equal(state.x_TC, alone.x_TC)
    assert capture.captures == 2


def test_tables_take_no_more_than_they_have() -> None:
    small, large = Segments.self_attention([3, 5]), Segments.self_attention([3, 5, 4])
    table = small.query_tiles(4, "cpu")
    with pytest.raises(ValueError, match="4 rows for a table of 3"):
        small.take(large)
    small.take(Segments.self_attention([2]))
    assert table.tolist() == [[0, 2, 0, 2, 0, 0], [0] * 6, [0] * 6]
    runs = Runs(((3, 0), (5, 1)))
    tiles, _ = runs.tiles("cpu", tile_rows=4, table_rows=2)
    runs.take(Runs(((4, 1),)))
    assert tiles.tolist() == [[0, 4, 1], [0] * 3, [0] * 3]
    spans = SongRows(((0, 2, 0, 5), (2, 3, 2, -1)))
    items = spans.tensor("cpu")
    spans.take(SongRows(((0, 4, 1, -1),)))
    assert items.tolist() == [[0, 4, 1, -1], [0] * 4]
