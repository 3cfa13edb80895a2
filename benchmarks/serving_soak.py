"""A thousand requests of every kind against a running service, and what must hold after them.

    python -m mudit_engine.benchmarks.serving_soak http://127.0.0.1:8000 --requests 1000 --json

Of the requests a tenth are cancelled on the way, a twentieth are invalid, some clients go away in
the middle, the others ask for a song in the answer or as a job. Each asks for a seed of a few, so
that every finished song can be held to the same song made alone before the load: an answer to what
was streamed, a job's file to the file, which has another level. Raises GateError when one is lost,
doubled, mixed up, or answered with 5xx.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click

from mudit_engine.availability import require
from mudit_engine.errors import GateError

SEEDS = 8
KINDS = {"answer": 0.45, "job": 0.35, "cancelled": 0.1, "invalid": 0.05, "gone": 0.05}
INVALID: tuple[dict[str, Any], ...] = (
    {"seed": 1.5},
    {"lyrics": 5},
    {"seconds": True},
    {"sampler": []},
    {"nothing": 1},
)


@dataclass
class Outcome:
    """What became of all requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    jobs: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    waits: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from a request to its last byte, by kind; a job's end is asked for every 50 ms."""


class _Alone(NamedTuple):
    """Digests of a song that was made alone: as it was streamed, and as it is kept."""

    answer: str
    file: str


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def memory_mib(pid: int) -> float:
    """Resident memory of a process on Linux."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


async def soak(
    url: str,
    *,
    requests: int,
    together: int,
    song: dict[str, Any],
    seed: int = 0,
    pid: int | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Runs the load, `together` clients at a time, and checks every answer. `pid`: the service's,
    to follow its memory.
    """
    require("httpx", "the soak of a service")
    import httpx

    draw = random.Random(seed)
    kinds = draw.choices(list(KINDS), list(KINDS.values()), k=requests)
    seeds = [draw.randrange(SEEDS) for _ in kinds]
    outcome, memory = Outcome(), {}
    limits = httpx.Limits(max_connections=together * 2)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        alone = {}
        for one in range(SEEDS):
            answer = await client.post("/v1/audio/generate", json={**song, "seed": one})
            answer.raise_for_status()
            file = await client.get(f"/v1/songs/{answer.headers['x-song-id']}/content")
            file.raise_for_status()
            alone[one] = _Alone(_digest(answer.content), _digest(file.content))
        if len({one.answer for one in alone.values()}) != SEEDS:
            raise GateError("songs of different seeds are the same")
        started, done, lock = time.monotonic(), 0, asyncio.Semaphore(together)

        async def one_request(kind: str, number: int) -> None:
            nonlocal done
            async with lock:
                body = {**song, "seed": number}
                asked = time.monotonic()
                try:
                    await _ask(client, kind, body, alone[number], outcome)
                except Exception as error:
                    outcome.wrong.append(f"{kind}: {type(error).__name__} {error}")
                outcome.waits.setdefault(kind, []).append(time.monotonic() - asked)
            done += 1
            if pid is not None and done in (requests // 10, requests):
                memory[done] = round(memory_mib(pid), 1)
            if done % 100 == 0:
                report(f"{done} of {requests}: {dict(outcome.statuses)}")

        await asyncio.gather(*map(one_request, kinds, seeds))
        seconds = time.monotonic() - started
        await _all_ended(client, outcome)
    if outcome.wrong:
        raise GateError(f"{len(outcome.wrong)} answers are wrong: {'; '.join(outcome.wrong[:5])}")
    return {
        "requests": requests,
        "together": together,
        "seconds": round(seconds, 1),
        "kinds": dict(Counter(kinds)),
        "statuses": dict(outcome.statuses),
        "waits": {kind: [round(one, 4) for one in waits] for kind, waits in outcome.waits.items()},
        "memory_mib": memory,
    }


async def _ask(client: Any, kind: str, body: dict[str, Any], own: _Alone, outcome: Outcome) -> None:
    import httpx

    if kind == "invalid":
        wrong = INVALID[body["seed"] % len(INVALID)]
        answer = await client.post("/v1/songs", json={**body, **wrong})
        _expect(outcome, kind, answer.status_code == 400, answer.text[:200])
        return
    if kind == "gone":
        try:
            await client.post("/v1/audio/generate", json={**body, "steps": 900}, timeout=0.15)
            outcome.wrong.append("gone: it was answered all the same")
        except httpx.TimeoutException:
            outcome.statuses["gone"] += 1
        return
    if kind == "answer":
        answer = await client.post("/v1/audio/generate", json=body)
        same = _digest(answer.content) == own.answer
        _expect(outcome, kind, answer.status_code == 200 and same, f"{answer.status_code}")
        outcome.jobs.append(answer.headers.get("x-song-id", ""))
        return
    steps = {"steps": 900} if kind == "cancelled" else {}
    answer = await client.post("/v1/songs", json={**body, **steps})
    if answer.status_code != 202:
        _expect(outcome, kind, False, f"{answer.status_code} {answer.text[:200]}")
        return
    id = answer.json()["id"]
    outcome.jobs.append(id)
    if kind == "cancelled":
        await asyncio.sleep(0.05)
        await client.delete(f"/v1/songs/{id}")
    job = await _ended(client, id)
    if kind == "cancelled":
        _expect(outcome, kind, job["status"] == "cancelled", job["status"])
        return
    content = await client.get(f"/v1/songs/{id}/content")
    same = _digest(content.content) == own.file
    _expect(outcome, kind, job["status"] == "completed" and same, f"{job['status']}, same {same}")


def _expect(outcome: Outcome, kind: str, good: bool, told: str) -> None:
    outcome.statuses[kind] += 1
    if not good:
        outcome.wrong.append(f"{kind}: {told}")


async def _ended(client: Any, id: str) -> dict[str, Any]:
    while True:
        answer = await client.get(f"/v1/songs/{id}")
        job = dict(answer.json())
        if job.get("status") not in ("queued", "in_progress"):
            return job
        await asyncio.sleep(0.05)


async def _all_ended(client: Any, outcome: Outcome) -> None:
    """Every job is there once, and nothing is left running."""
    if len(set(outcome.jobs)) != len(outcome.jobs):
        outcome.wrong.append("a job was answered to two requests")
    for _ in range(600):
        text = (await client.get("/metrics")).text
        figures = [line for line in text.splitlines() if line.startswith("mudit_songs{")]
        if all(float(line.rsplit(" ", 1)[1]) == 0 for line in figures):
            break
        await asyncio.sleep(0.05)
    else:
        outcome.wrong.append("songs are still at work after everybody was answered")
    known: set[str] = set()
    before = None
    while True:
        query = "?limit=100" + (f"&before={before}" if before is not None else "")
        page = (await client.get(f"/v1/songs{query}")).json()
        known |= {job["id"] for job in page["data"]}
        before = page["before"]
        if before is None:
            break
    if lost := set(outcome.jobs) - known:
        outcome.wrong.append(f"{len(lost)} jobs are lost")


@click.command(help=__doc__)
@click.argument("url")
@click.option("--requests", type=click.IntRange(10), default=1000, show_default=True)
@click.option("--together", type=click.IntRange(1), default=16, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="Length of a song.")
@click.option("--steps", default=2, show_default=True)
@click.option("--pid", type=int, help="The service's, to follow its memory.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file.")
def main(
    url: str,
    requests: int,
    together: int,
    seconds: float,
    steps: int,
    pid: int | None,
    out: Path | None,
) -> None:
    import json

    from mudit_engine.files import write_json
    from mudit_engine.hardware import environment

    song = {"description": "calm piano", "seconds": seconds, "steps": steps}
    result = asyncio.run(
        soak(
            url,
            requests=requests,
            together=together,
            song=song,
            pid=pid,
            report=lambda text: click.echo(text, err=True),
        )
    )
    document = {"schema_version": 1, "env": environment(), "results": [result]}
    if out is not None:
        write_json(out, document)
    else:
        click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
