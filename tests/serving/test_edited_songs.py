"""Songs of the service that change an earlier one: named by id and never by a file, from its own
latents, also when it is deleted or the service restarts meanwhile.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.serving import edited
from mudit_engine.serving.access import Keys, hash_key, new_key
from mudit_engine.serving.engine import Engine
from served import Served, serving

SONG: dict[str, Any] = {
    "description": "钢琴，BPM 120",
    "lyrics": "[verse]\n月亮升起来",
    "seconds": 8,
    "seed": 4,
}
REPAINT: dict[str, Any] = {"repaint": "3-5", "seed": 9}


@pytest.fixture(scope="module")
def served(micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    with serving(lambda: Engine.open(micro, runtime="torch"), folder) as one:
        yield one


@pytest.fixture(scope="module")
def first(served: Served) -> dict[str, Any]:
    """A finished song."""
    job = served.ended(served.song(**SONG)["id"])
    assert job["status"] == "completed", job
    return job


def latents(served: Served, id: str) -> np.ndarray:
    return load_file(served.service.songs_folder(id) / edited.LATENTS)["latents"]


def test_a_span_is_made_anew_and_no_other_frame(
    served: Served, first: dict[str, Any], micro: Path
) -> None:
    [model] = served.client.get("/v1/models").json()["data"]
    assert model["edits"] is True
    job = served.ended(served.song(edit=first["id"], loudness=None, **REPAINT)["id"])
    assert job["status"] == "completed", job
    before, after = latents(served, first["id"]), latents(served, job["id"])
    places = np.flatnonzero((before != after).any(axis=1)) + 0.5
    rate = len(before) / SONG["seconds"]
    assert len(places) > 1.8 * rate and (places >= 3 * rate).all() and (places < 5 * rate).all()
    # the song that the pipeline makes of the same files
    sidecar = served.service.songs_folder(first["id"]) / "song.json"
    pipeline = SongPipeline.from_pretrained(micro, device="cpu")
    [own] = pipeline.generate([SongRequest(edit=sidecar, **REPAINT)])
    assert np.array_equal(own.latents, after)
    content = served.client.get(f"/v1/songs/{job['id']}/content").content
    samples, _ = soundfile.read(io.BytesIO(content))
    assert np.abs(samples - own.audio[0]).max() < 1e-3
    assert job["request"]["lyrics"] == SONG["lyrics"], "what was not given anew is kept"


def test_other_words_and_an_edit_of_an_edit(served: Served, first: dict[str, Any]) -> None:
    words = "[verse]\n太阳落下去"
    second = served.ended(served.song(edit=first["id"], lyrics=words, **REPAINT)["id"])
    third = served.ended(served.song(edit=second["id"], extend=3.0, seed=2)["id"])
    assert second["request"]["lyrics"] == third["request"]["lyrics"] == words
    assert third["result"]["seconds"] == pytest.approx(11)
    sidecar = served.client.get(f"/v1/songs/{third['id']}/sidecar").json()
    assert sidecar["edited"] == {"file": second["id"], "kept_latents": True, "plan_seed": 4}


def test_nothing_names_a_file_of_the_server(served: Served, first: dict[str, Any]) -> None:
    job = served.ended(served.song(edit=first["id"], **REPAINT)["id"])
    assert job["request"]["edit"] == first["id"] and job["request"]["repaint"] == "3-5"
    told = [served.client.get(f"/v1/songs/{job['id']}{end}").text for end in ("", "/sidecar")]
    too_long = served.client.post("/v1/songs", json={"edit": first["id"], "repaint": "3-50"})
    assert too_long.status_code == 400 and "is 8 s long" in too_long.text
    for text in (*told, too_long.text):
        assert str(served.service.folder) not in text and "edited.json" not in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"edit": "/etc/passwd", "repaint": "1-2"}, "edit"),
        ({"edit": "../song.json", "repaint": "1-2"}, "edit"),
        ({"edit": "song.wav", "repaint": "1-2"}, "edit"),
        ({"edit": f"song-{'0' * 24}", "repaint": "1-2"}, "there is no song"),
        ({"description": "x", "repaint": "1-2"}, "name it with edit"),
        ({"description": "x", "extend": 3.0}, "name it with edit"),
    ],
    ids=["path", "traversal", "file", "unknown", "repaint", "extend"],
)
def test_what_is_no_song_is_refused(served: Served, fields: dict[str, Any], said: str) -> None:
    for path in ("/v1/songs", "/v1/understand", "/v1/audio/generate"):
        answer = served.client.post(path, json=fields)
        assert answer.status_code == 400 and said in answer.text, (path, answer.text)


def test_a_song_that_is_not_finished_cannot_be_changed(served: Served) -> None:
    open_ = served.song(description="x", seconds=20, steps=1000)
    answer = served.client.post("/v1/songs", json={"edit": open_["id"], "repaint": "1-2"})
    assert answer.status_code == 400 and "finished ones can be changed" in answer.text
    served.client.delete(f"/v1/songs/{open_['id']}")


def test_the_song_of_another_key_cannot_be_changed(micro: Path, tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("alpha", "beta")}
    file = tmp_path / "keys.txt"
    file.write_text("".join(f"{name} {hash_key(key)}\n" for name, key in keys.items()))
    heads = {name: {"Authorization": f"Bearer {key}"} for name, key in keys.items()}
    with serving(
        lambda: Engine.open(micro, runtime="torch"), tmp_path / "songs", keys=Keys.load(file)
    ) as one:
        one.client.headers.update(heads["alpha"])
        id = one.ended(one.song(**SONG)["id"])["id"]
        answer = one.client.post("/v1/songs", json={"edit": id, **REPAINT}, headers=heads["beta"])
        assert answer.status_code == 400 and "there is no song" in answer.text
        assert one.song(edit=id, **REPAINT)["status"] == "queued"


def test_the_earlier_song_may_be_deleted_and_the_service_restarted(
    micro: Path, tmp_path: Path
) -> None:
    def again() -> Any:
        return serving(lambda: Engine.open(micro, runtime="torch"), tmp_path / "songs")

    with again() as one:
        id = one.ended(one.song(**SONG)["id"])["id"]
        before = latents(one, id)
        job = one.song(edit=id, steps=1000, **REPAINT)
        assert one.client.delete(f"/v1/songs/{id}").json()["deleted"]
    with again() as one:
        shown = one.client.get(f"/v1/songs/{job['id']}").json()
        assert shown["status"] in ("queued", "in_progress"), "it goes on after the restart"
        lines = one.client.get(f"/v1/songs/{job['id']}/understood").json()
        assert lines["seconds"] == 8 and lines["sections"][0]["lines"][0]["text"] == "月亮升起来"
        one.client.delete(f"/v1/songs/{job['id']}")
        short = one.service.songs_folder(job["id"])
        assert load_file(short / edited.KEPT)["latents"].shape == before.shape
