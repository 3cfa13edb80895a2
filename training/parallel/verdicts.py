"""What a preflight finds, judged from what every rank says of itself: a table of checks, each with
what would mend it.

    checks = judge(facts_of_ranks, rows_of_collectives, Wanted(folder=Path("runs"), nodes=2))
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK, WARN, FAIL = "ok", "warning", "failed"
CLOCK_WARN, CLOCK_FAIL = 0.1, 2.0  # seconds
SLOW_WARN = 1.15  # of the median rank's time
FREE_WARN_GIB = 20
DEVICE_SHM_MIB = 1024


@dataclass(frozen=True)
class Wanted:
    """What the cluster should be. None: not asked for."""

    folder: Path
    nodes: int | None = None
    gpus_per_node: int | None = None
    min_bandwidth_gbs: float | None = None  # bus bandwidth of the largest all-reduce
    timeout: float = 120.0


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it stands, what was found, and what would mend it."""

    name: str
    status: str
    found: str
    mend: str = ""


def judge(
    ranks: Sequence[dict[str, Any]], collectives: Sequence[dict[str, Any]], wanted: Wanted
) -> list[Check]:
    """Findings from what the ranks said of themselves."""
    checks = [
        _judge_ranks(ranks, wanted),
        *_judge_versions(ranks),
        _judge_clocks(ranks),
        *_judge_disk(ranks, wanted),
    ]
    wrong = sorted({row["collective"] for row in collectives if not row["right"]})
    if wrong:
        mend = (
            "a NIC, a cable or a driver corrupts data: run nccl-tests with -c 1 on halves of the "
            "nodes"
        )
        checks.append(
            Check("collectives are right", FAIL, f"wrong sums from {', '.join(wrong)}", mend)
        )
    else:
        checks.append(
            Check(
                "collectives are right",
                OK,
                "all-reduce, all-gather and reduce-scatter give exact sums",
            )
        )
    largest = max(
        (row for row in collectives if row["collective"] == "all-reduce"),
        key=lambda row: row["mib"],
    )
    found = (
        f"all-reduce of {largest['mib']} MiB: {largest['bus_gbs']:.2f} GB/s bus, "
        f"{largest['ms_p50']:.1f} ms"
    )
    if (
        wanted.min_bandwidth_gbs is not None
        and largest["bus_gbs"] < wanted.min_bandwidth_gbs
        and len(ranks) > 1
    ):
        mend = (
            "NCCL_DEBUG=INFO shows which NICs are used: check NCCL_IB_HCA, GPUDirect RDMA "
            "(nvidia-peermem) and the ports' rate"
        )
        checks.append(
            Check("bandwidth", FAIL, f"{found}, wanted {wanted.min_bandwidth_gbs:g}", mend)
        )
    else:
        checks.append(Check("bandwidth", OK, found))
    checks.append(_judge_speed(ranks))
    checks += _judge_limits(ranks)
    return checks


def _judge_ranks(ranks: Sequence[dict[str, Any]], wanted: Wanted) -> Check:
    by_host: dict[str, list[int]] = {}
    for fact in ranks:
        by_host.setdefault(fact["host"], []).append(fact["local_rank"])
    found = (
        f"{len(ranks)} ranks on {len(by_host)} host(s), "
        f"{', '.join(sorted({fact['device'] for fact in ranks}))}"
    )
    faults = [
        f"{host} has LOCAL_RANK {sorted(own)}"
        for host, own in by_host.items()
        if sorted(own) != list(range(len(own)))
    ]
    if wanted.nodes is not None and len(by_host) != wanted.nodes:
        faults.append(f"{wanted.nodes} nodes were wanted")
    if wanted.gpus_per_node is not None:
        uneven = {
            host: len(own) for host, own in by_host.items() if len(own) != wanted.gpus_per_node
        }
        faults += [
            f"{host} has {count} ranks, not {wanted.gpus_per_node}"
            for host, count in uneven.items()
        ]
    if faults:
        return Check(
            "ranks",
            FAIL,
            f"{found}: {'; '.join(faults)}",
            "one process a GPU, LOCAL_RANK counting from 0 on every node",
        )
    return Check("ranks", OK, found)


def _judge_versions(ranks: Sequence[dict[str, Any]]) -> list[Check]:
    faults = []
    for name in sorted({name for fact in ranks for name in fact["versions"]}):
        hosts: dict[str, set[str]] = {}
        for fact in ranks:
            hosts.setdefault(str(fact["versions"].get(name)), set()).add(fact["host"])
        if len(hosts) > 1:
            faults.append(
                f"{name}: "
                + ", ".join(
                    f"{value} on {', '.join(sorted(where)[:4])}"
                    for value, where in sorted(hosts.items())
                )
            )
    if faults:
        return [
            Check(
                "versions",
                FAIL,
                "; ".join(faults),
                "install the same environment on every node, or start from a shared one",
            )
        ]
    versions = {
        name: value for name, value in ranks[0]["versions"].items() if value and name != "commit"
    }
    return [Check("versions", OK, ", ".join(f"{name} {value}" for name, value in versions.items()))]


def _judge_clocks(ranks: Sequence[dict[str, Any]]) -> Check:
    worst = max(ranks, key=lambda fact: abs(fact["clock_offset_s"]))
    offset = abs(worst["clock_offset_s"])
    found = (
        f"at most {1e3 * offset:.2f} ms from rank 0 ({worst['host']}, known to "
        f"{1e3 * worst['clock_error_s']:.2f} ms)"
    )
    status = FAIL if offset > CLOCK_FAIL else WARN if offset > CLOCK_WARN else OK
    return Check(
        "clocks",
        status,
        found,
        "" if status == OK else "logs and timeouts lie: start chrony or ntpd on the nodes",
    )


def _judge_disk(ranks: Sequence[dict[str, Any]], wanted: Wanted) -> list[Check]:
    blind = sorted({fact["host"] for fact in ranks if not fact["token"]})
    if blind:
        mend = (
            "checkpoints and shards need one file system that all nodes see: choose another "
            "--folder"
        )
        return [
            Check(
                "shared folder",
                FAIL,
                f"'{wanted.folder}' of rank 0 is not seen on {', '.join(blind)}",
                mend,
            )
        ]
    disks = [fact["disk"] for fact in ranks]
    free, write, read = (
        min(disk[name] for disk in disks) for name in ("free_gib", "write_mib_s", "read_mib_s")
    )
    found = (
        f"seen by all; {free:.0f} GiB free, {write:.0f} MiB/s written and flushed, {read:.0f} read "
        "by the slowest rank, all at once"
    )
    if free < FREE_WARN_GIB:
        return [
            Check(
                "shared folder",
                WARN,
                found,
                "a checkpoint is 16 bytes a parameter: make room, or lower checkpoint.keep",
            )
        ]
    return [Check("shared folder", OK, found)]


def _judge_speed(ranks: Sequence[dict[str, Any]]) -> Check:
    median = statistics.median(fact["compute_s"] for fact in ranks)
    slow = [fact for fact in ranks if fact["compute_s"] > SLOW_WARN * median]
    if slow and ranks[0]["device"] != "cpu":
        names = ", ".join(
            f"rank {fact['rank']} on {fact['host']} ({fact['compute_s'] / median:.2f}x)"
            for fact in slow[:8]
        )
        return Check(
            "speed of ranks",
            WARN,
            f"slower than the median: {names}",
            "nvidia-smi -q -d PERFORMANCE,TEMPERATURE on those nodes",
        )
    worst = max(fact["compute_s"] for fact in ranks) / median
    return Check(
        "speed of ranks",
        OK,
        f"the slowest takes {worst:.2f}x the median of a matrix product"
        + (" (CPU)" if slow else ""),
    )


def _judge_limits(ranks: Sequence[dict[str, Any]]) -> list[Check]:
    faults, mends = [], []
    files = min(fact["open_files"] for fact in ranks)
    if files < 4096:
        faults.append(f"{files} open files")
        mends.append("ulimit -n 65536")
    if any(fact["infiniband"] for fact in ranks) and not all(
        fact["locked_memory_unlimited"] for fact in ranks
    ):
        faults.append("locked memory is limited, which RDMA needs")
        mends.append("ulimit -l unlimited")
    small = [
        fact
        for fact in ranks
        if fact["device"] != "cpu" and (fact["shm_mib"] or 0) < DEVICE_SHM_MIB
    ]
    if small:
        faults.append(f"/dev/shm has {small[0]['shm_mib']} MiB on {small[0]['host']}")
        mends.append("docker run --shm-size 16g (or --ipc host)")
    ports = {
        f"{fact['host']} {port}": state
        for fact in ranks
        for port, state in fact["infiniband"].items()
    }
    down = [f"{port} is {state}" for port, state in ports.items() if not state.startswith("ACTIVE")]
    if down:
        faults.append("; ".join(down[:4]))
        mends.append("ibstat on that node; leave the port out with NCCL_IB_HCA=^NAME")
    if faults:
        return [Check("limits and ports", WARN, "; ".join(faults), "; ".join(mends))]
    infiniband = f"{len(ports)} InfiniBand ports active" if ports else "no InfiniBand device"
    return [Check("limits and ports", OK, f"{files} open files, {infiniband}")]
