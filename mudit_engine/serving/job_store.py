"""Songs as jobs in a SQLite file (write-ahead log): they survive a restart of the service.

    store = JobStore(folder / "jobs.sqlite")
    store.add(job); store.update(job.id, status="completed", finished=time.time())
    store.list(owner="team-a", limit=20)

Statuses: queued, in_progress, completed, failed, cancelled. Every change is one transaction; a
process that is killed leaves the last whole one. Audio lies beside the file, a folder a job.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

QUEUED, IN_PROGRESS, COMPLETED = "queued", "in_progress", "completed"
FAILED, CANCELLED = "failed", "cancelled"
STATUSES = (QUEUED, IN_PROGRESS, COMPLETED, FAILED, CANCELLED)
OPEN = (QUEUED, IN_PROGRESS)

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, status TEXT NOT NULL, created REAL NOT NULL,
    started REAL, finished REAL, step INTEGER NOT NULL, steps INTEGER NOT NULL,
    request TEXT NOT NULL, result TEXT NOT NULL, error TEXT, bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_of_owner ON jobs (owner, created DESC);
CREATE INDEX IF NOT EXISTS jobs_of_status ON jobs (status);
"""


@dataclass
class Job:
    """A song that somebody asked for. Times are seconds since 1970; `request` is the body as it
    was understood, `result` what is known of the finished song, `bytes` what its files take.
    """

    id: str
    owner: str
    request: dict[str, Any]
    status: str = QUEUED
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    step: int = 0
    steps: int = 0
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    bytes: int = 0


_COLUMNS = tuple(one.name for one in fields(Job))
_JSON = ("request", "result")


class JobStore:
    """The table of jobs. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        # a finished song's row is on the disk before anybody is told of it
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA busy_timeout=10000")
        self._db.executescript(_TABLE)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def add(self, job: Job) -> None:
        """A new job. Its id must be new."""
        row = [_packed(name, getattr(job, name)) for name in _COLUMNS]
        marks = ", ".join("?" * len(_COLUMNS))
        with self._transaction() as db:
            db.execute(f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({marks})", row)

    def update(self, id: str, *, only: tuple[str, ...] = STATUSES, **changes: Any) -> bool:
        """Changes a job whose status is one of `only`. False when there is none."""
        assert changes.keys() <= set(_COLUMNS)
        sets = ", ".join(f"{name} = ?" for name in changes)
        values = [_packed(name, value) for name, value in changes.items()]
        marks = ", ".join("?" * len(only))
        with self._transaction() as db:
            done = db.execute(
                f"UPDATE jobs SET {sets} WHERE id = ? AND status IN ({marks})",
                [*values, id, *only],
            )
            return done.rowcount == 1

    def get(self, id: str) -> Job | None:
        """The job of this id."""
        with self._lock:
            row = self._db.execute("SELECT * FROM jobs WHERE id = ?", [id]).fetchone()
        return _unpacked(row) if row else None

    def list(
        self,
        *,
        owner: str | None = None,
        statuses: tuple[str, ...] = STATUSES,
        before: float | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Jobs, the newest first; `before` pages through them."""
        where = [f"status IN ({', '.join('?' * len(statuses))})"]
        values: list[Any] = [*statuses]
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        if before is not None:
            where.append("created < ?")
            values.append(before)
        text = f"SELECT * FROM jobs WHERE {' AND '.join(where)} ORDER BY created DESC, id DESC"
        if limit is not None:
            text += " LIMIT ?"
            values.append(limit)
        with self._lock:
            return [_unpacked(row) for row in self._db.execute(text, values).fetchall()]

    def count(self, *, owner: str | None = None, statuses: tuple[str, ...] = OPEN) -> int:
        """How many jobs have one of these statuses."""
        text = f"SELECT count(*) FROM jobs WHERE status IN ({', '.join('?' * len(statuses))})"
        values: list[Any] = [*statuses]
        if owner is not None:
            text += " AND owner = ?"
            values.append(owner)
        with self._lock:
            return int(self._db.execute(text, values).fetchone()[0])

    def delete(self, id: str) -> bool:
        """Forgets a job. False when there is none."""
        with self._transaction() as db:
            return db.execute("DELETE FROM jobs WHERE id = ?", [id]).rowcount == 1

    def close(self) -> None:
        """Writes the log back and closes the file."""
        with self._lock:
            self._db.close()


def _packed(name: str, value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if name in _JSON else value


def _unpacked(row: sqlite3.Row) -> Job:
    return Job(**{name: json.loads(row[name]) if name in _JSON else row[name] for name in _COLUMNS})
