"""What the files of a data set are made of: safetensors shards with a note beside each, mapped into
memory, and the checksum of a song.

    <writer>-<number>.safetensors    one tensor a field, `<field>/ends`, ids and metadata as bytes,
                                     split, and digests: uint8 [songs, 16]
    <writer>-<number>.json           its bytes, songs and sha256; a shard without it does not count

    for path in complete_shards(folder):
        tensors = map_safetensors(path)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.files import atomic_path

log = logging.getLogger(__name__)

IDS, METADATA, DIGESTS = "ids", "metadata", "digests"
DTYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "U64": "u8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True)
class Field:
    """Type of a ragged field: a song holds [rows] (width None) or [rows, width] of `dtype`; rows
    may be 0.
    """

    dtype: str
    width: int | None = None

    def empty(self) -> np.ndarray:
        return np.empty((0,) if self.width is None else (0, self.width), self.dtype)


def complete_shards(folder: Path) -> list[Path]:
    """The shards whose note is there and whose size agrees with it, by name. Others are named in
    the log: their songs count as not encoded.
    """
    paths = []
    for note in sorted(folder.glob("[0-9]*-[0-9]*.json")):
        path = note.with_suffix(".safetensors")
        try:
            size = read_note(note)["bytes"]
        except InputError as error:
            log.warning("%s: its shard does not count", error)
            continue
        if path.exists() and path.stat().st_size == size:
            paths.append(path)
        elif path.exists():
            found = path.stat().st_size
            log.warning("shard '%s' has %d bytes, not %d: it does not count", path, found, size)
    return paths


def read_note(path: Path) -> dict[str, Any]:
    """The note beside a shard: bytes, sha256, songs. Raises InputError when it is damaged."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {"bytes": int(note["bytes"]), "sha256": str(note["sha256"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' is damaged ({type(error).__name__}: {error}): delete it with its shard and "
            f"encode again"
        ) from None


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """(header, position of the first data byte) of a safetensors file. Raises InputError for
    something else.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(f"'{path}' is not a safetensors file, or was cut short")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"'{path}' is damaged: its header is not JSON")
    return header, 8 + length


def map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file as a read-only view of one memory map. Raises InputError
    when the file was cut short.
    """
    header, start = safetensors_header(path)
    data = np.memmap(path, np.uint8, mode="r")
    tensors = {}
    for name, spec in header.items():
        if name == "__metadata__":
            continue
        try:
            low, high = (start + offset for offset in spec["data_offsets"])
            if high > len(data):
                raise InputError(
                    f"'{path}' was cut short: tensor '{name}' ends at byte {high} of {len(data)}"
                )
            tensors[name] = (
                data[low:high].view(DTYPES[spec["dtype"]]).reshape(spec["shape"]).view(np.ndarray)
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"'{path}' is damaged: its header does not describe '{name}' ({error})"
            ) from None
    return tensors


def check_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises InputError for a shard whose columns do not belong together: lengths that run
    backwards or beyond their field, or another number of songs in one of them.
    """
    ends = {name: value for name, value in tensors.items() if name.endswith("/ends")}
    songs = len(tensors["split"]) if "split" in tensors else -1
    for name, value in ends.items():
        rows = tensors.get(name.removesuffix("/ends"))
        steps = np.diff(value, prepend=0)
        if rows is None or len(value) != songs or (steps < 0).any() or steps.sum() != len(rows):
            raise InputError(
                f"shard '{path}' is damaged: '{name}' does not fit it. Delete it with its .json "
                f"and encode again"
            )
    if IDS not in tensors or f"{IDS}/ends" not in ends or f"{METADATA}/ends" not in ends:
        raise InputError(f"'{path}' is not a shard of songs: delete it with its .json")


def song_digest(
    song_id: str, split: int, arrays: Mapping[str, np.ndarray], metadata: np.ndarray
) -> bytes:
    """16 bytes over all of a song: its id, split and metadata, and the rows of every field."""
    state = hashlib.blake2b(song_id.encode(), digest_size=16)
    state.update(f"\0{split}\0".encode())
    for name, array in sorted({**arrays, METADATA: metadata}.items()):
        state.update(f"\0{name}\0{len(array)}\0".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.digest()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file aside and renames it. Raises OutputError."""
    with atomic_path(path) as aside:
        aside.write_bytes(data)


def fields_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Field]:
    names = [
        name.removesuffix("/ends")
        for name in tensors
        if name.endswith("/ends") and name not in (f"{IDS}/ends", f"{METADATA}/ends")
    ]
    return {
        name: Field(
            tensors[name].dtype.name, tensors[name].shape[1] if tensors[name].ndim == 2 else None
        )
        for name in sorted(names)
    }


def song_ids(tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    start, data = 0, tensors[IDS]
    for end in tensors[f"{IDS}/ends"].tolist():
        yield data[start:end].tobytes().decode()
        start = end
