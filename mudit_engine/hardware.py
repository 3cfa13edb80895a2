"""What machine this is, and the record of versions, commit and command that every result carries.
Imports no torch.

    env = environment(["generate", "--seed", "1"])
    env["command"]                                      # "mudit generate --seed 1"
    machine().gpus                                      # from nvidia-smi, not from torch

nvidia-smi also answers where torch is broken or was built without CUDA.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mudit_engine
from mudit_engine.availability import PACKAGES, version

# instruction sets that decide how fast CPU inference can be
CPU_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
)
# of mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_mib: int
    driver: str
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """`cores` are those this process may run on; memory honours the container's limit."""

    os: str
    python: str
    cpu: str
    cpu_flags: tuple[str, ...]
    cores: int
    memory_mib: int
    memory_available_mib: int
    gpus: tuple[Gpu, ...]


@functools.cache
def machine() -> Machine:
    """This machine, asked once a process."""
    name, flags = _cpu()
    total, free = _memory_mib()
    system = (
        platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
        if sys.platform == "linux"
        else platform.system()
    )
    return Machine(
        os=f"{system} ({platform.machine()})",
        python=platform.python_version(),
        cpu=name,
        cpu_flags=flags,
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_mib=total,
        memory_available_mib=free,
        gpus=_gpus(),
    )


@functools.cache
def keep_freed_memory() -> bool:
    """Has the C library keep large blocks that are freed, for the tensors to come; False where it
    is not glibc, or where its own variables (MALLOC_...) say otherwise.

    By default every tensor above some size is mapped anew and its pages cleared and faulted in one
    by one: a tenth of a step's time on a CPU, more where threads wait for the same lock. The
    process keeps what it used at most, once a model works in it.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        and library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    )


def give_back_memory() -> bool:
    """Has the C library return the pages of freed blocks to the system, of all threads; False where
    it gave none back or cannot.

    Each thread has a heap of its own, which keeps what it held at most: a service whose threads
    take turns at large blocks would hold the sum of them. The next tensors fault their pages in
    anew, so it is done now and then, not after each song.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return bool(library is not None and hasattr(library, "malloc_trim") and library.malloc_trim(0))


def disk_free_mib(path: str | Path) -> int:
    """Free space of the file system that holds `path`, MiB."""
    return shutil.disk_usage(path).free >> 20


@functools.cache
def commit() -> str | None:
    """Commit of the checkout this package runs from, with '+' when files differ from it; None
    outside a checkout.
    """
    if not (CHECKOUT / ".git").exists():
        return None
    head = _output(["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"])
    if head is None:
        return None
    return head.strip() + (
        "+"
        if _output(["git", "-C", str(CHECKOUT), "status", "--porcelain", "--untracked-files=no"])
        else ""
    )


def environment(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Versions, commit, machine and command, as JSON. `arguments` are those of `mudit`; default:
    this process's own command line, as it is typed in the checkout (command_line).
    """
    here = machine()
    versions = {"mudit-engine": mudit_engine.__version__, "python": here.python}
    versions |= {PACKAGES[module][0]: found for module in PACKAGES if (found := version(module))}
    return {
        "versions": versions,
        "commit": commit(),
        "os": here.os,
        "cpu": here.cpu,
        "cores": here.cores,
        "memory_mib": here.memory_mib,
        "gpus": [gpu.name for gpu in here.gpus],
        "command": command_line()
        if arguments is None
        else shlex.join(["mudit", *map(_as_typed, arguments)]),
    }


def command_line() -> str:
    """This process's command as somebody else would type it: the program by name or module, and
    paths from the checkout on, so that a committed result names nobody's folders.
    """
    program, *arguments = sys.argv or [""]
    started = sys.orig_argv[: len(sys.orig_argv) - len(arguments)]
    if started[-2:-1] == ["-m"]:
        called = ["python", "-m", started[-1]]
    elif program.endswith(".py"):
        called = ["python", _as_typed(program)]
    else:  # an installed command, or `python -c`
        called = [Path(program).name]
    return shlex.join([*called, *map(_as_typed, arguments)])


def _as_typed(argument: str) -> str:
    """Without the checkout's folder; with ~ for the home."""
    for folder, short in ((f"{CHECKOUT}{os.sep}", ""), (f"{Path.home()}{os.sep}", f"~{os.sep}")):
        argument = argument.replace(folder, short)
    return argument


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Model name and the flags of CPU_FLAGS that it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return platform.processor() or platform.machine(), ()
    fields: dict[str, str] = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", text, re.MULTILINE))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return fields.get("model name", platform.machine()), tuple(
        flag for flag in CPU_FLAGS if flag in flags
    )


def _memory_mib() -> tuple[int, int]:
    """Total and available memory, the smaller of the machine's and the control group's."""
    try:
        fields = dict(
            re.findall(
                r"^(\w+):\s+(\d+) kB",
                Path("/proc/meminfo").read_text(encoding="ascii"),
                re.MULTILINE,
            )
        )
        total, free = int(fields["MemTotal"]) >> 10, int(fields["MemAvailable"]) >> 10
    except (OSError, KeyError):
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    try:
        limit, used = (
            int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii")) >> 20
            for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):  # no control group, or its limit is "max"
        return total, free
    return min(total, limit), min(free, limit - used)


def _gpus() -> tuple[Gpu, ...]:
    rows = _output(
        [
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version,compute_cap",
            "--format=csv,noheader,nounits",
        ]
    )
    cells = [[cell.strip() for cell in line.split(",")] for line in (rows or "").splitlines()]
    return tuple(
        Gpu(row[0], int(row[1]), row[2], row[3])
        for row in cells
        if len(row) == 4 and row[1].isdigit()
    )


def _output(command: Sequence[str]) -> str | None:
    """Standard output of a command; None where it is absent, fails or hangs (nvidia-smi does with a
    broken driver).
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
