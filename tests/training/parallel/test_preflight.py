"""The preflight of a cluster: real ranks on this machine, and every fault told apart from what the
ranks say.
"""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import pytest

from mudit_engine.errors import InputError, MuditError
from mudit_engine.training.parallel.preflight import preflight, preflight_here
from mudit_engine.training.parallel.verdicts import Check, Wanted, judge

HERE = Wanted(Path("runs"))


def fact(rank: int, host: str, local: int) -> dict[str, Any]:
    """What a healthy rank of two nodes of two H100 says."""
    return {
        "rank": rank,
        "local_rank": local,
        "host": host,
        "device": "NVIDIA H100 80GB HBM3",
        "device_memory_mib": 81559,
        "versions": {"torch": "2.13.0", "nccl": "2.27.5", "commit": "abc"},
        "cores": 96,
        "memory_available_mib": 1_000_000,
        "shm_mib": 64_000,
        "open_files": 65536,
        "locked_memory_unlimited": True,
        "infiniband": {"mlx5_0:1": "ACTIVE, 400 Gb/sec (4X NDR)"},
        "disk": {"free_gib": 5000.0, "write_mib_s": 900.0, "read_mib_s": 2000.0},
        "compute_s": 1e-3,
        "token": True,
        "clock_offset_s": 1e-4 * rank,
        "clock_error_s": 5e-5,
    }


COLLECTIVES = [
    {"collective": name, "mib": mib, "ms_p50": 1.0, "bus_gbs": 100.0, "right": True}
    for mib in (1, 512)
    for name in ("all-reduce", "all-gather", "reduce-scatter")
]


def found(ranks: Any, wanted: Wanted = HERE, collectives: Any = COLLECTIVES) -> dict[str, Check]:
    return {check.name: check for check in judge(ranks, collectives, wanted)}


def four() -> list[dict[str, Any]]:
    return [fact(0, "n1", 0), fact(1, "n1", 1), fact(2, "n2", 0), fact(3, "n2", 1)]


def test_a_healthy_cluster_passes() -> None:
    checks = found(four(), Wanted(Path("runs"), nodes=2, gpus_per_node=2, min_bandwidth_gbs=90))
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(checks, "ok")
    assert len(checks) == 8


FAULTS: dict[str, tuple[Any, str, str, str]] = {
    "two ranks on one GPU": (
        lambda ranks: ranks[3].update(local_rank=0),
        "ranks",
        "failed",
        r"n2 has LOCAL_RANK \[0, 0\]",
    ),
    "another torch": (
        lambda r: r[2].update(versions=r[2]["versions"] | {"torch": "2.12"}),
        "versions",
        "failed",
        "torch: 2.12 on n2",
    ),
    "another commit": (
        lambda r: r[1].update(versions=r[1]["versions"] | {"commit": "abd"}),
        "versions",
        "failed",
        "abd on n1",
    ),
    "a clock that is late": (
        lambda ranks: ranks[3].update(clock_offset_s=-40.0),
        "clocks",
        "failed",
        "40000.00 ms.*n2",
    ),
    "a clock that drifts": (
        lambda ranks: ranks[3].update(clock_offset_s=0.4),
        "clocks",
        "warning",
        "n2",
    ),
    "a folder of one node": (
        lambda ranks: [ranks[i].update(token=False) for i in (2, 3)],
        "shared folder",
        "failed",
        "not seen on n2",
    ),
    "a full disk": (
        lambda r: r[0].update(disk=r[0]["disk"] | {"free_gib": 3.0}),
        "shared folder",
        "warning",
        "3 GiB free",
    ),
    "a GPU that throttles": (
        lambda ranks: ranks[2].update(compute_s=2e-3),
        "speed of ranks",
        "warning",
        r"rank 2 on n2 \(2.00x\)",
    ),
    "a port that is down": (
        lambda r: r[3].update(infiniband={"mlx5_1:1": "DOWN"}),
        "limits and ports",
        "warning",
        "n2 mlx5_1:1 is DOWN",
    ),
    "locked memory": (
        lambda ranks: ranks[0].update(locked_memory_unlimited=False),
        "limits and ports",
        "warning",
        "RDMA",
    ),
    "a small container": (
        lambda ranks: ranks[1].update(shm_mib=64),
        "limits and ports",
        "warning",
        "/dev/shm has 64 MiB on n1",
    ),
}


@pytest.mark.parametrize(("break_it", "name", "status", "words"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(break_it: Any, name: str, status: str, words: str) -> None:
    import re

    ranks = copy.deepcopy(four())
    break_it(ranks)
    checks = found(ranks)
    assert checks[name].status == status
    assert re.search(words, checks[name].found)
    assert checks[name].mend
    assert {other for other, check in checks.items() if check.status != "ok"} == {name}


def test_too_few_nodes_or_ranks() -> None:
    assert "3 nodes were wanted" in found(four(), Wanted(Path("runs"), nodes=3))["ranks"].found
    assert (
        "n2 has 2 ranks, not 8"
        in found(four(), Wanted(Path("runs"), gpus_per_node=8))["ranks"].found
    )


def test_slow_and_wrong_collectives() -> None:
    slow = found(four(), Wanted(Path("runs"), min_bandwidth_gbs=200))["bandwidth"]
    assert (slow.status, "wanted 200" in slow.found) == ("failed", True)
    wrong = [row | {"right": row["collective"] != "all-gather"} for row in COLLECTIVES]
    check = found(four(), collectives=wrong)["collectives are right"]
    assert (check.status, check.found) == ("failed", "wrong sums from all-gather")


def test_two_ranks_of_this_machine(tmp_path: Path) -> None:
    report = preflight_here(2, Wanted(tmp_path, nodes=1, gpus_per_node=2))
    assert report["passed"]
    assert [fact["rank"] for fact in report["ranks"]] == [0, 1]
    assert {row["collective"] for row in report["collectives"]} == {
        "all-reduce",
        "all-gather",
        "reduce-scatter",
    }
    assert all(row["right"] and row["bus_gbs"] > 0 for row in report["collectives"])
    # one machine, one clock
    assert abs(report["ranks"][1]["clock_offset_s"]) <= report["ranks"][1]["clock_error_s"] + 1e-3
    assert not list(tmp_path.iterdir())


def test_a_rank_that_stays_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 3,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(MuditError, match=r"2 of 3 ranks did not come in 0.5 s: 1, 2"):
        preflight(Wanted(tmp_path, timeout=0.5))


def test_an_environment_that_is_half_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"):
        preflight(Wanted(tmp_path))
