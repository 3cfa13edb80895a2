"""Which backend is fastest on this device, as a measurement found it: tables, the one in force, and
why another one is not.

    found = in_force(torch.device("cuda"))        # Standing(table, path, reason)
    found.table.order("attention", 128, torch.bfloat16, 1500)     # ("flash3", "triton", ...)

`mudit bench tune` writes a table into the user's cache, one file a device. A table that ships with
the package (backends/tables) serves where the user made none. One that was made on another device
or with other versions of torch and Triton is ignored, and `mudit doctor` says so. Where none is in
force, the Triton kernels run on a CUDA device and the plain references elsewhere.

MUDIT_BACKENDS names a table to use instead, or is "off".
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mudit_engine.availability import version
from mudit_engine.errors import InputError
from mudit_engine.files import cache_folder, write_json

log = logging.getLogger(__name__)

SCHEMA = 1
VARIABLE = "MUDIT_BACKENDS"
LENGTHS = (512, 2048, 8192)
"""Buckets of length: up to so many rows each, and beyond the last."""
SHIPPED = Path(__file__).with_name("tables")
OPS = ("attention", "attention_grad", "linear_gelu")


@dataclass(frozen=True)
class Device:
    """What a measurement depends on. threads: of a CPU; 0 on a GPU."""

    name: str
    torch: str
    triton: str | None
    threads: int


@dataclass(frozen=True)
class Table:
    """Backends in the order in which `auto` tries them, by (op, width, dtype, bucket of length).

    details: the rows as they were measured, with times and reasons.
    """

    device: Device
    orders: Mapping[tuple[str, int, str, int], tuple[str, ...]]
    details: list[dict[str, Any]] = field(default_factory=list)
    env: dict[str, Any] = field(default_factory=dict)

    def order(self, op: str, width: int, dtype: torch.dtype, rows: int) -> tuple[str, ...]:
        """Backends, fastest first; none where nothing was measured."""
        return self.orders.get((op, width, dtype_name(dtype), bucket(rows)), ())

    def document(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA,
            "env": self.env,
            "device": asdict(self.device),
            "results": self.details,
        }


@dataclass(frozen=True)
class Standing:
    """The table in force on a device (None: the defaults hold), where it is, and why no other."""

    table: Table | None
    path: Path | None
    reason: str


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bucket(rows: int) -> int:
    """The bucket of a length: 0 up to LENGTHS[0] rows, and so on."""
    return sum(rows > limit for limit in LENGTHS)


def this_device(kind: str) -> Device:
    """The device of this kind ("cuda" or "cpu") and the versions that are here."""
    triton = version("triton")
    if kind == "cuda":
        return Device(torch.cuda.get_device_name(), torch.__version__, triton, 0)
    from mudit_engine.hardware import machine

    here = machine()
    name = f"{here.cpu} ({' '.join(here.cpu_flags)})"
    return Device(name, torch.__version__, triton, torch.get_num_threads())


def path_of(device: Device) -> Path:
    """Where the user's table of a device lies."""
    return cache_folder() / "backends" / _file_name(device)


def _file_name(device: Device) -> str:
    words = "".join(c if c.isalnum() else "-" for c in device.name.split("(")[0].strip().lower())
    mark = hashlib.sha256(f"{device.name}\n{device.threads}".encode()).hexdigest()[:8]
    return f"{words}-{mark}.json"


def read(path: Path) -> Table:
    """The table of a file. Raises InputError for one that is missing or no table."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema_version"] != SCHEMA:
            raise ValueError(f"schema_version {document['schema_version']}, not {SCHEMA}")
        rows = document["results"]
        orders = {
            (row["op"], row["width"], row["dtype"], row["bucket"]): tuple(row["order"])
            for row in rows
        }
        return Table(Device(**document["device"]), orders, rows, document.get("env", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no table of backends ({error}): make one with `mudit bench tune`"
        ) from error


def write(table: Table, path: Path) -> None:
    write_json(path, table.document())
    forget()


def forget() -> None:
    """Reads tables anew when they are next asked for."""
    in_force.cache_clear()


@functools.cache
def in_force(kind: str) -> Standing:
    """The table that `auto` follows on a kind of device. Raises InputError when the one that
    MUDIT_BACKENDS names cannot be read.
    """
    named = os.environ.get(VARIABLE)
    if named == "off":
        return Standing(None, None, f"{VARIABLE}=off")
    if named:
        return _judged(Path(named), kind)
    folders = [cache_folder() / "backends", SHIPPED]
    files = [file for folder in folders for file in sorted(folder.glob("*.json"))]
    if not files:
        return Standing(None, None, "no table was made: mudit bench tune makes one")
    device = this_device(kind)
    found = [folder / _file_name(device) for folder in folders]
    reason = f"no table of this device ({device.name}) among {len(files)}: mudit bench tune"
    for path in found:
        if path.exists():
            try:
                standing = _judged(path, kind)
            except InputError as error:  # a broken cache never stops a song
                standing = Standing(None, path, str(error))
            if standing.table is not None:
                return standing
            reason = standing.reason
            log.warning("%s", reason)
    return Standing(None, None, reason)


def _judged(path: Path, kind: str) -> Standing:
    """The table of a file where it was made on this device with these versions."""
    table, here = read(path), this_device(kind)
    for name, wanted in asdict(here).items():
        made = getattr(table.device, name)
        if made != wanted:
            reason = (
                f"{path.name} is ignored: it was made with {name} {made}, and {wanted} is here; "
                f"mudit bench tune makes another"
            )
            return Standing(None, path, reason)
    return Standing(table, path, f"made here with torch {here.torch}")
