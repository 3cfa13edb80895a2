"""A service whose songs the model's few-step student makes: it says so, and no song is half the
student's and half the model's.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import pytest

from micro_model import STUDENT, save_micro, save_student
from mudit_engine.config import load_config
from mudit_engine.models.fewstep import student_of
from mudit_engine.request import SongRequest
from mudit_engine.serving.app import ServiceOptions
from mudit_engine.serving.dispatch import RemoteEngine
from mudit_engine.serving.engine import Engine
from mudit_engine.serving.ray_songs import SongMaker
from mudit_engine.serving.replicas import SongDenoiser
from served import serving


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = save_micro(tmp_path / "model")
    save_student(folder)
    return folder


def test_the_service_makes_all_songs_with_it(model: Path, tmp_path: Path) -> None:
    song = {"description": "slow piano", "seconds": 2, "seed": 3, "loudness": None}
    with serving(lambda: Engine.open(model, device="cpu", fast=True), tmp_path / "a") as one:
        [entry] = one.client.get("/v1/models").json()["data"]
        assert entry["fast"] is True and entry["sampler"] == STUDENT.model_dump(mode="json")
        job = one.song(**song)
        assert one.ended(job["id"])["status"] == "completed"
        sidecar = one.client.get(f"/v1/songs/{job['id']}/sidecar").json()
    assert sidecar["fast"] == student_of(model).record and sidecar["sampler"]["steps"] == 4
    with serving(lambda: Engine.open(model, device="cpu"), tmp_path / "b") as other:
        assert other.client.get("/v1/models").json()["data"][0]["fast"] is False


def test_replicas_and_workers_make_songs_with_it(model: Path) -> None:
    student, nobody = student_of(model), cast(Any, None)
    denoiser = SongDenoiser(str(model), runtime="torch", device="cpu", fast=True)
    try:
        about = asyncio.run(denoiser.about())
    finally:
        denoiser.engine.close()
    engine = RemoteEngine(student.configured(load_config(model)), about, nobody)
    understood = engine.read(SongRequest("piano", seconds=2, seed=1, sampler={"steps": 9}))
    assert engine.fast and any("few-step student" in note for note in understood.notes)
    assert engine.info(understood, {})["fast"] == student.record
    assert not RemoteEngine(engine.config, {**about, "fast": None}, nobody).fast
    assert SongMaker(str(model), fast=True).open().student == student


def test_a_song_that_was_begun_in_other_steps_is_made_anew(model: Path, tmp_path: Path) -> None:
    song = {"description": "slow piano", "seconds": 8, "seed": 3, "loudness": None, "steps": 400}
    often = ServiceOptions(save_every=0.02)
    with serving(lambda: Engine.open(model, device="cpu"), tmp_path, options=often) as first:
        job = first.song(**song)
        while first.client.get(f"/v1/songs/{job['id']}").json()["step"] < 40:
            time.sleep(0.01)
    progress = tmp_path / "songs" / job["id"] / "progress.safetensors"
    assert progress.is_file()
    with serving(lambda: Engine.open(model, device="cpu", fast=True), tmp_path) as second:
        assert second.ended(job["id"])["status"] == "completed"
        anew = second.client.get(f"/v1/songs/{job['id']}/content").content
        again = second.song(**song)
        second.ended(again["id"])
        assert second.client.get(f"/v1/songs/{again['id']}/content").content == anew
