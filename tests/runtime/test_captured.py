"""The captured step: equal to the uncaptured loop bit for bit, one capture a layout, nothing from
the host between two steps.

The recorder of tests/helpers stands in for CUDA graphs.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mudit_engine import ops
from mudit_engine.runtime.captured import CaptureError
from mudit_engine.runtime.denoiser import Denoiser, SongInputs, denoise
from mudit_engine.runtime.saved_song import freeze, thaw
from recorded_graph import RecordedCapture
from small_denoisers import BEZIER, CONTINUOUS, DDPM, DISCRETE, SHORT, make_denoiser, song

ODD = [s for s in CONTINUOUS if s.frames < 200] + [song(7, 2, seed=9, steps=3)]


def captured(budget: int | None = None, **changes: object) -> tuple[Denoiser, RecordedCapture]:
    capture = RecordedCapture()
    return Denoiser(make_denoiser(**changes).dit, capture=capture, graph_bytes=budget), capture


def run(denoiser: Denoiser, songs: list[SongInputs]) -> list[torch.Tensor]:
    return denoise(denoiser, [denoiser.prepare(s) for s in songs])


@pytest.mark.parametrize(
    ("songs", "changes"),
    [
        (ODD, {}),
        (SHORT, {"cross_attention": "parallel"}),
        (SHORT, {"modulation": "per_block"}),
        (SHORT, {"pooled_description": True}),
        (DISCRETE, {}),
        *[([s], {}) for s in ODD],
    ],
    ids=["mixed", "parallel", "per_block", "pooled", "ddpm", *[f"alone-{s.seed}" for s in ODD]],
)
def test_equals_the_uncaptured_loop_bit_for_bit(
    songs: list[SongInputs], changes: dict[str, object]
) -> None:
    denoiser, capture = captured(**changes)
    for got, want in zip(run(denoiser, songs), run(make_denoiser(**changes), songs), strict=True):
        assert torch.equal(got, want)
    assert capture.replays >= capture.captures > 0


def test_equals_the_uncaptured_loop_on_the_kernels() -> None:
    from mudit_engine.profiling import strict

    if strict.INTERPRETED:
        strict.install()
    songs = [song(9, 3, seed=1, steps=2), song(5, 0, seed=2, steps=2, guidance=1.0)]
    denoiser, capture = captured(blocks=1)
    with ops.use("triton"):
        got, want = run(denoiser, songs), run(make_denoiser(blocks=1), songs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert capture.captures == 1


def test_parallel_blocks_write_keys_where_the_lyrics_wait() -> None:
    """Lyric rows are placed once a batch; a step joins nothing."""
    denoiser = make_denoiser(cross_attention="parallel")
    states = [denoiser.prepare(song(20, 4, seed=1)), denoiser.prepare(song(9, 0, seed=2))]
    denoiser.step(states)
    lyrics = [one.k[one.offset :].clone() for one in denoiser._pack(states).kv]
    with _Count() as count:
        denoiser.step(states)
    rows = denoiser._pack(states).placing.layout.rows
    assert count.joined and max(count.joined) <= rows
    for one, before in zip(denoiser._pack(states).kv, lyrics, strict=True):
        assert torch.equal(one.k[one.offset :], before)


def test_one_capture_serves_every_song_of_a_layout() -> None:
    denoiser, capture = captured()
    first = [song(31, 6, seed=k, steps=4) for k in (3, 6, 9)]  # equal counts, other words
    for s in first:
        assert torch.equal(run(denoiser, [s])[0], run(make_denoiser(), [s])[0])
    assert capture.captures == 1 and capture.replays == 12
    assert denoiser.graphs is not None and len(denoiser.graphs) == 1
    run(denoiser, [song(32, 6, seed=3, steps=4)])
    assert capture.captures == 2


def test_songs_join_and_leave_between_steps() -> None:
    """As a continuous batcher does: other companions, another place in the batch, a step alone."""
    denoiser, _ = captured()
    songs = [
        song(20, 4, seed=1, steps=5),
        song(33, 0, seed=2, steps=4, name="sde-euler"),
        song(20, 4, seed=4, steps=3, guidance=1.0),
    ]
    a, b, c = (denoiser.prepare(s) for s in songs)
    for batch in ([a], [a, b], [b, a], [c, b], [b], [a, c], [c, a]):
        denoiser.step(batch)
    assert a.done and b.done and c.done
    # companions change a product's rounding: the same batches, uncaptured
    plain = make_denoiser()
    x, y, z = (plain.prepare(s) for s in songs)
    for batch in ([x], [x, y], [y, x], [z, y], [y], [x, z], [z, x]):
        plain.step(batch)
    for got, want in ((a, x), (b, y), (c, z)):
        assert torch.equal(got.x_TC, want.x_TC) and torch.equal(got.kept_TC, want.kept_TC)
        assert torch.equal(got.draw(), want.draw())


def test_a_song_of_an_sde_goes_on_in_another_process() -> None:
    denoiser, _ = captured()
    s = song(20, 4, seed=2, steps=4, name="sde-euler")
    state = denoiser.prepare(s)
    denoiser.step([state])
    denoiser.step([state])
    again = denoiser.prepare(s)
    saved = freeze(state)
    assert saved is not None
    thaw(again, saved)
    assert torch.equal(denoise(denoiser, [again])[0], run(make_denoiser(), [s])[0])


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.joined: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        out = func(*args, **(kwargs or {}))
        if func.name() == "aten::cat":
            self.joined.append(out.shape[0])
        return out


def test_nothing_runs_between_two_steps_but_the_graph() -> None:
    denoiser, _ = captured()
    states = [
        denoiser.prepare(s)
        for s in (song(20, 4, seed=1, steps=6), song(9, 0, seed=2, steps=6, name="sde-euler"))
    ]
    denoiser.step(states)
    assert denoiser.graphs is not None
    ((_, graph),) = denoiser.graphs._graphs.items()
    graph.replay = lambda: None  # what is left is the host's work
    with _Count() as count:
        for _ in range(4):
            denoiser.step(states)
    assert count.seen == []
    with _Count() as count:
        denoiser.step(states)  # the last: the songs move out
    assert set(count.seen) == {"aten::clone"}


def test_results_and_previews_are_never_written_again() -> None:
    denoiser, _ = captured()
    first, second = (denoiser.prepare(song(31, 6, seed=k, steps=3)) for k in (3, 6))
    denoiser.step([first])
    preview = first.x_TC
    before = preview.clone()
    denoiser.step([first])
    assert torch.equal(preview, before) and not torch.equal(first.x_TC, before)
    denoiser.step([first])
    result, before = first.x_TC, first.x_TC.clone()
    denoiser.step([second])
    assert torch.equal(result, before) and first.home is None


def test_a_state_set_from_outside_is_what_runs_next() -> None:
    denoiser, _ = captured()
    state = denoiser.prepare(song(31, 6, seed=3, steps=3))
    noise = state.x_TC.clone()
    denoiser.step([state])
    once = state.x_TC
    for _ in range(2):  # benchmarks take the same step again and again
        state.step, state.x_TC = 0, noise.clone()
        denoiser.step([state])
        assert torch.equal(state.x_TC, once)


def test_the_budget_drops_the_longest_unused() -> None:
    denoiser, capture = captured(budget=1)
    short, long = song(12, 0, seed=1, steps=2), song(40, 3, seed=2, steps=2)
    states = [denoiser.prepare(s) for s in (short, long)]
    for state in states:
        denoiser.step([state])
    assert denoiser.graphs is not None and len(denoiser.graphs) == 1 and capture.captures == 2
    denoiser.step([states[0]])
    want = run(make_denoiser(), [short])[0]
    assert capture.captures == 3 and torch.equal(states[0].x_TC, want)
    roomy, capture = captured(budget=1 << 30)
    for s in (short, long, short, long):
        run(roomy, [s])
    assert capture.captures == 2
    assert roomy.graphs is not None and 0 < roomy.graphs.bytes < 1 << 30


def test_replaced_weights_are_captured_anew() -> None:
    denoiser, capture = captured()
    s = song(12, 3, seed=1, steps=2)
    run(denoiser, [s])
    with torch.no_grad():
        denoiser.dit.final.weight.mul_(2)  # in place: the graph reads the new values
    changed = make_denoiser()
    with torch.no_grad():
        changed.dit.final.weight.mul_(2)
    assert torch.equal(run(denoiser, [s])[0], run(changed, [s])[0]) and capture.captures == 1
    denoiser.dit.final.weight = torch.nn.Parameter(make_denoiser().dit.final.weight.detach())
    assert torch.equal(run(denoiser, [s])[0], run(make_denoiser(), [s])[0])
    assert capture.captures == 2


def test_a_device_that_cannot_capture_is_named_once_and_songs_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def capture(self, work):
            raise RuntimeError("operation not permitted when stream is capturing")

    denoiser = Denoiser(make_denoiser().dit, capture=Broken())
    s = song(12, 3, seed=1, steps=3, name="sde-euler")
    assert torch.equal(run(denoiser, [s])[0], run(make_denoiser(), [s])[0])
    assert caplog.text.count("not permitted") == 1
    assert issubclass(CaptureError, Exception)


def test_forgotten_songs_are_not_kept_alive() -> None:
    denoiser, _ = captured()
    for path in (BEZIER, DDPM):
        state = denoiser.prepare(song(12, 3, seed=1, steps=3, path=path, name="ddim"))
        denoiser.step([state])
        tensors = [state.conditions[0]]
        del state
        gc.collect()
        assert len(gc.get_referrers(*tensors)) <= 1


def test_the_recorder_refuses_what_a_graph_cannot_do() -> None:
    x = torch.ones(3)
    for work in (lambda: float(x.sum()), lambda: torch.tensor([1.0]) + x, lambda: torch.randn(3)):
        with pytest.raises(RuntimeError, match="not permitted"):
            RecordedCapture().capture(work)
