"""The load and the soak of the service as rows of the registry.

    rows = load(Options(size="tiny"))                       # or: mudit bench run serve-load
    rows = soak(Options(rounds=200))                        # or: mudit bench run serve-soak

Seconds are those from a song's arrival to its last sample. `load` serves the same arrivals by the
continuous batcher, one song at a time and in static batches (benchmarks/serving_load.py), and holds
every song to itself alone. `soak` starts `mudit serve` with the tiny model on a port of its own and
sends it requests of every kind (benchmarks/serving_soak.py); `--rounds` are its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mudit_engine.availability import require
from mudit_engine.benchmarks.registry import Options, Row
from mudit_engine.benchmarks.timing import quantile
from mudit_engine.errors import MuditError

RATES = [0.5, 0.8, 1.1]
SONGS = {"tiny": 8, "small": 30, "published": 60}
REQUESTS = {"tiny": 50, "small": 200, "published": 1000}


def load(options: Options) -> list[Row]:
    """A row a rate and way of serving: waits, song seconds a second, CPU seconds, joules. Raises
    GateError when a batched song is another song than alone.
    """
    from mudit_engine.benchmarks.serving_load import run

    rates = RATES[1:2] if options.size == "tiny" else RATES
    found, _ = run(
        "tiny", songs=options.rounds or SONGS[options.size], rates=rates, seed=0, modelled=False,
        report=options.report,
    )  # fmt: skip
    return [load_row(one, found) for one in found]


def load_row(one: dict[str, Any], found: list[dict[str, Any]]) -> Row:
    """A row of one way; ratios are to one song at a time at the same rate."""
    other = next(r for r in found if r["rate"] == one["rate"] and r["way"] == "one-at-a-time")
    waits, short = one["all"]["to_song"], one["short"]
    row = Row(
        "serve-load",
        f"load {one['rate']:g} of capacity",
        one["way"],
        "ours" if one["way"] == "continuous" else "peer",
        reference="one-at-a-time",
    )
    row.seconds_p50, row.seconds_p90, row.seconds_p99 = (waits[q] for q in ("p50", "p90", "p99"))
    row.ratio = other["all"]["to_song"]["p50"] / max(waits["p50"], 1e-9)
    row.audio_seconds_per_second = one["song_seconds_per_second"]
    row.cpu_seconds_p50 = one["cpu_seconds"]
    row.cpu_ratio = other["cpu_seconds"] / max(one["cpu_seconds"], 1e-9)
    row.joules = one.get("joules")
    row.note = "CPU seconds and joules are those of the whole load"
    row.figures = {
        "short_first_audio_p50": short["to_first_audio"]["p50"],
        "short_first_audio_p99": short["to_first_audio"]["p99"],
        "short_song_p99": short["to_song"]["p99"],
        "songs": one["all"]["songs"],
    }
    return row


def soak(options: Options) -> list[Row]:
    """A row a kind of request: answers in time, and memory of the service at the start and at the
    end. Raises GateError when an answer is lost, doubled, mixed up or 5xx.
    """
    from mudit_engine.benchmarks.serving_soak import soak as run

    for package in ("fastapi", "uvicorn", "httpx"):
        require(package, "benchmark 'serve-soak'")
    requests = options.rounds or REQUESTS[options.size]
    song = {"description": "calm piano", "seconds": options.seconds or 1.0, "steps": 2}
    with service(options) as (url, pid):
        found = asyncio.run(
            run(url, requests=requests, together=16, song=song, pid=pid, report=options.report)
        )
    rows = []
    for kind, waits in sorted(found["waits"].items()):
        row = Row(
            "serve-soak", kind, "mudit serve", "ours", rounds=len(waits), error=0.0, limit=0.0
        )
        row.seconds_p50, row.seconds_p90, row.seconds_p99 = (
            quantile(waits, share) for share in (0.5, 0.9, 0.99)
        )
        row.figures = {
            "requests_per_second": requests / found["seconds"],
            **{f"memory_mib_after_{n}": size for n, size in found["memory_mib"].items()},
        }
        rows.append(row)
    return rows


@contextlib.contextmanager
def service(options: Options) -> Iterator[tuple[str, int]]:
    """`mudit serve` in a process of its own: its address and process id, until the block ends."""
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "mudit_engine", "serve", "tiny"]
        command += ["--port", str(port), "--folder", folder]
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=dict(os.environ))
        try:
            options.report(f"starting: {' '.join(command[1:])}")
            deadline = time.monotonic() + 180
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise MuditError(f"the service did not start: {log.read_text()[-500:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait(60)
