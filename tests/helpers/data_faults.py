"""Random faults on the way from songs to shards: bad bytes in any field or file, an interrupt at
any line, a full disk at any write, a kill at any moment, damage to what lies on the disk.

    report = Trial(seed, folder).run()      # raises AssertionError when a song is silently wrong
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import soundfile

from mudit_engine import files
from mudit_engine.errors import MuditError
from mudit_engine.training.dataset import encode, inspect_shards, shard_files, shard_writer, shards
from mudit_engine.training.dataset.sources import open_source

RATE = 8000
SONGS = 6
KINDS = ("audio", "field", "text", "interrupt", "memory", "disk", "kill", "flip", "cut", "remove")
TRACED = tuple(module.__file__ for module in (encode, shard_writer, shard_files, shards, files))
ODD_VALUES = (
    None,
    "\ud83d",
    "",
    0,
    -1,
    1e30,
    float("nan"),
    True,
    [],
    {},
    ["rock"],
    [None],
    {"text": 3},
    "\0",
    "x" * 10_000,
    [[0, "C", 1]],
    {"amateur": "a slow song"},
    "\u202e\ufeff",
)


class Trial:
    """One source, one fault, and the question whether any song is silently wrong after it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.folder = random.Random(seed), folder
        self.kind = KINDS[seed % len(KINDS)]
        self.out = folder / "shards"
        self.manifest = folder / "songs.jsonl"

    def run(self) -> dict[str, Any]:
        self._write_source()
        {
            "audio": self._spoil_audio,
            "field": self._spoil_field,
            "text": self._spoil_text,
        }.get(self.kind, lambda: None)()
        if self.kind in ("interrupt", "memory"):
            self._encode_interrupted()
        elif self.kind == "disk":
            self._encode_on_a_full_disk()
        elif self.kind == "kill":
            self._encode_killed()
        elif self.kind in ("flip", "cut", "remove"):
            self._encode()
            self._damage()
        return self._judge()

    def _write_source(self) -> None:
        self.folder.mkdir(parents=True)
        rng = np.random.default_rng(self.random.randrange(1 << 30))
        rows = []
        for number in range(SONGS):
            suffix = ("wav", "flac", "ogg")[number % 3]
            audio = rng.normal(size=5000 + 300 * number) * 0.1
            soundfile.write(self.folder / f"{number}.{suffix}", audio, RATE)
            rows.append(
                {
                    "audio": f"{number}.{suffix}",
                    "id": f"歌{number}",
                    "lyrics": f"[verse]\nline {number}",
                    "split": ("train", "test")[number % 2],
                    "descriptions": [{"text": f"song {number}", "user": "amateur"}],
                    "metadata": {"bpm": 90 + number, "title": "月亮"},
                }
            )
        self.rows = rows
        self._write_manifest()

    def _write_manifest(self) -> None:
        self.manifest.write_text("\n".join(map(json.dumps, self.rows)) + "\n")

    def _spoil_audio(self) -> None:
        path = self.folder / self.random.choice(self.rows)["audio"]
        data = bytearray(path.read_bytes())
        way = self.random.randrange(4)
        if way == 0:
            del data[self.random.randrange(len(data)) :]
        elif way == 1:
            for _ in range(self.random.randint(1, 50)):
                data[self.random.randrange(len(data))] = self.random.randrange(256)
        elif way == 2:
            data[:] = self.random.randbytes(self.random.randrange(3000))
        else:
            values = self.random.choice((np.full(5000, 1e30), np.full(5000, np.nan), np.zeros(9)))
            soundfile.write(path.with_suffix(".wav"), values, RATE, subtype="FLOAT")
            data[:] = path.with_suffix(".wav").read_bytes()
        path.write_bytes(data)

    def _spoil_field(self) -> None:
        row = self.random.choice(self.rows)
        where = self.random.choice([row, row["metadata"], row["descriptions"][0]])
        where[self.random.choice(list(where))] = self.random.choice(ODD_VALUES)
        self._write_manifest()

    def _spoil_text(self) -> None:
        data = bytearray(self.manifest.read_bytes())
        for _ in range(self.random.randint(1, 4)):
            data[self.random.randrange(len(data))] = self.random.randrange(256)
        self.manifest.write_bytes(data)

    def _encode(self) -> encode.Encoded:
        done = encode.Encoded()
        small = functools.partial(shard_writer.ShardWriter, shard_bytes=25_000)
        with mock.patch.object(encode, "ShardWriter", small):
            songs = open_source(self.manifest, on_bad=done.refuse)
            encode.encode_audio(songs, self.out, sample_rate=RATE, channels=1, done=done)
        return done

    def _encode_interrupted(self) -> None:
        """An exception at a line of the modules that write, as a signal or a lack of memory would
        raise it.
        """
        error = KeyboardInterrupt if self.kind == "interrupt" else MemoryError
        left = self.random.randrange(3000)

        def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
            nonlocal left
            if frame.f_code.co_filename not in TRACED:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    raise error
            return trace

        sys.settrace(trace)
        try:
            self._encode()
        except error:
            pass
        finally:
            sys.settrace(None)

    def _encode_on_a_full_disk(self) -> None:
        left = self.random.randrange(12)
        write = Path.write_bytes

        def full(path: Path, data: bytes) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                write(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return write(path, data)

        def full_text(path: Path, text: str, **how: Any) -> int:
            return full(path, text.encode())

        with (
            mock.patch.object(Path, "write_bytes", full),
            mock.patch.object(Path, "write_text", full_text),
            contextlib.suppress(MuditError),
        ):
            self._encode()

    def _encode_killed(self) -> None:
        process = multiprocessing.get_context("fork").Process(target=self._encode)
        process.start()
        time.sleep(self.random.uniform(0, 0.12))
        assert process.pid is not None
        os.kill(process.pid, self.random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
        process.join()

    def _damage(self) -> None:
        path = self.random.choice(sorted(self.out.iterdir()))
        data = bytearray(path.read_bytes())
        if self.kind == "remove":
            path.unlink()
            return
        if self.kind == "cut":
            del data[self.random.randrange(len(data)) :]
        else:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        path.write_bytes(data)

    def _judge(self) -> dict[str, Any]:
        """Encodes again without a fault, and compares every song with what its file holds."""
        try:
            refused = self._encode().refused
            data = shards.Shards(self.out)
            report = inspect_shards.inspect(data, verify=True)
        except MuditError as error:  # a damaged file is named, and nothing is read
            named = str(self.folder) in str(error) or "line" in str(error)
            assert named, error
            return {"kind": self.kind, "stopped": str(error)}
        named_shards = set(report.damaged)
        known = {row.get("id"): row for row in self._source_rows()}
        for number in range(len(data)):
            record = data.read(number)
            shard = data.files[int(data._columns["shard"][number])][0]
            if record.id in report.bad or shard in named_shards:
                continue
            row = known[record.id]
            expected, _ = soundfile.read(self.folder / row["audio"], dtype="float32")
            samples = np.clip(np.round(expected * 32768.0), -32768, 32767).astype(np.int16)
            assert np.array_equal(record["audio"][:, 0], samples), (self.kind, record.id)
            for name, value in (row.get("metadata") or {}).items():
                assert record.metadata[name] == value, (self.kind, record.id, name)
            assert record.split == (row.get("split") or "train")
        lost = len(known) - len(data)
        assert lost <= len(refused), (self.kind, lost, refused)
        return {"kind": self.kind, "songs": len(data), "refused": refused, "bad": report.bad}

    def _source_rows(self) -> list[dict[str, Any]]:
        rows = []
        for line in self.manifest.read_bytes().splitlines():
            try:
                row = json.loads(line)
                rows.append({**row, "id": str(row.get("id") or Path(row["audio"]).stem)})
            except (ValueError, KeyError, TypeError, AttributeError):
                rows.append({"id": f"unreadable {len(rows)}"})
        return rows
