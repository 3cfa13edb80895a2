"""A run's folder has one owner: who is alive is named, who is gone makes room. And what changes on
resuming is said.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from mudit_engine.errors import InputError, MuditError
from mudit_engine.training.parallel.strategy import learning_rate
from mudit_engine.training.run_lock import FILE, RunLock
from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe, write_songs


def hold(folder: Path, seconds: float) -> None:
    with RunLock(folder, beat=0.1, stale=1.0):
        time.sleep(seconds)


def holder(folder: Path, seconds: float = 60) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=hold, args=(folder, seconds))
    process.start()
    deadline = time.monotonic() + 120
    while not (folder / FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process  # type: ignore[return-value]


def test_who_is_alive_is_named(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(InputError, match=f"in use by process {process.pid} on .*choose anoth"):
            RunLock(tmp_path, beat=0.1, stale=1.0).__enter__()
    finally:
        process.kill()
        process.join()
    start = time.monotonic()
    with RunLock(tmp_path):  # it was killed on this host: no need to wait
        assert time.monotonic() - start < 2
        assert json.loads((tmp_path / FILE).read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_another_hosts_silence_is_waited_for(tmp_path: Path) -> None:
    with RunLock(tmp_path, beat=60):
        owner = json.loads((tmp_path / FILE).read_text())
        (tmp_path / FILE).write_text(json.dumps({**owner, "host": "elsewhere"}))
        other = RunLock(tmp_path, beat=0.1, stale=0.6)
        start = time.monotonic()
        with other:
            assert 0.4 < time.monotonic() - start < 5
            assert other.lost() is None
    (tmp_path / FILE).write_text("{")  # damaged, and old
    os.utime(tmp_path / FILE, (0, 0))
    with RunLock(tmp_path):
        pass


def test_a_process_that_slept_learns_that_it_lost(tmp_path: Path) -> None:
    with RunLock(tmp_path, beat=60) as sleeper:
        (tmp_path / FILE).write_text(json.dumps({"token": "x", "host": "b", "process": 1}))
        assert "taken over by process 1 on b" in (sleeper.lost() or "")
    assert (tmp_path / FILE).exists(), "the lock of another is not taken away"


def test_only_one_of_many_takes_over(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.join()
    context = multiprocessing.get_context("fork")
    wins = context.Value("i", 0)

    def try_it() -> None:
        try:
            with RunLock(tmp_path, beat=0.05, stale=5.0):
                with wins.get_lock():
                    wins.value += 1
                time.sleep(1.5)
        except InputError:
            pass

    others = [context.Process(target=try_it) for _ in range(6)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert wins.value == 1


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    data = write_songs(tmp_path / "data")
    recipe = small_recipe(data, steps=4)
    process = holder(tmp_path / "run")
    try:
        os.kill(process.pid or 0, signal.SIGCONT)
        with pytest.raises(InputError, match="is in use by process"):
            Trainer(recipe, tmp_path / "run", quiet=True).run()
    finally:
        process.kill()
        process.join()
    trainer = Trainer(recipe, tmp_path / "run", quiet=True)
    assert trainer.run()["steps"] == 4
    assert not (tmp_path / "run" / FILE).exists()


def test_a_run_that_was_taken_over_saves_no_more(tmp_path: Path) -> None:
    trainer = Trainer(small_recipe(write_songs(tmp_path / "data"), steps=8), tmp_path / "run")
    step = trainer._step

    def stolen(work: object) -> dict[str, object]:
        if trainer.progress.step == 5:
            (tmp_path / "run" / FILE).write_text(json.dumps({"token": "x", "host": "b"}))
        return step(work)  # type: ignore[arg-type]

    trainer._step = stolen  # type: ignore[method-assign,assignment]
    with pytest.raises(MuditError, match="taken over by process"):
        trainer.run()
    assert trainer.checkpoints.tags()[0].name == "step-00000004"


def test_all_checkpoints_bad_names_a_way_that_works(tmp_path: Path) -> None:
    recipe = small_recipe(write_songs(tmp_path / "data"), steps=4, checkpoint__every=2)
    Trainer(recipe, tmp_path / "run", quiet=True).run()
    folder = tmp_path / "run" / "checkpoints"
    for path in folder.glob("step-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        InputError, match="move the folder away .mv '(.*)' '(.*)'. and give"
    ) as told:
        Trainer(recipe, tmp_path / "run", quiet=True).run()
    match = re.search(r"mv '([^']*)' '([^']*)'", str(told.value))
    assert match is not None and Path(match[1]) == folder
    shutil.move(match[1], match[2])
    summary = Trainer(recipe, tmp_path / "run", quiet=True).run()
    assert summary["steps_run"] == 4


def test_another_number_of_steps_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_songs(tmp_path / "data")
    short = small_recipe(data, steps=4)
    Trainer(short, tmp_path / "run", quiet=True).run()
    longer = small_recipe(data, steps=8)
    shutil.copytree(tmp_path / "run", tmp_path / "kept")
    with caplog.at_level(logging.WARNING, "mudit_engine.training"):
        Trainer(longer, tmp_path / "run", quiet=True).run()
    [message] = [r.getMessage() for r in caplog.records if "learning rate" in r.getMessage()]
    assert "steps 4, now 8" in message and "--set schedule.steps=4" in message
    assert f"is {learning_rate(4, longer):.4g}" in message
    caplog.clear()
    kept = small_recipe(data, steps=8, schedule__steps=4)
    with caplog.at_level(logging.WARNING, "mudit_engine.training"):
        Trainer(kept, tmp_path / "kept", quiet=True).run()
    assert not [r for r in caplog.records if "learning rate" in r.getMessage()]
    assert learning_rate(3, kept) == learning_rate(3, short)
