"""`mudit serve` as a process: kill -9 under load loses nothing that was finished and serves nothing
half-written; SIGTERM drains; what was under way goes on and is the same song.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SONG: dict[str, Any] = {"description": "calm piano", "seconds": 4}


class Process:
    """A service in a process of its own."""

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = (folder.parent / "log.txt").open("ab")
        arguments = ["serve", str(model), "--runtime", "torch", "--threads", "1"]
        arguments += ["--port", str(self.port), "--folder", str(folder), *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mudit_engine", *arguments],
            cwd=ROOT,
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.client = httpx.Client(base_url=self.url, timeout=120)
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/ready").status_code == 200:
                    return
            assert self.process.poll() is None, (folder.parent / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def song(self, **fields: Any) -> str:
        return str(self.client.post("/v1/songs", json={**SONG, **fields}).json()["id"])

    def job(self, id: str) -> dict[str, Any]:
        return dict(self.client.get(f"/v1/songs/{id}").json())

    def content(self, id: str) -> httpx.Response:
        return self.client.get(f"/v1/songs/{id}/content?format=wav")

    def ended(self, id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 240
        while (job := self.job(id))["status"] in ("queued", "in_progress"):
            assert time.monotonic() < deadline, job
            time.sleep(0.02)
        return job

    def end(self, sign: signal.Signals) -> int:
        self.process.send_signal(sign)
        return self.process.wait(240)


@pytest.fixture
def started(micro: Path, tmp_path: Path) -> Iterator[Any]:
    running: list[Process] = []

    def start(*options: str) -> Process:
        running.append(Process(micro, tmp_path / "songs", *options))
        return running[-1]

    yield start
    for one in running:
        one.client.close()
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(240)
        one.log.close()


def test_kill_under_load_loses_and_doubles_nothing(started: Any, tmp_path: Path) -> None:
    first = started()
    finished = [first.song(seed=seed, steps=2) for seed in range(4)]
    sounds = {id: (first.ended(id), first.content(id).content)[1] for id in finished}
    # long songs at work, and many behind them
    long = [first.song(seed=10 + n, seconds=20, steps=900) for n in range(2)]
    waiting = [first.song(seed=20 + n, seconds=4, steps=400) for n in range(6)]
    while not any(first.job(id)["step"] > 5 for id in waiting):
        time.sleep(0.01)
    first.client.delete(f"/v1/songs/{long[1]}")
    assert first.ended(long[1])["status"] == "cancelled"
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    with sqlite3.connect(tmp_path / "songs" / "jobs.sqlite") as table:
        open_jobs = [
            row[0]
            for row in table.execute(
                "SELECT id FROM jobs WHERE status IN ('queued', 'in_progress')"
            )
        ]
    assert open_jobs, "it was killed under load"
    second = started()
    for id in finished:
        assert second.job(id)["status"] == "completed"
        assert second.content(id).content == sounds[id]
    for id in open_jobs:
        now = second.content(id)
        assert now.status_code == 409 or second.job(id)["status"] == "completed"
    for id in waiting:
        assert second.ended(id)["status"] == "completed", second.job(id)
    assert second.job(long[1])["status"] == "cancelled"
    assert second.ended(long[0])["status"] == "completed"
    listed = second.client.get("/v1/songs?limit=100").json()["data"]
    assert sorted(one["id"] for one in listed) == sorted([*finished, *long, *waiting])
    # the same songs as without the fall
    for id, seed in ((waiting[0], 20), (waiting[5], 25)):
        again = second.song(seed=seed, seconds=4, steps=400)
        second.ended(again)
        assert second.content(again).content == second.content(id).content
    assert list((tmp_path / "songs").rglob("*.part")) == []


def test_sigterm_drains(started: Any) -> None:
    first = started("--drain-seconds", "50")
    ids = [first.song(seed=seed, seconds=10, steps=250) for seed in range(3)]
    with first.client.stream("GET", f"/v1/songs/{ids[2]}/events") as events:
        lines = events.iter_lines()
        next(lines)
        first.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        refused = httpx.post(f"{first.url}/v1/songs", json=SONG, timeout=60)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert httpx.get(f"{first.url}/ready", timeout=60).status_code == 503
        assert httpx.get(f"{first.url}/health", timeout=60).status_code == 200
        rest = list(lines)
    assert "event: end" in rest
    assert first.process.wait(240) == 0
    second = started()
    assert [second.job(id)["status"] for id in ids] == ["completed"] * 3


def test_what_is_left_after_the_drain_goes_on(started: Any, tmp_path: Path) -> None:
    first = started("--drain-seconds", "0.2")
    id = first.song(seed=1, seconds=20, steps=1000)
    while first.job(id)["step"] < 20:
        time.sleep(0.01)
    assert first.end(signal.SIGTERM) == 0
    assert (tmp_path / "songs" / "songs" / id / "progress.safetensors").is_file()
    second = started()
    steps = [second.job(id)["step"] for _ in range(3)]
    assert second.ended(id)["status"] == "completed"
    assert min(steps) >= 20, "it did not begin again"
    again = second.song(seed=1, seconds=20, steps=1000)
    second.ended(again)
    assert second.content(again).content == second.content(id).content


def ended_at_once(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`mudit serve` with arguments by which it cannot start."""
    return subprocess.run(
        [sys.executable, "-m", "mudit_engine", "serve", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_second_service_on_the_port_says_so(started: Any, tmp_path: Path) -> None:
    first = started()
    done = ended_at_once("tiny", "--port", str(first.port))
    assert done.returncode == 2 and f":{first.port} cannot be listened on" in done.stderr


def test_a_model_that_cannot_be_opened_is_told_in_a_line(micro: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(micro, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    done = ended_at_once(str(broken), "--port", "0", "--folder", str(tmp_path / "songs"))
    told = done.stderr.splitlines()
    assert done.returncode in (1, 2) and "config.json" in told[-1], done.stderr
    assert "Traceback" not in done.stderr and len(told) == 2, done.stderr


def test_a_second_service_on_the_folder_says_so(started: Any, tmp_path: Path) -> None:
    """It would take the first one's open songs for its own, and make them again."""
    first = started()
    id = first.song(seed=1, seconds=20, steps=1000)
    while first.job(id)["step"] < 2:
        time.sleep(0.01)
    done = ended_at_once("tiny", "--port", "0", "--folder", str(tmp_path / "songs"))
    assert done.returncode == 2, done.stderr
    assert f"a service that is running (process {first.process.pid})" in done.stderr
    assert first.job(id)["status"] == "in_progress"
