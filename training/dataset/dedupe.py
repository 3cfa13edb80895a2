"""Copies among songs: the same samples, or the same recording re-encoded, trimmed, at another level
or sample rate, also between training and held-out splits.

    fingerprint_songs(open_source("songs/"), Path("dedupe"))          # shards; in parts, resumable
    copies = find_copies(Shards("dedupe"), Path("dedupe"))            # and copies.jsonl

Two songs are near copies when landmarks (fingerprint.py) that both hold lie at one distance in
time: at least MATCHES of them, and at least SHARE of the landmarks of the one that has fewer where
the two overlap. The postings (hash, song, time) and the pairs they make are sorted in buckets on
the disk, so that memory is bounded by a bucket, however many songs there are. Not found: other
tempos or keys, and other recordings of the same song.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mudit_engine.files import write_text
from mudit_engine.training.dataset.encode import Encoded, OnSong, Ready, encode_songs, writer_lock
from mudit_engine.training.dataset.fingerprint import HOP, SAMPLE_RATE, exact_digest, fingerprint
from mudit_engine.training.dataset.read_song import MAX_SECONDS, read_song
from mudit_engine.training.dataset.shard_files import Field
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import SPLITS, Shards
from mudit_engine.training.dataset.sources import SourceSong

FIELDS = {"hashes": Field("uint64"), "times": Field("int32"), "exact": Field("uint8")}
COPIES = "copies.jsonl"
MATCHES = 8
SHARE = 0.12
OVERLAP = 0.4
# a landmark that so many songs hold says nothing about any two of them
COMMON = 200
OFFSET_STEP = 4  # frames of 16 ms: distances in time are compared in steps of 64 ms
BUCKET_BYTES = 64 << 20
_POSTING = np.dtype([("hash", "u8"), ("song", "i4"), ("time", "i4")])
_PAIR = np.dtype([("a", "i4"), ("b", "i4"), ("offset", "i4")])


@dataclass(frozen=True)
class Copy:
    """A song that is left out, and the one that is kept for it. `offset_seconds` is where the copy
    begins in the kept one.
    """

    id: str
    copy_of: str
    kind: str
    share: float
    offset_seconds: float
    split: str
    split_of_kept: str

    @property
    def reason(self) -> str:
        how = "the same samples" if self.kind == "exact" else f"{self.share:.0%} of its landmarks"
        where = f", which is in '{self.split_of_kept}'" if self.split != self.split_of_kept else ""
        return f"a copy of '{self.copy_of}' ({how}){where}"


def fingerprint_songs(
    songs: Iterable[SourceSong],
    out: Path,
    *,
    part: tuple[int, int] = (0, 1),
    index: bool = True,
    max_seconds: float = MAX_SECONDS,
    leave_out: Mapping[str, str] | None = None,
    done: Encoded | None = None,
    on_song: OnSong = lambda song_id, seconds: None,
) -> Encoded:
    """Writes the fingerprints of songs as shards, in parts as encode_audio does."""

    def prepare(song: SourceSong) -> Ready:
        audio, rate = read_song(song.audio, max_seconds=max_seconds)
        hashes, times, limit = fingerprint(audio, rate)
        seconds = audio.shape[1] / rate
        exact = np.frombuffer(exact_digest(audio), np.uint8)
        arrays = {"hashes": hashes, "times": times, "exact": exact}
        known = bool(song.lyrics.strip()) + bool(song.descriptions)
        flags = () if len(hashes) >= 2 * MATCHES else ("too little of it to be compared by ear",)
        return Ready(arrays, {"seconds": seconds, "known": known, "limit": limit}, seconds, flags)

    with (
        writer_lock(out, part),
        ShardWriter(out, FIELDS, writer=part[0], index=index) as writer,
    ):
        return encode_songs(
            songs, writer, prepare, part=part, leave_out=leave_out, done=done, on_song=on_song
        )


def find_copies(
    shards: Shards,
    out: Path,
    *,
    share: float = SHARE,
    matches: int = MATCHES,
    on_step: Callable[[str], None] = lambda text: None,
) -> list[Copy]:
    """The songs that are copies of others, also written to out/copies.jsonl.

    Of copies one is kept: of the held-out splits before the training split (what is tested on must
    not be trained on), then the one of which more is known, the longer, the first id.
    """
    pairs = dict.fromkeys(_same_samples(shards), (1.0, 0, "exact"))
    work = Path(tempfile.mkdtemp(prefix=".postings-", dir=out))
    try:
        for a, b, count, offset in _near_pairs(shards, work, matches, on_step):
            found = count / max(1, _overlapping(shards, a, b, offset))
            if found >= share and (a, b) not in pairs:
                pairs[a, b] = (min(found, 1.0), offset, "near")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    copies = list(_choose(shards, pairs))
    lines = [json.dumps({**asdict(c), "reason": c.reason}, ensure_ascii=False) for c in copies]
    write_text(out / COPIES, "".join(f"{line}\n" for line in lines))
    return copies


def _same_samples(shards: Shards) -> Iterator[tuple[int, int]]:
    first: dict[bytes, int] = {}
    for number in range(len(shards)):
        key = shards.read(number, ["exact"])["exact"].tobytes()
        if key in first:
            yield first[key], number
        else:
            first[key] = number


def _near_pairs(
    shards: Shards, work: Path, matches: int, on_step: Callable[[str], None]
) -> Iterator[tuple[int, int, int, int]]:
    """(a, b, landmarks at one distance, that distance in frames: time in b - time in a)."""
    total = int(shards.rows("hashes").sum())
    buckets = max(1, -(-total * _POSTING.itemsize // BUCKET_BYTES))
    on_step(f"sorting {total} landmarks")
    with _Buckets(work, "postings", _POSTING, buckets) as postings:
        for number in range(len(shards)):
            song = shards.read(number, ["hashes", "times"])
            rows = np.empty(len(song["hashes"]), _POSTING)
            rows["hash"], rows["song"], rows["time"] = song["hashes"], number, song["times"]
            postings.add(rows, (song["hashes"] % np.uint64(buckets)).astype(np.int64))
    with _Buckets(work, "pairs", _PAIR, 4 * buckets) as found:
        for number, rows in enumerate(postings.read()):
            on_step(f"comparing, part {number + 1} of {buckets}")
            pairs = _pairs_of(rows)
            found.add(pairs, (pairs["a"] % (4 * buckets)).astype(np.int64))
    for rows in found.read():
        yield from _aligned(rows, matches)


def _pairs_of(rows: np.ndarray) -> np.ndarray:
    """Every two songs that share a landmark, with its distance in time."""
    rows = rows[np.lexsort((rows["song"], rows["hash"]))]
    starts = np.flatnonzero(np.diff(rows["hash"], prepend=rows["hash"][:1] + np.uint64(1)))
    counts = np.diff(starts, append=len(rows))
    kept = counts <= COMMON
    place = np.arange(len(rows)) - np.repeat(starts, counts)
    rows, place = rows[np.repeat(kept, counts)], place[np.repeat(kept, counts)]
    parts = []
    for back in range(1, int(place.max(initial=0)) + 1):
        later = np.flatnonzero(place >= back)
        a, b = rows[later - back], rows[later]
        other = a["song"] != b["song"]
        pairs = np.empty(int(other.sum()), _PAIR)
        pairs["a"], pairs["b"] = a["song"][other], b["song"][other]
        pairs["offset"] = b["time"][other] - a["time"][other]
        parts.append(pairs)
    return np.concatenate(parts) if parts else np.empty(0, _PAIR)


def _aligned(pairs: np.ndarray, matches: int) -> Iterator[tuple[int, int, int, int]]:
    """Pairs of songs with enough landmarks at one distance; a distance counts with its neighbour,
    since rounding parts what lies on a boundary.
    """
    if not len(pairs):
        return
    step = pairs["offset"] // OFFSET_STEP
    order = np.lexsort((step, pairs["b"], pairs["a"]))
    a, b, step = pairs["a"][order], pairs["b"][order], step[order]
    new = np.flatnonzero(
        (np.diff(a, prepend=-1) != 0)
        | (np.diff(b, prepend=-1) != 0)
        | (np.diff(step, prepend=step[0] - 2) != 0)
    )
    count = np.diff(new, append=len(a))
    a, b, step = a[new], b[new], step[new]
    beside = np.zeros(len(a), bool)
    beside[:-1] = (a[1:] == a[:-1]) & (b[1:] == b[:-1]) & (step[1:] == step[:-1] + 1)
    count[:-1] += np.where(beside[:-1], count[1:], 0)
    enough = np.flatnonzero(count >= matches)
    best = enough[np.lexsort((-count[enough], b[enough], a[enough]))]
    first = np.ones(len(best), bool)
    first[1:] = (np.diff(a[best]) != 0) | (np.diff(b[best]) != 0)
    for i in best[first].tolist():
        yield int(a[i]), int(b[i]), int(count[i]), int(step[i]) * OFFSET_STEP


def _overlapping(shards: Shards, a: int, b: int, offset: int) -> int:
    """Landmarks of the one that has fewer of them where both songs sound, OVERLAP of the shorter
    song at least.
    """
    songs = [shards.read(n, ["hashes", "times"]) for n in (a, b)]
    limit = np.uint64(min(song.metadata["limit"] for song in songs))  # what both would have kept
    times_a, times_b = (song["times"][song["hashes"] <= limit] for song in songs)
    if not len(times_a) or not len(times_b):
        return 0
    low, high = max(0, -offset), min(int(times_a.max()), int(times_b.max()) - offset)
    here = [
        int(((times >= low + shift) & (times <= high + shift)).sum())
        for times, shift in ((times_a, 0), (times_b, offset))
    ]
    # where songs hardly overlap, a bar of drums could be all that they share
    return max(min(here), round(OVERLAP * min(len(times_a), len(times_b))))


def _choose(
    shards: Shards, pairs: Mapping[tuple[int, int], tuple[float, int, str]]
) -> Iterator[Copy]:
    """In the order in which songs are kept, each that is a copy of a kept one."""
    beside: dict[int, list[tuple[int, float, int, str]]] = {}
    for (a, b), (found, offset, kind) in pairs.items():
        beside.setdefault(a, []).append((b, found, offset, kind))
        beside.setdefault(b, []).append((a, found, -offset, kind))

    def worth(number: int) -> tuple[int, int, float, str]:
        record = shards.read(number, [])
        known, seconds = int(record.metadata["known"]), float(record.metadata["seconds"])
        return -SPLITS.index(record.split), -known, -seconds, record.id

    kept: set[int] = set()
    for number in sorted(beside, key=worth):
        copies = [one for one in beside[number] if one[0] in kept]
        if not copies:
            kept.add(number)
            continue
        other, found, offset, kind = max(copies, key=lambda one: one[1])
        record, original = shards.read(number, []), shards.read(other, [])
        yield Copy(
            record.id,
            original.id,
            kind,
            round(found, 3),
            round(offset * HOP / SAMPLE_RATE, 2),
            record.split,
            original.split,
        )


class _Buckets:
    """Rows dealt out to files, a few of which fit memory one at a time."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[np.void], count: int) -> None:
        self.paths = [folder / f"{name}-{number:05d}" for number in range(count)]
        self.dtype, self.bytes = dtype, 0
        self.waiting: list[list[np.ndarray]] = [[] for _ in range(count)]

    def add(self, rows: np.ndarray, bucket: np.ndarray) -> None:
        order = np.argsort(bucket, kind="stable")
        places = np.searchsorted(bucket[order], np.arange(len(self.paths) + 1))
        for number in np.flatnonzero(np.diff(places)).tolist():
            self.waiting[number].append(rows[order[places[number] : places[number + 1]]])
        self.bytes += rows.nbytes
        if self.bytes >= BUCKET_BYTES:
            self._write()

    def _write(self) -> None:
        for path, parts in zip(self.paths, self.waiting, strict=True):
            if parts:
                with path.open("ab") as file:
                    file.write(np.concatenate(parts).tobytes())
                parts.clear()
        self.bytes = 0

    def __enter__(self) -> _Buckets:
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def read(self) -> Iterator[np.ndarray]:
        for path in self.paths:
            yield np.fromfile(path, self.dtype) if path.exists() else np.empty(0, self.dtype)
            path.unlink(missing_ok=True)
