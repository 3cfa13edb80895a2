"""The model repository: configurations the server's own schema reads, and the stages answer as the
pipeline does.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from mudit_engine.cli.main import run
from mudit_engine.errors import InputError
from mudit_engine.export.manifest import new_manifest, write_manifest
from mudit_engine.export.model_repository import (
    RepositoryOptions,
    _schema,
    config_faults,
    write_repository,
)
from mudit_engine.pipeline import SongPipeline, SongRequest
from mudit_engine.serving import triton_backend

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


class Stage:
    """A model of the repository, loaded and called as the server does."""

    def __init__(self, repository: Path, name: str) -> None:
        scope: dict[str, Any] = {}
        exec((repository / "models" / name / "1" / "model.py").read_text(), scope)
        self.model = scope["TritonPythonModel"]()
        text = (repository / "models" / name / "config.pbtxt").read_text()
        parameters = {"runtime": {"string_value": parse(text).parameters["runtime"].string_value}}
        arguments = {
            "model_config": json.dumps({"parameters": parameters}),
            "model_repository": str(repository / "models" / name),
        }
        self.model.initialize(arguments)

    def __call__(self, *requests: dict[str, np.ndarray]) -> list[Any]:
        given = [
            {
                name: SimpleNamespace(as_numpy=lambda value=value: value)
                for name, value in request.items()
            }
            for request in requests
        ]
        answers: list[Any] = self.model.execute(given)
        return answers


def parse(text: str) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(text, _schema().ModelConfig())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor = lambda name, value: (name, value)
    utils.TritonError = lambda message: message
    utils.InferenceResponse = lambda tensors=(), error=None: SimpleNamespace(
        error=error, **dict(tensors)
    )
    utils.get_input_tensor_by_name = lambda request, name: request[name]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)


def string(data: bytes) -> np.ndarray:
    return np.array([[data]], dtype=np.object_)


def test_the_servers_schema_reads_every_configuration(repository: Path) -> None:
    found = {
        path.parent.name: parse(path.read_text())
        for path in (repository / "models").rglob("config.pbtxt")
    }
    assert set(found) == {"mudit_text", "mudit_denoise", "mudit_decode", "mudit_song"}
    for name, config in found.items():
        assert config.name == name and config.max_batch_size == 8
    denoise = found["mudit_denoise"]
    assert (
        denoise.backend == "python"
        and denoise.dynamic_batching.max_queue_delay_microseconds == 20_000
    )
    assert found["mudit_decode"].input[0].allow_ragged_batch, (
        "songs of different lengths wait together"
    )
    steps = found["mudit_song"].ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["mudit_text", "mudit_denoise", "mudit_decode"]
    known = {port.name for port in found["mudit_song"].input}
    # every tensor of the ensemble comes from somewhere, and is a port of its model
    for step in steps:
        model = found[step.model_name]
        assert (
            set(step.input_map) == {port.name for port in model.input}
            and set(step.input_map.values()) <= known
        )
        assert set(step.output_map) == {port.name for port in model.output}
        known |= set(step.output_map.values())
    assert {port.name for port in found["mudit_song"].output} <= known


def test_a_configuration_that_the_schema_refuses_is_a_fault() -> None:
    assert config_faults('name: "a" max_batch_size: 4') is None
    assert "no field" in str(config_faults('name: "a" batches: 4'))


def test_warm_up_files_are_as_long_as_their_inputs(repository: Path) -> None:
    for path in (repository / "models").rglob("config.pbtxt"):
        for warm in parse(path.read_text()).model_warmup:
            for sample in warm.inputs.values():
                data = (path.parent / "warmup" / sample.input_data_file).read_bytes()
                if sample.data_type == _schema().DataType.Value("TYPE_STRING"):
                    assert struct.unpack("<I", data[:4])[0] == len(data) - 4
                else:
                    assert len(data) == 4 * int(np.prod(sample.dims))


def test_the_stages_make_what_the_pipeline_makes(
    repository: Path, deployment: Path, server: None, tmp_path: Path
) -> None:
    sound = tmp_path / "reference.wav"
    soundfile.write(sound, np.random.default_rng(0).normal(0, 0.1, 8000), 8000)
    with_reference = {"description": "drums", "seconds": 2.0, "seed": 7, "reference_kind": "drums"}
    requests = [
        *REQUESTS,
        {**with_reference, "reference": base64.b64encode(sound.read_bytes()).decode()},
    ]
    texts = Stage(repository, "mudit_text")(
        *({"REQUEST": string(json.dumps(one).encode())} for one in requests)
    )
    assert [text.error for text in texts] == [None] * 3
    assert [json.loads(text.INFO[0, 0])["seed"] for text in texts] == [5, 6, 7]
    latents = Stage(repository, "mudit_denoise")(*({"SONG": text.SONG} for text in texts))
    stage = Stage(repository, "mudit_decode")
    songs = stage(
        *(
            {"LATENTS": one.LATENTS, "SECONDS": text.SECONDS}
            for one, text in zip(latents, texts, strict=True)
        )
    )
    pipeline = SongPipeline.from_pretrained(deployment)
    wanted = pipeline.generate(
        [SongRequest(**one) for one in REQUESTS] + [SongRequest(**with_reference, reference=sound)]
    )
    for song, expected in zip(songs, wanted, strict=True):
        assert song.AUDIO.dtype == np.int16 and song.AUDIO.shape == (1, *expected.audio.shape)
        assert np.abs(song.AUDIO[0] / 32767 - expected.audio).max() < 1e-3
        assert song.SAMPLE_RATE.tolist() == [[8000]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is no JSON"),
        (b"[]", "holds a list"),
        (b'{"description": "a", "tempo": 3}', r"field\(s\) tempo"),
        (b'{"description": ""}', "request is empty"),
        (b'{"description": "a", "seconds": "long"}', "wrong type"),
        (b'{"description": "a", "reference": "%%"}', "no base64"),
    ],
    ids=["json", "list", "unknown", "empty", "type", "base64"],
)
def test_a_bad_request_is_one_bad_answer(
    repository: Path, server: None, text: bytes, message: str
) -> None:
    good = {"REQUEST": string(json.dumps(REQUESTS[1]).encode())}
    answers = Stage(repository, "mudit_text")({"REQUEST": string(text)}, good)
    assert re.search(message, answers[0].error) and answers[1].error is None


def test_a_song_that_breaks_takes_no_other_with_it(repository: Path, server: None) -> None:
    good = Stage(repository, "mudit_text")({"REQUEST": string(json.dumps(REQUESTS[1]).encode())})[
        0
    ].SONG
    song = triton_backend.unpack_song(bytes(good[0, 0]))
    assert song.texts and len(song.texts) == len(song.descriptions), (
        "a runtime that reads text needs it"
    )
    song.descriptions.fill_(float("nan"))
    broken = string(triton_backend.pack_song(song))
    answers = Stage(repository, "mudit_denoise")(
        {"SONG": broken}, {"SONG": good}, {"SONG": string(b"junk")}
    )
    assert (
        "NaN" in answers[0].error
        and answers[1].error is None
        and "cannot be read" in answers[2].error
    )
    assert np.isfinite(answers[1].LATENTS).all()
    two = np.concatenate([good, good])
    assert "one song a request" in Stage(repository, "mudit_denoise")({"SONG": two})[0].error


def test_the_command(deployment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "export",
                "triton-server",
                str(deployment),
                str(tmp_path / "repo"),
                "--max-batch",
                "3",
                "--json",
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)["results"]
    assert (
        report["models"] == ["mudit_decode", "mudit_denoise", "mudit_song", "mudit_text"]
        and report["schema_checked"]
    )
    assert (
        run(
            ["export", "triton-server", str(deployment), str(tmp_path / "repo"), "--max-batch", "4"]
        )
        == 0
    ), "written again"
    assert (
        "max_batch_size: 4"
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
