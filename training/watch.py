"""Who holds a stuck run up: every rank says where it is, and the ranks that wait read it.

Each rank has a thread that writes RUN/watch/rank-00003.json every few seconds: the step, what the
rank is doing, the collective it waits in. A rank that stays at one place for the limit writes down
what it knows (stuck-00003.json: all ranks' places, the collectives of the flight recorder, the
stacks of its threads), names the rank that holds the others up, and ends its process. Named is

    a rank whose file has gone stale          its process is stopped or gone, or its machine hangs
    else the rank that is furthest behind     it does something else than the others wait for

Ages are differences of the files' own times, so clocks of machines need not agree, and a machine
that was suspended as a whole starts its count anew.

    with Watch(ranks, folder, limit=1800) as watch:
        watch.at(17, "forward of micro-batch 2")

torch's flight recorder keeps the collectives of NCCL and of gloo; NCCL's own watchdog writes its
dump into the same folder when it ends a run first (`record_flights`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mudit_engine.files import write_json
from mudit_engine.training.ranks import Ranks, launched_world

FOLDER = "watch"
EXIT = 75  # EX_TEMPFAIL: a launcher may start the ranks again
SHARE = 0.9  # of the timeout of collectives, after which their own errors would come
KEPT = 500  # collectives in the flight recorder
BEATS = 20  # a limit; a file three beats old is stale

log = logging.getLogger(__name__)


def record_flights(folder: Path) -> None:
    """Has torch keep the latest collectives, and NCCL's watchdog dump them into the run's folder.
    Before the ranks join.
    """
    if launched_world() == 1:
        return
    path = folder.absolute() / FOLDER
    for name, value in {
        "TORCH_FR_BUFFER_SIZE": str(KEPT),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": str(path / "nccl-rank-"),
    }.items():
        os.environ.setdefault(name, value)


class Watch:
    """The place of one rank, and the thread that tells the others.

    Args:
        ranks: of the run; a rank alone is not watched.
        folder: of the run, which all ranks see.
        limit: seconds at one place after which the run is stuck.
        end: what ends the process.
    """

    def __init__(
        self,
        ranks: Ranks,
        folder: Path,
        *,
        limit: float,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self.ranks, self.folder, self.limit, self._end = ranks, folder / FOLDER, limit, end
        self.beat = min(5.0, limit / BEATS)
        self._place = (0, 0, "starting")  # places so far, step, what
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, step: int, what: str) -> None:
        """Notes the place. Ranks come to the same places in the same order."""
        self._place = (self._place[0] + 1, step, what)

    def __enter__(self) -> Self:
        if self.ranks.world > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write()
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
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
            if error is None:
                self._own.unlink(missing_ok=True)

    @property
    def _own(self) -> Path:
        return self.folder / f"rank-{self.ranks.rank:05d}.json"

    def _run(self) -> None:
        seen, here, last = self._place, 0.0, time.monotonic()
        while not self._stop.wait(self.beat):
            now = time.monotonic()
            # a wait that took far longer than asked: this machine stood still, not the run
            here = 0.0 if now - last > 4 * self.beat + 2 else here + now - last
            last = now
            if self._place != seen:
                seen, here = self._place, 0.0
            with contextlib.suppress(OSError):  # a disk that fails is told by who saves on it
                self._write(pending_collective() if here > 0 else None)
            if here >= self.limit:
                self._tell(here)

    def _write(self, waiting: dict[str, Any] | None = None) -> None:
        count, step, what = self._place
        write_json(
            self._own,
            {
                "rank": self.ranks.rank,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "places": count,
                "step": step,
                "what": what,
                "collective": waiting,
            },
        )

    def _tell(self, seconds: float) -> None:
        text = f"stuck for {seconds:.0f} s: {self.blame()}"
        path = self.dump(text)
        log.error("%s. Kept: %s", text, path)
        print(
            f"error: rank {self.ranks.rank} of {self.ranks.world}: {text}. Look into {path}; the "
            f"same command resumes",
            file=sys.stderr,
            flush=True,
        )
        self._end(EXIT)

    def blame(self) -> str:
        """Which rank the others wait for, in what, in which step."""
        places = read_places(self.folder, world=self.ranks.world)
        count, step, what = self._place
        op = pending_collective()
        ours = f"rank {self.ranks.rank} waits in step {step}, {what}"
        ours += f" ({op['name']} {op['number']} of {op['sizes']})" if op else ""
        now = places.get(self.ranks.rank, {}).get("age", 0.0)
        stale = max(3 * self.beat, 1.0)
        silent = [
            one
            for rank, one in sorted(places.items())
            if rank != self.ranks.rank and one["age"] - now > stale
        ]
        if silent:
            names = "; ".join(
                f"rank {one['rank']} on {one['host']} (process {one['pid']}) gave no sign of life "
                f"for {one['age'] - now:.0f} s, last in step {one['step']}, {one['what']}"
                for one in silent
            )
            return f"{names}: its process is stopped or gone, or its machine hangs. {ours}"
        behind = min((one["places"] for one in places.values()), default=count)
        late = [one for _, one in sorted(places.items()) if one["places"] == behind]
        if behind < count or len(late) < len(places):
            names = "; ".join(
                f"rank {one['rank']} on {one['host']} is still in step {one['step']}, {one['what']}"
                for one in late
            )
            return f"{names}. {ours}"
        # at one place, but not all of them in what the others wait for there
        absent = [
            one for _, one in sorted(places.items()) if _order(one["collective"]) < _order(op)
        ]
        if absent:
            names = "; ".join(
                f"rank {one['rank']} on {one['host']} is still in step {one['step']}, "
                f"{one['what']}, and has not come to that collective"
                for one in absent
            )
            return f"{names}. {ours}"
        return f"all ranks are at the same place: the network between them hangs. {ours}"

    def dump(self, text: str) -> Path:
        """Writes what this rank knows into the run's folder."""
        path = self.folder / f"stuck-{self.ranks.rank:05d}.json"
        stacks = path.with_suffix(".stacks")
        with stacks.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        write_json(
            path,
            {
                "told": text,
                "places": [
                    one
                    for _, one in sorted(read_places(self.folder, world=self.ranks.world).items())
                ],
                "stacks": stacks.read_text(encoding="utf-8").splitlines(),
                "collectives": flights(),
            },
        )
        stacks.unlink()
        return path


def read_places(folder: Path, *, world: int) -> dict[int, dict[str, Any]]:
    """What every rank wrote last, with the seconds since: against the newest of the files. Files
    of an earlier run on more ranks are left alone.
    """
    found, times = {}, {}
    for path in folder.glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            one = json.loads(path.read_text(encoding="utf-8"))
            if one["rank"] < world:
                found[one["rank"]], times[one["rank"]] = one, path.stat().st_mtime
    newest = max(times.values(), default=0.0)
    return {rank: {**one, "age": newest - times[rank]} for rank, one in found.items()}


def flights() -> list[dict[str, Any]]:
    """The latest collectives of this process, the newest last, by torch's flight recorder."""
    import torch

    if not torch.distributed.is_available():
        return []
    backend: Any = torch._C._distributed_c10d
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        if hasattr(backend, name):
            entries = json.loads(getattr(backend, name)()).get("entries", [])
            if entries:
                return list(entries)
    return []


def _order(op: dict[str, Any] | None) -> int:
    """The number of a collective that a rank waits in; -1 for a rank that waits in none."""
    return -1 if op is None else int(op.get("number") or 0)


def pending_collective() -> dict[str, Any] | None:
    """The first collective that this process has begun and not finished."""
    for entry in flights():
        if not entry.get("retired", True):
            return {
                "name": entry.get("profiling_name", "a collective"),
                "number": entry.get("collective_seq_id"),
                "sizes": entry.get("input_sizes"),
            }
    return None
