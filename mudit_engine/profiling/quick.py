"""Triton's interpreter in less time and with the same bits: what it computes anew for every value,
and then throws away or already knew, is left out or remembered.

Most of the stock interpreter's time goes into bookkeeping: types of every intermediate value, and
overflow checks whose outcome is asserted in debug mode only, which it has not. `install()` leaves
out those checks and remembers what follows from a shape or an element type alone.

    quick.install()                    # strict.install() does
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

# of the interpreted language: its own tuple, which its core module calls by the name of the builtin
Shape = tl.core.tuple


def _leave_out_unread_checks() -> None:
    """An addition of int32 is computed in int64 too, compared with both limits, and given to
    device_assert, which returns at once outside of debug mode.
    """
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)


def _remember_shapes() -> None:
    known: dict[tuple[int, ...], tuple[Any, int, str]] = {}
    of_values: dict[tuple[int, ...], tuple[Any, Any]] = {}
    stock_block, stock_tensor = tl.block_type.__init__, tl.tensor.__init__

    @functools.wraps(stock_block)
    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(shape) if isinstance(shape, (list, Shape)) else ()
        if not (sizes and all(type(size) is int for size in sizes)):
            stock_block(self, element_ty, shape)  # constants, or refused
            return
        if sizes not in known:
            stock_block(self, element_ty, shape)
            known[sizes] = self.shape, self.numel, str(self.shape)
        self.element_ty = element_ty
        self.shape, self.numel, said = known[sizes]
        self.name = f"<{said}, {element_ty}>"

    @functools.wraps(stock_tensor)
    def tensor(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape) if type.is_block() else ()
        if sizes not in of_values:
            stock_tensor(self, handle, type)
            of_values[sizes] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = of_values[sizes]

    tl.block_type.__init__, tl.tensor.__init__ = block_type, tensor


def _remember_types() -> None:
    """The type of numpy that holds an element."""
    stock: Callable[[Any], Any] = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    @functools.wraps(stock)
    def numpy_type(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = stock(dtype)
        return known[name]

    interpreter._get_np_dtype = numpy_type


def install() -> None:
    """Quickens the interpreter of this process, once. Call before the first launch."""
    if not hasattr(interpreter.interpreter_builder, "quick"):
        interpreter.interpreter_builder.quick = True
        _leave_out_unread_checks()
        _remember_shapes()
        _remember_types()
