"""Many songs on the machines of a Ray cluster: batches of them are rows of a Ray Data set.

    made = make_on_ray(SongMaker("tiny"), [Order(request, path)], address="auto", workers=8)

All machines see the model, references and output under the same paths. A song is written aside and
renamed, its sidecar last: it is there when both are, and is left out then. What is lost with a
machine is run again by Ray; a song is a function of its request and seed, so that a second writer
would write the same.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mudit_engine.availability import require
from mudit_engine.errors import InputError, MuditError
from mudit_engine.loudness import TARGET_LUFS
from mudit_engine.models.lora import LoraSpec
from mudit_engine.request import SongRequest

MOST_SONGS = 16  # in a row: what is lost with a machine


@dataclass(frozen=True)
class Order:
    """A song that is wanted, its seed given, and its absolute path."""

    request: SongRequest
    path: Path


@dataclass(frozen=True)
class Made:
    """What became of an order: the sidecar, or an error."""

    number: int
    info: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    rate: int = 0
    files: tuple[str, ...] = ()
    error: MuditError | None = None


@dataclass(frozen=True)
class SongMaker:
    """What a worker opens: a model on a runtime. `precision` is torch's name of a dtype, `fast` the
    model with its few-step student.
    """

    model: str
    runtime: str = "auto"
    precision: str | None = None
    loras: tuple[LoraSpec, ...] = ()
    fast: bool = False
    spectrogram: bool = False
    loudness: float | None = TARGET_LUFS

    def open(self) -> Any:
        """The pipeline."""
        import torch

        from mudit_engine.pipeline import SongPipeline

        pipeline = SongPipeline.from_pretrained(
            self.model,
            runtime=self.runtime,
            dtype=getattr(torch, self.precision) if self.precision else None,
            fast=self.fast,
        )
        if self.loras:
            pipeline.set_loras(self.loras)
        return pipeline

    def make(self, pipeline: Any, orders: Sequence[tuple[int, Order]]) -> list[Made]:
        """Songs of these orders, written. One that fails is its own failure."""
        wanted = [(number, order) for number, order in orders if not is_there(order.path)]
        made = [_made_before(number, order) for number, order in orders if is_there(order.path)]
        requests = [order.request for _, order in wanted]
        done = 0
        try:
            for (number, order), song in zip(wanted, pipeline.stream(requests), strict=True):
                files = song.save(order.path, spectrogram=self.spectrogram, loudness=self.loudness)
                names = tuple(map(str, files))
                made.append(Made(number, song.info, song.seconds, song.sample_rate, names))
                done += 1
        except MuditError as error:
            if len(wanted) == 1:
                return [*made, Made(wanted[0][0], error=error)]
            for one in wanted[done:]:
                made += self.make(pipeline, [one])
        return made


def is_there(path: Path) -> bool:
    """Whether a song is whole: its sidecar is written after its audio."""
    return path.is_file() and path.with_suffix(".json").is_file()


def _made_before(number: int, order: Order) -> Made:
    """A song that a worker finished before it was lost."""
    import json

    import soundfile

    info = json.loads(order.path.with_suffix(".json").read_text(encoding="utf-8"))
    head = soundfile.info(str(order.path))
    files = (str(order.path), str(order.path.with_suffix(".json")))
    return Made(number, info, head.frames / head.samplerate, head.samplerate, files)


class _Worker:
    """A process of the cluster with the model open."""

    def __init__(self, maker: SongMaker) -> None:
        self.maker, self.pipeline = maker, maker.open()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"made": pickle.dumps(self.maker.make(self.pipeline, pickle.loads(row["orders"])))}


def rows_of(orders: Sequence[Order], workers: int) -> list[list[tuple[int, Order]]]:
    """Orders with their numbers in rows of at most MOST_SONGS, enough rows for all workers; songs
    of like length beside each other, the longest first, so that no long one is the last to begin.
    """
    size = max(1, min(MOST_SONGS, len(orders) // (4 * workers)))
    numbered = sorted(enumerate(orders), key=lambda one: -(one[1].request.seconds or 0.0))
    return [numbered[start : start + size] for start in range(0, len(numbered), size)]


def make_on_ray(
    maker: SongMaker,
    orders: Sequence[Order],
    *,
    address: str,
    workers: int | None = None,
    on_song: Callable[[], None] = lambda: None,
) -> list[Made]:
    """Makes all songs; what became of each, in their order.

    address: 'local' starts a cluster of this machine, 'auto' joins the running one, anything else
    is a cluster's address. Raises MissingError without Ray, InputError for no cluster.
    """
    require("ray", "--ray")
    import ray

    ours = not ray.is_initialized()
    if ours:
        connect(address)
    try:
        resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU", 0) >= 1 else "CPU"
        workers = workers or max(1, int(resources.get(kind, 1)))
        rows = rows_of(orders, workers)
        ray.data.DataContext.get_current().enable_progress_bars = False
        found = ray.data.from_items(
            [{"orders": pickle.dumps(row)} for row in rows], override_num_blocks=len(rows)
        ).map(
            _Worker,
            fn_constructor_args=(maker,),
            concurrency=min(workers, len(rows)),
            num_gpus=1 if kind == "GPU" else 0,
            num_cpus=1,
        )
        made: list[Made] = []
        for row in found.iter_rows():
            for one in pickle.loads(row["made"]):
                made.append(one)
                on_song()
    finally:
        if ours:
            ray.shutdown()
    return sorted(made, key=lambda one: one.number)


def connect(address: str) -> None:
    """Joins a cluster, or starts one of this machine. Raises InputError."""
    import ray

    try:
        ray.init(
            address=address,
            namespace="serve",
            logging_level=logging.WARNING,
            log_to_driver=False,
            include_dashboard=False if address == "local" else None,
        )
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"--ray {address}: no cluster there ({error}). Start one (ray start --head), or use "
            "--ray local"
        ) from None
