"""The HTTP service as its users meet it: songs in the answer and as jobs, events, ranges, refusals
by name, limits, keys, and songs that are the ones the pipeline makes.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.serving.access import Keys, hash_key, new_key
from mudit_engine.serving.app import ServiceOptions
from mudit_engine.serving.engine import Engine
from mudit_engine.serving.service import Retention
from mudit_engine.serving.uploads import UploadLimits
from served import Served, serving

SONG: dict[str, Any] = {"description": "calm piano", "seconds": 2, "seed": 1}
LONG: dict[str, Any] = {"description": "calm piano", "seconds": 20, "seed": 1, "steps": 1000}


@pytest.fixture(scope="module")
def served(micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = UploadLimits(bytes=1 << 20, seconds=30.0)
    options = ServiceOptions(upload=limits, body=1 << 16, save_every=0.2)
    folder = tmp_path_factory.mktemp("service")
    with serving(lambda: Engine.open(micro, runtime="torch"), folder, options=options) as one:
        yield one


def _wav(seconds: float = 1.0, rate: int = 8000) -> bytes:
    data = io.BytesIO()
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)
    soundfile.write(data, tone, rate, format="WAV")
    return data.getvalue()


def _samples(data: bytes) -> np.ndarray:
    samples, _ = soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)
    return np.asarray(samples)


def test_the_song_is_the_one_the_pipeline_makes(served: Served, micro: Path) -> None:
    answer = served.client.post("/v1/audio/generate", json=SONG)
    assert answer.status_code == 200 and answer.headers["content-type"] == "audio/wav"
    assert answer.headers["x-song-seed"] == "1"
    [own] = SongPipeline.from_pretrained(micro, device="cpu").generate([SongRequest(**SONG)])
    samples = _samples(answer.content)
    assert samples.shape == (16000, 1)
    assert np.abs(samples[:, 0] / 32768 - own.audio[0]).max() < 1e-3
    again = served.client.get(f"/v1/songs/{answer.headers['x-song-id']}/content")
    assert again.status_code == 200 and len(again.content) == len(answer.content)


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_other_forms(served: Served, kind: str) -> None:
    answer = served.client.post("/v1/audio/generate", json={**SONG, "response_format": kind})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("audio/")
    samples, rate = soundfile.read(io.BytesIO(answer.content))
    assert rate == 8000 and abs(len(samples) - 16000) < 3000


def test_other_services_names(served: Served) -> None:
    own = served.client.post("/v1/audio/generate", json={**SONG, "steps": 3, "guidance": 2.0})
    others = {"prompt": "calm piano", "audio_duration": 2, "seed": 1}
    others |= {"inference_steps": 3, "cfg_scale": 2.0, "output_format": "wav"}
    answer = served.client.post("/v1/audio/generate", json=others)
    assert answer.content == own.content
    twice = served.client.post("/v1/audio/generate", json={**SONG, "duration": 3})
    assert (
        twice.status_code == 400 and "'duration' and 'seconds'" in twice.json()["error"]["message"]
    )


def test_speech_in_the_words_of_openai(served: Served) -> None:
    body = {"model": "micro", "input": "[verse]\n月亮升起来", "instructions": "慢歌", "seed": 3}
    body |= {"seconds": 2, "voice": "female", "response_format": "wav"}
    plain = served.client.post("/v1/audio/speech", json=body)
    assert plain.status_code == 200 and len(_samples(plain.content)) == 16000
    with served.client.stream(
        "POST", "/v1/audio/speech", json={**body, "stream_format": "sse"}
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [one["type"] for one in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    data = b"".join(base64.b64decode(one["audio"]) for one in events[:-1])
    assert data == plain.content
    for wrong in ({"input": ""}, {"input": "啊", "speed": 1.5}, {"input": "啊", "voice": "alloy"}):
        assert served.client.post("/v1/audio/speech", json=wrong).status_code == 400


def test_a_job_from_beginning_to_end(served: Served) -> None:
    answered = threading.Event()
    # nobody writes that the song has begun before the answer is there, however fast it begins
    served.service._later(answered.wait, 60)
    job = served.song(**SONG, bpm=90, response_format="flac")
    answered.set()
    assert job["status"] == "queued" and job["steps"] == 2 and job["estimated_seconds"] >= 0
    done = served.ended(job["id"])
    assert done["status"] == "completed" and done["progress"] == 1.0
    assert done["result"]["seconds"] == 2.0 and done["result"]["seed"] == 1
    content = served.client.get(f"/v1/songs/{job['id']}/content")
    assert content.headers["content-type"] == "audio/flac"
    wav = served.client.get(f"/v1/songs/{job['id']}/content?format=wav").content
    part = served.client.get(
        f"/v1/songs/{job['id']}/content?format=wav", headers={"Range": "bytes=44-143"}
    )
    assert part.status_code == 206 and part.content == wav[44:144]
    sidecar = served.client.get(f"/v1/songs/{job['id']}/sidecar").json()
    assert sidecar["request"]["bpm"] == 90.0 and sidecar["file"] == "song.wav"
    assert job["id"] in [one["id"] for one in served.client.get("/v1/songs").json()["data"]]
    assert served.client.delete(f"/v1/songs/{job['id']}").json()["deleted"]
    assert served.client.get(f"/v1/songs/{job['id']}").status_code == 404
    assert not (served.service.songs_folder(job["id"])).exists()


def test_events_tell_of_every_step_and_the_end(served: Served) -> None:
    job = served.song(**{**SONG, "seconds": 15, "steps": 30})
    events = []
    with served.client.stream("GET", f"/v1/songs/{job['id']}/events") as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                events.append((name, json.loads(line[6:])))
    names = [name for name, _ in events]
    assert names[-1] == "end" and names.count("end") == 1 and "preview" in names
    steps = [data["step"] for name, data in events if name == "progress"]
    assert steps == sorted(steps) and steps[-1] == 30 and len(set(steps)) > 5
    assert events[-1][1]["status"] == "completed"
    preview = served.client.get(next(data["url"] for name, data in events if name == "preview"))
    assert len(_samples(preview.content)) == 15 * 8000
    late = served.client.get(f"/v1/songs/{job['id']}/events")
    assert late.text.startswith("event: end")


def test_delete_stops_the_work(served: Served) -> None:
    batcher = served.service.engine.batcher
    job = served.song(**LONG)
    while served.client.get(f"/v1/songs/{job['id']}").json()["step"] < 3:
        time.sleep(0.005)
    assert served.client.delete(f"/v1/songs/{job['id']}").json()["cancelled"]
    done = served.ended(job["id"])
    assert done["status"] == "cancelled" and done["step"] < 900
    before = batcher.steps_done
    time.sleep(0.1)
    assert batcher.steps_done == before and batcher.counts()["denoising"] == 0
    assert served.client.get(f"/v1/songs/{job['id']}/content").status_code == 409
    assert list(served.service.songs_folder(job["id"]).glob("*.wav")) == []


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_a_client_that_goes_away_stops_the_work(served: Served, kind: str) -> None:
    batcher = served.service.engine.batcher
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{served.url}/v1/audio/generate", json={**LONG, "response_format": kind}, timeout=0.4
        )
    deadline = time.monotonic() + 60
    while any(batcher.counts().values()):
        assert time.monotonic() < deadline, "the song goes on for nobody"
        time.sleep(0.01)
    newest = served.client.get("/v1/songs?limit=1").json()["data"][0]
    assert served.ended(newest["id"])["status"] == "cancelled"


BAD: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1.5},
    "seed of text": {"seed": "7"},
    "seed below zero": {"seed": -1},
    "description": {"description": 5},
    "lyrics": {"lyrics": 5},
    "seconds": {"seconds": True},
    "seconds of text": {"seconds": "10"},
    "seconds too few": {"seconds": 0},
    "seconds too many": {"seconds": 500},
    "sampler": {"sampler": []},
    "sampler unknown": {"sampler": "euler"},
    "steps": {"steps": 0},
    "user_type": {"user_type": "king"},
    "response_format": {"response_format": "aac"},
    "unknown": {"descripton": "x"},
    "path": {"reference": "/etc/passwd"},
    "key": {"key": "H dur"},
    "chords": {"chords": "Xyz"},
    "bpm": {"bpm": 5},
    "empty": {"description": " "},
    "lyrics with a bad tag": {"lyrics": "[verze]\n啊"},
    "model": {"model": "other"},
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("path", ["/v1/audio/generate", "/v1/songs"])
def test_what_is_wrong_is_refused_by_name(served: Served, path: str, case: str) -> None:
    before = served.service.store.count(statuses=("queued", "in_progress", "completed", "failed"))
    answer = served.client.post(path, json={**SONG, **BAD[case]})
    assert answer.status_code == (404 if case == "model" else 400), answer.text
    error = answer.json()["error"]
    named = next(iter(BAD[case]))
    words = {"description": "description|empty", "lyrics": "lyrics|tag", "chords": "chord"}.get(
        named, named
    )
    assert any(word in error["message"] for word in words.split("|")), error
    after = served.service.store.count(statuses=("queued", "in_progress", "completed", "failed"))
    assert after == before


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b'{"seconds": NaN, "description": "x"}', "application/json"),
        (b'{"seconds": 1e999, "description": "x"}', "application/json"),
        (b"[" * 50_000, "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"description": "\\ud800"}', "application/json"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"hello", "multipart/form-data"),
    ],
    ids=[
        "cut",
        "empty",
        "list",
        "nan",
        "infinite",
        "deep",
        "bytes",
        "surrogate",
        "form",
        "no-bound",
    ],
)
def test_bodies_that_are_none(served: Served, content: bytes, kind: str) -> None:
    answer = served.client.post("/v1/songs", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request"


def test_other_content_and_sizes(served: Served) -> None:
    post = served.client.post
    assert post("/v1/songs", content=b"x", headers={"Content-Type": "text/xml"}).status_code == 415
    assert post("/v1/songs", json={"description": "x" * 70_000}).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 4096

    chunked = post("/v1/songs", content=endless(), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 413
    lies = b"POST /v1/songs HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"
    import socket

    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        raw.sendall(lies)
        assert raw.recv(100).startswith(b"HTTP/1.1 4")
    assert served.client.get("/health").status_code == 200


def _reference(data: bytes, **fields: Any) -> dict[str, Any]:
    texts = {"description": "calm piano", "seconds": "2", "seed": "1", **fields}
    return {"data": texts, "files": {"reference": ("../../etc/passwd.wav", data, "audio/wav")}}


def test_a_reference_is_heard(served: Served) -> None:
    plain = served.client.post("/v1/audio/generate", json=SONG)
    answer = served.client.post("/v1/audio/generate", **_reference(_wav()))
    assert answer.status_code == 200, answer.text
    assert answer.content != plain.content
    folder = served.service.songs_folder(answer.headers["x-song-id"])
    assert (folder / "reference.wav").is_file()
    again = served.client.post("/v1/audio/generate", **_reference(_wav()))
    assert again.content == answer.content


def _bomb() -> bytes:
    """An hour of silence in a few kilobytes."""
    data = io.BytesIO()
    silence = np.zeros(8000 * 3600, np.int16)
    soundfile.write(data, silence, 8000, format="FLAC", subtype="PCM_16")
    return data.getvalue()


def _lying() -> bytes:
    """A header that claims four gigabytes of samples."""
    wav = bytearray(_wav(0.5))
    wav[40:44] = struct.pack("<I", 2**32 - 1)
    return bytes(wav)


def _nan() -> bytes:
    data = io.BytesIO()
    soundfile.write(data, np.full(800, np.nan), 8000, format="WAV", subtype="FLOAT")
    return data.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"no audio", _wav()[:20], b"RIFF" + b"\0" * 40, b"PK\x03\x04" + b"\0" * 100, _nan()],
    ids=["empty", "text", "cut", "zeros", "zip", "nan"],
)
def test_references_that_are_no_audio(served: Served, data: bytes) -> None:
    answer = served.client.post("/v1/songs", **_reference(data))
    assert answer.status_code == 400 and "reference" in answer.json()["error"]["message"]
    assert "/tmp" not in answer.text and "upload" not in answer.json()["error"]["message"]


@pytest.mark.parametrize("data", [_bomb(), _lying()], ids=["bomb", "lying"])
def test_references_that_claim_too_much_cost_little(served: Served, data: bytes) -> None:
    started = time.monotonic()
    answer = served.client.post("/v1/audio/generate", **_reference(data))
    assert answer.status_code in (200, 400), answer.text
    assert time.monotonic() - started < 15
    if answer.status_code == 200:
        folder = served.service.songs_folder(answer.headers["x-song-id"])
        assert soundfile.info(str(folder / "reference.wav")).duration <= 30


def test_forms_that_are_wrong(served: Served) -> None:
    post = served.client.post
    other = {"files": {"song": ("a.wav", _wav(), "audio/wav")}, "data": {"description": "x"}}
    assert "reference" in post("/v1/songs", **other).json()["error"]["message"]
    assert post("/v1/songs", **_reference(_wav(), seed="one")).status_code == 400
    assert post("/v1/songs", **_reference(_wav(), nothing="x")).status_code == 400
    maybe = post("/v1/songs", **_reference(_wav(), drums="maybe"))
    assert maybe.status_code == 400 and "neither true nor false" in maybe.json()["error"]["message"]
    large = post("/v1/songs", **_reference(b"\0" * (2 << 20)))
    assert large.status_code == 413


@pytest.mark.parametrize("text", ["1_0", " 2", "nan", "inf", "0x2", "٢", "２", "2.", ""])
@pytest.mark.parametrize("name", ["seconds", "steps"])
def test_numbers_of_forms_are_written_as_in_json(served: Served, name: str, text: str) -> None:
    answer = served.client.post("/v1/songs", **_reference(_wav(), **{name: text}))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith(f"{name}: '{text}' is no ")


def test_a_reference_that_is_no_file_is_told_where_it_goes(served: Served) -> None:
    told = served.client.post("/v1/songs", json={**SONG, "reference": "/etc/passwd"})
    assert told.status_code == 400 and "multipart/form-data" in told.json()["error"]["message"]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("bytes=0-9", 206),
        ("bytes=-9", 206),
        ("bytes=0-0, 5-9", 206),
        ("bytes=99999999-", 416),
        ("bytes=9-5", 200),
        ("bytes=", 200),
        ("bytes=a-b", 200),
        ("bytes=-", 200),
        ("lines=1-2", 200),
        ("nothing", 200),
    ],
)
def test_a_range_that_is_none_is_as_if_it_were_not_there(
    served: Served, header: str, status: int
) -> None:
    ended = served.client.get("/v1/songs?status=completed&limit=1").json()["data"]
    [song] = ended or [served.ended(served.song(**SONG)["id"])]
    answer = served.client.get(f"/v1/songs/{song['id']}/content", headers={"Range": header})
    assert answer.status_code == status


def test_head_is_answered_where_get_is(served: Served) -> None:
    """Load balancers and download managers ask so."""
    id = served.ended(served.song(**SONG)["id"])["id"]
    paths = ("/", "/health", "/ready", "/metrics", "/v1/models", "/v1/songs", f"/v1/songs/{id}")
    for path in (*paths, f"/v1/songs/{id}/content", f"/v1/songs/{id}/sidecar"):
        head, get = served.client.head(path), served.client.get(path)
        assert head.status_code == get.status_code == 200, path
        assert head.content == b"" and head.headers["content-type"] == get.headers["content-type"]
    assert served.client.head("/v1/songs/song-0").status_code == 404
    assert served.client.head(f"/v1/songs/{id}/events").status_code == 405
    listed = served.client.get("/openapi.json").json()["paths"]
    assert "head" not in {way for one in listed.values() for way in one}


def test_forms_and_json_say_the_same(served: Served) -> None:
    said = {"melody": "C4 D4", "drums": False, "voice": "female", "style": "jazz"}
    said |= {"lyrics": "[verse]\n月亮", "planned": True, "steps": 1}
    form = {**said, "drums": "false", "planned": "true", "steps": "1"}
    jobs = [
        served.client.post("/v1/songs", json={"description": "x", "seconds": 2, **said}),
        served.client.post("/v1/songs", **_reference(_wav(), **form)),
    ]
    requests = [job.json()["request"] for job in jobs]
    for name in ("melody", "drums", "voice", "style", "planned"):
        assert requests[0][name] == requests[1][name] == said[name]


@pytest.mark.parametrize(
    "id", ["song-0", "..", "%2e%2e%2f%2e%2e", "..%2f..%2fetc%2fpasswd", "a" * 500, "%00"]
)
def test_no_id_leads_anywhere(served: Served, id: str) -> None:
    for end in ("", "/content", "/preview", "/events", "/sidecar"):
        answer = served.client.get(f"/v1/songs/{id}{end}")
        assert answer.status_code in (400, 404), (end, answer.status_code)
    for name in ("..%2findex.html", "%2e%2e/app.py", "../app.py"):
        assert served.client.get(f"/page/{name}").status_code == 404


def test_a_deadline_is_answered(served: Served) -> None:
    answer = served.client.post("/v1/audio/generate", json={**LONG, "deadline": 0.05})
    assert answer.status_code == 504 and "in time" in answer.json()["error"]["message"]


def test_what_was_understood(served: Served) -> None:
    lyrics = "[verse]\n银行长{zhang3}大\nhello 世界\n[chorus]\n了"
    body = {"description": "流行 钢琴 BPM 84 C大调", "lyrics": lyrics, "seconds": 12}
    shown = served.client.post("/v1/understand", json=body).json()
    assert shown["bpm"] == 84 and shown["key"] == "C major" and shown["chords"]
    verse, chorus = shown["sections"]
    assert [one["text"] for one in verse["lines"][0]["syllables"]] == list("银行长大")
    bank, grow = verse["lines"][0]["syllables"][1:3]
    assert bank["reading"] == "hang2" and "xing2" in bank["others"]
    assert grow["reading"] == "zhang3" and grow["corrected"] and grow["end"] > grow["at"] + 1
    assert verse["lines"][1]["syllables"][0]["text"] == "hello "
    times = [line["start"] for part in (verse, chorus) for line in part["lines"]]
    assert times == sorted(times) and times[0] is not None
    assert shown["budget"]["fits"] and shown["tags"]
    assert served.client.post("/v1/understand", json={"lyrics": "[verze]\n啊"}).status_code == 400


def test_health_models_and_metrics(served: Served) -> None:
    assert served.client.get("/health").json()["status"] == "ok"
    assert served.client.get("/ready").json() == {"status": "ready"}
    [model] = served.client.get("/v1/models").json()["data"]
    assert model["id"] == "micro" and model["max_seconds"] == 20
    served.client.post("/v1/audio/generate", json=SONG)
    text = served.client.get("/metrics").text
    figures = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )
    assert float(figures['mudit_songs_ended_total{status="completed"}']) >= 1
    assert float(figures["mudit_first_audio_seconds_count"]) >= 1
    assert float(figures["mudit_step_seconds_count"]) >= 2
    assert float(figures["mudit_frames_in_flight"]) == 0
    assert float(figures['mudit_rejected_total{reason="invalid"}']) >= 1


def test_no_other_origin_may_read(served: Served) -> None:
    answer = served.client.get("/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers
    page = served.client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_many_songs_at_once_are_each_their_own(served: Served) -> None:
    seeds = range(12)
    alone = {
        seed: served.client.post("/v1/audio/generate", json={**SONG, "seed": seed}).content
        for seed in seeds
    }
    assert len(set(alone.values())) == len(seeds)
    found: dict[int, bytes] = {}

    def ask(seed: int) -> None:
        answer = httpx.post(
            f"{served.url}/v1/audio/generate", json={**SONG, "seed": seed}, timeout=60
        )
        found[seed] = answer.content

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_keys_owners_and_quota(micro: Path, tmp_path: Path) -> None:
    first, second = new_key(), new_key()
    file = tmp_path / "keys.txt"
    file.write_text(f"# teams\nalpha {hash_key(first)} 5\nbeta {hash_key(second)}\n")
    assert first not in file.read_text()
    with serving(
        lambda: Engine.open(micro, runtime="torch"), tmp_path / "songs", keys=Keys.load(file)
    ) as served:
        post = served.client.post
        for wrong in ({}, {"Authorization": "Bearer sk-x"}, {"Authorization": f"Basic {first}"}):
            answer = post("/v1/songs", json=SONG, headers=wrong)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/songs", "/v1/models"):
            assert served.client.get(path).status_code == 401
        assert served.client.get("/health").status_code == 200
        alpha, beta = ({"Authorization": f"Bearer {key}"} for key in (first, second))
        id = post("/v1/songs", json=SONG, headers=alpha).json()["id"]
        for end in ("", "/content", "/events", "/preview"):
            assert served.client.get(f"/v1/songs/{id}{end}", headers=beta).status_code == 404
        assert served.client.delete(f"/v1/songs/{id}", headers=beta).status_code == 404
        assert served.client.get("/v1/songs", headers=beta).json()["data"] == []
        assert served.client.get(f"/v1/songs/{id}", headers=alpha).status_code == 200
        assert post("/v1/songs", json=SONG, headers=alpha).status_code == 202
        spent = post("/v1/songs", json=SONG, headers=alpha)
        assert spent.status_code == 429 and int(spent.headers["retry-after"]) > 1000
        assert "alpha" in spent.json()["error"]["message"]
        assert post("/v1/songs", json=SONG, headers=beta).status_code == 202


def test_a_full_service_says_when_to_come_back(micro: Path, tmp_path: Path) -> None:
    options = ServiceOptions(most_open=2)
    with serving(lambda: Engine.open(micro, runtime="torch"), tmp_path, options=options) as served:
        jobs = [served.song(**LONG) for _ in range(2)]
        full = served.client.post("/v1/songs", json=SONG)
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        assert served.client.post("/v1/audio/generate", json=SONG).status_code == 429
        for job in jobs:
            served.client.delete(f"/v1/songs/{job['id']}")
            served.ended(job["id"])
        assert served.client.post("/v1/audio/generate", json=SONG).status_code == 200
        served.service.draining = True
        assert served.client.get("/ready").status_code == 503
        assert served.client.post("/v1/songs", json=SONG).status_code == 503
        assert served.client.get("/health").status_code == 200


def test_old_songs_and_large_ones_are_swept(micro: Path, tmp_path: Path) -> None:
    with serving(lambda: Engine.open(micro, runtime="torch"), tmp_path) as served:
        ids = [served.song(**{**SONG, "seed": seed})["id"] for seed in range(3)]
        for id in ids:
            served.ended(id)
        sizes = [served.service.store.get(id).bytes for id in ids]
        assert min(sizes) > 32_000
        served.service.retention = Retention(bytes=2 * max(sizes))
        assert served.service.sweep() == 1
        assert served.client.get(f"/v1/songs/{ids[0]}").status_code == 404
        served.service.retention = Retention(seconds=0)
        assert served.service.sweep() == 2
        assert list((tmp_path / "songs").iterdir()) == []
