"""Whether a cluster can train, found out in a minute: ranks, versions, clocks, disk, collectives,
speed of every rank.

    bus bandwidth of a collective on W ranks = bytes (W - 1) / W / seconds
    bus bandwidth of an all-reduce = twice that
    clock offset of a rank = its time - the middle of a round trip to it

Bus bandwidth is what nccl-tests call so.

    # on every rank of a launcher; rank 0's is the report
    report = preflight(Wanted(nodes=2, gpus_per_node=8, folder=Path("runs/a")))
    report = preflight_here(2, wanted)  # without one: starts ranks on this machine

A rank that does not come is named, rather than waited for. verdicts.py judges what the ranks say.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError, MuditError
from mudit_engine.files import write_json
from mudit_engine.training.parallel.verdicts import FAIL, Wanted, judge
from mudit_engine.training.ranks import leave, local_world

SIZES_MIB = {"cpu": (1, 8), "cuda": (1, 64, 512)}
DISK_MIB = 32
INFINIBAND = Path("/sys/class/infiniband")


def preflight_here(ranks: int, wanted: Wanted) -> dict[str, Any]:
    """Starts `ranks` processes on this machine and returns the report of rank 0. Raises MuditError
    when one of them dies.
    """
    if ranks < 1:
        raise InputError(f"--ranks {ranks}: use at least 1")
    with tempfile.TemporaryDirectory(prefix="mudit-preflight-") as name:
        out, spec = Path(name) / "report.json", Path(name) / "wanted.json"
        write_json(spec, {**asdict(wanted), "folder": str(wanted.folder)})
        processes = []
        try:
            for place in local_world(ranks):
                environment = {"OMP_NUM_THREADS": "1", **os.environ, **place}
                command = [
                    sys.executable,
                    "-m",
                    "mudit_engine.training.parallel.preflight",
                    str(spec),
                    str(out),
                ]
                processes.append(
                    subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
                )
            last = [process.communicate()[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        if not out.exists():
            said = next(
                (text.strip().splitlines()[-1] for text in last if text.strip()), "nothing was said"
            )
            raise MuditError(f"the preflight on {ranks} ranks ended without a report: {said}")
        report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return report


def preflight(wanted: Wanted) -> dict[str, Any] | None:
    """On a rank of a launched world: takes part, and returns the report on rank 0 (None elsewhere).

    Raises InputError for a half-set environment, MuditError when ranks stay away.
    """
    import torch
    from torch import distributed as dist

    rank, world = _place()
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = _meet(rank, world, wanted.timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    wait = timedelta(seconds=wanted.timeout)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("preflight", store),
        rank=rank,
        world_size=world,
        timeout=wait,
    )
    try:
        host = (
            dist.new_group(backend="gloo", timeout=wait) if backend == "nccl" else dist.group.WORLD
        )
        everyone: list[Any] = [None] * world
        facts = _facts(rank, device) | {"disk": _disk(wanted.folder), "compute_s": _compute(device)}
        facts["token"] = _shared_file(wanted.folder, rank, host)
        facts["clock_offset_s"], facts["clock_error_s"] = _clocks(rank, world, host)
        collectives = _collectives(device, world)
        dist.all_gather_object(everyone, facts, group=host)
        if rank:
            return None
        checks = judge(everyone, collectives, wanted)
        return {
            "backend": backend,
            "world": world,
            "hosts": sorted({fact["host"] for fact in everyone}),
            "checks": [asdict(check) for check in checks],
            "collectives": collectives,
            "ranks": everyone,
            "passed": all(check.status != FAIL for check in checks),
        }
    finally:
        dist.barrier(group=host)
        dist.destroy_process_group()


def _place() -> tuple[int, int]:
    missing = [
        name
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]
    if missing:
        raise InputError(
            f"{', '.join(missing)} not set: start with torchrun or srun, or use --ranks N for "
            f"ranks on this machine"
        )
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _meet(rank: int, world: int, timeout: float) -> Any:
    """The store through which all ranks have come. Raises MuditError that names those that have
    not.
    """
    from torch import distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun's agent keeps the store itself
    master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(
            address,
            port,
            is_master=master,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout),
        )
    except (RuntimeError, ValueError) as error:
        raise MuditError(
            f"rank {rank} on {socket.gethostname()} cannot reach {address}:{port}: check "
            f"MASTER_ADDR, the firewall and "
            f"NCCL_SOCKET_IFNAME ({str(error).splitlines()[0]})"
        ) from None
    store.set(f"preflight/{rank}", socket.gethostname())
    deadline = time.monotonic() + timeout
    absent = list(range(world))
    while absent and time.monotonic() < deadline:
        absent = [other for other in absent if not store.check([f"preflight/{other}"])]
        if absent:
            time.sleep(0.05)
    if absent:
        came = [other for other in range(world) if other not in absent]
        hosts = {store.get(f"preflight/{other}").decode() for other in came}
        shown = ", ".join(map(str, absent[:16])) + (
            f" and {len(absent) - 16} more" if len(absent) > 16 else ""
        )
        there = ", ".join(sorted(hosts))
        raise MuditError(
            f"{len(absent)} of {world} ranks did not come in {timeout:g} s: {shown} (those that "
            f"did are on {there})"
        )
    return store


def _facts(rank: int, device: Any) -> dict[str, Any]:
    import resource

    import torch

    from mudit_engine.availability import version
    from mudit_engine.hardware import commit, machine

    here = machine()
    versions = {
        name: version(name)
        for name in ("torch", "triton", "deepspeed", "numpy", "safetensors", "mudit_engine")
    }
    versions |= {"python": here.python, "commit": commit(), "cuda": torch.version.cuda}
    if device.type == "cuda":
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        versions["driver"] = here.gpus[0].driver if here.gpus else None
    shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    return {
        "rank": rank,
        "local_rank": int(os.environ.get("LOCAL_RANK", "0")),
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "device_memory_mib": torch.cuda.get_device_properties(device).total_memory >> 20
        if device.type == "cuda"
        else None,
        "versions": versions,
        "cores": here.cores,
        "memory_available_mib": here.memory_available_mib,
        "shm_mib": shm.f_bavail * shm.f_frsize >> 20 if shm else None,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "locked_memory_unlimited": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        == resource.RLIM_INFINITY,
        "infiniband": _infiniband(),
    }


def _infiniband() -> dict[str, str]:
    """{device port: state and rate}, as the kernel tells."""
    found = {}
    for port in sorted(INFINIBAND.glob("*/ports/*")) if INFINIBAND.is_dir() else []:
        state, rate = (
            (port / name).read_text(encoding="ascii").strip() for name in ("state", "rate")
        )
        found[f"{port.parts[-3]}:{port.name}"] = f"{state.split(':')[-1].strip()}, {rate}"
    return found


def _disk(folder: Path) -> dict[str, float]:
    """Free GiB, and MiB/s of a file written, flushed and read where checkpoints will lie."""
    folder.mkdir(parents=True, exist_ok=True)
    free = os.statvfs(folder)
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
        start = time.perf_counter()
        for _ in range(DISK_MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        file.seek(0)
        start = time.perf_counter()
        while file.read(1 << 20):
            pass
        read = time.perf_counter() - start
    return {
        "free_gib": free.f_bavail * free.f_frsize / 2**30,
        "write_mib_s": DISK_MIB / written,
        "read_mib_s": DISK_MIB / read,
    }


def _shared_file(folder: Path, rank: int, group: Any) -> bool:
    """Whether this rank sees what rank 0 wrote: one file system for checkpoints and shards."""
    from torch import distributed as dist

    box: list[Any] = [os.urandom(8).hex() if rank == 0 else None]
    dist.broadcast_object_list(box, src=0, group=group)
    path = folder / f".preflight-{box[0]}"
    if rank == 0:
        path.write_text(str(box[0]), encoding="ascii")
    dist.barrier(group=group)
    deadline = time.monotonic() + 5  # network file systems show a new file late
    while not (seen := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    dist.barrier(group=group)
    if rank == 0:
        path.unlink()
    return seen


def _clocks(rank: int, world: int, group: Any) -> tuple[float, float]:
    """(this rank's clock minus rank 0's, error at most) in seconds: the quickest of some round
    trips.
    """
    import torch
    from torch import distributed as dist

    best = (float("inf"), 0.0)
    trips = 7
    for other in range(1, world):
        for _ in range(trips):
            if rank == 0:
                start = time.time()
                dist.send(torch.zeros(1, dtype=torch.float64), other, group=group)
                answer = torch.zeros(1, dtype=torch.float64)
                dist.recv(answer, other, group=group)
                end = time.time()
                dist.send(
                    torch.tensor(
                        [float(answer) - (start + end) / 2, (end - start) / 2], dtype=torch.float64
                    ),
                    other,
                    group=group,
                )
            elif rank == other:
                dist.recv(torch.zeros(1, dtype=torch.float64), 0, group=group)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), 0, group=group)
                told = torch.zeros(2, dtype=torch.float64)
                dist.recv(told, 0, group=group)
                best = min(best, (float(told[1]), float(told[0])))
    return (best[1], best[0]) if rank else (0.0, 0.0)


def _compute(device: Any) -> float:
    """Seconds of the best of some matrix products on this rank alone:
    a GPU that throttles shows.
    """
    import torch

    size = 4096 if device.type == "cuda" else 512
    a = torch.ones(
        size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _collectives(device: Any, world: int) -> list[dict[str, Any]]:
    """Time, bus bandwidth and rightness of the collectives that training uses, at several sizes."""
    import torch
    from torch import distributed as dist

    def sync() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    rank = dist.get_rank()
    rows = []
    cases: dict[str, Any] = {
        "all-reduce": (lambda whole, part: dist.all_reduce(whole), 2),
        "all-gather": (lambda whole, part: dist.all_gather_into_tensor(whole, part), 1),
        "reduce-scatter": (lambda whole, part: dist.reduce_scatter_tensor(part, whole), 1),
    }
    for mib in SIZES_MIB[device.type]:
        count = (mib << 20) // 4 // world * world
        whole, part = torch.empty(count, device=device), torch.empty(count // world, device=device)
        for name, (call, passes) in cases.items():
            times = []
            right = True
            for trial in range(4):
                whole.fill_(rank + 1)
                part.fill_(rank + 1)
                sync()
                dist.barrier()
                start = time.perf_counter()
                call(whole, part)
                sync()
                if trial:  # the first makes connections
                    times.append(time.perf_counter() - start)
                total = world * (world + 1) / 2
                if name == "all-gather":
                    right &= bool(
                        (
                            whole.view(world, -1).float().mean(1).cpu()
                            == torch.arange(1, world + 1)
                        ).all()
                    )
                else:
                    result = whole if name == "all-reduce" else part
                    right &= bool((result == total).all())
            slowest = torch.tensor([statistics.median(times)], dtype=torch.float64, device=device)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            wrong = torch.tensor([0.0 if right else 1.0], device=device)
            dist.all_reduce(wrong)
            seconds = float(slowest)
            bus = passes * count * 4 * (world - 1) / world / seconds / 1e9
            rows.append(
                {
                    "collective": name,
                    "mib": mib,
                    "ms_p50": 1e3 * seconds,
                    "bus_gbs": bus,
                    "right": not float(wrong),
                }
            )
    return rows


def main(arguments: Sequence[str]) -> None:
    """WANTED.json REPORT.json: takes part as a rank; rank 0 writes the report."""
    spec, out = (Path(argument) for argument in arguments)
    fields = json.loads(spec.read_text(encoding="utf-8"))
    try:
        report = preflight(Wanted(**{**fields, "folder": Path(fields["folder"])}))
    except MuditError as error:
        print(error, file=sys.stderr)
        leave(error.exit_code)
    if report is not None:
        write_json(out, report)
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
