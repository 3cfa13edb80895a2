"""Songs of the service at one loudness: what is kept, what is streamed, what was asked for; edits
undo it, and neither a cancelled song nor a slow limiter leaves or holds back anything.
"""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

from mudit_engine import loudness
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.serving import edited, song_files
from mudit_engine.serving.engine import Engine
from served import Served, serving

SONG: dict[str, Any] = {"description": "calm piano", "seconds": 2, "seed": 1}
HEADER = "x-song-loudness"


@pytest.fixture(scope="module")
def served(micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    with serving(lambda: Engine.open(micro, runtime="torch"), folder) as one:
        yield one


def level(data: bytes) -> float:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return loudness.loudness(torch.from_numpy(samples.T.copy()), rate)


def content(served: Served, id: str, kind: str = "wav") -> bytes:
    return served.client.get(f"/v1/songs/{id}/content?format={kind}").content


def told(answer: httpx.Response, wanted: float) -> None:
    """The audio has this loudness, and the header says so."""
    assert float(answer.headers[HEADER]) == pytest.approx(wanted, abs=0.15)
    assert level(answer.content) == pytest.approx(float(answer.headers[HEADER]), abs=0.1)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [({}, -16.0), ({"loudness": -23.5}, -23.5), ({"loudness": None}, None)],
    ids=["left out", "given", "null"],
)
def test_a_job_is_as_loud_as_it_was_asked_to_be(
    served: Served, micro: Path, fields: dict[str, Any], wanted: float | None
) -> None:
    job = served.ended(served.song(**SONG, **fields)["id"])
    sidecar = served.client.get(f"/v1/songs/{job['id']}/sidecar").json()
    assert sidecar["mastering"] == job["result"]["mastering"]
    assert job["request"].get("loudness") == wanted
    [own] = SongPipeline.from_pretrained(micro, device="cpu").generate([SongRequest(**SONG)])
    for kind in ("wav", "flac"):
        data = content(served, job["id"], kind)
        samples, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        if wanted is None:
            assert sidecar["mastering"] is None
            exact = torch.from_numpy(own.audio).clamp(-1, 1)
        else:
            assert sidecar["mastering"]["loudness"] == pytest.approx(wanted, abs=0.15)
            assert level(data) == pytest.approx(wanted, abs=0.2)
            exact, _ = loudness.mastered(torch.from_numpy(own.audio), 8000, target=wanted)
        assert np.abs(samples - exact[0].numpy()).max() < 2e-3, "the song of the pipeline"


def test_what_is_streamed_is_as_it_was_decoded(served: Served) -> None:
    streamed = served.client.post("/v1/audio/generate", json=SONG)
    assert streamed.headers[HEADER] == "decoded"
    decoded = served.client.post("/v1/audio/generate", json={**SONG, "loudness": None})
    assert decoded.headers[HEADER] == "decoded" and decoded.content == streamed.content
    assert content(served, decoded.headers["x-song-id"]) == decoded.content
    kept = content(served, streamed.headers["x-song-id"])
    assert kept != streamed.content and level(kept) == pytest.approx(-16, abs=0.2)


def test_an_answer_of_a_whole_song_has_the_loudness(served: Served) -> None:
    given = served.client.post("/v1/audio/generate", json={**SONG, "loudness": -20})
    told(given, -20)
    assert content(served, given.headers["x-song-id"]) == given.content
    flac = served.client.post("/v1/audio/generate", json={**SONG, "response_format": "flac"})
    told(flac, -16)
    speech = {"input": "[verse]\n月亮升起来", "seconds": 2, "seed": 1, "response_format": "wav"}
    plain = served.client.post("/v1/audio/speech", json=speech)
    assert plain.headers[HEADER] == "decoded"
    loud = served.client.post("/v1/audio/speech", json={**speech, "loudness": -20})
    told(loud, -20)


@pytest.mark.parametrize(("text", "wanted"), [("-25", -25.0), ("off", None)])
def test_a_form_says_it_in_words(served: Served, text: str, wanted: float | None) -> None:
    fields = {"description": "calm piano", "seconds": "2", "seed": "1", "loudness": text}
    answer = served.client.post(
        "/v1/songs", files={name: (None, value) for name, value in fields.items()}
    )
    assert answer.status_code == 202, answer.text
    job = served.ended(answer.json()["id"])
    told = job["result"]["mastering"]
    assert told is None if wanted is None else told["loudness"] == pytest.approx(wanted, abs=0.15)


@pytest.mark.parametrize("value", [0, -61, "-16", "off", True, [], 1e999])
def test_what_is_no_loudness_is_refused(served: Served, value: Any) -> None:
    for path in ("/v1/songs", "/v1/audio/generate"):
        text = json.dumps({"description": "x", "loudness": value}).replace("Infinity", "1e999")
        answer = served.client.post(
            path, content=text, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, (path, value)
        if not (isinstance(value, float) and math.isinf(value)):
            assert "loudness" in answer.json()["error"]["message"]


def test_an_edit_undoes_the_gain(served: Served) -> None:
    """Of songs whose latents are gone, so that their audio is what is changed."""
    frames = []
    for wanted in (-30.0, -36.0):  # no peak is limited at either
        first = served.ended(served.song(**{**SONG, "seconds": 8}, loudness=wanted)["id"])
        folder = served.service.songs_folder(first["id"])
        (folder / edited.LATENTS).unlink()
        job = served.ended(served.song(edit=first["id"], repaint="3-5", seed=9)["id"])
        assert job["status"] == "completed", job
        frames.append(load_file(served.service.songs_folder(job["id"]) / edited.LATENTS)["latents"])
        again = served.service.read_again(served.service.store.get(job["id"]))
        gain = first["result"]["mastering"]["gain_db"]
        assert again.edit.level == pytest.approx(10 ** (-gain / 20))
    spread = np.abs(frames[0]).mean()
    assert np.abs(frames[0] - frames[1]).mean() < 0.05 * spread


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A limiter that waits until the event is set."""
    free = threading.Event()

    def mastered(*arguments: Any, **named: Any) -> Any:
        assert free.wait(30)
        return loudness.mastered(*arguments, **named)

    monkeypatch.setattr(song_files, "mastered", mastered)
    yield free
    free.set()


def test_a_stream_ends_when_its_file_is_there(served: Served, slow: threading.Event) -> None:
    """All but the last sample comes while the limiter works, and of another song everything."""
    size, heard = 44 + 2 * 16000, b""
    with served.client.stream("POST", "/v1/audio/generate", json=SONG) as answer:
        for piece in answer.iter_raw():
            heard += piece
            if len(heard) == size - 2 and not slow.is_set():
                other = httpx.post(
                    f"{served.url}/v1/audio/generate", json={**SONG, "loudness": None}, timeout=30
                )
                assert len(other.content) == size, "a song that waits for no limiter"
                id = answer.headers["x-song-id"]
                assert served.client.get(f"/v1/songs/{id}").json()["status"] == "in_progress"
                slow.set()
    assert slow.is_set() and len(heard) == size
    assert served.client.get(f"/v1/songs/{id}/content").status_code == 200


def test_a_song_can_be_stopped_while_the_limiter_works(
    served: Served, slow: threading.Event
) -> None:
    job = served.song(**SONG)
    while served.client.get(f"/v1/songs/{job['id']}").json()["preview_seconds"] < 2:
        assert not slow.wait(0.01)
    assert served.client.delete(f"/v1/songs/{job['id']}").json()["cancelled"]
    slow.set()
    assert served.ended(job["id"])["status"] == "cancelled"
    assert not list(served.service.songs_folder(job["id"]).glob("*.wav*"))


def test_peaks_beyond_full_scale_are_turned_down_and_not_cut_off(tmp_path: Path) -> None:
    time = torch.arange(4 * 8000) / 8000
    tone = (1.6 * torch.sin(2 * math.pi * 220 * time))[None]
    parts = {}
    for wanted in (-16.0, None):
        writer = song_files.SongWriter(tmp_path, rate=8000, channels=1)
        for piece in tone.split(5000, 1):
            writer.write(piece)
        preview = song_files.part_of(tmp_path)
        assert preview is not None and len(preview) == 44 + 2 * tone.shape[1]
        done = writer.finish(loudness=wanted)
        assert (done is None) == (wanted is None) and not (tmp_path / song_files.PART).exists()
        samples, _ = soundfile.read(tmp_path / song_files.SONG, dtype="float32")
        parts[wanted] = torch.from_numpy(samples)
    assert preview == (tmp_path / song_files.SONG).read_bytes(), "the last one is as decoded"
    alike = {
        wanted: float(torch.cosine_similarity(one[:24000], tone[0, :24000], dim=0))  # then it fades
        for wanted, one in parts.items()
    }
    assert alike[-16.0] > 0.99999 > 0.99 > alike[None], alike


def test_a_silent_song_has_no_loudness(tmp_path: Path) -> None:
    writer = song_files.SongWriter(tmp_path, rate=8000, channels=2)
    writer.write(torch.zeros(2, 8000))
    assert writer.finish(loudness=-16.0) is None
    assert len((tmp_path / song_files.SONG).read_bytes()) == 44 + 4 * 8000
