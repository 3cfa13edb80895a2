"""The data path of a large run: songs read a second a core, how full packs are, and what 1.5 M
songs cost in memory and planning.

    python -m mudit_engine.benchmarks.read_shards --songs 2000 \\
      --out benchmarks/results/data_path.json

`read` copies every song's latents out of the mapped shards (1,536 x 96 fp16, 288 KiB a song) in the
sampler's order, on one thread; `cast` is the same with the widening to fp32 that a batch needs.
Rates are per CPU second of the reading thread, since other work may share the machine, with wall
seconds beside them. The files were written just before, so they come from the page cache: this is
the reader's own speed, and a disk must deliver `bytes_per_song` times it. The planning part packs
an epoch of so many songs.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

FRAMES, CHANNELS = 1536, 96
BUDGETS = (8192, 16384, 32768)
MUST_READ, MUST_FILL = 3000.0, 0.97
# a pack of 8192 frames holds three or four songs of this mix: its figure is shown and not gated
GATED_BUDGET = 16384


def write_data(folder: Path, songs: int) -> None:
    from mudit_engine.training.dataset.shard_writer import ShardWriter
    from mudit_engine.training.dataset.shards import song_fields

    rng = np.random.default_rng(0)
    block = rng.normal(size=(FRAMES + songs, CHANNELS)).astype(np.float16)
    fields = {
        name: field
        for name, field in song_fields(latent_channels=CHANNELS).items()
        if not name.startswith("stem.")
    }
    with ShardWriter(folder, fields) as writer:
        for number in range(songs):
            arrays: dict[str, np.ndarray] = {
                "latents": block[number : number + FRAMES],
                "phonemes": rng.integers(0, 100, 517),
            }
            writer.add(f"song-{number:07d}", arrays, metadata={"seconds": FRAMES / 10.77})


def measure_reading(folder: Path, *, rounds: int) -> dict[str, Any]:
    """Songs a CPU second and a wall second, the best of `rounds`: whatever disturbs only adds."""
    import torch

    from mudit_engine.training.dataset.batching import Sampler
    from mudit_engine.training.dataset.shards import Shards

    torch.set_num_threads(1)
    shards = Shards(folder)
    order = (
        Sampler(np.asarray(shards.rows("latents")), seed=0, budget=16384, packs_per_step=1)
        .plan(0)
        .songs
    )
    target, wide = np.empty((FRAMES, CHANNELS), np.float16), torch.empty(FRAMES, CHANNELS)

    def read() -> None:
        for number in order:
            np.copyto(target, shards.read(number)["latents"])

    def cast() -> None:
        for number in order:
            # the copy makes the mapped, read-only rows torch's own
            wide.copy_(torch.from_numpy(shards.read(number)["latents"].copy()))

    found: dict[str, Any] = {
        "songs": len(order),
        "bytes_per_song": FRAMES * CHANNELS * 2,
        "rounds": rounds,
    }
    for name, work in (("read", read), ("cast", cast)):
        times = []
        for _ in range(rounds):
            wall, cpu = time.perf_counter(), time.thread_time()
            work()
            times.append((time.thread_time() - cpu, time.perf_counter() - wall))
        found[f"{name}_songs_per_cpu_s"] = round(len(order) / min(cpu for cpu, _ in times))
        found[f"{name}_songs_per_wall_s"] = round(len(order) / min(wall for _, wall in times))
    return found


def song_lengths(songs: int) -> np.ndarray:
    """Latent frames of a realistic mix: lognormal around 215 s, 30 s to 280 s, at 10.77 Hz."""
    seconds = np.clip(np.random.default_rng(1).lognormal(np.log(215.0), 0.28, songs), 30, 280)
    return np.asarray(seconds * 10.77, np.int32)


def measure_packing(songs: int) -> list[dict[str, Any]]:
    from mudit_engine.training.dataset.batching import Sampler

    lengths = song_lengths(songs)
    rows = []
    for budget in BUDGETS:
        sampler = Sampler(lengths, seed=0, budget=budget, packs_per_step=64)
        start = time.thread_time()
        plan = sampler.plan(0)
        seconds = time.thread_time() - start
        padded = len(lengths) * int(lengths.max())
        rows.append(
            {
                "songs": songs,
                "budget": budget,
                "packs": len(plan),
                "efficiency": round(plan.efficiency, 4),
                "efficiency_padded_to_the_longest": round(float(lengths.sum()) / padded, 4),
                "plan_cpu_s": round(seconds, 1),
                "plan_mib": round((plan.songs.nbytes + plan.ends.nbytes) / 2**20, 1),
            }
        )
    return rows


@click.command(help=__doc__)
@click.option(
    "--songs", default=2000, show_default=True, help="Songs of the read data set (288 KiB each)."
)
@click.option("--planned", default=1_500_000, show_default=True, help="Songs of the packed epoch.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON document here too.")
def main(songs: int, planned: int, rounds: int, out: Path | None) -> None:
    from mudit_engine.files import write_json
    from mudit_engine.hardware import environment

    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), songs)
        index = (Path(folder) / "index.safetensors").stat().st_size
        reading = {
            **measure_reading(Path(folder), rounds=rounds),
            "index_bytes_per_song": round(index / songs, 1),
        }
    packing = measure_packing(planned)
    filled = min(row["efficiency"] for row in packing if row["budget"] >= GATED_BUDGET)
    passed = reading["read_songs_per_cpu_s"] >= MUST_READ and filled >= MUST_FILL
    gates = {
        "songs_per_cpu_s": MUST_READ,
        "packing_efficiency": MUST_FILL,
        "of_budgets_from": GATED_BUDGET,
        "passed": passed,
    }
    document = {
        "env": environment(),
        "results": {"reading": reading, "packing": packing, "gates": gates},
    }
    if out is not None:
        write_json(out, document)
    click.echo(json.dumps(document, indent=2))
    raise SystemExit(0 if passed else 4)


if __name__ == "__main__":
    main()
