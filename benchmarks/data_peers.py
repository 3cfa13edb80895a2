"""A training batch of songs out of shards, beside the ways that most projects keep songs: a file a
song, by safetensors or numpy, padded to the longest of the batch.

    rows = run(Options(rounds=5))                                     # or: mudit bench run data

Every provider gives the same fp32 latents (the gate) of the same songs in the sampler's order, on
one thread, out of the page cache; `figures.songs_per_cpu_second` is what one core delivers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mudit_engine.benchmarks.registry import Options, Row, rows_of
from mudit_engine.benchmarks.timing import interleave
from mudit_engine.errors import GateError
from mudit_engine.training.dataset.batching import Sampler
from mudit_engine.training.dataset.shard_writer import ShardWriter
from mudit_engine.training.dataset.shards import Shards, song_fields

OURS = "mudit shards"
CHANNELS = 96
SONGS = {"tiny": 24, "small": 200, "published": 1000}
BATCH_FRAMES = 16384


def run(options: Options) -> list[Row]:
    """Rows of the shards and of files. Raises GateError when they disagree."""
    rounds, count = options.rounds or 5, SONGS[options.size]
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(215.0), 0.28, count), 30, 280) * 10.77
    frames = lengths.astype(int) if options.size != "tiny" else lengths.astype(int) // 8
    fields = {
        name: field
        for name, field in song_fields(latent_channels=CHANNELS).items()
        if not name.startswith("stem.")
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        options.report(f"writing {count} songs")
        block = rng.normal(size=(int(frames.max()) + count, CHANNELS)).astype(np.float16)
        with ShardWriter(folder / "shards", fields) as writer:
            for number, length in enumerate(frames):
                song = {
                    "latents": block[number : number + length],
                    "phonemes": rng.integers(0, 100, length // 3).astype(np.int32),
                }
                writer.add(f"song-{number:05d}", song, metadata={"seconds": length / 10.77})
                _write_files(folder, number, song)
        shards = Shards(folder / "shards")
        sampler = Sampler(
            np.asarray(shards.rows("latents")), seed=0, budget=BATCH_FRAMES, packs_per_step=1
        )
        songs = sampler.plan(0).pack(0)
        calls = _providers(folder, shards, songs)
        truth = calls[OURS]()
        for name, call in calls.items():
            if not all(torch.equal(a, b) for a, b in zip(call(), truth, strict=True)):
                raise GateError(f"{name} gives other latents than the shards: no speed is reported")
        options.report(f"{rounds} rounds of {len(calls)} readers")
        times = interleave(calls, rounds=rounds)
    total = int(frames[songs].sum())
    more: dict[str, dict[str, Any]] = {
        name: {
            "error": 0.0,
            "limit": 0.0,
            "figures": {
                "songs_per_cpu_second": len(songs) / found.cpu_p50,
                "bytes_per_batch": total * CHANNELS * 2,
            },
        }
        for name, found in times.items()
    }
    return rows_of(
        "data",
        f"{options.size}, {len(songs)} songs, {total} frames",
        times,
        reference="safetensors, a file a song, padded",
        roles={OURS: "ours"},
        audio_seconds=total / 10.77,
        more=more,
    )


def _write_files(folder: Path, number: int, song: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(
        {name: np.ascontiguousarray(array) for name, array in song.items()},
        folder / f"{number}.safetensors",
    )
    np.savez(folder / f"{number}.npz", **song)  # type: ignore[arg-type]


def _providers(
    folder: Path, shards: Shards, songs: np.ndarray
) -> dict[str, Callable[[], list[Tensor]]]:
    """Readers of one batch: the latents of every song, fp32."""
    from safetensors.torch import load_file

    def ours() -> list[Tensor]:
        records = [shards.read(number) for number in songs]
        packed = torch.from_numpy(np.concatenate([r["latents"] for r in records])).float()
        for record in records:
            record["phonemes"].copy()
        return list(packed.split([len(r["latents"]) for r in records]))

    def padded(parts: list[dict[str, Tensor]]) -> list[Tensor]:
        latents = torch.nn.utils.rnn.pad_sequence(
            [part["latents"].float() for part in parts], batch_first=True
        )
        torch.nn.utils.rnn.pad_sequence([part["phonemes"] for part in parts], batch_first=True)
        return [row[: len(part["latents"])] for row, part in zip(latents, parts, strict=True)]

    def by_safetensors() -> list[Tensor]:
        return padded([load_file(folder / f"{_number(shards, n)}.safetensors") for n in songs])

    def by_numpy() -> list[Tensor]:
        found = []
        for n in songs:
            with np.load(folder / f"{_number(shards, n)}.npz") as file:
                found.append({name: torch.from_numpy(file[name]) for name in file.files})
        return padded(found)

    return {
        OURS: ours,
        "safetensors, a file a song, padded": by_safetensors,
        "numpy, a file a song, padded": by_numpy,
    }


def _number(shards: Shards, number: int) -> int:
    """The number that a song was written under: shards sort by id."""
    return int(shards.id(int(number)).removeprefix("song-"))
