"""Named ranges of a run, put around functions and modules from outside: what is watched is wrapped
while it is watched, and is the plain function again afterwards.

    clock = Clock()
    with Watch(clock) as watch:
        watch.function(pipeline.runtime, "step")
        watch.modules(dit, depth=2)
        pipeline.generate([request])
    clock.seconds["step"], clock.calls["step"]

Nothing in the engine knows of ranges, so a run that nobody watches pays nothing for them. A range
is a place such as "step/trunk/qkv": the ranges around it, from the outside. Listeners get every
range: the clock here, the ledger (profiling/ledger.py), torch.profiler and NVTX (Marks).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import nn


class Listener(Protocol):
    """What a watched run tells of its ranges."""

    def range(self, name: str) -> contextlib.AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Span:
    """One range as it ran; `start` counts from the clock's beginning."""

    place: str
    start: float
    seconds: float
    cpu_seconds: float


@dataclass
class Clock:
    """Seconds, on the clock and of the process's processors, and calls of every place."""

    spans: list[Span] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    _places: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def range(self, name: str) -> Iterator[None]:
        self._places.append(name)
        place = "/".join(self._places)
        start, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            settle()
            self.spans.append(
                Span(
                    place,
                    start - self.began,
                    time.perf_counter() - start,
                    time.process_time() - cpu,
                )
            )
            self._places.pop()

    @property
    def seconds(self) -> dict[str, float]:
        return self._sums(lambda span: span.seconds)

    @property
    def cpu_seconds(self) -> dict[str, float]:
        return self._sums(lambda span: span.cpu_seconds)

    @property
    def calls(self) -> dict[str, int]:
        return {place: int(n) for place, n in self._sums(lambda span: 1.0).items()}

    def _sums(self, value: Callable[[Span], float]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for span in self.spans:
            sums[span.place] = sums.get(span.place, 0.0) + value(span)
        return sums


class Marks:
    """Ranges for tools that look on: torch.profiler's traces, and NVTX (Nsight Systems) where there
    is CUDA.
    """

    @contextlib.contextmanager
    def range(self, name: str) -> Iterator[None]:
        nvtx = torch.cuda.is_available()
        if nvtx:
            torch.cuda.nvtx.range_push(name)
        try:
            with torch.profiler.record_function(name):
                yield
        finally:
            if nvtx:
                torch.cuda.nvtx.range_pop()


def settle() -> None:
    """Waits for the device, where one is used."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Watch:
    """Wraps functions and modules in ranges until it is closed."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners
        self._undo: list[Callable[[], object]] = []

    @contextlib.contextmanager
    def range(self, name: str) -> Iterator[None]:
        """A range of every listener, the first the outermost."""
        with contextlib.ExitStack() as stack:
            for listener in self.listeners:
                stack.enter_context(listener.range(name))
            yield

    def function(self, owner: Any, name: str, label: str | None = None) -> None:
        """Every call of owner.name is a range. `owner` is an object, a class or a module."""
        plain, label = getattr(owner, name), label or name
        own = name in vars(owner) if hasattr(owner, "__dict__") else False
        kept = vars(owner)[name] if own else None

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.range(label):
                return plain(*args, **kwargs)

        # past __setattr__: some of the engine's objects are frozen, and torch's modules register
        put, drop = (
            (type.__setattr__, type.__delattr__)
            if isinstance(owner, type)
            else (object.__setattr__, object.__delattr__)
        )
        put(owner, name, watched)
        self._undo.append((lambda: put(owner, name, kept)) if own else (lambda: drop(owner, name)))

    def modules(self, root: nn.Module, *, depth: int = 1) -> None:
        """Every call of a module within `depth` of root is a range, named as the attribute that
        holds it; the members of lists share the list's name.
        """
        open_ranges: list[contextlib.AbstractContextManager[None]] = []

        def enter(label: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any) -> None:
                opened = self.range(label)
                opened.__enter__()
                open_ranges.append(opened)

            return hook

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            open_ranges.pop().__exit__(None, None, None)

        for name, module in root.named_modules():
            parts = [part for part in name.split(".") if part and not part.isdigit()]
            if not parts or len(parts) > depth or isinstance(module, nn.ModuleList):
                continue
            handles = (
                module.register_forward_pre_hook(enter(parts[-1])),
                module.register_forward_hook(leave),
            )
            self._undo += [handle.remove for handle in handles]

    def close(self) -> None:
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
