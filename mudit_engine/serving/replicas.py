"""The two halves of an engine that run on machines of their own: one denoises, one decodes.

    async for said in SongDenoiser("tiny").denoise(understood): ...  # stages, at last latents
    async for data in SongDecoder("tiny").decode(latents, 12.0): ...  # float32, piece by piece

serving/ray_app.py makes replicas of Ray Serve of them; nothing here knows of Ray. What goes wrong
with a song comes back as a value (`Said.error`): an exception means that the replica itself broke.
Nothing of a song is kept here once its caller is gone, and a song is a function of its request and
its seed: another replica makes the same one, from the last saved step on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mudit_engine import errors
from mudit_engine.errors import MuditError
from mudit_engine.models.lora import LoraSpec
from mudit_engine.reading import Understood
from mudit_engine.runtime.batcher import Batcher
from mudit_engine.runtime.decode import pieces_of_song
from mudit_engine.runtime.ticket import ENDED, Event, StepRecord, Ticket
from mudit_engine.serving.edited import with_source
from mudit_engine.serving.engine import Engine
from mudit_engine.serving.song_files import floats

QUEUED_FRAMES = "queued_frames"  # what a denoiser reports for autoscaling


@dataclass(frozen=True)
class Said:
    """What a denoiser says of a song: where it is, its progress, or its end.

    Args:
        stage: of runtime/batcher.py's Stage.
        step: sampler steps done, of `steps`.
        steps: sampler steps of the song.
        replica: who says it.
        saved: progress that another replica can go on from.
        latents: fp32 [frames, channels] of a song whose steps are done.
        error: (name of the class, message) of a song that failed or was cancelled.
        records: steps of the whole replica since it last said something.
    """

    stage: str
    step: int
    steps: int
    replica: str
    saved: bytes | None = None
    latents: np.ndarray | None = None
    error: tuple[str, str] | None = None
    records: tuple[StepRecord, ...] = ()


def told(error: BaseException) -> tuple[str, str]:
    """An error as a value that any process can read."""
    if isinstance(error, MuditError):
        return type(error).__name__, str(error)
    return "Exception", f"{type(error).__name__}: {error}"


def error_of(value: tuple[str, str]) -> Exception:
    """The error that `told` was given; what is not ours becomes a RuntimeError."""
    kind = getattr(errors, value[0], None)
    if isinstance(kind, type) and issubclass(kind, MuditError):
        return kind(value[1])
    return RuntimeError(value[1])


class SongDenoiser:
    """One batcher on one device: songs of many callers, from a request to latents.

    Args:
        model: name or folder, as this machine sees it.
        runtime: what runs the network (runtime/load.py).
        device: of torch; None is a GPU where there is one.
        threads: of the CPU; None is torch's own.
        save_every: seconds between a song's savings.
        loras: that songs may ask for.
        fast: with the model's few-step student.
    """

    def __init__(
        self,
        model: str,
        *,
        runtime: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        save_every: float | None = 10.0,
        loras: Sequence[LoraSpec] = (),
        fast: bool = False,
    ) -> None:
        _use_threads(threads)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.Lock()
        self._records: list[StepRecord] = []
        self._hearing: dict[Ticket, Any] = {}
        self.engine = Engine.open(
            model,
            runtime=runtime,
            device=device,
            decodes=False,
            loras=loras,
            fast=fast,
            on_step=self._stepped,
            save_every=save_every,
            on_save=self._saved,
        )

    @property
    def batcher(self) -> Batcher:
        return self.engine.batcher

    async def about(self) -> dict[str, Any]:
        """What sidecars say of the machine and the networks here."""
        return {**self.engine.pipeline.maker(), "replica": self.name}

    async def denoise(
        self,
        understood: Understood,
        *,
        reference: bytes | None = None,
        source: bytes | None = None,
        deadline: float | None = None,
        saved: bytes | None = None,
        lora: str | None = None,
    ) -> AsyncIterator[Said]:
        """Says where the song is until its steps are done. Whoever stops listening cancels it.

        reference: bytes of the audio file. source: of the song that is edited
        (serving/edited.py). deadline: seconds from now. saved: progress of another replica with the
        same song.
        """
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Event | bytes] = asyncio.Queue()

        def hear(what: Event | bytes) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(heard.put_nowait, what)

        with tempfile.TemporaryDirectory(prefix="mudit-song-") as scratch:
            if reference is not None:
                path = Path(scratch) / "reference.wav"
                path.write_bytes(reference)
                request = replace(understood.request, reference=path)
                understood = replace(understood, request=request)
            understood = with_source(understood, source, Path(scratch))
            try:
                ticket = self.engine.submit(
                    understood, on_event=hear, deadline=deadline, saved=saved, lora=lora
                )
            except MuditError as error:
                yield Said("failed", 0, 0, self.name, error=told(error))
                return
            self._hearing[ticket] = hear
            try:
                while True:
                    event = await heard.get()
                    if isinstance(event, bytes):
                        yield self._say(ticket.stage.value, ticket, saved=event)
                        continue
                    if event.stage not in ENDED:
                        # of steps that nobody waited for the last one tells all
                        if heard.empty():
                            yield self._say(event.stage.value, ticket)
                        continue
                    if event.error is not None:
                        yield self._say(event.stage.value, ticket, error=told(event.error))
                        return
                    assert ticket.latents is not None
                    latents = ticket.latents.numpy()
                    yield self._say(event.stage.value, ticket, latents=latents)
                    return
            finally:
                self._hearing.pop(ticket, None)
                ticket.cancel()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Latent frames that wait or are denoised here: what replicas are added for."""
        return {QUEUED_FRAMES: float(self.batcher.queued_frames())}

    async def check_health(self) -> None:
        """Raises MuditError when a thread of the engine has ended."""
        if not self.batcher.alive:
            raise MuditError("a thread of the engine has ended")

    def _say(self, stage: str, ticket: Ticket, **more: Any) -> Said:
        with self._lock:
            records, self._records = tuple(self._records), []
        return Said(stage, ticket.step, ticket.steps, self.name, records=records, **more)

    def _stepped(self, record: StepRecord) -> None:
        with self._lock:
            self._records.append(record)

    def _saved(self, ticket: Ticket, data: bytes) -> None:
        if (hear := self._hearing.get(ticket)) is not None:
            hear(data)


class SongDecoder:
    """Latents to PCM, with the VAE of the model on torch: one piece at a time, songs in turn.

    Args:
        model: name or folder, as this machine sees it.
        device: of torch; None is a GPU where there is one.
        threads: of the CPU; None is torch's own.
    """

    def __init__(
        self, model: str, *, device: str | None = None, threads: int | None = None
    ) -> None:
        from mudit_engine.config import load_config
        from mudit_engine.models.folder import model_folder
        from mudit_engine.runtime.decode import TorchDecoder
        from mudit_engine.runtime.load import fast_dtype, load_codec_and_text, usual_device

        _use_threads(threads)
        folder, place = model_folder(model), usual_device(device)
        vae, _ = load_codec_and_text(load_config(folder), folder, place, fast_dtype(place))
        self.decoder = TorchDecoder(vae)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="mudit-decode")

    async def decode(
        self, latents: np.ndarray, seconds: float, *, start: int = 0
    ) -> AsyncIterator[bytes]:
        """float32 audio of the song's latents [frames, channels], cut to `seconds`; `start` is a
        frame where a piece begins, to go on where another replica stopped.
        """
        c, loop = self.decoder.config, asyncio.get_running_loop()
        place = self.decoder.vae.latent_mean.device
        latents_TC = torch.from_numpy(np.array(latents)).to(place)
        pieces = pieces_of_song(self.decoder, latents_TC, start=start)
        samples, done = round(seconds * c.sample_rate), start * c.hop
        while (piece := await loop.run_in_executor(self._worker, next, pieces, None)) is not None:
            yield floats(piece[:, : max(samples - done, 0)].cpu())
            done += piece.shape[1]


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
