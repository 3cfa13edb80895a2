"""What ranks tell each other besides gradients: sums of figures, signals, errors, notes on files.
Small, on the host, in fp64.

    # under torchrun or any launcher that sets RANK and WORLD_SIZE
    ranks = join(device, timeout_seconds=1800)
    total = ranks.sum(torch.tensor([loss], dtype=torch.float64))

`Ranks` itself is a world of one. `Spread` speaks over a gloo group of its own, so that host values
never wait for a device.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import importlib
import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from mudit_engine.availability import require
from mudit_engine.errors import InputError

T = TypeVar("T")


def local_world(world: int) -> list[dict[str, str]]:
    """What a launcher sets in the environment of each of `world` ranks on this machine, on a port
    that is free now.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(world)]


class Ranks:
    """One process alone."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum of fp64 host values [n] over the ranks."""
        return values

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks of values [n] where they lie; a device is not waited for."""
        return values

    def highest(self, value: int) -> int:
        """The largest value that any rank gave."""
        return value

    def beside(self) -> Ranks:
        """The same ranks for a thread of its own, whose messages do not mix with these. The ranks
        must all come here.
        """
        return self

    def gather(self, thing: T) -> list[T]:
        """What every rank gave, in their order, on every rank."""
        return [thing]

    def first(self, thing: T) -> T:
        """What rank 0 gave."""
        return thing

    def barrier(self) -> None:
        """Returns when every rank has come here."""

    def close(self) -> None:
        """Leaves the group. The ranks must all come here."""


class Spread(Ranks):
    """Ranks of an initialised torch.distributed world."""

    def __init__(self, *, timeout_seconds: float) -> None:
        from torch import distributed as dist

        self.timeout_seconds = timeout_seconds
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        backend = dist.get_backend()
        # the default group where it is on the host already (or a fake one in a rehearsal)
        self.group = (
            dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
            if backend == "nccl"
            else None
        )

    def sum(self, values: Tensor) -> Tensor:
        from torch import distributed as dist

        total = values.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def total(self, values: Tensor) -> Tensor:
        from torch import distributed as dist

        total = values.clone()
        dist.all_reduce(total)
        return total

    def beside(self) -> Ranks:
        from torch import distributed as dist

        other = copy.copy(self)
        other.group = dist.new_group(
            backend="gloo", timeout=timedelta(seconds=self.timeout_seconds)
        )
        return other

    def highest(self, value: int) -> int:
        from torch import distributed as dist

        top = torch.tensor([value])
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=self.group)
        return int(top)

    def gather(self, thing: T) -> list[T]:
        from torch import distributed as dist

        things: list[Any] = [None] * self.world
        dist.all_gather_object(things, thing, group=self.group)
        return things

    def first(self, thing: T) -> T:
        from torch import distributed as dist

        box = [thing if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return cast(T, box[0])

    def barrier(self) -> None:
        from torch import distributed as dist

        dist.barrier(group=self.group)

    def close(self) -> None:
        from torch import distributed as dist

        self.barrier()
        self.group = None
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Ends the process of a rank with an exit code: the last call of a program that ran on many.

    What was written is flushed and what waits in `atexit` runs, but the interpreter is not taken
    down. Ranks that had done all their work were seen to end with -6 ("terminate called without an
    active exception"). The likely cause, which was not reproduced: gloo's worker threads let go of
    tensors late and want the interpreter's lock for it, and CPython before 3.14 unwinds a thread
    that asks too late, which through C++ that may not throw is std::terminate.
    """
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        pass  # whoever read it has gone
    finally:
        os._exit(code)


_PEER_IS_GONE = re.compile(
    r"connection (?:closed|reset|refused|was aborted)|broken pipe|timed? ?out|"
    r"remote process exited|socket (?:closed|error)|peer|store->get|no route to host",
    re.IGNORECASE,
)


def lost_peer(error: RuntimeError) -> str | None:
    """The first line of an error of a collective that another rank's end (or silence) has caused;
    None for other errors.
    """
    from torch import distributed as dist

    text = str(error).strip()
    first = text.splitlines()[0][:200] if text else type(error).__name__
    of_group = isinstance(error, (dist.DistError, dist.DistBackendError)) or any(
        name in text.lower() for name in ("gloo", "nccl", "processgroup")
    )
    return first if of_group and _PEER_IS_GONE.search(text) else None


def launched_world() -> int:
    """Ranks that the launcher started (1 without one)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _wanted(record: logging.LogRecord) -> bool:
    # torch's AdamW; tests/training/parallel/test_deepspeed.py has tested it
    return "untested optimizer" not in record.getMessage()


def join(device: torch.device, *, timeout_seconds: float) -> Ranks:
    """Joins DeepSpeed's process group: nccl for CUDA devices, gloo for the CPU. Raises MissingError
    without DeepSpeed.

    Without a launcher it is a world of one that opens no port. Raises InputError when a launcher's
    environment is half set.
    """
    require("deepspeed", "strategy 'deepspeed'")
    from torch import distributed as dist

    wait = timedelta(seconds=timeout_seconds)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed's engine insists on it
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=dist.HashStore(),
                rank=0,
                world_size=1,
                timeout=wait,
            )
        elif missing := [
            name
            for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            if name not in os.environ
        ]:
            raise InputError(
                f"RANK is set, but {', '.join(missing)} is not: start with torchrun, deepspeed or "
                f"`mudit train --launch`"
            )
    # its logger takes the standard output it finds, where our results go
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    logger.addFilter(_wanted)
    # torch 2.13 has renamed collectives that 0.19.8 calls, and says so at every call
    warnings.filterwarnings(
        "ignore",
        message=".*(all_gather_into_tensor|reduce_scatter_tensor).*deprecated",
        category=FutureWarning,
    )
    if device.type == "cpu":
        # (deepspeed.comm.torch as an attribute is torch itself)
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        # 0.19.8 compiles an all-reduce over shared memory at the first start, for minutes, and a
        # killed compile blocks every later run: it serves inference on CPUs, and gloo does its work
        backend.build_shm_op = lambda: None
    deepspeed.init_distributed(
        "nccl" if device.type == "cuda" else "gloo", timeout=wait, verbose=False
    )
    return Spread(timeout_seconds=timeout_seconds)


def gather_rows(rows: Tensor, counts: Sequence[int], group: Any = None) -> Tensor:
    """Rows [counts[r], ...] of every rank of a group end to end, with gradient: what any rank's
    loss asks of a row reaches its owner.
    """
    gathered: Tensor = _GatherRows.apply(rows, tuple(counts), group)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...], group: Any) -> Tensor:
        from torch import distributed as dist

        ctx.counts, ctx.group = counts, group
        # equal pieces: backends differ in what else they can do
        most = max(counts)
        mine = rows.new_zeros(most, *rows.shape[1:])
        mine[: len(rows)] = rows
        pieces = [torch.empty_like(mine) for _ in counts]
        dist.all_gather(pieces, mine, group=group)
        return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from torch import distributed as dist

        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        start = sum(ctx.counts[: dist.get_rank(ctx.group)])
        return total[start : start + ctx.counts[dist.get_rank(ctx.group)]], None, None
