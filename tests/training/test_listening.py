"""Songs while a run trains: one process at a time, of checkpoints that are on the disk; its failure
is told and ends nothing.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from mudit_engine.errors import ConfigError
from mudit_engine.training import listening
from mudit_engine.training.listening import Listener
from small_songs import small_recipe


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
    with caplog.at_level(logging.INFO):
        songs.saved(8)
    assert "songs of step 8 are left out" in caplog.text
    ready.touch()
    ((step, files),) = songs.made(wait=20)
    assert step == 4 and [file.name for file in files] == ["1.ogg"]
    environment = (files[0].parent / "env").read_text().splitlines()
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
    started = time.monotonic()
    songs.close()
    assert time.monotonic() - started < 10 and songs._process is None


def test_what_the_recipe_takes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of checkpoint.every=4"):
        small_recipe(tmp_path, checkpoint__every=4, songs__every=6)
    with pytest.raises(ConfigError, match="for the dit tasks"):
        from small_audio import vae_recipe

        vae_recipe(tmp_path, **{"songs.every": 500})


@pytest.mark.slow
def test_a_run_makes_songs_beside_its_steps(tmp_path: Path) -> None:
    """The embedded model, fine-tuned for a moment."""
    pytest.importorskip("peft")
    from test_finetune import own_songs

    from mudit_engine.training.dataset.encode import encode_latents
    from mudit_engine.training.dataset.sources import open_source
    from mudit_engine.training.recipe import load_recipe
    from mudit_engine.training.trainer import Trainer

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
