"""Checkpoints that are written while training goes on.

    saver = Saver(checkpoints)                      # whose ranks are for the saving thread alone
    saver.begin(1000, files, texts)                 # returns at once; waits for the save before
    saver.wait()                                    # the last one must be whole

The step's thread only copies the state into host memory (`HostCopies`, the same buffers for every
save). A thread writes, flushes, describes and renames as ever (checkpoint.py), so that whatever
stops the run leaves the tag before. With a folder on the node's own disk, files are written there
first and copied to the folder that all ranks see.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import torch
from safetensors.torch import save_file
from torch import Tensor

from mudit_engine.training.checkpoints.checkpoint import Checkpoints, disk_errors

PATIENCE = 60.0  # seconds that a run which ends by an error waits for its last save


@dataclass(frozen=True)
class StateFile:
    """Named tensors of one file of a checkpoint."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_state(files: Iterable[StateFile], folder: Path) -> None:
    """Writes them into a folder. Raises OSError when the disk is full."""
    with disk_errors():
        for file in files:
            save_file(dict(file.tensors), folder / file.name, dict(file.metadata) or None)


class HostCopies:
    """Copies of state files in host memory, into the same (on a GPU page-locked) buffers each time.

    >>> copies = HostCopies()
    >>> weight = torch.ones(2)
    >>> (file,) = copies.take([StateFile("a.safetensors", {"weight": weight})])
    >>> weight.zero_().sum().item(), file.tensors["weight"].sum().item()
    (0.0, 2.0)
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def take(self, files: Iterable[StateFile]) -> list[StateFile]:
        """The files with tensors of their own, when the device has given them."""
        devices = set()
        taken = []
        for file in files:
            own = {}
            for name, tensor in file.tensors.items():
                own[name] = self._buffer(file.name, name, tensor)
                own[name].copy_(tensor, non_blocking=True)
                devices.add(tensor.device)
            taken.append(StateFile(file.name, own, file.metadata))
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return taken

    def _buffer(self, file: str, name: str, tensor: Tensor) -> Tensor:
        known = self._buffers.get((file, name))
        if known is None or known.shape != tensor.shape or known.dtype != tensor.dtype:
            known = torch.empty(
                tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda"
            )
            self._buffers[file, name] = known
        return known


class Saver:
    """Saves by a thread, one at a time.

    Args:
        checkpoints: where to; its ranks must not be those of the step's thread.
        local: a folder on the node's own disk.
    """

    def __init__(self, checkpoints: Checkpoints, *, local: Path | None = None) -> None:
        self.checkpoints, self.local = checkpoints, local
        self.copies = HostCopies()
        self._running: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a save has not ended yet."""
        return self._running is not None and not self._running.done()

    @property
    def failed(self) -> bool:
        """Whether the save that began last has ended with an error."""
        done = self._running is not None and self._running.done()
        return done and self._running is not None and self._running.exception() is not None

    def begin(
        self,
        step: int,
        files: Sequence[StateFile],
        texts: Mapping[str, str],
        *,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """Saves `files` and `texts` (contents by name) as the tag of a step. `first` runs before
        anything is written and may refuse. Raises what the save before raised.
        """
        self.wait()
        future: Future[None] = Future()
        self._running = future

        def run() -> None:
            try:
                first()
                self._save(step, files, texts)
            except BaseException as error:  # whoever waits for the save raises it
                future.set_exception(error)
            else:
                future.set_result(None)

        Thread(target=run, name="checkpoint", daemon=True).start()

    def wait(self, timeout: float | None = None) -> None:
        """Returns when nothing is being saved. Raises what the save raised."""
        running = self._running
        if running is not None:
            running.result(timeout)
            self._running = None

    def close(self) -> None:
        """Lets a save that still runs end, when something else ended the run."""
        with contextlib.suppress(Exception):
            self.wait(PATIENCE)

    def _save(self, step: int, files: Sequence[StateFile], texts: Mapping[str, str]) -> None:
        with self.checkpoints.saving(step) as folder:
            if self.local is None:
                write_state(files, folder)
            else:
                self._by_way_of(self.local, step, files, folder)
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")

    def _by_way_of(self, local: Path, step: int, files: Sequence[StateFile], folder: Path) -> None:
        aside = local / f"rank-{self.checkpoints.ranks.rank:05d}-step-{step:08d}"
        aside.mkdir(parents=True, exist_ok=True)
        try:
            write_state(files, aside)
            for file in files:
                shutil.copyfile(aside / file.name, folder / file.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
