"""One model in one process: what reads requests, the batcher that steps them, and the decoder.

engine = Engine.open("tiny", runtime="torch")
understood = engine.read(request)                          # checks; raises InputError
ticket = engine.submit(understood, on_event=print)         # runtime/batcher.py
engine.drain(); engine.close()
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from mudit_engine.config import ModelConfig
from mudit_engine.hardware import machine
from mudit_engine.pipeline import SongPipeline
from mudit_engine.reading import Understood
from mudit_engine.request import SongRequest
from mudit_engine.runtime.batcher import Batcher, Event, StepRecord, Ticket
from mudit_engine.runtime.cost import measure_cost
from mudit_engine.runtime.load import Deploy

CPU_SHARE = 0.5  # of the memory that is free at start, for songs in flight
GPU_SHARE = 0.8
WARM_UP = SongRequest(description="钢琴, piano", lyrics="[verse]\n月亮 moon 1", seconds=1, seed=0)


class Songs(Protocol):
    """What batches songs: a Batcher here, or a Dispatcher of songs to other machines."""

    on_step: Callable[[StepRecord], None] | None
    save_every: float | None
    on_save: Callable[[Ticket, bytes], None] | None

    @property
    def alive(self) -> bool: ...

    def backlog(self) -> float: ...

    def ahead(self, ticket: Ticket) -> int: ...

    def estimate(self, ticket: Ticket) -> float: ...

    def counts(self) -> dict[str, int]: ...


class SongEngine(Protocol):
    """What the service asks of an engine: an Engine here, or a RemoteEngine (dispatch.py)."""

    @property
    def batcher(self) -> Songs: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def runtime_name(self) -> str: ...

    def read(self, request: SongRequest) -> Understood: ...

    def submit(
        self,
        understood: Understood,
        *,
        on_event: Callable[[Event], None] | None = None,
        deadline: float | None = None,
        saved: bytes | None = None,
    ) -> Ticket: ...

    def info(self, understood: Understood, timings: dict[str, float]) -> dict[str, Any]: ...

    def drain(self, timeout: float | None = None) -> bool: ...

    def close(self) -> None: ...


class Engine:
    """A model that is ready, with its batcher."""

    def __init__(self, pipeline: SongPipeline, batcher: Batcher) -> None:
        self.pipeline, self.batcher = pipeline, batcher

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        runtime: str = "auto",
        device: str | None = None,
        deploy: Deploy | None = None,
        most_waiting: int | None = None,
        memory: int | None = None,
        decodes: bool = True,
        on_step: Callable[[StepRecord], None] | None = None,
        save_every: float | None = None,
        on_save: Callable[[Ticket, bytes], None] | None = None,
    ) -> Engine:
        """Loads the model and measures what its steps cost. `memory`: bytes for songs in flight
        (None: a share of what is free). `decodes` False ends songs with their latents. Raises what
        runtime/load.py raises.
        """
        pipeline = SongPipeline.from_pretrained(
            model, runtime=runtime, device=device, deploy=deploy
        )
        # dictionaries and text tower are loaded now, not by the first request
        pipeline.reader.inputs(pipeline.reader.read(WARM_UP))
        on_device = pipeline.runtime_name == "tensorrt"
        batcher = Batcher(
            pipeline.runtime,
            pipeline.decoder if decodes else None,
            pipeline.config,
            cost=measure_cost(pipeline.runtime, pipeline.config),
            memory=memory or free_memory(),
            most_waiting=most_waiting,
            # engines share one stream and one scratch memory
            decoders=0 if on_device else 2,
            on_step=on_step,
            save_every=save_every,
            on_save=on_save,
        )
        return cls(pipeline, batcher)

    @property
    def config(self) -> ModelConfig:
        return self.pipeline.config

    @property
    def runtime_name(self) -> str:
        return self.pipeline.runtime_name

    def read(self, request: SongRequest) -> Understood:
        """The request as the model understands it, without running a network. Raises InputError."""
        return self.pipeline.reader.read(request)

    def submit(
        self,
        understood: Understood,
        *,
        on_event: Callable[[Event], None] | None = None,
        deadline: float | None = None,
        saved: bytes | None = None,
    ) -> Ticket:
        """Hands the song to the batcher. Raises BusyError."""
        return self.batcher.submit(
            lambda: self.pipeline.reader.inputs(understood),
            on_event=on_event,
            deadline=deadline,
            saved=saved,
        )

    def info(self, understood: Understood, timings: dict[str, float]) -> dict[str, Any]:
        """The song's sidecar."""
        return self.pipeline.info(understood, timings, 1)

    def drain(self, timeout: float | None = None) -> bool:
        """See Batcher.drain."""
        return self.batcher.drain(timeout)

    def close(self) -> None:
        """See Batcher.close."""
        self.batcher.close()


def free_memory() -> int:
    """Bytes that songs in flight may take on this machine's first GPU, or in its memory."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(GPU_SHARE * free)
    return int(CPU_SHARE * (machine().memory_available_mib << 20))
