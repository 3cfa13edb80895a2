"""The model repository: configurations the server's own schema reads, and models that answer as the
pipeline does. (tests/serving/test_triton_server.py runs them in a real server.)
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mudit_engine.cli.main import run
from mudit_engine.errors import InputError
from mudit_engine.export.manifest import new_manifest, write_manifest
from mudit_engine.export.model_repository import (
    INSIDE,
    RepositoryOptions,
    _schema,
    config_faults,
    write_repository,
)
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.serving.triton_backend import device_of

REQUESTS: list[dict[str, Any]] = [
    {"description": "slow piano", "lyrics": "(verse)\n你好世界", "seconds": 3.0, "seed": 5},
    {
        "description": "rock",
        "seconds": 1.5,
        "seed": 6,
        "negative": "noise",
        "sampler": {"name": "sde-euler", "steps": 4},
    },
]


@pytest.fixture(scope="module")
def deployment(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(model, tmp_path_factory.mktemp("triton") / "deploy")
    write_manifest(folder, new_manifest(folder, {}))
    return folder


@pytest.fixture(scope="module")
def repository(deployment: Path) -> Path:
    return write_repository(deployment, deployment.with_name("repo"))


class Error:
    """The server's error type."""

    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = "INTERNAL", "INVALID_ARG", "BUSY", "CANCELLED"

    def __init__(self, message: str, code: str = "INTERNAL") -> None:
        self.message, self.code = message, code


class Sender:
    """What a decoupled model answers with."""

    def __init__(self) -> None:
        self.responses: list[Any] = []
        self.done, self.gone = threading.Event(), False

    def send(self, response: Any, flags: int = 0) -> None:
        self.responses.append(response)
        if flags:
            self.done.set()

    def is_cancelled(self) -> bool:
        return self.gone


class Server:
    """The model mudit_song of a repository, loaded and called as the server does."""

    def __init__(self, repository: Path) -> None:
        folder = repository / "models" / "mudit_song"
        scope: dict[str, Any] = {}
        exec((folder / "1" / "model.py").read_text(), scope)
        self.model = scope["TritonPythonModel"]()
        config = parse((folder / "config.pbtxt").read_text())
        parameters = {
            name: {"string_value": one.string_value} for name, one in config.parameters.items()
        }
        arguments = {
            "model_config": json.dumps({"parameters": parameters}),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": "CPU",
        }
        self.model.initialize(arguments)

    def ask(self, *texts: bytes, gathered: bool = False) -> list[Sender]:
        senders = [Sender() for _ in texts]

        def request(text: bytes, sender: Sender) -> Any:
            value = np.array([text], dtype=np.object_)
            return SimpleNamespace(
                get_response_sender=lambda: sender,
                parameters=lambda: json.dumps({"gathered": gathered}),
                REQUEST=SimpleNamespace(as_numpy=lambda: value),
            )

        self.model.execute([request(*pair) for pair in zip(texts, senders, strict=True)])
        return senders

    def answers(self, *texts: bytes, gathered: bool = False) -> list[list[Any]]:
        senders = self.ask(*texts, gathered=gathered)
        for sender in senders:
            assert sender.done.wait(60)
        return [sender.responses for sender in senders]


def parse(text: str) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(text, _schema().ModelConfig())


@pytest.fixture(scope="module")
def server(repository: Path) -> Any:
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor = lambda name, value: (name, value)
    utils.TritonError = Error
    utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    utils.InferenceResponse = lambda tensors=(), error=None: SimpleNamespace(
        error=error, **dict(tensors)
    )
    utils.get_input_tensor_by_name = lambda request, name: getattr(request, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", utils)
        one = Server(repository)
        yield one
        one.model.finalize()


def _events(responses: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(one.EVENT[0]) for one in responses]


def test_the_servers_schema_reads_every_configuration(repository: Path) -> None:
    found = {
        path.parent.name: parse(path.read_text())
        for path in (repository / "models").rglob("config.pbtxt")
    }
    assert set(found) == {"mudit_song", "mudit_whole"}
    for name, config in found.items():
        assert config.name == name and config.backend == "python" and config.max_batch_size == 0
    assert found["mudit_song"].model_transaction_policy.decoupled
    assert not found["mudit_whole"].model_transaction_policy.decoupled
    assert found["mudit_whole"].instance_group[0].count == 8


def test_everything_lies_inside_the_models(repository: Path, deployment: Path) -> None:
    """An object store serves REPO/models and nothing beside it."""
    assert [path.name for path in repository.iterdir()] == ["models"]
    inside = {path.name for path in (repository / INSIDE).iterdir()}
    assert inside == {path.name for path in deployment.iterdir()}


def test_a_configuration_that_the_schema_refuses_is_a_fault() -> None:
    assert config_faults('name: "a" max_batch_size: 4') is None
    assert "no field" in str(config_faults('name: "a" batches: 4'))


def test_an_instance_takes_the_gpu_that_it_was_given() -> None:
    assert device_of({"model_instance_kind": "CPU", "model_instance_device_id": "0"}) is None
    assert device_of({"model_instance_kind": "GPU", "model_instance_device_id": "3"}) == 3


def test_the_model_makes_what_the_pipeline_makes(
    server: Server, deployment: Path, tmp_path: Path
) -> None:
    sound = tmp_path / "reference.wav"
    soundfile.write(sound, np.random.default_rng(0).normal(0, 0.1, 8000), 8000)
    with_reference = {"description": "drums", "seconds": 2.0, "seed": 7, "reference_kind": "drums"}
    requests = [
        *REQUESTS,
        {**with_reference, "reference": base64.b64encode(sound.read_bytes()).decode()},
    ]
    found = server.answers(*(json.dumps(one).encode() for one in requests))
    pipeline = SongPipeline.from_pretrained(deployment)
    wanted = pipeline.generate(
        [SongRequest(**one) for one in REQUESTS] + [SongRequest(**with_reference, reference=sound)]
    )
    for responses, expected, seed in zip(found, wanted, (5, 6, 7), strict=True):
        events = _events(responses)
        assert events[-1]["stage"] == "completed" and events[-1]["seed"] == seed
        steps = [one["step"] for one in events if one["stage"] == "denoising"]
        assert steps == list(range(1, events[-1]["steps"] + 1))
        audio = np.concatenate([one.AUDIO for one in responses], axis=1)
        assert audio.dtype == np.int16 and audio.shape == expected.audio.shape
        assert np.abs(audio / 32767 - expected.audio).max() < 1e-3
        assert responses[-1].SAMPLE_RATE.tolist() == [8000]


@pytest.mark.parametrize("gathered", [False, True], ids=["stream", "gathered"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is no JSON"),
        (b"[]", "holds a list"),
        (b'{"description": "a", "tempo": 3}', r"field\(s\) tempo"),
        (b'{"description": ""}', "request is empty"),
        (b'{"description": "a", "seconds": "long"}', "wrong type"),
        (b'{"description": "a", "reference": "%%"}', "no base64"),
        (b'{"description": "a", "melody_file": "/etc/passwd"}', r"field\(s\) melody_file"),
        (b'{"edit": "/srv/other.wav", "extend": 3}', r"field\(s\) edit, extend"),
    ],
    ids=["json", "list", "unknown", "empty", "type", "base64", "file", "edit"],
)
def test_a_bad_request_is_one_bad_answer(
    server: Server, text: bytes, message: str, gathered: bool
) -> None:
    good = json.dumps(REQUESTS[1]).encode()
    bad, fine = server.answers(text, good, gathered=gathered)
    assert len(bad) == 1 and _events(fine)[-1]["stage"] == "completed"
    if gathered:
        [told] = _events(bad)
        assert re.search(message, told["error"]) and told["code"] == "INVALID_ARG"
    else:
        assert re.search(message, bad[0].error.message) and bad[0].error.code == "INVALID_ARG"


def test_a_song_that_breaks_takes_no_other_with_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = server.model.engine.pipeline.reader
    inputs = reader.inputs

    def broken(understood: Any) -> Any:
        song = inputs(understood)
        if understood.seed == 13:
            nothing = torch.full_like(song.descriptions, float("nan"))
            song = dataclasses.replace(song, descriptions=nothing)
        return song

    monkeypatch.setattr(reader, "inputs", broken)
    texts = [json.dumps({**REQUESTS[0], "seed": seed}).encode() for seed in (13, 14)]
    bad, good = server.answers(*texts)
    assert "NaN" in bad[-1].error.message and bad[-1].error.code == "INTERNAL"
    assert _events(good)[-1]["stage"] == "completed"


def test_a_client_that_cancels_stops_its_song(server: Server) -> None:
    long = {"description": "a", "seconds": 15, "seed": 1, "sampler": {"steps": 1000}}
    [sender] = server.ask(json.dumps(long).encode())
    while len(sender.responses) < 5:
        assert not sender.done.wait(0.01)
    sender.gone = True
    assert sender.done.wait(120)
    assert sender.responses[-1].error.code == "CANCELLED" and len(sender.responses) < 900
    assert not any(server.model.engine.batcher.counts().values())


def test_the_command(deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "export",
                "triton-server",
                str(deployment),
                str(tmp_path / "repo"),
                "--max-waiting",
                "3",
                "--json",
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)["results"]
    assert report["models"] == ["mudit_song", "mudit_whole"] and report["schema_checked"]
    assert (
        run(
            [
                "export",
                "triton-server",
                str(deployment),
                str(tmp_path / "repo"),
                "--max-waiting",
                "4",
            ]
        )
        == 0
    ), "written again"
    assert (
        'string_value: "4"'
        in (tmp_path / "repo" / "models" / "mudit_song" / "config.pbtxt").read_text()
    )
    assert (
        run(
            [
                "export",
                "triton-server",
                str(deployment),
                str(tmp_path / "other"),
                "--runtime",
                "tensorrt",
            ]
        )
        == 2
    )
    assert (
        run(
            [
                "export",
                "triton-server",
                str(deployment),
                str(tmp_path / "other"),
                "--runtime",
                "onnxruntime",
            ]
        )
        == 2
    )
    assert "fp32 graphs" in capsys.readouterr().err and not (tmp_path / "other").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(InputError, match="not a repository"):
        write_repository(deployment, tmp_path / "mine")
    with pytest.raises(InputError, match="has no engines"):
        write_repository(
            deployment, tmp_path / "other", options=RepositoryOptions("tensorrt", gpu=True)
        )
    assert (tmp_path / "mine" / "file").exists()
