"""`mudit data encode` and `mudit data dedupe` on the machines of a Ray cluster: every part of the
source is a row of a Ray Data set, mapped to its shards.

All machines see source, model and output under the same paths. A part that is lost with its machine
is run again by Ray, and skips the songs whose shards are complete; the index is built once, at the
end.

    done = encode_on_ray(RayJob(source, out, model), address="auto", parts=256, workers=64)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mudit_engine.availability import require
from mudit_engine.errors import InputError, MuditError
from mudit_engine.training.dataset.encode import Encoded, encode_audio, encode_latents
from mudit_engine.training.dataset.read_song import MAX_SECONDS
from mudit_engine.training.dataset.shards import build_index
from mudit_engine.training.dataset.sources import open_source

PARTS_PER_WORKER = 4  # so that one slow part is not the end of the job


class Job(Protocol):
    """What runs part by part into shards: it travels to the workers."""

    @property
    def out(self) -> Path: ...

    @property
    def device(self) -> str: ...

    def encode(self, part: tuple[int, int]) -> Encoded: ...


@dataclass(frozen=True)
class FingerprintJob:
    """Fingerprints of the songs of a source, for dedupe.py."""

    source: Path
    out: Path
    max_seconds: float = MAX_SECONDS
    device: str = "cpu"

    def encode(self, part: tuple[int, int]) -> Encoded:
        from mudit_engine.training.dataset.dedupe import fingerprint_songs

        done = Encoded()
        songs = open_source(self.source, on_bad=done.refuse)
        return fingerprint_songs(
            songs, self.out, part=part, index=False, max_seconds=self.max_seconds, done=done
        )


@dataclass(frozen=True)
class RayJob:
    """What to encode: latents by `model`, or audio when it is None."""

    source: Path
    out: Path
    model: str | Path | None = None
    sample_rate: int = 44100
    channels: int = 2
    stems: bool = True
    descriptions: bool = True
    device: str = "cpu"
    separate: str | None = None
    transcribe: str | None = None
    max_seconds: float = MAX_SECONDS
    leave_out: Mapping[str, str] | None = None

    def encode(self, part: tuple[int, int]) -> Encoded:
        done = Encoded()
        songs = open_source(self.source, on_bad=done.refuse)
        if self.model is None:
            return encode_audio(
                songs,
                self.out,
                sample_rate=self.sample_rate,
                channels=self.channels,
                part=part,
                index=False,
                max_seconds=self.max_seconds,
                leave_out=self.leave_out,
                done=done,
            )
        return encode_latents(
            songs,
            self.out,
            model=self.model,
            stems=self.stems,
            descriptions=self.descriptions,
            part=part,
            index=False,
            device=self.device,
            separate=self.separate,
            transcribe=self.transcribe,
            max_seconds=self.max_seconds,
            leave_out=self.leave_out,
            done=done,
        )


def encode_part(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """Runs on a worker. What a user can cause comes back as a value: Ray would wrap it, and try
    again.
    """
    try:
        done = job.encode((int(row["part"]), int(row["parts"])))
    except MuditError as error:
        return {"error": str(error), "done": ""}
    return {"error": "", "done": json.dumps(dataclasses.asdict(done))}


def encode_on_ray(
    job: Job,
    *,
    address: str = "local",
    parts: int | None = None,
    workers: int | None = None,
    on_part: Callable[[str], None] = lambda text: None,
) -> Encoded:
    """Encodes all parts and builds the index. Raises MissingError without Ray, InputError for no
    cluster or what a part could not do.

    address: 'local' starts a cluster of this machine, 'auto' joins the running one, anything else
    is a cluster's address.
    """
    require("ray", "--ray")
    import ray

    if ray.is_initialized():
        ours = False
    else:
        try:
            dashboard = False if address == "local" else None
            ray.init(
                address=address,
                logging_level=logging.WARNING,
                log_to_driver=False,
                include_dashboard=dashboard,
            )
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"--ray {address}: no cluster there ({error}). Start one (ray start --head), or "
                f"use --ray local"
            ) from None
        ours = True
    try:
        kind = "GPU" if job.device.startswith("cuda") else "CPU"
        workers = workers or max(1, int(ray.cluster_resources().get(kind, 1)))
        parts = parts or PARTS_PER_WORKER * workers
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items(
            [{"part": part, "parts": parts} for part in range(parts)], override_num_blocks=parts
        )
        done = Encoded()
        mapped = rows.map(
            functools.partial(encode_part, job=job),
            concurrency=workers,
            num_gpus=1 if kind == "GPU" else 0,
            num_cpus=1,
        )
        for number, row in enumerate(mapped.iter_rows(), 1):
            if row["error"]:
                raise InputError(f"a part could not be encoded: {row['error']}")
            done.add(Encoded(**json.loads(row["done"])))
            on_part(f"encoded {number} of {parts} parts")
    finally:
        if ours:
            ray.shutdown()
    build_index(job.out)
    return done
