"""LoRAs of the service: songs ask for one by its name, and each is the song that the pipeline makes
with that LoRA alone, whatever else is in the queue.
"""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mudit_engine.errors import InputError, ModelError
from mudit_engine.models.lora import PARTS, LoraSpec, lora_config, save_lora
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest
from mudit_engine.runtime.cost import StepCost
from mudit_engine.runtime.ticket import StepRecord
from mudit_engine.serving.engine import Engine
from served import Served, serving

SONG: dict[str, Any] = {"description": "calm piano", "seconds": 4, "steps": 40}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> list[LoraSpec]:
    specs = []
    for number, (name, scale) in enumerate({"rock": 1.0, "opera": 0.5}.items()):
        torch.manual_seed(number)
        state = {
            "blocks.0.qkv.lora_A.default.weight": torch.randn(4, 64) * 0.3,
            "blocks.0.qkv.lora_B.default.weight": torch.randn(192, 4) * 0.3,
        }
        folder = tmp_path_factory.mktemp("loras") / name
        config = lora_config(rank=4, alpha=4, dropout=0.0, parts=PARTS)
        save_lora(folder, state, config, base="micro")
        specs.append(LoraSpec(folder, scale))
    return specs


@pytest.fixture(scope="module")
def served(
    micro: Path, loras: list[LoraSpec], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    def engine() -> Engine:
        return Engine.open(micro, device="cpu", loras=loras)

    with serving(engine, tmp_path_factory.mktemp("service")) as one:
        yield one


def samples(data: bytes) -> np.ndarray:
    return np.asarray(soundfile.read(io.BytesIO(data), dtype="int16")[0])


def test_mixed_songs_are_those_of_their_loras(
    served: Served, micro: Path, loras: list[LoraSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = served.service.engine.batcher
    records: list[tuple[str | None, StepRecord]] = []
    before, everyone = batcher.on_step, threading.Event()

    def on_step(record: StepRecord) -> None:
        """The first song waits for the others, however fast it is: there are two of each."""
        everyone.wait(60)
        records.append((batcher._adapter, record))
        before(record)

    # what a step is found to cost depends on the machine's load, and with it who shares one
    monkeypatch.setattr(batcher, "cost", StepCost(10.0, 1e-4))
    monkeypatch.setattr(batcher.cost, "fit", lambda: None)
    monkeypatch.setattr(batcher, "on_step", on_step)
    wanted = [(None, 1), ("rock", 1), ("opera", 1), ("rock", 2), (None, 2), ("opera", 2)]
    jobs = [
        served.song(**SONG, seed=seed, loudness=None, **({"lora": name} if name else {}))
        for name, seed in wanted
    ]
    while batcher.counts()["reading"]:
        time.sleep(0.005)
    everyone.set()
    sounds = []
    for job in jobs:
        assert served.ended(job["id"])["status"] == "completed"
        sounds.append(samples(served.client.get(f"/v1/songs/{job['id']}/content").content))
    assert max(record.songs for _, record in records) == 2, "songs of one LoRA share steps"
    swaps = sum(a[0] != b[0] for a, b in itertools.pairwise(records))
    assert swaps < len(records) / 2, "the weights are not swapped at every step"

    pipeline = SongPipeline.from_pretrained(micro, device="cpu")
    by_name = {spec.folder.name: spec for spec in loras}
    own = {}
    for name, seed in wanted:
        pipeline.set_loras([by_name[name]] if name else [])
        request = SongRequest("calm piano", seconds=4, seed=seed, sampler={"steps": 40})
        [song] = pipeline.generate([request])
        own[name, seed] = (song.audio[0] * 32768).round().clip(-32768, 32767).astype(np.int16)
    for (name, seed), sound in zip(wanted, sounds, strict=True):
        assert np.array_equal(sound, own[name, seed]), (name, seed)
    assert not np.array_equal(own[None, 1], own["rock", 1]), "the LoRA can be heard"
    sidecar = served.client.get(f"/v1/songs/{jobs[2]['id']}/sidecar").json()
    assert sidecar["loras"] == [{"name": "opera", "scale": 0.5}]
    assert served.client.get(f"/v1/songs/{jobs[2]['id']}").json()["request"]["lora"] == "opera"


def test_only_loaded_names_are_taken(served: Served, loras: list[LoraSpec]) -> None:
    assert served.client.get("/v1/models").json()["data"][0]["loras"] == ["opera", "rock"]
    for name in ("jazz", str(loras[0].folder), "../rock", "rock:0.5", ""):
        for path in ("/v1/songs", "/v1/audio/generate"):
            answer = served.client.post(path, json={**SONG, "lora": name})
            assert answer.status_code == 400, (name, answer.text)
            assert "loaded are opera, rock" in answer.json()["error"]["message"]
    assert served.client.get("/v1/songs?status=queued").json()["data"] == []
    speech = served.client.post(
        "/v1/audio/speech", json={"input": "[verse]\nmoon light", "lora": "jazz"}
    )
    assert speech.status_code == 400


def test_wrong_loras_are_refused_at_the_start(
    micro: Path, loras: list[LoraSpec], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="two LoRAs are named 'rock'"):
        Engine.open(micro, device="cpu", loras=[loras[0], loras[0]])
    state = {
        "blocks.0.qkv.lora_A.default.weight": torch.randn(4, 32),
        "blocks.0.qkv.lora_B.default.weight": torch.randn(96, 4),
    }
    config = lora_config(rank=4, alpha=4, dropout=0.0, parts=PARTS)
    save_lora(tmp_path / "other", state, config, base="other")
    with pytest.raises(ModelError, match="made for another model"):
        Engine.open(micro, device="cpu", loras=[LoraSpec(tmp_path / "other")])


def test_a_song_whose_lora_is_gone_after_a_restart_fails_and_says_why(
    micro: Path, loras: list[LoraSpec], tmp_path: Path
) -> None:
    with serving(lambda: Engine.open(micro, device="cpu", loras=loras), tmp_path) as first:
        job = first.song(**{**SONG, "steps": 1000, "seconds": 20}, lora="rock")
    with serving(lambda: Engine.open(micro, device="cpu"), tmp_path) as second:
        found = second.ended(job["id"])
    assert found["status"] == "failed" and "lora 'rock' is unknown" in found["error"]
