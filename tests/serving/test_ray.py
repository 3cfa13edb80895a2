"""`mudit serve --ray` on a real cluster of this machine: replicas and the ingress are killed under
load, and every song is there, once, and the same as without.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

psutil = pytest.importorskip("psutil")
pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SONG: dict[str, Any] = {"description": "calm piano", "seconds": 10}
SONGS = 3  # at two denoisers
MANY = 8  # of a manifest
LIMIT = 900.0  # seconds for anything: a busy machine is slow, and one that hangs is told apart
# Ray gives up on what a busy machine starts slowly, and starts a process a CPU before it is asked
PATIENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_health_check_timeout_ms": "300000",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_SHUTDOWN_TIER_TIMEOUT_S": "300",
}


class Cluster:
    """A Ray cluster of eight logical CPUs on loopback, and services on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", **PATIENT}
        self.log = (folder / "log.txt").open("ab")
        self.running: list[subprocess.Popen[bytes]] = []
        # Ray gives its own start 30 s, which a busy machine may not have
        for _ in range(4):
            if self._started():
                return
        raise AssertionError((folder / "log.txt").read_text()[-3000:])

    def _started(self) -> bool:
        with contextlib.ExitStack() as held:
            two = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
            self.head, self.http = (one.getsockname()[1] for one in two)
        self.address, self.url = f"127.0.0.1:{self.head}", f"http://127.0.0.1:{self.http}"
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        ray += ["--node-ip-address", "127.0.0.1", "--port", str(self.head), "--num-cpus", "8"]
        ray += ["--include-dashboard", "false", "--object-store-memory", str(1 << 28)]
        before = (self.folder / "log.txt").stat().st_size
        self.running = [self._start(ray)]
        while self.running[0].poll() is None:
            if b"Ray runtime started" in (self.folder / "log.txt").read_bytes()[before:]:
                return True
            time.sleep(0.2)
        return False

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=ROOT, stdout=self.log, stderr=self.log, env=self.env)

    def mudit(self, *arguments: str) -> subprocess.Popen[bytes]:
        self.running.append(self._start([sys.executable, "-m", "mudit_engine", *arguments]))
        return self.running[-1]

    def serve(self, model: Path, *options: str) -> subprocess.Popen[bytes]:
        process = self.mudit(
            *("serve", str(model), "--ray", self.address, "--device", "cpu", "--threads", "1"),
            *("--port", str(self.http), "--folder", str(self.folder / "songs"), *options),
        )
        self.wait(lambda: self._ready(), process)
        return process

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ready", timeout=60).status_code == 200
        return False

    def wait(self, done: Any, process: subprocess.Popen[bytes] | None = None) -> None:
        until = time.monotonic() + LIMIT
        while not done():
            assert time.monotonic() < until, (self.folder / "log.txt").read_text()[-3000:]
            assert process is None or process.poll() is None, (self.folder / "log.txt").read_text()
            time.sleep(0.1)

    def replicas(self, name: str) -> list[Any]:
        """Processes of this cluster's deployment."""
        return self.processes(f"mudit:{name}")

    def processes(self, name: str) -> list[Any]:
        """Processes of this cluster with these words in their title."""
        ours = psutil.Process(self.running[0].pid).children(recursive=True)
        found = []
        for one in ours:
            with contextlib.suppress(psutil.Error):
                if name in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def close(self) -> None:
        """Ends what was started here, by its own process ids."""
        left = []
        for one in self.running:
            if one.poll() is None:
                left += psutil.Process(one.pid).children(recursive=True)
                one.terminate()
        for one in self.running:
            try:
                one.wait(30)
            except subprocess.TimeoutExpired:
                one.kill()
        for child in left:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self.log.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    one = Cluster(tmp_path_factory.mktemp("ray"))
    yield one
    one.close()


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    until = time.monotonic() + LIMIT
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = client.get(f"/v1/songs/{id}")
            # the ingress is away for some seconds after it was killed
            if answer.status_code == 200:
                job = dict(answer.json())
                if job["status"] not in ("queued", "in_progress"):
                    return job
        assert time.monotonic() < until, id
        time.sleep(0.1)


def test_killed_replicas_lose_no_song(cluster: Cluster, micro: Path) -> None:
    service = cluster.serve(micro, "--denoisers", "2", "--drain-seconds", str(LIMIT))
    client = httpx.Client(base_url=cluster.url, timeout=LIMIT)

    def song(seed: int, **more: Any) -> str:
        answer = client.post("/v1/songs", json={**SONG, "seed": seed, "steps": 400, **more})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def sound(id: str) -> bytes:
        return client.get(f"/v1/songs/{id}/content?format=wav").content

    def under_way(ids: list[str]) -> bool:
        return any(client.get(f"/v1/songs/{id}").json()["step"] > 5 for id in ids)

    before = [song(seed) for seed in range(SONGS)]
    sounds = {seed: (ended(client, id), sound(id))[1] for seed, id in enumerate(before)}

    # a denoiser under load
    ids = [song(seed) for seed in range(SONGS)]
    cluster.wait(lambda: under_way(ids))
    denoisers = cluster.replicas("denoiser")
    assert len(denoisers) == 2
    denoisers[0].send_signal(signal.SIGKILL)
    assert [ended(client, id)["status"] for id in ids] == ["completed"] * SONGS
    assert [sound(id) for id in ids] == list(sounds.values())
    # the decoder
    ids = [song(seed) for seed in range(SONGS)]
    [decoder] = cluster.replicas("decoder")
    decoder.send_signal(signal.SIGKILL)
    assert [ended(client, id)["status"] for id in ids] == ["completed"] * SONGS
    assert [sound(id) for id in ids] == list(sounds.values())
    # the ingress: its table says what is to be done
    ids = [song(seed) for seed in range(SONGS)]
    cluster.wait(lambda: under_way(ids))
    [ingress] = cluster.replicas("ingress")
    ingress.send_signal(signal.SIGKILL)
    assert [ended(client, id)["status"] for id in ids] == ["completed"] * SONGS
    assert [sound(id) for id in ids] == list(sounds.values())

    # a client that goes away stops its song
    leaving = http.client.HTTPConnection("127.0.0.1", cluster.http)
    body = json.dumps({**SONG, "seed": 9, "steps": 1000, "seconds": 20})
    leaving.request("POST", "/v1/audio/generate", body, {"content-type": "application/json"})

    def asked() -> list[str]:
        found = client.get("/v1/songs?limit=100").json()["data"]
        return [one["id"] for one in found if one["request"]["seed"] == 9]

    cluster.wait(lambda: under_way(asked()))
    leaving.close()
    assert ended(client, asked()[0])["status"] == "cancelled"
    # each song once
    listed = client.get("/v1/songs?limit=100").json()["data"]
    assert len(listed) == 4 * SONGS + 1

    # SIGTERM drains: no new songs, and the open one is finished
    last = song(0, steps=1000)
    cluster.wait(lambda: under_way([last]))
    service.send_signal(signal.SIGTERM)
    assert service.wait(LIMIT) == 0
    again = cluster.serve(micro)
    done = client.get(f"/v1/songs/{last}").json()
    assert done["status"] == "completed", done
    assert len(client.get("/v1/songs?limit=100").json()["data"]) == 4 * SONGS + 2
    again.send_signal(signal.SIGTERM)
    assert again.wait(LIMIT) == 0


def test_another_denoiser_is_started_when_frames_queue(cluster: Cluster, micro: Path) -> None:
    service = cluster.serve(micro, "--denoisers", "1-2", "--frames-per-denoiser", "200")
    client = httpx.Client(base_url=cluster.url, timeout=LIMIT)
    assert len(cluster.replicas("denoiser")) == 1
    long = {**SONG, "steps": 1000, "seconds": 20}
    ids = [client.post("/v1/songs", json={**long, "seed": n}).json()["id"] for n in range(6)]
    cluster.wait(lambda: len(cluster.replicas("denoiser")) == 2)
    for id in ids:
        client.delete(f"/v1/songs/{id}")
    assert {ended(client, id)["status"] for id in ids} <= {"cancelled", "completed"}
    service.send_signal(signal.SIGTERM)
    assert service.wait(LIMIT) == 0


def test_a_manifest_is_made_by_workers_and_goes_on(cluster: Cluster, micro: Path) -> None:
    out, lines = cluster.folder / "out", []
    for number in range(MANY):
        lines.append(json.dumps({"description": "piano", "seconds": 4, "seed": number}))
    manifest = cluster.folder / "big.jsonl"
    manifest.write_text("\n".join(lines))
    command = ["generate", "--manifest", str(manifest), "--out", str(out), "--model", str(micro)]
    ray = ["--ray", cluster.address, "--ray-workers", "2", "--precision", "fp32"]
    # a worker is killed, and later the driver itself
    first = cluster.mudit(*command, *ray, "--steps", "300")
    cluster.wait(lambda: len(list(out.glob("*.json"))) >= 2, first)
    workers = cluster.processes("MapWorker")
    assert workers
    workers[0].send_signal(signal.SIGKILL)
    cluster.wait(lambda: len(list(out.glob("*.json"))) >= 4)
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    cluster.wait(lambda: not cluster.processes("MapWorker"))
    there = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    second = cluster.mudit(*command, *ray, "--steps", "300")
    assert second.wait(LIMIT) == 0, (cluster.folder / "log.txt").read_text()[-3000:]
    assert len(list(out.glob("*.wav"))) == len(list(out.glob("*.json"))) == MANY
    assert {path: path.stat().st_mtime_ns for path in there} == there, "nothing is made twice"
    alone = cluster.folder / "alone"
    plain = cluster.mudit(
        *(
            "generate",
            "--description",
            "piano",
            "--seconds",
            "4",
            "--seed",
            str(MANY - 1),
            "--model",
        ),
        *(str(micro), "--steps", "300", "--precision", "fp32", "--out", f"{alone}.wav"),
    )
    assert plain.wait(LIMIT) == 0
    assert alone.with_suffix(".wav").read_bytes() == (out / f"song-{MANY:04}.wav").read_bytes()
