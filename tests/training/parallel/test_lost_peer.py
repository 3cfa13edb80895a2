"""A rank that dies is told by the others as that: who lost a peer, in which step, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

from launch_ranks import start
from mudit_engine.training.ranks import lost_peer
from small_songs import write_songs


def test_the_others_say_that_a_peer_is_gone(tmp_path: Path) -> None:
    write_songs(tmp_path / "data")
    arguments = (str(tmp_path / "data"), str(tmp_path / "run"))
    ranks = start(2, "lose_a_rank.py", *arguments, log=tmp_path / "log")
    codes = [rank.wait(240) for rank in ranks]
    told = (tmp_path / "log.0").read_text()
    assert codes == [7, -9], told[-2000:]
    assert "LOST rank 0 of 2 lost another rank in step 2 (" in told
    assert "the same command resumes" in told


def test_our_own_errors_are_not_blamed_on_peers() -> None:
    assert lost_peer(RuntimeError("shape mismatch in gloo")) is None
    assert lost_peer(RuntimeError("the data loader timed out")) is None
    gone = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1")
    assert "Connection closed" in (lost_peer(gone) or "")
