"""Songs on replicas: a denoiser or a decoder that dies loses nothing and changes no bit; what is
wrong with a song comes back as its own error; a cancelled song stops on its replica.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mudit_engine.errors import InputError, ModelError, StoppedError
from mudit_engine.request import SongRequest
from mudit_engine.runtime.ticket import Event, Stage, Ticket
from mudit_engine.serving import dispatch
from mudit_engine.serving.dispatch import Dispatcher, RemoteEngine
from mudit_engine.serving.engine import Engine
from mudit_engine.serving.ray_app import RaySettings, wanted_denoisers
from mudit_engine.serving.ray_songs import Order, SongMaker, is_there, rows_of
from mudit_engine.serving.replicas import SongDecoder, SongDenoiser
from served import serving

LONG = SongRequest(
    description="calm piano",
    lyrics="[verse]\n月亮升起来",
    seconds=19.5,
    seed=3,
    sampler={"steps": 30},
)


class Lost(Exception):
    """A replica died."""


class Failing:
    """A replica that dies after so many answers, each time it is asked, while there are deaths."""

    def __init__(self, method: Any) -> None:
        self.method, self.after, self.calls = method, [], []
        self.after: list[int] = []
        self.calls: list[dict[str, Any]] = []

    async def __call__(self, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
        self.calls.append(named)
        left = self.after.pop(0) if self.after else None
        stream = self.method(*arguments, **named)
        try:
            async for one in stream:
                if left == 0:
                    raise Lost("killed")
                left = left - 1 if left is not None else None
                yield one
        finally:
            await stream.aclose()


@pytest.fixture(scope="module")
def replicas(micro: Path) -> Iterator[tuple[SongDenoiser, SongDecoder]]:
    denoiser = SongDenoiser(str(micro), runtime="torch", device="cpu", save_every=0.0)
    yield denoiser, SongDecoder(str(micro), device="cpu")
    denoiser.engine.close()


@pytest.fixture
def remote(
    replicas: tuple[SongDenoiser, SongDecoder], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RemoteEngine, Failing, Failing]]:
    monkeypatch.setattr(dispatch, "PAUSE", 0.01)
    denoiser, decoder = replicas
    denoise, decode = Failing(denoiser.denoise), Failing(decoder.decode)
    about = {**denoiser.engine.pipeline.maker(), "replica": denoiser.name}
    dispatcher = Dispatcher(denoise, decode, denoiser.engine.config, lost=(Lost,))
    yield RemoteEngine(denoiser.engine.config, about, dispatcher), denoise, decode
    dispatcher.close()


def audio_of(ticket: Ticket) -> np.ndarray:
    return np.concatenate([piece.numpy() for piece in ticket.audio()], axis=1)


@pytest.fixture(scope="module")
def alone(micro: Path) -> np.ndarray:
    """Latents of LONG, made by one engine without replicas."""
    engine = Engine.open(micro, runtime="torch", device="cpu")
    assert engine.pipeline.runtime.bucketed  # captured steps outlast songs that come and go
    latents = engine.submit(engine.read(LONG)).wait(60)
    engine.close()
    return latents.numpy()


def test_a_song_whose_replicas_die_is_the_same_song(
    remote: tuple[RemoteEngine, Failing, Failing], alone: np.ndarray
) -> None:
    engine, denoise, decode = remote
    understood = engine.read(LONG)
    plain = engine.submit(understood)
    sound = audio_of(plain)
    assert np.array_equal(plain.wait(60).numpy(), alone)
    assert sound.shape == (1, round(19.5 * engine.config.vae.sample_rate))

    denoise.after, decode.after = [12], [1]
    denoise.calls.clear()
    decode.calls.clear()
    events: list[Event] = []
    hit = engine.submit(understood, on_event=events.append)
    assert np.array_equal(audio_of(hit), sound)
    assert np.array_equal(hit.wait(60).numpy(), alone)
    first, second = denoise.calls
    assert first["saved"] is None and second["saved"] is not None, "it went on, not anew"
    assert [call["start"] for call in decode.calls] == [0, 16], "no piece is decoded twice"
    assert [e.stage for e in events if e.stage in (Stage.COMPLETED, Stage.FAILED)] == ["completed"]


def test_a_song_that_kills_three_replicas_is_given_up(
    remote: tuple[RemoteEngine, Failing, Failing],
) -> None:
    engine, denoise, _ = remote
    denoise.after = [1, 1, 1]
    bad = engine.submit(engine.read(LONG))
    with pytest.raises(ModelError, match="3 replicas died"):
        bad.wait(60)
    assert engine.batcher.counts()["denoising"] == 0
    assert engine.submit(engine.read(LONG)).wait(60) is not None, "others are made"


def test_a_cancelled_song_stops_on_its_replica(
    remote: tuple[RemoteEngine, Failing, Failing], replicas: tuple[SongDenoiser, SongDecoder]
) -> None:
    engine, _, _ = remote
    request = SongRequest(description="piano", seconds=20, seed=1, sampler={"steps": 1000})
    ticket = engine.submit(engine.read(request))
    while not ticket.step:
        time.sleep(0.01)
    ticket.cancel()
    with pytest.raises(StoppedError):
        ticket.wait(60)
    until = time.monotonic() + 60
    while replicas[0].batcher.queued_frames():
        assert time.monotonic() < until, "the replica still works on it"
        time.sleep(0.01)
    early = engine.submit(engine.read(request))
    early.cancel()
    with pytest.raises(StoppedError):
        early.wait(60)


def test_a_users_error_on_a_replica_is_his_own(
    remote: tuple[RemoteEngine, Failing, Failing], tmp_path: Path
) -> None:
    engine, denoise, _ = remote
    broken = tmp_path / "reference.wav"
    broken.write_bytes(b"no audio")
    good = engine.submit(engine.read(LONG))
    bad = engine.submit(engine.read(SongRequest(description="x", seconds=2, reference=broken)))
    with pytest.raises(InputError, match="reference"):
        bad.wait(60)
    assert good.wait(60) is not None
    assert len(denoise.calls) == 2, "nothing is tried again"


def test_an_edited_song_is_the_one_the_pipeline_makes(
    remote: tuple[RemoteEngine, Failing, Failing],
    replicas: tuple[SongDenoiser, SongDecoder],
    tmp_path: Path,
) -> None:
    engine, denoise, _ = remote
    pipeline = replicas[0].engine.pipeline
    [song] = pipeline.generate([SongRequest(description="piano", seconds=6, seed=1)])
    song.save(tmp_path / "song.wav", latents=True)
    change = SongRequest(edit=tmp_path / "song.wav", repaint="2-3", seed=5)
    [own] = pipeline.generate([change])
    understood = engine.read(change)
    denoise.after = [1]  # the first replica dies: the second is given the same song
    latents = engine.submit(understood).wait(60)
    assert [call["source"] is not None for call in denoise.calls] == [True, True]
    assert np.array_equal(latents.numpy(), own.latents)
    graphs = RemoteEngine(engine.config, {**engine.about, "runtime": "onnxruntime"}, engine.batcher)
    with pytest.raises(InputError, match="edited songs run with --runtime torch"):
        graphs.read(change)


def test_the_service_runs_on_replicas(
    remote: tuple[RemoteEngine, Failing, Failing], tmp_path: Path
) -> None:
    engine, denoise, _ = remote
    with serving(lambda: engine, tmp_path) as served:
        denoise.after = [5]
        song = served.song(description="calm piano", seconds=2, seed=1, steps=20)
        ended = served.ended(song["id"])
        assert ended["status"] == "completed" and ended["step"] == 20
        assert served.client.get(f"/v1/songs/{song['id']}/sidecar").json()["runtime"] == "torch"
        assert served.client.get("/v1/models").json()["data"][0]["runtime"] == "torch"
        answer = served.client.post("/v1/audio/generate", json={"seconds": 2.0, "description": "x"})
        assert answer.status_code == 200 and len(answer.content) == 44 + 2 * 2 * 8000
        text = served.client.get("/metrics").text
        steps = next(line for line in text.splitlines() if line.startswith("mudit_step_seconds_co"))
        assert float(steps.split()[1]) >= 20, "the replicas' steps are counted"


def test_replicas_follow_the_queued_frames() -> None:
    queued = {"a": 9000.0, "b": 9000.0}
    assert wanted_denoisers(queued, waiting=0, running=18, frames=10_000) == 2
    # 20 songs of 1,000 frames wait in front of both
    assert wanted_denoisers(queued, waiting=20, running=18, frames=10_000) == 4
    assert wanted_denoisers({}, waiting=0, running=0, frames=10_000) == 0
    with pytest.raises(InputError, match="3 to 2 is no range"):
        RaySettings("tiny", Path("songs"), denoisers=(3, 2))


def test_progress_of_another_song_is_refused(
    remote: tuple[RemoteEngine, Failing, Failing],
) -> None:
    engine, _, _ = remote
    from mudit_engine.runtime.saved_song import freeze

    understood = engine.read(LONG)

    class State:
        x_TC, kept_TC = torch.zeros(3, 8), torch.zeros(3, 8)
        generator, step, table = torch.Generator(), 1, understood.table

    ticket = engine.submit(understood, saved=freeze(State()))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="another song"):
        ticket.wait(60)


def test_songs_of_a_row_are_made_once_each(micro: Path, tmp_path: Path) -> None:
    maker = SongMaker(str(micro), runtime="torch", precision="float32")
    good = SongRequest(description="piano", seconds=1, seed=1)
    broken = tmp_path / "reference.wav"
    broken.write_bytes(b"no audio")
    orders = [
        Order(good, tmp_path / "a.wav"),
        Order(
            SongRequest(description="x", seconds=1, seed=2, reference=broken), tmp_path / "b.wav"
        ),
        Order(SongRequest(description="x", seconds=2, seed=3), tmp_path / "c.wav"),
    ]
    row = list(enumerate(orders))
    pipeline = maker.open()
    made = {one.number: one for one in maker.make(pipeline, row)}
    assert isinstance(made[1].error, InputError) and made[0].error is made[2].error is None
    assert (tmp_path / "a.wav").is_file() and not (tmp_path / "b.wav").exists()
    # a row that is run again makes what is not there
    (tmp_path / "c.json").unlink()
    before = (tmp_path / "a.json").stat().st_mtime_ns
    again = {one.number: one for one in maker.make(pipeline, row)}
    assert (tmp_path / "a.json").stat().st_mtime_ns == before and is_there(tmp_path / "c.wav")
    assert again[0].info["request"]["seed"] == 1 and again[0].seconds == 1.0


def test_rows_hold_every_order_once_and_feed_all_workers() -> None:
    orders = [
        Order(SongRequest(description="x", seconds=1.0 + n % 7), Path(f"/{n}.wav"))
        for n in range(100)
    ]
    rows = rows_of(orders, workers=4)
    assert sorted(number for row in rows for number, _ in row) == list(range(100))
    assert len(rows) >= 16 and max(map(len, rows)) <= 16
    lengths = [order.request.seconds for row in rows for _, order in row]
    assert lengths == sorted(lengths, reverse=True)
