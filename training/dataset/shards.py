"""Song shards: ragged fields of many songs end to end in safetensors files, and a columnar index
over all of them.

A data set is a folder:
    000-00000.safetensors   one tensor a field ([rows of all songs, width]), `<field>/ends` int64
                            [songs], ids and JSON metadata as bytes, digests uint8 [songs, 16]
    000-00000.json          bytes and sha256 of it, written last: a shard without it does not count
    index.safetensors       sorted by id: shard, place in it, split, digest, and start and rows of
                            every field; its own sha256 is in its header

Everything is read through memory maps: opening 1.5 M songs costs the index, reading a song costs
its own pages. A song's digest covers its id, split, metadata, and the length and bytes of every
field, so that a song under another one's name is noticed (`verify_songs`).

    shards = Shards("data/latents")
    song = shards.read(0)
    song["latents"]                                  # written by ShardWriter (shard_writer.py)
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
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from mudit_engine.errors import InputError
from mudit_engine.training.dataset.shard_files import (
    DIGESTS,
    IDS,
    METADATA,
    Field,
    check_shard,
    complete_shards,
    fields_of,
    map_safetensors,
    read_note,
    safetensors_header,
    song_digest,
    song_ids,
    write_bytes,
)

VERSION = 1
DIGEST_BYTES = 16
INDEX = "index.safetensors"
SPLITS = ("train", "validation", "test")
STEMS = ("vocals", "drums", "bass", "chords")
LEVELS = ("word", "phrase", "sentence")
LANGUAGES = ("zh", "en")


def song_fields(*, latent_channels: int, description_width: int = 512) -> dict[str, Field]:
    """The fields of a data set for the song transformer.

    Args:
        latent_channels: C of the VAE.
        description_width: W of ChinMu's vectors.

    Returns:
        latents float16 [T, C]; phonemes int32 [L]; phoneme_times float32 [L, 2] in seconds, empty
        when unknown; fragments float16 [F, W] with fragment_kinds uint8 [F, 5] = positions in
        LEVELS, LANGUAGES and USER_TYPES, number of the description, whether a request would use the
        fragment; `stem.*` float16 [T, C].

    Examples:
        >>> fields = song_fields(latent_channels=96)
        >>> fields["latents"], fields["phonemes"]
        (Field(dtype='float16', width=96), Field(dtype='int32', width=None))
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


def build_index(folder: str | Path) -> Path:
    """Writes index.safetensors over every complete shard of `folder`, sorted by song id. Raises
    InputError for repeated ids or no shard.
    """
    folder = Path(folder)
    paths = complete_shards(folder)
    if not paths:
        raise InputError(f"no shard in '{folder}': encode some songs first (mudit data encode)")
    ids: list[str] = []
    columns: dict[str, list[np.ndarray]] = {"shard": [], "place": [], "split": [], "digest": []}
    fields: dict[str, Field] | None = None
    notes = []
    for number, path in enumerate(paths):
        tensors = map_safetensors(path)
        check_shard(path, tensors)
        here = fields_of(tensors)
        if fields is not None and here != fields:
            raise InputError(f"shard '{path}' holds fields {here}, the ones before it {fields}")
        fields = here
        shard_ids = list(song_ids(tensors))
        ids += shard_ids
        columns["shard"].append(np.full(len(shard_ids), number, np.int32))
        columns["place"].append(np.arange(len(shard_ids), dtype=np.int32))
        columns["split"].append(tensors["split"])
        unknown = np.zeros((len(shard_ids), DIGEST_BYTES), np.uint8)
        columns["digest"].append(tensors.get(DIGESTS, unknown))
        for name in (*fields, METADATA):
            ends = tensors[f"{name}/ends"]
            starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
            columns.setdefault(f"{name}/start", []).append(starts)
            columns.setdefault(f"{name}/rows", []).append((ends - starts).astype(np.int32))
        note = read_note(path.with_suffix(".json"))
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
    index[IDS] = np.frombuffer(b"".join(encoded), np.uint8)
    index[f"{IDS}/ends"] = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    spec = {name: [field.dtype, field.width] for name, field in (fields or {}).items()}
    header = {
        "format": "mudit-index",
        "version": str(VERSION),
        "shards": json.dumps(notes),
        "fields": json.dumps(spec),
    }
    header["sha256"] = _index_checksum(header, index)
    write_bytes(folder / INDEX, to_safetensors(index, header))
    return folder / INDEX


def _index_checksum(header: Mapping[str, str], columns: Mapping[str, np.ndarray]) -> str:
    state = hashlib.sha256(header["shards"].encode() + header["fields"].encode())
    for name in sorted(columns):
        state.update(name.encode())
        state.update(np.ascontiguousarray(columns[name]).data)
    return state.hexdigest()


class Shards:
    """A data set, read at random through memory maps.

    Songs are numbered by their sorted ids; arrays are views of the mapped files.

    Args:
        folder: written by `mudit data encode` or a ShardWriter.
        open_files: shards that are kept open at most.

    Raises:
        InputError: for a folder without an index, or with one of another version.

    Examples:
        >>> shards = Shards(small_recipe.data.folder)
        >>> song = shards.read(0)
        >>> song.id, song["latents"].shape[1]
        ('song-000', 8)
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
        if "sha256" in header and header["sha256"] != _index_checksum(header, self._columns):
            raise InputError(
                f"'{path}' has changed since it was written (its sha256 differs): delete it and "
                f"encode again, which makes the index anew from the shards"
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
        """The id of song `number`."""
        ends = self._columns[f"{IDS}/ends"]
        start = int(ends[number - 1]) if number else 0
        return self._columns[IDS][start : int(ends[number])].tobytes().decode()

    def read(self, number: int, fields: Iterable[str] | None = None) -> SongRecord:
        """Song `number`; `fields` limits what is touched."""
        number = int(number)
        tensors = self._map(int(self._columns["shard"][number]))
        arrays = {}
        for name in (*(self.fields if fields is None else fields), METADATA):
            start = int(self._columns[f"{name}/start"][number])
            arrays[name] = tensors[name][start : start + int(self._columns[f"{name}/rows"][number])]
        metadata = arrays.pop(METADATA)
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
        """Reads every shard once: (file name, whether its sha256 is what it was written with)."""
        for name, _, digest in self.files:
            with open(self.folder / name, "rb") as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest() == digest

    def verify_songs(self) -> Iterator[tuple[str, str | None]]:
        """Reads every song as training does: (id, what is wrong with it, or None).

        A song is right when its digest is the one that the index holds and the one that its shard
        holds at its place.
        """
        for number in range(len(self)):
            yield self.id(number), self._song_fault(number)

    def _song_fault(self, number: int) -> str | None:
        if "digest" not in self._columns or not self._columns["digest"][number].any():
            return "it was written without a checksum of its own: encode it again"
        noted = self._columns["digest"][number].tobytes()
        tensors = self._map(int(self._columns["shard"][number]))
        stored = tensors[DIGESTS][int(self._columns["place"][number])].tobytes()
        record = self.read(number)
        found = song_digest(
            record.id, int(self._columns["split"][number]), record.arrays, record._metadata
        )
        if stored != noted:
            return "its checksum in the shard is not the one in the index"
        if found != noted:
            return "what is read of it is not what was written: its checksum differs"
        return None

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
