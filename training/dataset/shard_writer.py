"""Writes song shards so that no fault shifts a song: each is checked and turned into bytes first,
and joins the others in one assignment.

    with ShardWriter("data/latents", song_fields(latent_channels=96)) as writer:
        writer.add("song-1", {"latents": z_TC, "phonemes": p_L}, metadata={"bpm": 96})

A song that raises is in no shard, whatever it raised (InputError, KeyboardInterrupt, MemoryError);
the songs before it are written when the writer is left.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors.numpy import save as to_safetensors

from mudit_engine.errors import InputError, OutputError
from mudit_engine.files import write_text
from mudit_engine.training.dataset.shard_files import (
    DIGESTS,
    IDS,
    METADATA,
    Field,
    check_shard,
    complete_shards,
    fields_of,
    map_safetensors,
    song_digest,
    song_ids,
    write_bytes,
)
from mudit_engine.training.dataset.shards import SPLITS, VERSION, build_index

EVERY_SECONDS = 600.0  # so that a lost machine costs minutes, where a shard takes hours to fill


@dataclass(frozen=True)
class _Song:
    """A song as bytes: everything that could fail has been done."""

    arrays: dict[str, np.ndarray]
    split: int
    digest: bytes

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


@dataclass
class _Batch:
    """The songs of the shard that is written next, by id. Its number stays until they are on disk:
    a flush that was interrupted writes the same file again.
    """

    number: int
    songs: dict[str, _Song] = field(default_factory=dict)
    bytes: int = 0
    since: float = field(default_factory=time.monotonic)


class ShardWriter:
    """Appends songs to the shards of a data set.

    A shard appears whole or not at all; a second run skips the songs that are there. Writers of
    several processes share a folder when each has its own number.

    Args:
        folder: of the data set; it is made.
        fields: of a song (`song_fields`, `audio_fields`).
        writer: number of this writer, the beginning of its shards' names.
        shard_bytes: a shard is written when it has about this many,
        every_seconds: or when its songs came in this time.
        index: writes the index at the end; with several writers none does: call build_index once
            they are done.

    Raises:
        InputError: for fields that differ from those of the folder.

    Examples:
        >>> import numpy as np
        >>> from mudit_engine.training.dataset.shards import Shards, song_fields
        >>> with ShardWriter(new_folder, song_fields(latent_channels=8)) as writer:
        ...     writer.add("one", {"latents": np.zeros((20, 8))}, metadata={"seconds": 1.9})
        >>> len(Shards(new_folder))
        1
    """

    def __init__(
        self,
        folder: str | Path,
        fields: Mapping[str, Field],
        *,
        writer: int = 0,
        shard_bytes: int = 256 << 20,
        every_seconds: float = EVERY_SECONDS,
        index: bool = True,
    ) -> None:
        reserved = {IDS, METADATA, DIGESTS, "split"} & set(fields)
        if reserved or any("/" in name for name in fields):
            raise InputError(
                f"field names {sorted(fields)} must not hold '/', 'ids', 'metadata', 'digests' or "
                f"'split'"
            )
        self.folder, self.fields = Path(folder), dict(fields)
        self.writer, self.index = writer, index
        self.shard_bytes, self.every_seconds = shard_bytes, every_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self._done: set[str] = set()
        taken = -1
        for path in complete_shards(self.folder):
            tensors = map_safetensors(path)
            check_shard(path, tensors)
            if fields_of(tensors) != self.fields:
                raise InputError(
                    f"shard '{path}' holds fields {fields_of(tensors)}, this writer "
                    f"{self.fields}: give another folder"
                )
            self._done.update(song_ids(tensors))
            owner, _, number = path.stem.partition("-")
            if int(owner) == writer:
                taken = max(taken, int(number))
        self._batch = _Batch(taken + 1)

    def __contains__(self, song_id: str) -> bool:
        return song_id in self._done or song_id in self._batch.songs

    def __len__(self) -> int:
        return len(self._done) + len(self._batch.songs)

    def add(
        self,
        song_id: str,
        arrays: Mapping[str, np.ndarray],
        *,
        metadata: Mapping[str, Any] | None = None,
        split: str = "train",
    ) -> None:
        """Adds a song; fields left out get 0 rows. Raises InputError for an unknown field, a wrong
        width, NaN, infinity, numbers or text that the data set cannot hold, a repeated id.
        """
        if song_id in self:
            raise InputError(f"song '{song_id}' is already in '{self.folder}'")
        song = self._serialised(song_id, arrays, {"split": split, **(metadata or {})}, split)
        self._batch.songs[song_id] = song
        self._batch.bytes += song.bytes
        late = time.monotonic() - self._batch.since >= self.every_seconds
        if self._batch.bytes >= self.shard_bytes or late:
            self.flush()

    def _serialised(
        self, song_id: str, arrays: Mapping[str, np.ndarray], metadata: dict[str, Any], split: str
    ) -> _Song:
        shown = ascii(song_id)
        if not song_id:
            raise InputError("a song needs an id that is not empty")
        unknown = set(arrays) - set(self.fields)
        if unknown:
            raise InputError(
                f"song '{song_id}' has fields {sorted(unknown)}: this data set takes "
                f"{sorted(self.fields)}"
            )
        if split not in SPLITS:
            raise InputError(f"song {shown}: split {split!r} is none of {', '.join(SPLITS)}")
        try:
            id_bytes = song_id.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"song id {shown} holds half a character (a lone surrogate), which no file can "
                f"hold: rename the song"
            ) from None
        try:
            text = json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise InputError(
                f"song '{song_id}': its metadata hold half a character (a lone surrogate): write "
                f"the character whole, or leave it out"
            ) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"song '{song_id}': its metadata are no JSON ({error})") from None
        casts = {
            name: self._cast(song_id, name, field, arrays.get(name))
            for name, field in self.fields.items()
        }
        meta, number = np.frombuffer(text, np.uint8), SPLITS.index(split)
        digest = song_digest(song_id, number, casts, meta)
        casts |= {IDS: np.frombuffer(id_bytes, np.uint8), METADATA: meta}
        return _Song(casts, number, digest)

    def _cast(self, song_id: str, name: str, field: Field, given: Any) -> np.ndarray:
        """A copy of its own in the field's type: what the caller does to its array later is no
        part of the song.
        """
        array = field.empty() if given is None else np.asarray(given)
        if array.shape[1:] != field.empty().shape[1:] or array.ndim != field.empty().ndim:
            raise InputError(
                f"song '{song_id}': {name} has shape {array.shape}, this data set takes [rows, "
                f"{field.width}]"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            cast = np.array(array, field.dtype, order="C", copy=True)
        if cast.dtype.kind == "f" and not np.isfinite(cast).all():
            raise InputError(
                f"song '{song_id}': {name} holds NaN or infinity (as {field.dtype}): leave the "
                f"song out or mend it"
            )
        if cast.dtype.kind != "f" and not np.array_equal(cast, array):
            raise InputError(
                f"song '{song_id}': {name} holds numbers that {field.dtype} cannot hold: leave the "
                f"song out or mend it"
            )
        return cast

    def flush(self) -> None:
        """Writes the songs gathered so far as one shard. Raises OutputError when the disk does not
        take it.
        """
        batch, songs = self._batch, list(self._batch.songs.values())
        if not songs:
            batch.since = time.monotonic()
            return
        tensors = {
            "split": np.array([song.split for song in songs], np.uint8),
            DIGESTS: np.frombuffer(b"".join(song.digest for song in songs), np.uint8).reshape(
                len(songs), -1
            ),
        }
        for name in (*self.fields, IDS, METADATA):
            parts = [song.arrays[name] for song in songs]
            tensors[name] = np.concatenate(parts)
            tensors[f"{name}/ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
        # one key: the library writes several in any order, and the sha256 would vary
        data = to_safetensors(tensors, {"format": f"mudit-shard-{VERSION}"})
        path = self.folder / f"{self.writer:03d}-{batch.number:05d}.safetensors"
        write_bytes(path, data)
        note = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "songs": len(songs),
        }
        write_text(path.with_suffix(".json"), json.dumps(note))
        self._done.update(batch.songs)
        self._batch = _Batch(batch.number + 1)

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
