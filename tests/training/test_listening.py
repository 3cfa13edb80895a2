"""Songs while a run trains: one process at a time, of checkpoints that are on the disk; its failure
is told and ends nothing.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mudit_engine.audio import save_audio, save_spectrogram
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.training import listening
from mudit_engine.training.listening import Listener, wanted_songs
from mudit_engine.training.log_services import Mlflow, Wandb
from mudit_engine.training.recipe import SongsConfig, load_recipe
from mudit_engine.training.runlog import RunLog
from mudit_engine.training.trainer import Trainer
from small_audio import vae_recipe
from small_songs import small_recipe, write_songs
from tunes import own_songs


def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Listener:
    """One whose process runs `body` with RUN and STEP."""
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nRUN="$3"; STEP=$(printf %08d "$4")\n{body}\n')
    program.chmod(0o755)
    monkeypatch.setattr(listening.sys, "executable", str(program))
    recipe = small_recipe(tmp_path, checkpoint__every=2, songs__every=4)
    return Listener(recipe, tmp_path)


def test_songs_are_told_when_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ready = tmp_path / "ready"
    body = f'while [ ! -e {ready} ]; do sleep 0.05; done; D="$RUN/songs/step-$STEP"; '
    body += 'mkdir -p "$D"; touch "$D/1.ogg" "$D/1.png"; env > "$D/env"'
    monkeypatch.setenv("RANK", "0")
    songs = listener(tmp_path, monkeypatch, body)
    songs.saved(0)
    songs.saved(2)
    assert songs._process is None, "not due"
    songs.saved(4)
    assert not list(songs.made())
    songs.saved(8)
    with caplog.at_level(logging.INFO):
        songs.saved(12)
    assert "songs of step 8 are left out" in caplog.text
    ready.touch()
    told = list(songs.made(wait=20))
    assert [step for step, _ in told] == [4, 12], "the newest that came due meanwhile is next"
    assert all([file.name for file in files] == ["1.ogg"] for _, files in told)
    environment = (told[0][1][0].parent / "env").read_text().splitlines()
    assert "CUDA_VISIBLE_DEVICES=" in environment
    assert not any(line.startswith("RANK=") for line in environment)
    assert not list(songs.made()), "told once"


def test_a_failure_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    songs = listener(tmp_path, monkeypatch, "echo no voice today >&2; exit 3")
    songs.saved(4)
    assert not list(songs.made(wait=20))
    assert "the songs of step 4 were not made (exit 3)" in caplog.text
    assert (tmp_path / "songs" / "songs.log").read_text() == "no voice today\n"


def test_a_run_that_ends_takes_the_process_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = listener(tmp_path, monkeypatch, "exec sleep 600")
    songs.saved(4)
    process = songs._process
    started = time.monotonic()
    songs.close()
    assert time.monotonic() - started < 10
    assert process is not None and process.returncode is not None and songs._process is None


def test_what_the_recipe_takes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a multiple of checkpoint.every=4"):
        small_recipe(tmp_path, checkpoint__every=4, songs__every=6)
    with pytest.raises(ConfigError, match="for the dit tasks"):
        vae_recipe(tmp_path, **{"songs.every": 500})
    wrong = SongsConfig(every=4, requests=({"description": "rock"}, {"sekonds": 3}))
    with pytest.raises(InputError, match=r"songs.requests 2: unknown field\(s\) sekonds"):
        wanted_songs(wrong)


def test_a_request_that_cannot_be_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    songs = {"every": 4, "requests": [{"description": "rock", "bpm": -3}]}
    recipe = small_recipe(write_songs(tmp_path / "data"), checkpoint__every=4, songs=songs)
    with pytest.raises(InputError, match="bpm"):
        Trainer(recipe, tmp_path / "run", quiet=True)


def made_song(folder: Path) -> Path:
    file = folder / "1.ogg"
    tone = torch.sin(torch.arange(22050) / 8).view(1, -1) * 0.5
    save_audio(file, tone, 22050)
    save_spectrogram(file.with_suffix(".png"), tone, 22050)
    return file


def test_audio_and_spectrogram_are_in_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file, recipe = made_song(tmp_path), small_recipe(tmp_path, log__tensorboard=True)
    with RunLog(tmp_path, recipe, start_step=0, quiet=True) as log:
        log.made(7, [file])
    events = accumulator.EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"audio": 0, "images": 0}
    ).Reload()
    (audio,), (picture,) = events.Audio("songs/1"), events.Images("songs/1/spectrum")
    assert audio.step == picture.step == 7 and audio.sample_rate == 22050
    assert audio.length_frames == pytest.approx(22050, rel=0.05)
    assert picture.width > picture.height > 100 and picture.encoded_image_string[1:4] == b"PNG"


def test_services_get_songs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    run = SimpleNamespace(id="r", log=lambda figures: told.append(figures))
    wandb = SimpleNamespace(
        init=lambda **_: run,
        Audio=lambda path, caption: ("audio", path, caption),
        Image=lambda path, caption: ("image", path, caption),
    )
    mlflow = SimpleNamespace(
        set_experiment=lambda name: None,
        start_run=lambda **_: SimpleNamespace(info=SimpleNamespace(run_id="m")),
        log_dict=lambda fields, name: None,
        log_artifact=lambda path, artifact_path: told.append((path, artifact_path)),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr("mudit_engine.training.log_services.require", lambda *_: None)
    recipe, file = small_recipe(tmp_path), tmp_path / "1.ogg"
    Wandb(tmp_path, recipe, "p").songs([file], 500)
    Mlflow(tmp_path, recipe, "e").songs([file], 500)
    picture = str(file.with_suffix(".png"))
    assert told[0] == {
        "songs/of_step": 500,
        "songs/1": ("audio", str(file), "step 500"),
        "songs/1/spectrum": ("image", picture, "step 500"),
    }
    assert told[1:] == [(path, "songs/step-00000500") for path in (str(file), picture)]


@pytest.mark.slow
def test_a_run_makes_songs_beside_its_steps(tmp_path: Path) -> None:
    """The embedded model, fine-tuned for a moment: the last songs are waited for."""
    from mudit_engine.training.dataset.encode import encode_latents
    from mudit_engine.training.dataset.sources import open_source

    encode_latents(open_source(own_songs(tmp_path / "songs", 2)), tmp_path / "data", model="tiny")
    requests = [{"description": "rock", "seconds": 2, "sampler": {"steps": 2}}]
    fields = {
        "data.folder": str(tmp_path / "data"),
        "init": "tiny",
        "device": "cpu",
        "steps": 2,
        "schedule.warmup": 1,
        "checkpoint.every": 1,
        "log.validate_every": 0,
        "songs": {"every": 2, "requests": requests},
    }
    overrides = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    Trainer(load_recipe("tiny-dit-finetune", overrides=overrides), tmp_path / "run").run()
    place = tmp_path / "run/songs/step-00000002"
    assert (place / "1.ogg").stat().st_size > 1000 and (place / "1.png").is_file()
    assert json.loads((place / "1.json").read_text())["file"] == "1.ogg"
    assert "step 2: 1 songs in" in (tmp_path / "run/songs/songs.log").read_text()
