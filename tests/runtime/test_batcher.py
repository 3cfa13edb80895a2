"""Continuous batching: songs that join and leave are the songs they are alone, short ones don't
wait for long ones, nobody starves, and what goes wrong with one is its own affair.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from micro_deployment import micro_config
from mudit_engine.config import SamplerConfig
from mudit_engine.diffusion.samplers import sampler_table
from mudit_engine.errors import BusyError, DeadlineError, InputError, ModelError, StoppedError
from mudit_engine.models.folder import build_part
from mudit_engine.runtime.batcher import Batcher
from mudit_engine.runtime.cost import StepCost, measure_cost, predicted_bytes_of
from mudit_engine.runtime.decode import TorchDecoder, decode_chunked
from mudit_engine.runtime.denoiser import Denoiser, SongInputs, denoise
from mudit_engine.runtime.saved_song import freeze, goes_on, thaw
from mudit_engine.runtime.ticket import Event, Stage, StepRecord, Ticket

CONFIG = micro_config()


def _part(name: Any) -> Any:
    torch.manual_seed(0)
    module = build_part(name, CONFIG).eval()
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return module


@pytest.fixture(scope="module")
def decoder() -> TorchDecoder:
    vae = _part("vae")
    vae.latent_std.fill_(1.0)
    return TorchDecoder(vae)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(_part("dit"))


def song(frames: int, *, seed: int = 0, lyrics: int = 0, **sampler: Any) -> SongInputs:
    draw = torch.Generator().manual_seed(seed)
    settings = SamplerConfig(**{"steps": 4, "guidance": 2.0, **sampler})
    return SongInputs(
        frames=frames,
        seconds=frames / CONFIG.vae.frame_rate,
        table=sampler_table(CONFIG.path, settings),
        seed=seed,
        descriptions=torch.randn(1 + seed % 3, 32, generator=draw),
        negative=torch.zeros(0, 32),
        lyric_ids=torch.randint(0, 50, (lyrics,), generator=draw).tolist(),
    )


class Steered:
    """A runtime that waits for the test before every step, and remembers who stepped."""

    def __init__(self, runtime: Denoiser) -> None:
        self.runtime, self.batches = runtime, []
        self.go, self.free = threading.Semaphore(0), False
        self.fault: Callable[[Sequence[Any]], None] = lambda states: None

    def prepare(self, one: SongInputs) -> Any:
        return self.runtime.prepare(one)

    def step(self, states: Sequence[Any]) -> None:
        if not self.free:
            assert self.go.acquire(timeout=120)
        self.batches.append([state.frames for state in states])
        self.fault(states)
        self.runtime.step(states)

    def release_all(self) -> None:
        self.free = True
        self.go.release(1000)


@pytest.fixture
def steered(denoiser: Denoiser) -> Steered:
    return Steered(denoiser)


@pytest.fixture
def make(decoder: TorchDecoder, request: pytest.FixtureRequest) -> Iterator[Callable[..., Batcher]]:
    made: list[tuple[Batcher, Any]] = []

    def build(runtime: Any, **options: Any) -> Batcher:
        batcher = Batcher(runtime, decoder, CONFIG, **{"cost": StepCost(1e-3, 1e-4), **options})
        made.append((batcher, runtime))
        return batcher

    yield build
    for batcher, runtime in made:
        if isinstance(runtime, Steered):
            runtime.release_all()
        batcher.close(timeout=120)


def _until(true: Callable[[], object], *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


MIXED = [
    song(40, seed=1, lyrics=9),
    song(7, seed=2, steps=2),
    song(130, seed=3, lyrics=30, steps=3),
    song(23, seed=4, name="sde-euler", steps=5),
    song(61, seed=5, name="dpmpp-2m", guidance=1.0, steps=6),
    song(16, seed=6, name="ode-heun", guidance_interval=(0.2, 0.7)),
]


@pytest.mark.parametrize("wide", [True, False], ids=["wide-steps", "one-by-one"])
def test_songs_that_join_and_leave_are_the_songs_they_are_alone(
    make: Callable[..., Batcher], denoiser: Denoiser, decoder: TorchDecoder, wide: bool
) -> None:
    """Bit for bit, latents and audio, whatever they were stepped with."""
    alone = [denoise(denoiser, [denoiser.prepare(one)])[0] for one in MIXED]
    records: list[StepRecord] = []
    cost = StepCost(10.0 if wide else 0.0, 1e-4)
    cost.fit = lambda: None
    tickets: list[Ticket] = []

    def on_step(record: StepRecord) -> None:
        """The next song joins before the next step, however slowly this thread hands it in."""
        records.append(record)
        _until(lambda: len(tickets) > min(len(records), len(MIXED) - 1))
        _until(lambda: batcher.counts()["reading"] == 0)

    batcher = make(Denoiser(denoiser.dit), cost=cost, on_step=on_step)
    for one in MIXED:
        before = len(records)
        tickets.append(batcher.submit(lambda one=one: one))
        _until(lambda before=before: len(records) > before)
    for ticket, one, expected in zip(tickets, MIXED, alone, strict=True):
        assert torch.equal(ticket.wait(120), expected)
        audio = torch.cat(list(ticket.audio()), 1)
        whole = decode_chunked(decoder, expected, chunk_frames=10_000).clamp(-1, 1)
        assert audio.shape == (1, round(one.seconds * CONFIG.vae.sample_rate))
        torch.testing.assert_close(audio, whole[:, : audio.shape[1]], rtol=1e-4, atol=1e-4)
    assert any(record.songs > 1 for record in records) == wide
    assert sum(record.songs for record in records) == sum(ticket.steps for ticket in tickets)


def test_a_short_song_overtakes_and_the_long_one_goes_on(
    make: Callable[..., Batcher], steered: Steered
) -> None:
    batcher = make(steered, cost=StepCost(0.0, 1e-4))
    long = batcher.submit(lambda: song(200, seed=1, steps=20))
    steered.go.release(2)
    _until(lambda: batcher.steps_done == 2)
    short = batcher.submit(lambda: song(10, seed=2, steps=3))
    _until(lambda: batcher.counts()["waiting"] == 1)
    assert batcher.ahead(long) == 1 and batcher.ahead(short) == 0
    assert batcher.estimate(long) > batcher.estimate(short) > 0
    steered.release_all()
    short.wait(120), long.wait(120)
    # one step of the long song was under way when the short one came
    assert steered.batches[:6] == [[200], [200], [200], [10], [10], [10]]


def test_nobody_starves(make: Callable[..., Batcher], steered: Steered) -> None:
    """A long song under a rain of short ones gets its share of the time."""
    steered.free = True
    cost = StepCost(0.0, 1e-4)
    cost.fit = lambda: None
    batcher = make(steered, cost=cost)
    stop = threading.Event()

    def rain() -> None:
        seed = 10
        while not stop.is_set():
            there = batcher.counts()
            if there["reading"] + there["waiting"] + there["denoising"] < 4:
                batcher.submit(lambda seed=seed: song(50, seed=seed, steps=2))
                seed += 1
            else:
                time.sleep(0.001)

    thread = threading.Thread(target=rain)
    thread.start()
    try:
        _until(lambda: batcher.steps_done > 4)
        long = batcher.submit(lambda: song(200, seed=1, steps=6))
        long.wait(120)
    finally:
        stop.set()
        thread.join()
    first = steered.batches.index([200])
    between = steered.batches[first : len(steered.batches) - steered.batches[::-1].index([200])]
    frames = sum(200 for batch in between if batch == [200])
    others = sum(sum(batch) for batch in between if batch != [200])
    assert frames == 6 * 200
    assert 0.08 < frames / (frames + others) < 0.2, "a tenth of the work, and the first step"


def test_a_cancelled_song_stops_before_its_next_step(
    make: Callable[..., Batcher], steered: Steered
) -> None:
    batcher = make(steered)
    ticket = batcher.submit(lambda: song(20, steps=50))
    steered.go.release(3)
    _until(lambda: batcher.steps_done == 3)
    ticket.cancel()  # the fourth step may wait for the test already
    steered.release_all()
    with pytest.raises(StoppedError, match="cancelled at step"):
        ticket.wait(120)
    assert ticket.stage is Stage.CANCELLED and len(steered.batches) in (3, 4)
    assert batcher.counts() == dict.fromkeys(batcher.counts(), 0)
    with pytest.raises(StoppedError):
        list(ticket.audio())


def test_a_song_cancelled_before_and_while_it_is_read(
    make: Callable[..., Batcher], steered: Steered
) -> None:
    batcher, gate = make(steered), threading.Event()

    def slow() -> SongInputs:
        assert gate.wait(120)
        return song(20)

    first, second = batcher.submit(slow), batcher.submit(lambda: song(20))
    second.cancel(), first.cancel()
    gate.set()
    for ticket in (first, second):
        with pytest.raises(StoppedError):
            ticket.wait(120)
    assert steered.batches == []


def test_a_bad_song_costs_its_neighbours_nothing(
    make: Callable[..., Batcher], steered: Steered, denoiser: Denoiser
) -> None:
    """One that cannot be read, one that fails in `prepare`, one that fails a shared step, one that
    becomes NaN.
    """
    good = [song(30, seed=1, name="sde-euler"), song(31, seed=2)]
    alone = [denoise(denoiser, [denoiser.prepare(one)])[0] for one in good]

    def fault(states: Sequence[Any]) -> None:
        for state in states:
            if state.frames == 13 and state.step == 1:
                raise RuntimeError("device fault")
            if state.frames == 17:
                state.x_TC = state.x_TC * float("nan")

    def unreadable() -> SongInputs:
        raise InputError("lyrics are empty")

    steered.fault = fault
    cost = StepCost(10.0, 1e-4)
    cost.fit = lambda: None
    batcher = make(steered, cost=cost)
    broken = replace(song(9), lyric_ids=[10**6])
    tickets = [
        batcher.submit(read)
        for read in (
            lambda: good[0],
            lambda: song(13, seed=3, steps=5),
            unreadable,
            lambda: song(17, seed=4),
            lambda: broken,
            lambda: good[1],
        )
    ]
    _until(lambda: batcher.counts()["reading"] == 0)
    steered.release_all()
    assert torch.equal(tickets[0].wait(120), alone[0]) and torch.equal(
        tickets[5].wait(120), alone[1]
    )
    for ticket, kind, message in (
        (tickets[1], RuntimeError, "device fault"),
        (tickets[2], InputError, "lyrics are empty"),
        (tickets[3], ModelError, "NaN"),
        (tickets[4], InputError, "lyric token"),
    ):
        with pytest.raises(kind, match=message):
            ticket.wait(120)
        assert ticket.stage is Stage.FAILED
    assert any(len(batch) >= 3 for batch in steered.batches)
    assert batcher.alive


def test_deadlines(make: Callable[..., Batcher], steered: Steered) -> None:
    cost = StepCost(0.0, 1e-3)
    cost.fit = lambda: None
    batcher = make(steered, cost=cost)
    # 100 frames x 2 sequences x 1 ms x 10 steps: 2 s
    hopeless = batcher.submit(lambda: song(100, steps=10), deadline=0.5)
    with pytest.raises(DeadlineError, match="could not be finished in time"):
        hopeless.wait(120)
    assert steered.batches == [], "it ends before it costs anything"
    short = batcher.submit(lambda: song(20, seed=1, steps=50))
    _until(lambda: batcher.counts()["denoising"] == 1)
    urgent = batcher.submit(lambda: song(100, seed=2, steps=10), deadline=2.9)
    _until(lambda: batcher.counts()["waiting"] == 1)
    steered.release_all()
    urgent.wait(120), short.wait(120)
    # the elder one keeps its share of the time
    assert steered.batches[1:22].count([100]) == 10


def test_memory_is_admitted_by_predicted_bytes(
    make: Callable[..., Batcher], steered: Steered
) -> None:
    room = predicted_bytes_of(CONFIG.dit, song(100)) + 1
    batcher = make(steered, memory=room, cost=StepCost(10.0, 1e-4))
    tickets = [batcher.submit(lambda seed=seed: song(99, seed=seed)) for seed in range(3)]
    _until(lambda: batcher.counts()["denoising"] == 1 and batcher.counts()["waiting"] == 2)
    assert batcher.counts()["bytes"] <= room
    steered.release_all()
    for ticket in tickets:
        ticket.wait(120)
    assert {len(batch) for batch in steered.batches} == {1}
    with pytest.raises(InputError, match="ask for a shorter one"):
        batcher.submit(lambda: song(300)).wait(120)


def test_predicted_bytes_cover_what_a_song_keeps(denoiser: Denoiser) -> None:
    one = song(200, lyrics=50)
    state = denoiser.prepare(one)
    tensors = [*state.conditions, state.x_TC, state.kept_TC, *(x for kv in state.kv for x in kv)]
    tensors += [x for m in state.modulation for x in (m.base, m.final)]
    kept = sum(x.numel() * x.element_size() for x in tensors)
    assert kept < predicted_bytes_of(CONFIG.dit, one) < 20 * kept


def test_a_full_queue_says_when_to_come_back(
    make: Callable[..., Batcher], steered: Steered
) -> None:
    batcher = make(steered, most_waiting=2)
    gate = threading.Event()

    def slow() -> SongInputs:
        gate.wait(120)
        return song(10)

    tickets = [batcher.submit(slow) for _ in range(2)]
    with pytest.raises(BusyError, match="2 songs wait") as busy:
        batcher.submit(slow)
    assert busy.value.retry_after >= 1
    gate.set()
    steered.release_all()
    for ticket in tickets:
        ticket.wait(120)
    batcher.submit(slow).wait(120)


def test_audio_arrives_in_pieces_and_the_first_is_short(
    make: Callable[..., Batcher], denoiser: Denoiser, decoder: TorchDecoder
) -> None:
    events: list[Event] = []
    batcher = make(denoiser)
    ticket = batcher.submit(lambda: song(300, steps=2), on_event=events.append)
    pieces = list(ticket.audio())
    assert len(pieces) == 4 and pieces[0].shape[1] < pieces[1].shape[1]
    stages = [event.stage for event in events]
    assert stages == sorted(stages, key=list(Stage).index), "in order"
    assert [event.step for event in events if event.stage is Stage.DENOISING] == [1, 2]
    assert sum(event.audio is not None for event in events) == 4
    whole = batcher.submit(lambda: song(300, steps=2), stream=False)
    assert len(list(whole.audio())) == 3


def test_the_decoder_may_run_between_steps(
    make: Callable[..., Batcher], denoiser: Denoiser
) -> None:
    batcher = make(denoiser, decoders=0)
    tickets = [batcher.submit(lambda seed=seed: song(40, seed=seed)) for seed in range(3)]
    for ticket in tickets:
        ticket.wait(120)
        assert sum(piece.shape[1] for piece in ticket.audio()) == 40 * CONFIG.vae.hop


@pytest.mark.parametrize("name", ["ode-euler", "sde-euler", "ode-heun", "dpmpp-2m"])
def test_a_stopped_song_goes_on_bit_for_bit(
    make: Callable[..., Batcher], denoiser: Denoiser, steered: Steered, name: str
) -> None:
    one = song(40, seed=3, lyrics=5, name=name, steps=6)
    expected = denoise(denoiser, [denoiser.prepare(one)])[0]
    saved: dict[int, bytes] = {}

    def keep(ticket: Ticket, data: bytes) -> None:
        saved[ticket.step] = data

    batcher = make(steered, save_every=0.0, on_save=keep)
    ticket = batcher.submit(lambda: one)
    steered.go.release(3)
    _until(lambda: 3 in saved)
    ticket.cancel()
    steered.release_all()
    steps: list[int] = []
    again = make(denoiser).submit(
        lambda: one, saved=saved[3], on_event=lambda event: steps.append(event.step)
    )
    assert torch.equal(again.wait(120), expected)
    assert [step for step in dict.fromkeys(steps) if step] == list(range(4, again.steps + 1))


def test_saved_progress_of_another_song_is_refused(denoiser: Denoiser) -> None:
    data = freeze(denoiser.prepare(song(40)))
    assert data is not None
    for wrong in (data[: len(data) // 2], b"", b"x" * 100):
        with pytest.raises(ModelError, match="start the song again"):
            thaw(denoiser.prepare(song(40)), wrong)
    with pytest.raises(ModelError, match="start the song again"):
        thaw(denoiser.prepare(song(41)), data)


def test_saved_progress_goes_on_in_its_own_steps_alone(denoiser: Denoiser) -> None:
    state = denoiser.prepare(song(40))
    data = freeze(state)
    assert data is not None and goes_on(data, state.table)
    steps = len(state.table.times)
    fewer = replace(state.table, times=state.table.times[:-1], rows=state.table.rows[:-1])
    warped = replace(state.table, times=state.table.times * 0.9)
    assert len(fewer.times) == steps - 1
    assert not goes_on(data, fewer) and not goes_on(data, warped)
    assert not goes_on(data[: len(data) // 2], state.table) and not goes_on(b"", state.table)


def test_draining_finishes_what_is_there_and_takes_nothing_more(
    make: Callable[..., Batcher], steered: Steered
) -> None:
    batcher = make(steered)
    ticket = batcher.submit(lambda: song(20))
    _until(lambda: batcher.counts()["denoising"] == 1)
    assert not batcher.drain(timeout=0.01)
    with pytest.raises(BusyError, match="shutting down"):
        batcher.submit(lambda: song(20))
    steered.release_all()
    assert batcher.drain(timeout=120)
    assert ticket.stage is Stage.COMPLETED


def test_closing_saves_and_ends_what_is_left(
    make: Callable[..., Batcher], steered: Steered
) -> None:
    saved: list[bytes] = []
    batcher = make(steered, on_save=lambda ticket, data: saved.append(data))
    ticket = batcher.submit(lambda: song(20, steps=50))
    steered.go.release(2)
    _until(lambda: batcher.steps_done == 2)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    _until(lambda: not batcher.alive)
    steered.go.release(1)
    closing.join(120)
    assert not closing.is_alive() and len(saved) == 1
    with pytest.raises(StoppedError, match="shut down"):
        ticket.wait(1)


def test_the_cost_curve_is_found(denoiser: Denoiser) -> None:
    cost = StepCost()
    for rows in ([10], [10, 10], [100, 100], [300], [50, 200, 7]):
        cost.observe(rows, 2e-3 + sum(1e-5 * r + 3e-8 * r * r for r in rows))
    cost.fit()
    assert cost.base == pytest.approx(2e-3, rel=1e-3)
    assert cost.a == pytest.approx(1e-5, rel=1e-3) and cost.b == pytest.approx(3e-8, rel=1e-3)
    assert cost.step([50, 7]) == pytest.approx(2e-3 + cost.sequence(50) + cost.sequence(7))
    flat = StepCost()
    for rows in ([10], [100], [1000]):
        flat.observe(rows, 1e-4 * rows[0] ** 0.5)
    flat.fit()
    assert flat.base > 0 and flat.a > 0 and flat.b == 0, "no term below zero"
    measured = measure_cost(denoiser, CONFIG)
    assert measured.step([64, 64]) > measured.step([16, 16]) > 0
