"""The model repository in a real tritonserver: whole songs and streams, ten clients of mixed
lengths, bad requests among good ones, clients that go away.
"""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mudit_engine.export.manifest import new_manifest, write_manifest
from mudit_engine.export.model_repository import RepositoryOptions, write_repository
from mudit_engine.pipeline import SongPipeline, SongRequest
from triton_server import TritonServer, packages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(packages() is None, reason="needs MUDIT_TRITON_ENV: run `make triton`"),
]


@pytest.fixture(scope="module")
def deployment(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(model, tmp_path_factory.mktemp("triton") / "deploy")
    write_manifest(folder, new_manifest(folder, {}))
    return folder


@pytest.fixture(scope="module")
def server(deployment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    # few processes: the server calls one that a busy machine keeps waiting unhealthy
    options = RepositoryOptions(whole=4)
    repository = write_repository(deployment, deployment.with_name("repo"), options=options)
    one = TritonServer(repository / "models", tmp_path_factory.mktemp("server") / "log.txt")
    yield one
    one.stop()


def _asked(fields: Any) -> dict[str, Any]:
    text = fields if isinstance(fields, str) else json.dumps(fields)
    inputs = [{"name": "REQUEST", "shape": [1], "datatype": "BYTES", "data": [text]}]
    return {"inputs": inputs}


def whole(server: TritonServer, fields: Any, *, timeout: float = 120) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v2/models/mudit_whole/infer", json=_asked(fields), timeout=timeout
    )


def _audio(answer: httpx.Response) -> np.ndarray:
    outputs = {one["name"]: one for one in answer.json()["outputs"]}
    return np.array(outputs["AUDIO"]["data"], np.int16).reshape(outputs["AUDIO"]["shape"])


def _stream(server: TritonServer, fields: Any) -> Iterator[dict[str, Any]]:
    url = f"{server.url}/v2/models/mudit_song/generate_stream"
    body = {"REQUEST": json.dumps(fields)}
    with httpx.stream("POST", url, json=body, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


def test_a_whole_song_is_the_pipelines(server: TritonServer, deployment: Path) -> None:
    fields = {"description": "slow piano", "lyrics": "[verse]\n你好世界", "seconds": 3, "seed": 5}
    answer = whole(server, fields)
    assert answer.status_code == 200, answer.text
    [own] = SongPipeline.from_pretrained(deployment).generate([SongRequest(**fields)])
    audio = _audio(answer)
    assert audio.shape == own.audio.shape
    assert np.abs(audio / 32767 - own.audio).max() < 2e-3
    info = next(one for one in answer.json()["outputs"] if one["name"] == "INFO")
    assert json.loads(info["data"][0])["seed"] == 5


def test_a_stream_tells_of_steps_and_brings_pieces(server: TritonServer) -> None:
    fields = {"description": "slow piano", "seconds": 20, "seed": 5}
    events = list(_stream(server, fields))
    told = [json.loads(one["EVENT"]) for one in events]
    assert [one["step"] for one in told if one["stage"] == "denoising"] == [1, 2, 3]
    assert told[-1]["stage"] == "completed" and "notes" in told[-1]
    pieces = [np.atleast_1d(one["AUDIO"]) for one in events if np.size(one.get("AUDIO", []))]
    assert len(pieces) >= 2, "audio comes before the song is whole"
    joined = np.concatenate(pieces)
    assert np.array_equal(joined, _audio(whole(server, fields))[0])


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1.5},
        {"description": None},
        {"lyrics": 5},
        {"sampler": []},
        {"seconds": True},
        {"tempo": 3},
        {"seconds": 500},
        {"reference": "%%"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_wrong_is_the_clients_error(server: TritonServer, fields: dict[str, Any]) -> None:
    base = {} if fields == {"description": None} else {"description": "a"}
    answer = whole(server, {**base, **fields})
    assert answer.status_code == 400, answer.text
    named = next(iter(fields))
    assert named in answer.json()["error"] or "empty" in answer.json()["error"]


def test_ten_clients_of_mixed_lengths_and_bad_ones_among_them(
    server: TritonServer, deployment: Path
) -> None:
    lengths = (1.5, 18, 3, 12, 2, 6, 1, 9, 4, 15)
    songs = [
        {"description": "calm piano", "seconds": seconds, "seed": seed}
        for seed, seconds in enumerate(lengths)
    ]
    found: dict[int, httpx.Response] = {}

    def ask(number: int, fields: dict[str, Any]) -> None:
        found[number] = whole(server, fields)

    bad = [{"description": "x", "seed": -1}, {"description": "x", "nothing": 1}]
    threads = [
        threading.Thread(target=ask, args=(number, fields))
        for number, fields in enumerate([*songs, *bad])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found[number].status_code for number in range(12)] == [200] * 10 + [400] * 2
    pipeline = SongPipeline.from_pretrained(deployment)
    for number, fields in enumerate(songs):
        [own] = pipeline.generate([SongRequest(**fields)])
        assert np.abs(_audio(found[number]) / 32767 - own.audio).max() < 2e-3, fields


def test_a_client_that_goes_away_harms_nobody(server: TritonServer) -> None:
    """What the server tells the model of it is its own affair: the next song comes all the same."""
    long = {"description": "a", "seconds": 20, "seed": 1, "sampler": {"steps": 1000}}
    heard = list(itertools.islice(_stream(server, long), 6))
    assert len(heard) == 6
    started = time.monotonic()
    answer = whole(server, {"description": "b", "seconds": 2})
    assert answer.status_code == 200 and time.monotonic() - started < 30
