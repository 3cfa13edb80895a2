"""A Triton interpreter that is as unforgiving as a GPU. `install()` repairs the stock one;
`checked()` watches every launch.

The stock interpreter (TRITON_INTERPRET=1) multiplies bf16 as raw uint16, truncates fp32 to bf16,
knows no tf32, gives 0 for masked-off elements of a load without `other`, and lets programs read
outside their tensors or race. Here:

- bf16 arithmetic happens in fp32 and rounds to nearest even; tf32 dots see operands cut to 10
  mantissa bits; dots accumulate in fp32;
- masked-off elements are NaN unless the kernel says `other=`, and fresh outputs are NaN until
  written;
- every address must be an element of a tensor that was passed to this launch (gaps between strided
  rows count as outside);
- no program may touch what another program of the same launch writes (atomics excepted);
- `shuffled(seed)` runs the programs of each launch in a random order.

    with strict.checked(), strict.shuffled(3):
        launcher(q, k, v)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter

from mudit_engine.profiling import quick

INTERPRETED: bool = knobs.runtime.interpret  # fixed once kernels are imported
Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
BF16_NAN = np.uint16(0x7FC0)


class MemoryFault(AssertionError):
    """A program touched memory it must not: outside its tensors, or shared with another program."""


def widen(bits: np.ndarray) -> np.ndarray:
    """bf16 bit patterns as fp32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_bf16(x: np.ndarray) -> np.ndarray:
    """fp32 to bf16 bit patterns, nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return np.where(
        np.isnan(x), BF16_NAN, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    )


def cut_tf32(x: np.ndarray) -> np.ndarray:
    """fp32 as the tensor cores read it for tf32: the low 13 bits are dropped, not rounded (Triton
    emits no cvt.rna).
    """
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(
        np.float32
    )


def _is_bf16(handle: Any) -> bool:
    return isinstance(handle, Handle) and handle.dtype.scalar == tl.bfloat16


def _widened(handle: Any) -> Any:
    return Handle(widen(handle.data), tl.float32) if _is_bf16(handle) else handle


def _through_fp32(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any) -> Any:
        if not any(_is_bf16(a) for a in args):
            return method(self, *args)
        result = method(self, *[_widened(a) for a in args])
        # comparisons give booleans, and stay so
        return (
            Handle(round_bf16(result.data), tl.bfloat16)
            if result.data.dtype == np.float32
            else result
        )

    return call


def _repair_arithmetic() -> None:
    for name in (
        "unary_op",
        "binary_op",
        "create_fma",
        "create_erf",
        "create_rsqrt",
        "create_clampf",
    ):
        setattr(Builder, name, _through_fp32(getattr(Builder, name)))
    stock_binary = Builder.binary_op

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        result = stock_binary(self, lhs, rhs, op)
        return Handle(result.data, tl.int1) if result.data.dtype == np.bool_ else result

    stock_cast, stock_convert, stock_dot = (
        Builder.cast_impl,
        Builder.create_fp_to_fp,
        Builder.create_dot,
    )
    stock_sum = interpreter.ReduceOps.sum

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if source != target and source == tl.bfloat16:
            return Handle(widen(src.data).astype(interpreter._get_np_dtype(dst_type)), target)
        if source != target and target == tl.bfloat16:
            return Handle(round_bf16(src.data.astype(np.float32)), target)
        return stock_cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        to_nearest = rounding_mode is None or rounding_mode == interpreter._ir.ROUNDING_MODE.RTNE
        if to_nearest and {src.dtype.scalar, dst_type.scalar} <= {
            tl.bfloat16,
            tl.float16,
            tl.float32,
            tl.float64,
        }:
            return cast_impl(self, src, dst_type)
        return stock_convert(self, src, dst_type, rounding_mode)

    def create_dot(
        self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any
    ) -> Any:
        if a.dtype.scalar == tl.float32 and input_precision == interpreter._ir.INPUT_PRECISION.TF32:
            a, b = Handle(cut_tf32(a.data), tl.float32), Handle(cut_tf32(b.data), tl.float32)
        if {a.dtype.scalar, b.dtype.scalar} == {tl.float16}:
            # numpy's cast inside matmul leaves BLAS; the products of fp16 are exact in fp32 either
            # way
            a, b = (
                Handle(a.data.astype(np.float32), tl.float32),
                Handle(b.data.astype(np.float32), tl.float32),
            )
        return stock_dot(self, _widened(a), _widened(b), d, input_precision, max_num_imprecise_acc)

    def reduce_sum(self: Any, x: Any) -> Any:
        if x.handle.dtype.scalar != tl.bfloat16:
            return stock_sum(self, x)
        return self.to_tensor(
            round_bf16(np.sum(widen(x.handle.data), axis=self.axis, keepdims=self.keep_dims)),
            x.dtype,
        )

    Builder.binary_op, Builder.cast_impl, Builder.create_fp_to_fp, Builder.create_dot = (
        binary_op,
        cast_impl,
        create_fp_to_fp,
        create_dot,
    )
    interpreter.ReduceOps.sum = reduce_sum


def _repair_patching() -> None:
    """Every device-function call re-patches the whole language; once a launch is enough (and 5x
    faster).
    """
    stock: Callable[[Any], Any] = interpreter._patch_lang
    running: list[Any] = []
    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def patch_lang(fn: Any) -> Any:
        if running:
            return SimpleNamespace(restore=lambda: None)
        scope = stock(everything)
        running.append(scope)

        def restore() -> None:
            running.clear()
            scope.restore()

        return SimpleNamespace(restore=restore)

    interpreter._patch_lang = patch_lang


def _repair_index() -> None:
    """Triton 3.6 makes an index by int() of an array of one element, which numpy refuses from 2.4
    on.
    """
    stock: Callable[[Any, Any], None] = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        stock(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor


class _Buffer:
    """One storage: which bytes the launch may touch, and which program touched them."""

    def __init__(self, storage: Any) -> None:
        self.start, self.size = storage.data_ptr(), storage.nbytes()
        self.names: list[str] = []
        self.allowed = np.zeros(self.size, dtype=bool)
        self.writer = np.full(self.size, -1, dtype=np.int32)
        self.reader = np.full(self.size, -1, dtype=np.int32)

    def admit(self, name: str, tensor: torch.Tensor) -> None:
        self.names.append(name)
        width = tensor.element_size()
        strides = [s * width for s in tensor.stride()] + [1]
        if tensor.numel():
            np.lib.stride_tricks.as_strided(
                self.allowed[tensor.storage_offset() * width :], [*tensor.shape, width], strides
            )[...] = True


class _Watch:
    """Bounds and races of the launch that is running."""

    def __init__(self) -> None:
        self.buffers: list[_Buffer] = []
        self.kernel, self.program = "", 0

    def begin(self, kernel: str, arguments: dict[str, Any]) -> None:
        found: dict[int, _Buffer] = {}
        for name, value in arguments.items():
            for tensor in value if isinstance(value, tuple) else (value,):
                tensor = (
                    getattr(tensor, "base", tensor)
                    if not isinstance(tensor, torch.Tensor)
                    else tensor
                )
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    found.setdefault(storage.data_ptr(), _Buffer(storage)).admit(name, tensor)
        self.kernel, self.buffers = kernel, sorted(found.values(), key=lambda b: b.start)

    def _others(self, programs: np.ndarray) -> bool:
        return bool(((programs != -1) & (programs != self.program)).any())

    def visit(self, pointers: np.ndarray, mask: np.ndarray, *, write: bool) -> None:
        active = (
            pointers[np.broadcast_to(mask, pointers.shape)]
            if not mask.all()
            else pointers.reshape(-1)
        )
        if not active.size:
            return
        what, first = (
            f"program {self.program} of {self.kernel} " + ("writes" if write else "reads"),
            int(active[0]),
        )
        buffer = next((b for b in self.buffers if b.start <= first < b.start + b.size), None)
        if buffer is None:
            raise MemoryFault(f"{what} address {first:#x}, which is in no tensor of the launch")
        name = "/".join(buffer.names)
        offsets = active.astype(np.int64) - buffer.start
        if offsets.min() < 0 or offsets.max() >= buffer.size or not buffer.allowed[offsets].all():
            raise MemoryFault(f"{what} outside {name}")
        if self._others(buffer.writer[offsets]):
            raise MemoryFault(f"{what} elements of {name} that another program writes")
        readers = buffer.reader[offsets]
        if write:
            if self._others(readers):
                raise MemoryFault(f"{what} elements of {name} that another program reads")
            buffer.writer[offsets] = self.program
        else:
            buffer.reader[offsets] = np.where(
                (readers == -1) | (readers == self.program), self.program, -2
            )


_watch: _Watch | None = None
_order: np.random.Generator | None = None


def _hook_memory() -> None:
    stock_load, stock_store = Builder.create_masked_load, Builder.create_masked_store
    stock_call, stock_dim, stock_index = (
        interpreter.GridExecutor.__call__,
        Builder.set_grid_dim,
        Builder.set_grid_idx,
    )

    def create_masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        if _watch is not None:
            _watch.visit(ptrs.data, mask.data, write=False)
        element = ptrs.get_element_ty()
        if other is None and element.is_floating():
            poison = BF16_NAN if element == tl.bfloat16 else np.nan
            other = Handle(
                np.full(ptrs.data.shape, poison, interpreter._get_np_dtype(element)), element
            )
        return stock_load(self, ptrs, mask, other, *rest)

    def create_descriptor_load(
        self: Any, desc: Any, indices: Any, cache_modifier: Any, eviction_policy: Any
    ) -> Any:
        # upstream passes keywords that a replaced create_masked_load should not have to know
        ptrs, mask = desc.materialize_pointers(indices)
        element = ptrs.get_element_ty()
        dtype, nan = (
            interpreter._get_np_dtype(element),
            desc.padding == interpreter._ir.PADDING_OPTION.PAD_NAN,
        )
        poison = (BF16_NAN if element == tl.bfloat16 else np.nan) if nan else 0
        handle_mask = Handle(mask, tl.int1)
        return self.create_masked_load(
            ptrs,
            handle_mask,
            Handle(np.full(ptrs.data.shape, poison, dtype), element),
            None,
            None,
            False,
        )

    def create_masked_store(
        self: Any, ptrs: Any, value: Any, mask: Any, cache_modifier: Any, eviction_policy: Any
    ) -> Any:
        # descriptor stores pass a bare array
        mask = mask if isinstance(mask, Handle) else Handle(mask, tl.int1)
        if _watch is not None:
            _watch.visit(ptrs.data, mask.data, write=True)
        return stock_store(self, ptrs, value, mask, cache_modifier, eviction_policy)

    def set_grid_dim(self: Any, nx: int, ny: int, nz: int) -> None:
        stock_dim(self, nx, ny, nz)
        self.program_order = (
            np.arange(nx * ny * nz) if _order is None else _order.permutation(nx * ny * nz)
        )

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        program = int(self.program_order[np.ravel_multi_index((x, y, z), self.grid_dim)])
        if _watch is not None:
            _watch.program = program
        stock_index(self, *(int(i) for i in np.unravel_index(program, self.grid_dim)))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _watch is not None:
            _watch.begin(
                self.fn.__name__, {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
            )
        return stock_call(self, *args, **kwargs)

    Builder.create_masked_load, Builder.create_masked_store = (
        create_masked_load,
        create_masked_store,
    )
    Builder.create_descriptor_load = create_descriptor_load
    Builder.set_grid_dim, Builder.set_grid_idx = set_grid_dim, set_grid_idx
    interpreter.GridExecutor.__call__ = call


def install() -> None:
    """Repairs the interpreter of this process, once. Call before the first launch."""
    if not hasattr(Builder, "strict"):
        Builder.strict = True
        quick.install()
        _repair_arithmetic()
        _repair_index()
        _repair_patching()
        _hook_memory()


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Every launch inside is checked for bounds and races, and torch.empty gives NaN. Raises
    MemoryFault (inside an InterpreterError).
    """
    global _watch
    before, _watch = _watch, _Watch()
    deterministic, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    # the switch that makes torch fill fresh memory with NaN
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        _watch = before
        torch.use_deterministic_algorithms(deterministic, warn_only=warn)


@contextlib.contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Programs of every launch inside run in a random order. A kernel without races gives the same
    bits.
    """
    global _order
    before, _order = _order, np.random.default_rng(seed)
    try:
        yield
    finally:
        _order = before
