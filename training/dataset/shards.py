"""Song shards: ragged fields of many songs end to end in safetensors files, and a columnar index
over all of them.

A data set is a folder:
    000-00000.safetensors   one tensor a field ([rows of all songs, width]), `<field>/ends` int64
                            [songs], ids and JSON metadata as bytes
    000-00000.json          bytes and sha256 of it, written last: a shard without it does not count
    index.safetensors       sorted by id: shard, split, and start and rows of every field

Everything is read through memory maps: opening 1.5 M songs costs the index, reading a song costs
its own pages.

    with ShardWriter("data/latents", song_fields(latent_channels=96)) as writer:
        writer.add("song-1", {"latents": z_TC, "phonemes": p_L}, metadata={"bpm": 96})
    shards = Shards("data/latents"); song = shards.read(0); song["latents"]
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors.numpy import save as to_safetensors

from mudit_engine.errors import InputError, OutputError
from mudit_engine.files import atomic_path, write_text

VERSION = 1
INDEX = "index.safetensors"
SPLITS = ("train", "validation", "test")
STEMS = ("vocals", "drums", "bass", "chords")
LEVELS = ("word", "phrase", "sentence")
LANGUAGES = ("zh", "en")
USER_TYPES = ("none", "amateur", "professional")

_IDS, _META = "ids", "metadata"
_DTYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
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


def song_fields(*, latent_channels: int, description_width: int = 512) -> dict[str, Field]:
    """The fields of a DiT data set.

    latents [T, C]; phonemes [L]; phoneme_times [L, 2] seconds (start, end), empty when unknown;
    fragments [F, W] description vectors with fragment_kinds [F, 5] = positions in LEVELS,
    LANGUAGES, USER_TYPES, number of the description, whether a request with it asks for this
    fragment; `stem.*` [T, C] latents of the separated stems.
    """
    latents = Field("float16", latent_channels)
    return {
        "latents": latents,
        "phonemes": Field("int32"),
        "phoneme_times": Field("float32", 2),
        "fragments": Field("float16", description_width),
        "fragment_kinds": Field("uint8", 5),
        **{f"stem.{stem}": latents for stem in STEMS},
    }


def audio_fields(*, channels: int) -> dict[str, Field]:
    """The fields of an audio data set (VAE and ChinMu training): the mix as int16 [samples,
    channels].
    """
    return {"audio": Field("int16", channels)}


@dataclass(frozen=True)
class SongRecord:
    """One song: `song[field]` is a read-only array over the mapped file (copy it before it leaves
    the reader's hands).
    """

    number: int
    id: str
    split: str
    arrays: Mapping[str, np.ndarray]
    _metadata: np.ndarray

    def __getitem__(self, field: str) -> np.ndarray:
        return self.arrays[field]

    @cached_property
    def metadata(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self._metadata.tobytes())
        return fields


class ShardWriter:
    """Appends songs to shards of about `shard_bytes`. A shard appears whole or not at all; a second
    run skips the songs that are there.

    Writers of several processes share a folder when each has its own `writer` number; with `index`
    False none of them writes the index: call build_index once they are done.
    """

    def __init__(
        self,
        folder: str | Path,
        fields: Mapping[str, Field],
        *,
        writer: int = 0,
        shard_bytes: int = 256 << 20,
        index: bool = True,
    ) -> None:
        reserved = {_IDS, _META} & set(fields)
        if reserved or any("/" in name for name in fields):
            raise InputError(f"field names {sorted(fields)} must not hold '/', 'ids' or 'metadata'")
        self.folder, self.fields, self.writer, self.shard_bytes, self.index = (
            Path(folder),
            dict(fields),
            writer,
            shard_bytes,
            index,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._done: set[str] = set()
        for path in complete_shards(self.folder):
            tensors = map_safetensors(path)
            if _fields_of(tensors) != self.fields:
                raise InputError(
                    f"shard '{path}' holds fields {_fields_of(tensors)}, this writer "
                    f"{self.fields}: give another folder"
                )
            self._done.update(_strings(tensors))
        self._clear()

    def __contains__(self, song_id: str) -> bool:
        return song_id in self._done

    def __len__(self) -> int:
        return len(self._done)

    def add(
        self,
        song_id: str,
        arrays: Mapping[str, np.ndarray],
        *,
        metadata: Mapping[str, Any] | None = None,
        split: str = "train",
    ) -> None:
        """Adds a song; fields left out get 0 rows. Raises InputError for an unknown field, a wrong
        width, NaN, infinity, a repeated id.
        """
        if song_id in self._done:
            raise InputError(f"song '{song_id}' is already in '{self.folder}'")
        unknown = set(arrays) - set(self.fields)
        if unknown:
            raise InputError(
                f"song '{song_id}' has fields {sorted(unknown)}: this data set takes "
                f"{sorted(self.fields)}"
            )
        casts = {}
        for name, field in self.fields.items():
            array = np.asarray(arrays[name]) if name in arrays else field.empty()
            if array.shape[1:] != field.empty().shape[1:] or array.ndim != field.empty().ndim:
                raise InputError(
                    f"song '{song_id}': {name} has shape {array.shape}, this data set takes [rows, "
                    f"{field.width}]"
                )
            with np.errstate(over="ignore"):  # told below
                cast = np.ascontiguousarray(array, field.dtype)
            if cast.dtype.kind == "f" and not np.isfinite(cast).all():
                raise InputError(
                    f"song '{song_id}': {name} holds NaN or infinity (as {field.dtype}): leave the "
                    f"song out or mend it"
                )
            casts[name] = cast
        for name, cast in casts.items():
            self._parts[name].append(cast)
            self._bytes += cast.nbytes
        self._parts[_IDS].append(np.frombuffer(song_id.encode(), np.uint8))
        text = json.dumps({"split": split, **(metadata or {})}, ensure_ascii=False).encode()
        self._parts[_META].append(np.frombuffer(text, np.uint8))
        self._splits.append(SPLITS.index(split))
        self._done.add(song_id)
        if self._bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes the songs gathered so far as one shard. Raises OutputError when the disk does not
        take it.
        """
        if not self._splits:
            return
        tensors = {"split": np.array(self._splits, np.uint8)}
        for name, parts in self._parts.items():
            tensors[name] = np.concatenate(parts)
            tensors[f"{name}/ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
        # one key: the library writes several in any order, and the sha256 would vary
        data = to_safetensors(tensors, {"format": f"mudit-shard-{VERSION}"})
        taken = [
            int(path.stem.split("-")[1])
            for path in complete_shards(self.folder)
            if path.stem.startswith(f"{self.writer:03d}-")
        ]
        path = self.folder / f"{self.writer:03d}-{max(taken, default=-1) + 1:05d}.safetensors"
        _write(path, data)
        note = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "songs": len(self._splits),
        }
        write_text(path.with_suffix(".json"), json.dumps(note))
        self._clear()

    def _clear(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {
            name: [] for name in (*self.fields, _IDS, _META)
        }
        self._splits: list[int] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, OutputError):
            self.flush()  # an interrupted run keeps the songs it has finished
        if error is None and self.index:
            build_index(self.folder)


def build_index(folder: str | Path) -> Path:
    """Writes index.safetensors over every complete shard of `folder`, sorted by song id. Raises
    InputError for repeated ids or no shard.
    """
    folder = Path(folder)
    paths = complete_shards(folder)
    if not paths:
        raise InputError(f"no shard in '{folder}': encode some songs first (mudit data encode)")
    ids: list[str] = []
    columns: dict[str, list[np.ndarray]] = {"shard": [], "split": []}
    fields: dict[str, Field] | None = None
    notes = []
    for number, path in enumerate(paths):
        tensors = map_safetensors(path)
        here = _fields_of(tensors)
        if fields is not None and here != fields:
            raise InputError(f"shard '{path}' holds fields {here}, the ones before it {fields}")
        fields = here
        shard_ids = list(_strings(tensors))
        ids += shard_ids
        columns["shard"].append(np.full(len(shard_ids), number, np.int32))
        columns["split"].append(tensors["split"])
        for name in (*fields, _META):
            ends = tensors[f"{name}/ends"]
            starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
            columns.setdefault(f"{name}/start", []).append(starts)
            columns.setdefault(f"{name}/rows", []).append((ends - starts).astype(np.int32))
        note = json.loads(path.with_suffix(".json").read_text())
        notes.append([path.name, note["bytes"], note["sha256"]])
    order = sorted(range(len(ids)), key=ids.__getitem__)
    twice = [ids[a] for a, b in itertools.pairwise(order) if ids[a] == ids[b]]
    if twice:
        raise InputError(
            f"song '{twice[0]}' is in '{folder}' more than once ({len(twice)} repeated): remove "
            f"one of the shards"
        )
    encoded = [ids[i].encode() for i in order]
    index = {name: np.concatenate(parts)[order] for name, parts in columns.items()}
    index[_IDS] = np.frombuffer(b"".join(encoded), np.uint8)
    index[f"{_IDS}/ends"] = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    spec = {name: [field.dtype, field.width] for name, field in (fields or {}).items()}
    header = {
        "format": "mudit-index",
        "version": str(VERSION),
        "shards": json.dumps(notes),
        "fields": json.dumps(spec),
    }
    _write(folder / INDEX, to_safetensors(index, header))
    return folder / INDEX


class Shards:
    """A data set, read at random. `shards.read(i)` gives song i of the sorted ids; arrays are views
    of the mapped files.
    """

    def __init__(self, folder: str | Path, *, open_files: int = 256) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.exists():
            raise InputError(
                f"no data set in '{folder}' ({INDEX} is missing): write one with `mudit data "
                f"encode`"
            )
        self._columns = map_safetensors(path)
        header = safetensors_header(path)[0].get("__metadata__", {})
        if header.get("format") != "mudit-index" or header.get("version") != str(VERSION):
            raise InputError(
                f"'{path}' is not a song index of version {VERSION}: encode the songs again"
            )
        self.files: list[tuple[str, int, str]] = [
            (name, size, digest) for name, size, digest in json.loads(header["shards"])
        ]
        self.fields = {
            name: Field(dtype, width)
            for name, (dtype, width) in json.loads(header["fields"]).items()
        }
        self._open_files = open_files
        self._maps: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        # a shard that was cut short or replaced is found before the first step, not in the middle
        # of the night
        for name, size, _ in self.files:
            found = (self.folder / name).stat().st_size if (self.folder / name).exists() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise InputError(
                    f"shard '{self.folder / name}' {state}: restore it, or delete it with its "
                    f".json and encode again"
                )

    def __len__(self) -> int:
        return len(self._columns["shard"])

    def rows(self, field: str) -> np.ndarray:
        """int32 [songs]: rows of `field` in every song, straight from the index."""
        if field not in self.fields:
            raise InputError(
                f"'{self.folder}' holds no field '{field}': it has {sorted(self.fields)}"
            )
        return self._columns[f"{field}/rows"]

    def numbers(self, split: str) -> np.ndarray:
        """int64: the songs of a split ('train', 'validation', 'test')."""
        return np.flatnonzero(self._columns["split"] == SPLITS.index(split))

    def id(self, number: int) -> str:
        ends = self._columns[f"{_IDS}/ends"]
        start = int(ends[number - 1]) if number else 0
        return self._columns[_IDS][start : int(ends[number])].tobytes().decode()

    def read(self, number: int, fields: Iterable[str] | None = None) -> SongRecord:
        """Song `number`; `fields` limits what is touched."""
        number = int(number)
        tensors = self._map(int(self._columns["shard"][number]))
        arrays = {}
        for name in (*(self.fields if fields is None else fields), _META):
            start = int(self._columns[f"{name}/start"][number])
            arrays[name] = tensors[name][start : start + int(self._columns[f"{name}/rows"][number])]
        metadata = arrays.pop(_META)
        return SongRecord(
            number, self.id(number), SPLITS[self._columns["split"][number]], arrays, metadata
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over the ids, the lengths and the shards' checksums: names the data set in a
        checkpoint.
        """
        state = hashlib.sha256(json.dumps(self.files).encode())
        for name in sorted(self._columns):
            state.update(np.ascontiguousarray(self._columns[name]).data)
        return state.hexdigest()

    def verify(self) -> Iterator[tuple[str, bool]]:
        """Reads every shard once: (file name, whether its sha256 is the one it was written
        with).
        """
        for name, _, digest in self.files:
            with open(self.folder / name, "rb") as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest() == digest

    def _map(self, shard: int) -> dict[str, np.ndarray]:
        # concurrent readers may map a shard twice; both maps are the same pages, and the loser is
        # dropped
        with contextlib.suppress(KeyError):
            self._maps.move_to_end(shard)
            return self._maps[shard]
        tensors = map_safetensors(self.folder / self.files[shard][0])
        self._maps[shard] = tensors
        while len(self._maps) > self._open_files:
            with contextlib.suppress(KeyError):
                self._maps.popitem(last=False)
        return tensors


def complete_shards(folder: Path) -> list[Path]:
    """The shards whose note is there and whose size agrees with it, by name."""
    paths = []
    for note in sorted(folder.glob("[0-9]*-[0-9]*.json")):
        path = note.with_suffix(".safetensors")
        if path.exists() and path.stat().st_size == json.loads(note.read_text())["bytes"]:
            paths.append(path)
    return paths


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """(header, position of the first data byte) of a safetensors file. Raises InputError for
    something else.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(f"'{path}' is not a safetensors file, or was cut short")
        header: dict[str, Any] = json.loads(file.read(length))
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
        low, high = (start + offset for offset in spec["data_offsets"])
        if high > len(data):
            raise InputError(
                f"'{path}' was cut short: tensor '{name}' ends at byte {high} of {len(data)}"
            )
        tensors[name] = (
            data[low:high].view(_DTYPES[spec["dtype"]]).reshape(spec["shape"]).view(np.ndarray)
        )
    return tensors


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as aside:
        aside.write_bytes(data)


def _fields_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Field]:
    names = [
        name.removesuffix("/ends")
        for name in tensors
        if name.endswith("/ends") and name not in (f"{_IDS}/ends", f"{_META}/ends")
    ]
    return {
        name: Field(
            tensors[name].dtype.name, tensors[name].shape[1] if tensors[name].ndim == 2 else None
        )
        for name in sorted(names)
    }


def _strings(tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    start, data = 0, tensors[_IDS]
    for end in tensors[f"{_IDS}/ends"].tolist():
        yield data[start:end].tobytes().decode()
        start = end
