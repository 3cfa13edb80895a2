"""One model in one process: what reads requests, the batcher that steps them, and the decoder.

engine = Engine.open("tiny", runtime="torch")
understood = engine.read(request)                          # checks; raises InputError
ticket = engine.submit(understood, on_event=print)         # runtime/batcher.py
engine.drain(); engine.close()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from mudit_engine.config import ModelConfig
from mudit_engine.errors import InputError
from mudit_engine.hardware import machine
from mudit_engine.models.lora import LoraSpec
from mudit_engine.pipeline import SongPipeline
from mudit_engine.reading import Understood
from mudit_engine.request import SongRequest
from mudit_engine.runtime.batcher import Batcher
from mudit_engine.runtime.cost import measure_cost
from mudit_engine.runtime.denoiser import Denoiser
from mudit_engine.runtime.load import Deploy
from mudit_engine.runtime.ticket import Event, StepRecord, Ticket

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

    @property
    def loras(self) -> Mapping[str, LoraSpec]: ...

    @property
    def fast(self) -> bool: ...

    def read(self, request: SongRequest) -> Understood: ...

    def submit(
        self,
        understood: Understood,
        *,
        on_event: Callable[[Event], None] | None = None,
        deadline: float | None = None,
        saved: bytes | None = None,
        lora: str | None = None,
    ) -> Ticket: ...

    def info(
        self, understood: Understood, timings: dict[str, float], *, lora: str | None = None
    ) -> dict[str, Any]: ...

    def drain(self, timeout: float | None = None) -> bool: ...

    def close(self) -> None: ...


class Engine:
    """A model that is ready, with its batcher."""

    def __init__(
        self, pipeline: SongPipeline, batcher: Batcher, *, loras: Mapping[str, LoraSpec]
    ) -> None:
        self.pipeline, self.batcher, self.loras = pipeline, batcher, loras

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
        loras: Sequence[LoraSpec] = (),
        fast: bool = False,
        on_step: Callable[[StepRecord], None] | None = None,
        save_every: float | None = None,
        on_save: Callable[[Ticket, bytes], None] | None = None,
    ) -> Engine:
        """Loads the model and measures what its steps cost. `memory`: bytes for songs in flight
        (None: a share of what is free). `decodes` False ends songs with their latents. `loras`:
        those that a song may ask for, by the names of their folders; each is tried first. `fast`:
        all songs are made with the model's few-step student. Raises what runtime/load.py and
        SongPipeline.set_loras raise.
        """
        named = named_loras(loras)
        if named and runtime == "auto":
            runtime = "torch"
        pipeline = SongPipeline.from_pretrained(
            model, runtime=runtime, device=device, deploy=deploy, fast=fast
        )
        for spec in named.values():
            pipeline.set_loras([spec])
        if named:
            pipeline.set_loras([])
        # dictionaries and text tower are loaded now, not by the first request
        pipeline.reader.inputs(pipeline.reader.read(WARM_UP))
        if isinstance(pipeline.runtime, Denoiser):
            pipeline.runtime.bucketed = True  # songs join and leave at every step
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
            adapt=(lambda name: pipeline.set_loras([named[name]] if name else []))
            if named
            else None,
        )
        return cls(pipeline, batcher, loras=named)

    @property
    def config(self) -> ModelConfig:
        return self.pipeline.config

    @property
    def runtime_name(self) -> str:
        return self.pipeline.runtime_name

    @property
    def fast(self) -> bool:
        """Whether the model's few-step student makes the songs."""
        return self.pipeline.student is not None

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
        lora: str | None = None,
    ) -> Ticket:
        """Hands the song to the batcher. Raises BusyError, and InputError for an unknown LoRA."""
        check_lora(lora, self.loras)
        return self.batcher.submit(
            lambda: self.pipeline.reader.inputs(understood),
            on_event=on_event,
            deadline=deadline,
            saved=saved,
            adapter=lora,
        )

    def info(
        self, understood: Understood, timings: dict[str, float], *, lora: str | None = None
    ) -> dict[str, Any]:
        """The song's sidecar."""
        made = self.pipeline.info(understood, timings, 1)
        return {**made, "loras": loras_row(lora, self.loras)}

    def drain(self, timeout: float | None = None) -> bool:
        """See Batcher.drain."""
        return self.batcher.drain(timeout)

    def close(self) -> None:
        """See Batcher.close."""
        self.batcher.close()


def named_loras(specs: Sequence[LoraSpec]) -> dict[str, LoraSpec]:
    """LoRAs by the names of their folders. Raises InputError for a name that is there twice."""
    named: dict[str, LoraSpec] = {}
    for spec in specs:
        name = spec.folder.resolve().name
        if name in named:
            raise InputError(
                f"two LoRAs are named '{name}': songs ask for them by the folder's name, rename one"
            )
        named[name] = spec
    return named


def check_lora(name: str | None, known: Mapping[str, LoraSpec]) -> None:
    """Raises InputError for a LoRA that is not loaded."""
    if name is not None and name not in known:
        there = f"loaded are {', '.join(sorted(known))}" if known else "none is loaded here"
        raise InputError(f"lora '{name[:80]}' is unknown: {there}")


def loras_row(name: str | None, known: Mapping[str, LoraSpec]) -> list[dict[str, Any]]:
    """What a sidecar says of the LoRA that acted; its folder on the server is nobody's affair."""
    return [] if name is None else [{"name": name, "scale": known[name].scale}]


def free_memory() -> int:
    """Bytes that songs in flight may take on this machine's first GPU, or in its memory."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(GPU_SHARE * free)
    return int(CPU_SHARE * (machine().memory_available_mib << 20))
