"""A stuck run ends within its timeout and says which rank holds it up, in what, in which step."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mudit_engine.training.ranks import Ranks
from mudit_engine.training.trainer import Trainer
from mudit_engine.training.watch import EXIT, FOLDER, Watch, read_places
from small_songs import small_recipe, write_songs


class Three(Ranks):
    rank, world = 1, 3


def write_place(
    folder: Path,
    rank: int,
    places: int,
    step: int,
    what: str,
    age: float,
    waiting: dict[str, Any] | None = None,
) -> None:
    path = folder / FOLDER / f"rank-{rank:05d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"rank": rank, "host": f"node{rank}", "pid": 40 + rank, "places": places}
    path.write_text(json.dumps({**place, "step": step, "what": what, "collective": waiting}))
    os.utime(path, (time.time() - age, time.time() - age))


def blamed(folder: Path, others: dict[int, tuple[int, int, str, float]]) -> str:
    watch = Watch(Three(), folder, limit=100.0)
    for _ in range(9):
        watch.at(3, "backward")
    watch.folder.mkdir(parents=True, exist_ok=True)
    watch._write()
    for rank, place in others.items():
        write_place(folder, rank, *place)
    return watch.blame()


def test_a_silent_rank_is_named_before_one_that_is_late(tmp_path: Path) -> None:
    told = blamed(tmp_path, {0: (8, 3, "forward", 0.0), 2: (9, 3, "backward", 60.0)})
    assert told.startswith("rank 2 on node2 (process 42) gave no sign of life for 60 s, last in")
    assert "rank 1 waits in step 3, backward" in told


def test_the_rank_that_is_furthest_behind_is_named(tmp_path: Path) -> None:
    told = blamed(tmp_path, {0: (9, 3, "backward", 0.0), 2: (7, 3, "waiting for a batch", 4.0)})
    assert told.startswith("rank 2 on node2 is still in step 3, waiting for a batch. rank 1 waits")


def test_where_all_wait_alike_it_is_the_network(tmp_path: Path) -> None:
    told = blamed(tmp_path, {0: (9, 3, "backward", 1.0), 2: (9, 3, "backward", 0.0)})
    assert told.startswith("all ranks are at the same place: the network")


def test_the_rank_that_is_not_in_the_collective_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them in the backward pass: one computes for ever, the others wait for it there."""
    pending = {"name": "gloo:all_reduce", "number": 40, "sizes": [[8]]}
    monkeypatch.setattr("mudit_engine.training.watch.pending_collective", lambda: pending)
    watch = Watch(Three(), tmp_path, limit=100.0)
    watch.folder.mkdir(parents=True)
    for rank, waiting in ((0, pending), (2, None)):
        write_place(tmp_path, rank, 1, 3, "backward", 0.0, waiting)
    watch.at(3, "backward")
    watch._write(pending)
    told = watch.blame()
    assert told.startswith("rank 2 on node2 is still in step 3, backward, and has not come to that")
    assert told.endswith("rank 1 waits in step 3, backward (gloo:all_reduce 40 of [[8]])")


def test_the_limit_counts_from_the_last_place(tmp_path: Path) -> None:
    ended: list[int] = []
    with Watch(Three(), tmp_path, limit=0.6, end=ended.append) as watch:
        for step in range(8):
            watch.at(step, "forward")
            time.sleep(0.12)
        assert not ended, "every place was left in time"
        assert read_places(watch.folder, world=3)[1]["step"] in (6, 7)
        deadline = time.monotonic() + 120
        while not ended and time.monotonic() < deadline:
            time.sleep(0.02)
    assert ended and set(ended) == {EXIT}
    kept = json.loads((tmp_path / FOLDER / "stuck-00001.json").read_text())
    assert "rank 1 waits in step 7, forward" in kept["told"]
    assert any("test_watch" in line for line in kept["stacks"])
    assert not watch._own.exists(), "a run that ended well leaves no place"


def test_a_rank_alone_is_not_watched(tmp_path: Path) -> None:
    with Watch(Ranks(), tmp_path, limit=0.1):
        pass
    assert not (tmp_path / FOLDER).exists()


def test_a_run_is_stuck_before_its_collectives_give_up(tmp_path: Path) -> None:
    recipe = small_recipe(write_songs(tmp_path / "data"))
    timeout = recipe.parallel.timeout_seconds
    assert Trainer(recipe, tmp_path / "run", quiet=True)._watch.limit == pytest.approx(
        0.9 * timeout
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "sleep"])
def test_a_rank_that_hangs_is_named_by_the_others(tmp_path: Path, how: str) -> None:
    """Two gloo ranks; the second stops in the backward pass of step 2."""
    pytest.importorskip("deepspeed")
    from hang_a_rank import LIMIT
    from launch_ranks import start

    write_songs(tmp_path / "data")
    arguments = (str(tmp_path / "data"), str(tmp_path / "run"), how)
    ranks = start(2, "hang_a_rank.py", *arguments, log=tmp_path / "log")
    try:
        code = ranks[0].wait(240)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    told = (tmp_path / "log.0").read_text()
    kept: dict[str, Any] = json.loads((tmp_path / "run/watch/stuck-00000.json").read_text())
    assert code == EXIT, told[-2000:]
    assert "rank 1 on " in told and "step 2, model: backward of micro-batch 0" in told
    assert ("gave no sign of life" if how == "stop" else "is still in") in told
    seconds = float(kept["told"].split()[2])
    assert LIMIT <= seconds < 2 * LIMIT
    assert "gloo:all" in kept["told"] and kept["collectives"][-1]["profiling_name"]
    assert [place["rank"] for place in kept["places"]] == [0, 1]
