"""One owner of a folder at a time: a lock file with the owner's name and a heartbeat.

    with RunLock(Path("runs/a")):
        ...                                   # another process that asks is told who has it

The file holds host, process and command; a thread touches it every BEAT seconds. A lock is free
again when its process is gone (on this host) or when it has not been touched for STALE seconds by
the file system's own clock (its host died, or its job was ended): it is then taken over. Who asks
while it is being touched gets an InputError at once, or after one beat at most.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mudit_engine.errors import InputError, OutputError

FILE = "run.lock"
BEAT, STALE = 5.0, 30.0

log = logging.getLogger(__name__)


class RunLock:
    """A folder's lock; entered by one process of a run."""

    def __init__(
        self, folder: Path, name: str = FILE, *, beat: float = BEAT, stale: float = STALE
    ) -> None:
        self.path, self.beat, self.stale = folder / name, beat, stale
        self.token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            self._wait_for_a_dead_owner()
        self._thread = threading.Thread(target=self._touch, name="run lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._owner().get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def lost(self) -> str | None:
        """Who has taken the lock over, as after this process was asleep for long; None: nobody."""
        owner = self._owner()
        if owner.get("token") == self.token:
            return None
        return (
            f"'{self.path.parent}' was taken over by {_named(owner)} while this process did not "
            f"move: what was saved is intact; stop one of the two and resume"
        )

    def _create(self) -> bool:
        owner = {
            "token": self.token,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "command": sys.argv[:6],
        }
        aside = self.path.with_name(f".{self.path.name}.{self.token}")
        try:
            aside.write_text(json.dumps(owner), encoding="utf-8")
            os.link(aside, self.path)  # appears with its content, and only where there is none
        except FileExistsError:
            return False
        except OSError as error:
            raise OutputError(
                f"'{self.path}' could not be written: {error.strerror or error}. Free some space "
                f"or choose another folder"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
        return True

    def _wait_for_a_dead_owner(self) -> None:
        """Returns when the lock has been taken away from an owner that is gone. Raises InputError
        when it is alive.
        """
        owner, touched = self._owner(), self._touched()
        if touched is None:
            return
        if not _gone(owner):
            deadline = time.monotonic() + self.stale - self._age(touched)
            while time.monotonic() < deadline:
                time.sleep(min(0.2, self.beat / 4))
                now = self._touched()
                if now is None:
                    return
                if now != touched or _gone(owner):
                    break
            if self._touched() != touched:
                raise InputError(
                    f"'{self.path.parent}' is in use by {_named(owner)}: wait until it has ended, "
                    f"stop it, or choose another --out"
                )
        # whoever renames it first has it to take away
        aside = self.path.with_name(f".{self.path.name}.{self.token}.old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            log.warning("'%s' was left by %s, which is gone", self.path, _named(owner))
            aside.unlink(missing_ok=True)

    def _age(self, touched: float) -> float:
        """Seconds since the lock was touched, by the clock of its file system."""
        probe = self.path.with_name(f".{self.path.name}.{self.token}.now")
        try:
            probe.touch()
            return max(0.0, probe.stat().st_mtime - touched)
        finally:
            probe.unlink(missing_ok=True)

    def _touched(self) -> float | None:
        try:
            return self.path.stat().st_mtime
        except FileNotFoundError:
            return None

    def _owner(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _touch(self) -> None:
        while not self._stop.wait(self.beat):
            with contextlib.suppress(OSError):
                if self._owner().get("token") == self.token:
                    os.utime(self.path)


def _named(owner: dict[str, Any]) -> str:
    return (
        f"process {owner.get('process', '?')} on {owner.get('host', 'an unknown host')} (since "
        f"{owner.get('started', 'an unknown time')})"
    )


def _gone(owner: dict[str, Any]) -> bool:
    """Whether the owner ran on this host and its process has ended."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("process"), int):
        return False
    try:
        state = Path(f"/proc/{owner['process']}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        try:
            os.kill(owner["process"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False
    return state in ("Z", "X")
