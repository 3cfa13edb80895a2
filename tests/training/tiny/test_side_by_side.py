"""Steps of `make tiny` side by side: what is begun when, what a failure and a signal leave."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mudit_engine.training.stopping import InterruptedRun
from mudit_engine.training.tiny.pipeline import NEEDS, STEPS
from mudit_engine.training.tiny.side_by_side import StepFailed, side_by_side

SAVING = "trap 'echo saved > {saved}; exit 143' TERM; echo begun > {begun}; sleep 60 & wait"


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} is not there"
        time.sleep(0.02)


def test_a_step_begins_when_all_that_it_needs_is_done(tmp_path: Path) -> None:
    """a, then b and c at once (each ends only when the other has begun), then d."""
    meet = "touch {own}; until [ -e {other} ]; do sleep .02; done"
    scripts = {
        "a": "sleep .1; touch a",
        "b": "[ -e a ] && " + meet.format(own="b", other="c"),
        "c": "[ -e a ] && " + meet.format(own="c", other="b"),
        "d": "[ -e b ] && [ -e c ] && echo one && echo last",
    }
    needs = {"a": ("made before",), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    seconds = side_by_side(
        needs,
        lambda step: shell(f"cd {tmp_path} && {scripts[step]}"),
        jobs=2,
        logs=tmp_path / "logs",
    )
    first, *between, last = seconds
    assert (first, last) == ("a", "d") and set(between) == {"b", "c"}
    assert (tmp_path / "logs/d.log").read_text() == "one\nlast\n"


def test_no_more_steps_run_than_were_asked_for(tmp_path: Path) -> None:
    """Each step claims a folder that is there for one at a time."""
    script = f"cd {tmp_path} && mkdir alone && sleep .1 && rmdir alone"
    seconds = side_by_side(
        {"a": (), "b": (), "c": ()}, lambda step: shell(script), jobs=1, logs=tmp_path / "logs"
    )
    assert list(seconds) == ["a", "b", "c"]


def test_a_failure_stops_the_others_after_they_have_saved(tmp_path: Path) -> None:
    saved, begun = tmp_path / "saved", tmp_path / "begun"
    scripts = {
        "bad": f"until [ -e {begun} ]; do sleep .02; done; echo why; exit 7",
        "good": SAVING.format(saved=saved, begun=begun),
        "later": f"touch {tmp_path}/later",
    }
    with pytest.raises(StepFailed, match=r"step bad ended with 7: why \('.*bad.log'\)") as failed:
        side_by_side(
            {"bad": (), "good": (), "later": ("bad",)},
            lambda step: shell(scripts[step]),
            jobs=2,
            logs=tmp_path / "logs",
        )
    assert failed.value.exit_code == 7
    assert saved.read_text() == "saved\n" and not (tmp_path / "later").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_step_once(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def send() -> None:
        for step in ("a", "b"):
            wait_for(tmp_path / f"{step}-begun")
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(InterruptedRun, match=f"{number.name}: stopped during a, b") as stopped:
        side_by_side(
            {"a": (), "b": (), "c": ("a",)},
            lambda step: shell(
                SAVING.format(saved=tmp_path / f"{step}-saved", begun=tmp_path / f"{step}-begun")
            ),
            jobs=2,
            logs=tmp_path / "logs",
        )
    sender.join()
    assert stopped.value.exit_code == 128 + number
    assert {one.name for one in tmp_path.glob("*-saved")} == {"a-saved", "b-saved"}
    assert signal.getsignal(number) is before


def test_where_each_step_is_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mudit_engine.training.tiny.side_by_side.TELL", 0.0)
    with caplog.at_level(logging.INFO):
        side_by_side(
            {"a": ()},
            lambda step: shell("echo step 20 of 40; sleep 1"),
            jobs=2,
            logs=tmp_path / "logs",
        )
    assert "step a: step 20 of 40" in caplog.messages


def test_every_step_comes_behind_what_it_needs() -> None:
    for step, needed in NEEDS.items():
        assert all(STEPS.index(one) < STEPS.index(step) for one in needed), step
    assert set(STEPS) - {one for needed in NEEDS.values() for one in needed} == {"evaluate"}
