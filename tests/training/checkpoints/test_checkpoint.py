"""Whatever happens to a run or its files, training goes on from the newest good checkpoint and ends
as an undisturbed run, bit for bit.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import forked
from mudit_engine.errors import ConfigError, InputError, OutputError
from mudit_engine.training.checkpoints import async_save
from mudit_engine.training.checkpoints.checkpoint import Checkpoints, find_fault
from mudit_engine.training.runlog import read_metrics
from mudit_engine.training.stopping import InterruptedRun
from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe, write_songs

# a second thread only waits for the first, at these sizes
pytestmark = pytest.mark.usefixtures("one_thread")

STATE = ("model.safetensors", "model.optimizer.safetensors", "model.ema.safetensors")
SAME = ("step", "epoch", "loss", "grad_norm", "lr", "mse", "songs", "weight")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("songs"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of 12 steps, with checkpoints at 0, 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(small_recipe(data), folder, quiet=True).run()
    return folder


def assert_same_run(run: Path, whole: Path) -> None:
    """Weights, optimiser, average and the metrics of every step are those of the undisturbed
    run.
    """
    mine, theirs = (
        Checkpoints(run / "checkpoints").named("12"),
        Checkpoints(whole / "checkpoints").named("12"),
    )
    for name in STATE:
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
    rows, expected = (
        [{k: row[k] for k in SAME} for row in read_metrics(folder)[0]] for folder in (run, whole)
    )
    assert rows == expected and [row["step"] for row in rows] == list(range(12))


def stop_at(trainer: Trainer, step: int, number: int) -> None:
    """Sends a signal to this process in the middle of a step."""
    forward = trainer.strategy.forward

    def signalled(phase: str, batch: Any) -> Any:
        if trainer.progress.step == step:
            os.kill(os.getpid(), number)
        return forward(phase, batch)

    trainer.strategy.forward = signalled  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "number, code",
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)],
    ids=["term", "usr1", "ctrl-c"],
)
def test_signal_saves_and_stops(
    data: Path, whole: Path, tmp_path: Path, number: int, code: int
) -> None:
    trainer = Trainer(small_recipe(data), tmp_path, quiet=True)
    stop_at(trainer, 5, number)
    with pytest.raises(
        InterruptedRun, match="after step 6 of 12; saved as step-00000006"
    ) as stopped:
        trainer.run()
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is not trainer, "handlers are put back"
    Trainer(small_recipe(data), tmp_path, quiet=True).run()
    assert_same_run(tmp_path, whole)


def test_signal_on_the_last_step_stops_what_follows(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    trainer = Trainer(small_recipe(data), tmp_path, quiet=True)
    stop_at(trainer, 11, signal.SIGTERM)
    with pytest.raises(InterruptedRun, match="after step 12 of 12"):
        trainer.run()
    summary = Trainer(small_recipe(data), tmp_path, quiet=True).run()
    assert summary["steps"] == 12 and summary["steps_run"] == 0
    assert_same_run(tmp_path, whole)


def test_second_ctrl_c_stops_at_once(data: Path, whole: Path, tmp_path: Path) -> None:
    trainer = Trainer(small_recipe(data), tmp_path, quiet=True)
    stop_at(trainer, 5, signal.SIGINT)  # two micro-batches: the second one brings the second signal
    forward = trainer.strategy.forward

    def twice(phase: str, batch: Any) -> Any:
        out = forward(phase, batch)
        return forward(phase, batch) if trainer.progress.step == 5 else out

    trainer.strategy.forward = twice  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert Checkpoints(tmp_path / "checkpoints").tags()[0].name == "step-00000004"
    Trainer(small_recipe(data), tmp_path, quiet=True).run()
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    "place, step, newest, how",
    [
        ("backward", 6, 4, ""),
        ("save", 8, 4, ""),
        ("rename", 8, 4, ""),
        ("latest", 8, 8, ""),
        ("files", 8, 4, "async"),
        ("rename", 8, 4, "async"),
    ],
)
def test_kill_9(
    data: Path, whole: Path, tmp_path: Path, place: str, step: int, newest: int, how: str
) -> None:
    arguments = (str(data), str(tmp_path), place, str(step), *([how] if how else []))
    log = tmp_path / "log"
    code = forked.start("run_and_die.py", *arguments, log=log).wait(300)
    assert code == -signal.SIGKILL, log.read_text()
    assert Checkpoints(tmp_path / "checkpoints").tags()[0].name == f"step-{newest:08d}", (
        "at most one interval is lost"
    )
    Trainer(small_recipe(data), tmp_path, quiet=True).run()
    assert_same_run(tmp_path, whole)
    assert not list((tmp_path / "checkpoints").glob(".*")), "nothing half-written is left"


def test_a_save_beside_the_steps_is_the_same(data: Path, whole: Path, tmp_path: Path) -> None:
    """Also by way of a disk of the node, of which nothing is left there."""
    local = tmp_path / "local"
    changes = {"checkpoint__asynchronous": True, "checkpoint__local": str(local)}
    Trainer(small_recipe(data, **changes), tmp_path / "run", quiet=True).run()
    assert_same_run(tmp_path / "run", whole)
    assert local.is_dir() and not list(local.iterdir())


def test_a_save_that_fails_beside_the_steps_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = small_recipe(data, checkpoint__asynchronous=True, checkpoint__every=2)
    trainer = Trainer(recipe, tmp_path, quiet=True)
    step = trainer._step

    def filled_up(work: Any) -> Any:
        if trainer.progress.step == 4:  # what was saved before is on the disk
            assert trainer._saver is not None
            trainer._saver.wait()
            monkeypatch.setattr(async_save, "write_state", full)
        return step(work)

    monkeypatch.setattr(trainer, "_step", filled_up)
    with pytest.raises(OutputError, match="step-00000006' could not be written: the disk is full"):
        trainer.run()
    newest = Checkpoints(tmp_path / "checkpoints").tags()[0]
    assert newest.name == "step-00000004"


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "bit-flip": (
        lambda tag: flip_bit(tag / "model.optimizer.safetensors"),
        "model.optimizer.safetensors has changed",
    ),
    "truncated": (
        lambda tag: os.truncate(tag / "model.safetensors", 1000),
        "model.safetensors has 1000 bytes instead of",
    ),
    "missing": (
        lambda tag: (tag / "model.ema.safetensors").unlink(),
        "model.ema.safetensors is missing",
    ),
    "state": (
        lambda tag: (tag / "trainer.json").write_text(
            (tag / "trainer.json").read_text().replace('"step": 12', '"step": 13')
        ),
        "trainer.json has changed",
    ),
    "manifest": (
        lambda tag: (tag / "manifest.json").write_text("{"),
        "manifest.json cannot be read",
    ),
    "renamed": (lambda tag: None, "manifest.json belongs to step 12"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(
    data: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    tag = checkpoints.named("12")
    damage, message = DAMAGE[kind]
    damage(tag)
    if kind == "renamed":
        tag = tag.rename(tag.with_name("step-00000016"))
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest_good() == checkpoints.folder / "step-00000008"
    assert tag.name in caplog.text and message in caplog.text
    with pytest.raises(InputError, match="is bad"):
        checkpoints.named(tag.name)
    if kind == "bit-flip":
        Trainer(small_recipe(data), tmp_path / "run", quiet=True).run()
        assert_same_run(tmp_path / "run", whole)


def test_all_bad(whole: Path, data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    for tag in Checkpoints(tmp_path / "run" / "checkpoints").tags():
        flip_bit(tag / "model.safetensors")
    with pytest.raises(InputError, match="all 3 checkpoints .* are bad"):
        Trainer(small_recipe(data), tmp_path / "run", quiet=True).run()


def test_named_and_missing_tags(whole: Path, data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    Trainer(small_recipe(data), tmp_path / "run", quiet=True).run(resume="4")
    assert_same_run(tmp_path / "run", whole)
    with pytest.raises(
        InputError, match="no checkpoint '7' .* there are step-00000012, step-00000008"
    ):
        Trainer(small_recipe(data), tmp_path / "run", quiet=True).run(resume="7")
    with pytest.raises(InputError, match="holds checkpoints of an earlier run"):
        Trainer(small_recipe(data), tmp_path / "run", quiet=True).run(resume="never")


def test_keeps_the_newest(data: Path, tmp_path: Path) -> None:
    Trainer(
        small_recipe(data, checkpoint__keep=2, checkpoint__every=2, steps=8), tmp_path, quiet=True
    ).run()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert [tag.name for tag in checkpoints.tags()] == ["step-00000008", "step-00000006"]
    assert (checkpoints.folder / "latest").read_text().strip() == "step-00000008"
    assert all(find_fault(tag) is None for tag in checkpoints.tags())


def test_longer_run_goes_on_from_a_finished_one(data: Path, tmp_path: Path) -> None:
    """With a schedule that does not depend on the end, 6 then 6 steps are 12 steps."""
    constant = {"schedule__kind": "constant"}
    Trainer(small_recipe(data, steps=6, **constant), tmp_path / "run", quiet=True).run()
    Trainer(small_recipe(data, steps=12, **constant), tmp_path / "run", quiet=True).run()
    Trainer(small_recipe(data, steps=12, **constant), tmp_path / "whole", quiet=True).run()
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data__pack_size": 160}, r"pack_size \(128 -> 160\)"),
        ({"seed": 1}, r"seed \(0 -> 1\)"),
        ({"model_overrides__dit__rope_base": 500.0}, r"dit.rope_base \(10000.0 -> 500.0\)"),
    ],
    ids=["pack-size", "seed", "model"],
)
def test_another_run_is_refused(
    whole: Path, data: Path, tmp_path: Path, change: dict[str, float], message: str
) -> None:
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(ConfigError, match=f"belongs to another run: {message}"):
        Trainer(small_recipe(data, **change), tmp_path / "run", quiet=True).run()


def test_changed_data_is_refused(whole: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    other = write_songs(tmp_path / "data", 25)
    with pytest.raises(ConfigError, match=r"songs \(24 -> 25\), data \("):
        Trainer(small_recipe(other), tmp_path / "run", quiet=True).run()


def test_full_disk_leaves_the_older_checkpoint(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(small_recipe(data), tmp_path, quiet=True)
    save = async_save.save_file

    def full(tensors: Any, path: Path, *rest: Any) -> None:
        if trainer.progress.step == 8 and "optimizer" in str(path):
            raise SafetensorError(
                f"Error while serializing: I/O error: No space left on device (os error "
                f"{errno.ENOSPC})"
            )
        save(tensors, path, *rest)

    monkeypatch.setattr(async_save, "save_file", full)
    with pytest.raises(
        OutputError,
        match="step-00000008' could not be written: the disk is full. Older checkpoints are "
        "untouched",
    ):
        trainer.run()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.newest_good() == checkpoints.folder / "step-00000004"
    assert not list(checkpoints.folder.glob(".*"))
    monkeypatch.undo()
    Trainer(small_recipe(data), tmp_path, quiet=True).run()
    assert_same_run(tmp_path, whole)


def test_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    """The same with the kernel refusing the bytes: a file size limit stands for the end of the
    disk.
    """
    checkpoints = Checkpoints(tmp_path)
    with checkpoints.saving(1) as folder:
        (folder / "state").write_bytes(b"good")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with (
            pytest.raises(OutputError, match="could not be written: File too large"),
            checkpoints.saving(2) as folder,
            async_save.disk_errors(),
        ):
            async_save.save_file({"weights": torch.zeros(10_000)}, folder / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [tag.name for tag in checkpoints.tags()] == ["step-00000001"] and find_fault(
        checkpoints.tags()[0]
    ) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
