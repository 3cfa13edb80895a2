"""A stand-in for CUDA graphs on the CPU: records the operations of a function once, then repeats
them on the same memory.

What a CUDA graph cannot do it refuses: values read by the host, numbers of a host generator,
tensors made from Python data. A replay runs no Python of the recorded function, so whatever that
function would have looked up anew is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

REFUSED = {
    "aten::_local_scalar_dense": "a value was read by the host",
    "aten::lift_fresh": "a tensor was made from Python data",
    "aten::nonzero": "a size depends on values",
    "aten::randn": "numbers of the host's generator",
    "aten::normal_": "numbers of the host's generator",
}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Callable[[], None]] = []
        self.held: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        if name in REFUSED:
            raise RuntimeError(f"not permitted while capturing: {REFUSED[name]} ({name})")
        outputs = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in tree_flatten((args, kwargs))[0] if _is(t)}
        fresh = [
            t
            for t in tree_flatten(outputs)[0]
            if _is(t) and t.untyped_storage().data_ptr() not in given
        ]
        mutates = func._schema.is_mutable
        if fresh or mutates:
            self.held += fresh

            def again() -> None:
                results = tree_flatten(func(*args, **kwargs))[0]
                if fresh:
                    for old, new in zip(tree_flatten(outputs)[0], results, strict=True):
                        if _is(old) and any(old is t for t in fresh):
                            old.copy_(new)

            self.operations.append(again)
        return outputs


def _is(x: Any) -> bool:
    return isinstance(x, Tensor)


class RecordedCapture:
    """runtime.captured.Capture for the CPU. Counts what it does."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def capture(self, work: Callable[[], None]) -> tuple[Callable[[], None], int]:
        self.captures += 1
        work()  # as on a device: the first run is not the recorded one
        with _Recorder() as recorder:
            work()
        # what a graph computed while it was recorded is nobody's result
        tree_map(lambda t: t.fill_(7), [t for t in recorder.held if t.is_floating_point()])

        def replay() -> None:
            self.replays += 1
            with torch.inference_mode():
                for operation in recorder.operations:
                    operation()

        return replay, sum(t.numel() * t.element_size() for t in recorder.held)
