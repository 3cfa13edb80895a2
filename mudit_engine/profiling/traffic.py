"""Global-memory traffic of Triton launches, counted lane by lane in the interpreter: what programs
ask for, and what they could not avoid.

    requested = bytes under a live mask, over all loads and stores of all programs
    distinct  = every byte that is read, once, and every byte that is written, once

Needs TRITON_INTERPRET=1 before kernels are imported. Installs the strict interpreter
(profiling/strict.py).

    with count_traffic() as launches:
        residual_norm(x, y, gate, shift, scale, runs)
    launches[0].kernel, launches[0].requested / launches[0].distinct
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mudit_engine.errors import MuditError


@dataclass
class Traffic:
    """Bytes of one launch."""

    kernel: str
    requested: int = 0
    addressed: int = 0
    """As requested, but with no lane masked off: their ratio is the share of lanes that do
    something.
    """
    distinct: int = 0
    _touched: dict[bool, list[np.ndarray]] = field(
        default_factory=lambda: {False: [], True: []}, repr=False
    )

    @property
    def live(self) -> float:
        return self.requested / self.addressed if self.addressed else 1.0

    def visit(self, addresses: np.ndarray, mask: np.ndarray, size: int, *, write: bool) -> None:
        active = addresses[np.broadcast_to(mask, addresses.shape)]
        self.requested += size * active.size
        self.addressed += size * addresses.size
        # elements of one tensor have one size, so that the address of the first byte tells them
        # apart
        self._touched[write].append(_distinct(active) * 16 + size)

    def close(self) -> None:
        for parts in self._touched.values():
            if parts:
                self.distinct += int((_distinct(np.concatenate(parts)) % 16).sum())
            parts.clear()


def _distinct(values: np.ndarray) -> np.ndarray:
    """np.unique of a vector, by sorting: addresses of a block come nearly sorted, which the hash
    table of NumPy 2.3 and later does not use and takes several times as long for.
    """
    ordered = np.sort(values)
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


@contextlib.contextmanager
def count_traffic() -> Iterator[list[Traffic]]:
    """Launches inside are interpreted and appended to the list. Raises MuditError where kernels are
    compiled.
    """
    from triton.runtime import interpreter

    from mudit_engine.profiling import strict

    if not strict.INTERPRETED:
        raise MuditError(
            "traffic is counted in the interpreter: set TRITON_INTERPRET=1 before kernels are "
            "imported"
        )
    strict.install()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    launches: list[Traffic] = []
    loads, stores, stock_call = (
        builder.create_masked_load,
        builder.create_masked_store,
        executor.__call__,
    )

    def visit(pointers: Any, mask: Any, *, write: bool) -> None:
        lanes = mask.data if isinstance(mask, interpreter.TensorHandle) else mask
        launches[-1].visit(
            pointers.data, lanes, pointers.get_element_ty().primitive_bitwidth // 8, write=write
        )

    def load(self: Any, ptrs: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        visit(ptrs, mask, write=False)
        return loads(self, ptrs, mask, *rest, **options)

    def store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        visit(ptrs, mask, write=True)
        return stores(self, ptrs, value, mask, *rest, **options)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.append(Traffic(self.fn.__name__))
        try:
            return stock_call(self, *args, **kwargs)
        finally:
            launches[-1].close()

    builder.create_masked_load, builder.create_masked_store, executor.__call__ = load, store, call
    try:
        yield launches
    finally:
        builder.create_masked_load, builder.create_masked_store, executor.__call__ = (
            loads,
            stores,
            stock_call,
        )
