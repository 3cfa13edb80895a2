"""What kernels share: the device they launch on, 16-byte rows, how much work a program takes, the
second pass of deterministic sums.

    segment_sums    out[q, g] = sum of parts[q, i] over offsets[g] <= i < offsets[g + 1]

Kernels that sum over tokens (gradients of gains, biases and modulation rows) write one partial row
per program; a second launch adds them in a fixed order. No atomics, so a gradient has the same bits
however the programs were scheduled.

    x = aligned(x)
    with on_device(x.device): kernel[grid](x, ...)
    out = segment_sums(parts, offsets, dtype=torch.bfloat16)
"""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PIECE = 1 << 20
"""Elements of a piece where references work piece by piece: less has no memory to save, and more
calls cost the host more."""


def by_pieces(x: Tensor) -> bool:
    """Whether a reference makes what is like x a segment or a run at a time: x is large, nothing
    is recorded and nothing compiled.
    """
    return (
        x.numel() >= 2 * PIECE and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    )


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. triton.cdiv on the host takes 10 us: it unwraps constants of kernels."""
    return -(-a // b)


def aligned(x: Tensor) -> Tensor:
    """x itself when 16-byte accesses can reach every row (last axis dense, strides and address
    multiples of 16 bytes), else a copy.
    """
    *outer, last = x.stride()
    if last == 1 and x.data_ptr() % 16 == 0:
        size = x.element_size()
        for stride in outer:
            if stride * size % 16:
                break
        else:
            return x
    return x.clone(memory_format=torch.contiguous_format)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches inside go to `device`. Triton compiles for and launches on the current one, wherever
    the pointers lead.
    """
    if device.type != "cuda" or (
        torch.cuda.is_initialized() and device.index == torch.cuda.current_device()
    ):
        return _HERE
    return torch.cuda.device(device)


_HERE: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


def unobserved(*tensors: Tensor | None) -> bool:
    """Whether a launcher may be called as it is, past torch's dispatcher, which costs more than a
    short launch: nothing here needs a gradient, is traced, transformed, profiled or intercepted.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch.autograd._profiler_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return False
    recording = torch.is_grad_enabled()
    for x in tensors:
        if x is not None and (
            (type(x) is not Tensor and type(x) is not torch.nn.Parameter)
            or (recording and x.requires_grad)
        ):
            return False
    return True


def check_rows(name: str, x: Tensor, *, max_width: int | None = None) -> None:
    """Raises ValueError unless x is [T, D] of a float type the kernels take, D a multiple of 8 (up
    to `max_width`).
    """
    if x.dim() != 2 or x.shape[1] % 8 or not x.shape[1] or (max_width and x.shape[1] > max_width):
        limit = f" up to {max_width}" if max_width else ""
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} has no triton kernel ([T, D], D a multiple of "
            f"8{limit}): use the eager backend"
        )
    if x.dtype not in DTYPES:
        raise ValueError(
            f"{name} of {x.dtype} has no triton kernel (bfloat16, float16, float32): use the eager "
            f"backend"
        )


def overwrite(table: Tensor, rows: Tensor) -> None:
    """Writes `rows` over the first rows of a table on a device, and zeros over the others: what a
    captured launch reads next. Raises ValueError when there are more rows than the table has.
    """
    if len(rows) > len(table):
        raise ValueError(
            f"{len(rows)} rows for a table of {len(table)} that launches were captured with: "
            f"capture a larger one"
        )
    table[: len(rows)].copy_(rows, non_blocking=True)
    table[len(rows) :].zero_()


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of `device`; an A100's count where there is no GPU (interpreter,
    compilation ahead of time).
    """
    return (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 108
    )


def overlaps_itself(x: Tensor) -> bool:
    """Whether two indices of x reach one element, as in an expanded tensor."""
    if x.is_contiguous():
        return False
    reach = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach += (size - 1) * stride
    return False


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether an element of a lies where one of b does; exact for dense tensors and for rows of one
    stride (columns of one buffer), else by their extents.
    """
    if not a.numel() or not b.numel():
        return False
    (a_first, a_end), (b_first, b_end) = _extent(a), _extent(b)
    if a_end <= b_first or b_end <= a_first:
        return False
    size, stride = a.element_size(), a.stride(0)
    comparable = a.dim() == b.dim() == 2 and a.stride(1) == b.stride(1) == 1
    if not comparable or b.stride(0) != stride or b.element_size() != size or not stride:
        return True
    offset, part = divmod((b_first - a_first) % (stride * size), size)
    return bool(part) or offset < a.shape[1] or offset + b.shape[1] > stride


def _extent(x: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of x and of the first one behind it."""
    first = x.data_ptr()
    if x.is_contiguous():
        return first, first + x.nbytes
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return first, first + (last + 1) * x.element_size()


def check_written(written: dict[str, Tensor], read: dict[str, Tensor | None]) -> None:
    """Raises ValueError when a tensor that is written in place reaches an element twice, or shares
    one with another tensor of the call: programs would race for it. Tensors that were found apart
    are known by their addresses, shapes and strides: a step's are those of the step before.
    """
    others = [(name, y) for name, y in read.items() if y is not None]
    key = tuple(
        (len(written), x.data_ptr(), x.shape, x.stride(), x.dtype)
        for x in (*written.values(), *(y for _, y in others))
    )
    if key in _APART:
        return
    names = list(written)
    for i, name in enumerate(names):
        x = written[name]
        if overlaps_itself(x):
            raise ValueError(
                f"{name} with strides {x.stride()} for shape {tuple(x.shape)} reaches elements "
                f"twice and cannot be written in place: pass a tensor whose elements are its own "
                f"(.clone())"
            )
        for other, y in [*((other, written[other]) for other in names[i + 1 :]), *others]:
            if overlap(x, y):
                raise ValueError(
                    f"{name}, which is written in place, shares memory with {other}: pass tensors "
                    f"of their own (.clone()), or inplace=False"
                )
    if len(_APART) > 4096:
        _APART.clear()
    _APART.add(key)


_APART: set[tuple[Any, ...]] = set()  # calls of check_written that raised nothing


@triton.jit
def row_starts(ptr, rows, stride_row):
    """Pointers to the starts of rows (a scalar or a vector). The launcher has made rows multiples
    of 16 bytes, which no stride tells.
    """
    vector: tl.constexpr = 128 // ptr.dtype.element_ty.primitive_bitwidth
    return ptr + tl.multiple_of(rows.to(tl.int64) * stride_row, vector)


@triton.jit
def row_pointers(ptr, rows, stride_row):
    """row_starts of a vector of rows as a column [R, 1], to which columns [1, D] are added."""
    return row_starts(ptr, rows, stride_row)[:, None]


def _segment_sum_metadata(
    grid: tuple[int, ...], metadata: Any, args: dict[str, Any]
) -> dict[str, Any]:
    parts, out = args["parts_ptr"], args["out_ptr"]
    return {
        "name": f"segment_sum_{tuple(parts.shape)}",
        "flops32": parts.numel(),
        "bytes": parts.numel() * 4 + out.numel() * out.element_size(),
    }


@triton.jit(launch_metadata=_segment_sum_metadata, do_not_specialize=["n_parts", "n_groups"])
def _segment_sum_kernel(
    parts_ptr,
    offsets_ptr,
    out_ptr,
    n_parts,
    n_groups,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
):
    group, quantity = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    cols = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = cols < D
    first, last = 0, n_parts
    if HAS_OFFSETS:
        first, last = tl.load(offsets_ptr + group), tl.load(offsets_ptr + group + 1)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for i in range(first, last, BLOCK_N):
        rows = i + tl.arange(0, BLOCK_N)
        mask = (rows < last)[:, None] & inside[None, :]
        total += tl.load(
            row_pointers(parts_ptr, quantity * n_parts + rows, D) + cols[None, :],
            mask=mask,
            other=0.0,
        )
    out = tl.sum(total, axis=0).to(out_ptr.dtype.element_ty)
    tl.store(row_starts(out_ptr, quantity * n_groups + group, D) + cols, out, mask=inside)


def segment_sums(parts: Tensor, offsets: Tensor | None = None, *, dtype: torch.dtype) -> Tensor:
    """Sums fp32 parts [Q, N, D] over runs of N into [Q, G, D]. int32 offsets [G + 1] bound them
    (None: one of all); empty ones give 0.
    """
    quantities, n_parts, width = parts.shape
    groups = 1 if offsets is None else offsets.shape[0] - 1
    out = torch.empty(quantities, groups, width, dtype=dtype, device=parts.device)
    if out.numel():
        # 64 columns x 32 parts in flight: few groups (a batch of songs) still make enough programs
        grid = (cdiv(width, 64), groups, quantities)
        with on_device(parts.device):
            _segment_sum_kernel[grid](
                parts,
                offsets,
                out,
                n_parts,
                groups,
                D=width,
                BLOCK_D=64,
                BLOCK_N=32,
                HAS_OFFSETS=offsets is not None,
                num_warps=4,
            )
    return out
