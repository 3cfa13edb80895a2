"""Forward kernel of ragged attention (kernels/attention.py): online softmax over key tiles, one
program for each (query tile, head).

    m' = max(m, rowmax(s)),  p = exp2(s - m'),
    total = total exp2(m - m') + rowsum(p),  o = o exp2(m - m') + p v
    s = scale log2(e) R(q) k^T,  out = o / total

A head of 96 is kept as columns 64 + 32 in two tensor-core products each, so that nothing is padded
to 128. The main loop sees whole key tiles and has no masks; what is left of the segment is one
masked tile. Source: Dao 2023, FlashAttention-2, algorithm 1.

    out, lse = forward(q, k, v, cos, sin, tiles, config, scale=K**-0.5, precision="tf32")
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Triton 3.6 leaves ptxas to serialise wgmma (C7515 at head width 128) unless the masked tile comes
# after the loop; from 3.7 on the other order is clean, and takes fewer registers.
OLD_TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@dataclass(frozen=True)
class Config:
    """Tile sizes and launch options of one kernel.

    tma: the streamed side arrives by tensor descriptors (sm_90 and later). paired: a trip of the
    key-gradient kernel takes two query tiles.
    """

    block_q: int
    block_k: int
    warps: int
    stages: int
    tma: bool = False
    paired: bool = False


@triton.jit
def load_rows(
    ptr, rows, n_rows, stride, COL: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr
):
    """Columns [COL, COL + WIDTH) of `rows`. MASKED: rows from n_rows on are 0."""
    pointers = ptr + rows[:, None] * stride + (COL + tl.arange(0, WIDTH))[None, :]
    return (
        tl.load(pointers, mask=(rows < n_rows)[:, None], other=0.0) if MASKED else tl.load(pointers)
    )


@triton.jit
def load_tile(
    ptr, desc, rows, n_rows, first_row, column, STRIDE: tl.constexpr, COL: tl.constexpr,
    WIDTH: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One column chunk of a tile: by descriptor (rows from first_row of the buffer, the head's
    columns from `column`) or by pointers.

    A masked tile always comes by pointers, because rows of the next song must not enter, not even
    times 0.
    """
    return (
        desc.load([first_row, column + COL])
        if TMA and not MASKED
        else load_rows(ptr, rows, n_rows, STRIDE, COL, WIDTH, MASKED)
    )


@triton.jit
def store_rows(ptr, x, rows, n_rows, stride, COL: tl.constexpr, WIDTH: tl.constexpr):
    """Writes x to columns [COL, COL + WIDTH) of `rows` below n_rows, in the dtype of ptr."""
    pointers = ptr + rows[:, None] * stride + (COL + tl.arange(0, WIDTH))[None, :]
    tl.store(pointers, x.to(ptr.dtype.element_ty), mask=(rows < n_rows)[:, None])


@triton.jit
def rotate_rows(
    x_ptr,
    out_ptr,
    cos_ptr,
    sin_ptr,
    rows,
    n_rows,
    stride,
    stride_out,
    COL: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Rotates one column chunk of `rows` from x to out."""
    HALF: tl.constexpr = WIDTH // 2
    cos = load_rows(cos_ptr, rows, n_rows, HEAD_DIM // 2, COL // 2, HALF, True)
    sin = load_rows(sin_ptr, rows, n_rows, HEAD_DIM // 2, COL // 2, HALF, True)
    a = load_rows(x_ptr, rows, n_rows, stride, COL, HALF, True).to(tl.float32)
    b = load_rows(x_ptr, rows, n_rows, stride, COL + HALF, HALF, True).to(tl.float32)
    store_rows(out_ptr, a * cos - b * sin, rows, n_rows, stride_out, COL, HALF)
    store_rows(out_ptr, a * sin + b * cos, rows, n_rows, stride_out, COL + HALF, HALF)


@triton.jit
def _softmax_step(s, m, total, scale_log2):
    """One tile of the online softmax: the new maximum and sum, the probabilities, and the factor
    for what was summed before.
    """
    m_new = tl.maximum(m, tl.max(s, 1) * scale_log2)
    p = tl.math.exp2(s * scale_log2 - m_new[:, None])
    alpha = tl.math.exp2(m - m_new)
    return p, alpha, m_new, total * alpha + tl.sum(p, 1)


@triton.jit
def _attend_tile(
    q1, q2, o1, o2, m, total, scale_log2, k_ptr, v_ptr, k_main, k_rest, v_main, v_rest, keys,
    k_rows, first_row, column, STRIDE_K_ROW: tl.constexpr, STRIDE_V_ROW: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Takes one key tile into the online softmax."""
    k1 = load_tile(
        k_ptr, k_main, keys, k_rows, first_row, column, STRIDE_K_ROW, 0, MAIN, MASKED, TMA
    )
    s = tl.dot(q1, k1.T, input_precision=PRECISION)
    if REST > 0:
        k2 = load_tile(
            k_ptr, k_rest, keys, k_rows, first_row, column, STRIDE_K_ROW, MAIN, REST, MASKED, TMA
        )
        s = tl.dot(q2, k2.T, s, input_precision=PRECISION)
    if MASKED:
        s = tl.where((keys < k_rows)[None, :], s, float("-inf"))
    p, alpha, m, total = _softmax_step(s, m, total, scale_log2)
    v1 = load_tile(
        v_ptr, v_main, keys, k_rows, first_row, column, STRIDE_V_ROW, 0, MAIN, MASKED, TMA
    )
    p = p.to(v1.dtype)
    o1 = tl.dot(p, v1, o1 * alpha[:, None], input_precision=PRECISION)
    if REST > 0:
        v2 = load_tile(
            v_ptr, v_rest, keys, k_rows, first_row, column, STRIDE_V_ROW, MAIN, REST, MASKED, TMA
        )
        o2 = tl.dot(p, v2, o2 * alpha[:, None], input_precision=PRECISION)
    return o1, o2, m, total


def forward_metadata(grid: tuple[int, ...], metadata: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Useful work of a launch, for profilers. Reads the worklist back, so it runs only while one is
    attached.
    """
    table, q, head_dim, heads = (
        args["tiles_ptr"].cpu().long(),
        args["q_ptr"],
        args["HEAD_DIM"],
        args["n_heads"],
    )
    q_rows, k_rows = table[:, 1].clamp(max=args["BLOCK_Q"]), table[:, 3]
    # keys and values count once for each segment: what all tiles of one read again comes from L2
    first = table[:, 5] == 0
    moved = heads * head_dim * q.element_size() * (
        2 * int(q_rows.sum()) + 2 * int(k_rows[first].sum())
    ) + heads * 4 * int(q_rows.sum())
    return {
        "name": f"attention_fwd_K{head_dim}_{str(q.dtype).removeprefix('torch.')}",
        f"flops{8 * q.element_size()}": 4.0 * head_dim * heads * int((q_rows * k_rows).sum()),
        "bytes": moved,
    }


@triton.jit(launch_metadata=forward_metadata, do_not_specialize=["n_rows"])
def attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_main,
    k_rest,
    v_main,
    v_rest,
    cos_ptr,
    sin_ptr,
    out_ptr,
    lse_ptr,
    tiles_ptr,
    scale,
    n_heads,
    n_rows,
    stride_q_row,
    stride_q_head,
    stride_k_head,
    stride_v_head,
    stride_out_row,
    STRIDE_K_ROW: tl.constexpr,
    STRIDE_V_ROW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROTATE: tl.constexpr,
    TMA: tl.constexpr,
    MASKED_LAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # heads are the fast axis, so that all heads of the longest tiles start first
    tile = tiles_ptr + tl.program_id(0) // n_heads * 6
    head = tl.program_id(0) % n_heads
    q_start = tl.load(tile).to(tl.int64)
    q_rows = tl.load(tile + 1)
    k_start = tl.load(tile + 2)
    k_rows = tl.load(tile + 3)
    stream = tl.load(tile + 4)

    q_head = (stream * n_heads + head).to(tl.int64)
    q_ptr += q_start * stride_q_row + q_head * stride_q_head
    k_ptr += k_start.to(tl.int64) * STRIDE_K_ROW + head.to(tl.int64) * stride_k_head
    v_ptr += k_start.to(tl.int64) * STRIDE_V_ROW + head.to(tl.int64) * stride_v_head
    if ROTATE:
        table = (stream.to(tl.int64) * n_rows + q_start) * (HEAD_DIM // 2)
        cos_ptr += table
        sin_ptr += table

    rows = tl.arange(0, BLOCK_Q)
    if ROTATE:
        # The output tile is this program's alone, and holds the rotated queries until the result
        # overwrites it. A detour of one tile through L1, but what arrives by a load may stay in
        # shared memory as tensor-core operand; values computed in registers would be kept there
        # through the loop, at the price of spills (sm_80) and of serialised wgmma (sm_90).
        scratch = out_ptr + q_start * stride_out_row + q_head * HEAD_DIM
        rotate_rows(
            q_ptr,
            scratch,
            cos_ptr,
            sin_ptr,
            rows,
            q_rows,
            stride_q_row,
            stride_out_row,
            0,
            MAIN,
            HEAD_DIM,
        )
        if REST > 0:
            rotate_rows(
                q_ptr,
                scratch,
                cos_ptr,
                sin_ptr,
                rows,
                q_rows,
                stride_q_row,
                stride_out_row,
                MAIN,
                REST,
                HEAD_DIM,
            )
        tl.debug_barrier()
        q_ptr = scratch
        stride_q_row = stride_out_row
    q1 = load_rows(q_ptr, rows, q_rows, stride_q_row, 0, MAIN, True)
    q2 = q1
    if REST > 0:
        q2 = load_rows(q_ptr, rows, q_rows, stride_q_row, MAIN, REST, True)

    scale_log2 = scale * LOG2E
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    o1 = tl.zeros([BLOCK_Q, MAIN], tl.float32)
    o2 = tl.zeros([BLOCK_Q, REST if REST > 0 else 16], tl.float32)

    keys = tl.arange(0, BLOCK_K)
    column = head * HEAD_DIM
    whole = k_rows // BLOCK_K * BLOCK_K
    # The masked tile comes first, while no accumulator has to survive it, unless ptxas then
    # serialises the loop's wgmma (MASKED_LAST)
    if not MASKED_LAST:  # noqa: SIM102 - decided at compile time
        if whole < k_rows:
            o1, o2, m, total = _attend_tile(
                q1, q2, o1, o2, m, total, scale_log2, k_ptr, v_ptr, k_main, k_rest, v_main, v_rest,
                whole + keys, k_rows, k_start + whole, column, STRIDE_K_ROW, STRIDE_V_ROW, MAIN,
                REST, True, TMA, PRECISION,
            )  # fmt: skip
    for start in tl.range(0, whole, BLOCK_K):
        o1, o2, m, total = _attend_tile(
            q1, q2, o1, o2, m, total, scale_log2, k_ptr, v_ptr, k_main, k_rest, v_main, v_rest,
            start + keys, k_rows, k_start + start, column, STRIDE_K_ROW, STRIDE_V_ROW, MAIN, REST,
            False, TMA, PRECISION,
        )  # fmt: skip
    if MASKED_LAST:  # noqa: SIM102
        if whole < k_rows:
            o1, o2, m, total = _attend_tile(
                q1, q2, o1, o2, m, total, scale_log2, k_ptr, v_ptr, k_main, k_rest, v_main, v_rest,
                whole + keys, k_rows, k_start + whole, column, STRIDE_K_ROW, STRIDE_V_ROW, MAIN,
                REST, True, TMA, PRECISION,
            )  # fmt: skip

    # no keys: m = -inf and o = 0 give lse = -inf and out = 0
    total = tl.where(total == 0.0, 1.0, total)
    # the tile is read again: a few loads are cheaper than registers held through the loop
    q_start = tl.load(tile, volatile=True).to(tl.int64)
    q_end = q_start + tl.load(tile + 1, volatile=True)
    q_head = (tl.load(tile + 4, volatile=True) * n_heads + head).to(tl.int64)
    out_rows = q_start + rows
    tl.store(lse_ptr + q_head * n_rows + out_rows, m * LN2 + tl.log(total), mask=out_rows < q_end)
    out_ptr += q_head * HEAD_DIM
    r = (1.0 / total)[:, None]
    store_rows(out_ptr, o1 * r, out_rows, q_end, stride_out_row, 0, MAIN)
    if REST > 0:
        store_rows(out_ptr, o2 * r, out_rows, q_end, stride_out_row, MAIN, REST)


def chunks(head_dim: int) -> tuple[int, int]:
    """Widths of the two column chunks of a head: 64 -> (64, 0), 96 -> (64, 32), 128 -> (128, 0)."""
    main = 1 << (head_dim.bit_length() - 1)
    return main, head_dim - main


def target_capability() -> int:
    """Capability of the device that the next launch runs on, such as 80;
    80 under the interpreter.
    """
    if _INTERPRETED:
        return 80
    driver = triton.runtime.driver.active
    return _capability(driver, driver.get_current_device())


_INTERPRETED = triton.knobs.runtime.interpret  # fixed once a kernel is defined


@cache
def _capability(driver: Any, device: int) -> int:
    """Of the current device; the arguments only say which answer this is."""
    return int(driver.get_current_target().arch)


def family(capability: int) -> int:
    """The architecture that tiles are chosen for: 80, 86 (and 89, 120: 99 KB of shared memory, half
    the tensor rate), 90 or 100.
    """
    if capability < 86:
        return 80
    return 86 if capability < 90 or capability >= 120 else 90 if capability < 100 else 100


def forward_config(
    head_dim: int, dtype: torch.dtype, capability: int, precision: str = "tf32"
) -> Config:
    """Tiles for a device, chosen by instruction counts: the most tensor-core work per shared-memory
    and issue slot without a spill.
    """
    target = family(capability)
    if dtype == torch.float32 and precision == "ieee":
        # exact products run outside the tensor cores, operands in registers
        return Config(32, 32, 4, 1)
    if dtype == torch.float32:
        if target == 100 and head_dim == 128:
            # 64 keys take 257 KB of shared memory, and 227 are there
            return Config(128, 32, 8, 2, tma=True)
        return (
            Config(128, 64, 8, 2, tma=True)
            if target >= 90
            else Config(128, 32, 8 if head_dim == 128 else 4, 2)
        )
    if target >= 90:
        return Config(128, 128, 8, 2, tma=True)
    if target == 86:
        return Config(128, 64, 4 if head_dim == 64 else 8, 2)
    # On sm_80, 8 warps are bound by ldmatrix unless the key tile is as long as the query tile, and
    # 4 do not hold 128 accumulator columns
    return Config(128, 128, 8, 2) if head_dim == 128 else Config(128, 64, 4, 2)


def describable(x: Tensor) -> bool:
    """Whether the rows of x [L, H, K] can be a 2-D tensor descriptor: heads side by side, 16-byte
    aligned rows that do not overlap, not empty.
    """
    rows, heads, head_dim = x.shape
    stride, head_stride, _ = x.stride()
    aligned = x.data_ptr() % 16 == 0 and stride * x.element_size() % 16 == 0
    return rows > 0 and head_stride == head_dim and stride >= heads * head_dim and aligned


def describe(
    x: Tensor, rows: int, head_dim: int
) -> tuple[TensorDescriptor, TensorDescriptor | None]:
    """Descriptors of the column chunks of a describable x [L, H, K], in boxes of `rows` rows."""
    main, rest = chunks(head_dim)
    shape, strides = [x.shape[0], x.shape[1] * head_dim], [x.stride(0), 1]
    return _descriptor(x, shape, strides, [rows, main]), _descriptor(
        x, shape, strides, [rows, rest]
    ) if rest else None


def _descriptor(
    x: Tensor, shape: list[int], strides: list[int], box: list[int]
) -> TensorDescriptor:
    """What TensorDescriptor(...) makes, without its checks: `describable` and the tiles' own sizes
    hold all of them, and they cost the host more than the rest of a launch.
    """
    made: TensorDescriptor = TensorDescriptor.__new__(TensorDescriptor)
    made.base, made.shape, made.strides, made.block_shape = x, shape, strides, box
    return made


def results(q: Tensor, *, covered: bool) -> tuple[Tensor, Tensor]:
    """Where a forward kernel writes out and lse; cleared unless it writes all of them."""
    fresh = torch.empty if covered else torch.zeros
    out = fresh(q.shape, dtype=q.dtype, device=q.device)
    return out, fresh(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)


def forward(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor | None, sin: Tensor | None, tiles: Tensor,
    config: Config, *, scale: float, precision: str, covered: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out [T, S H, K] in q's dtype and lse [S H, T] in fp32 (natural logarithm). `tiles` are
    Segments.query_tiles(config.block_q).

    covered: every (stream, row) of q lies in a segment, so that nothing has to be cleared first.
    """
    n_rows, _, head_dim = q.shape
    heads = k.shape[1]
    out, lse = results(q, covered=covered)
    if not tiles.shape[0]:
        return out, lse
    main, rest = chunks(head_dim)
    tma = config.tma and describable(k) and describable(v)
    k_main, k_rest = describe(k, config.block_k, head_dim) if tma else (None, None)
    v_main, v_rest = describe(v, config.block_k, head_dim) if tma else (None, None)
    attention_fwd_kernel[(tiles.shape[0] * heads,)](
        q, k, v, k_main, k_rest, v_main, v_rest, cos, sin, out, lse, tiles, scale, heads, n_rows,
        q.stride(0), q.stride(1), k.stride(1), v.stride(1), out.stride(0), STRIDE_K_ROW=k.stride(0),
        STRIDE_V_ROW=v.stride(0), HEAD_DIM=head_dim, MAIN=main, REST=rest, BLOCK_Q=config.block_q,
        BLOCK_K=config.block_k, ROTATE=cos is not None,
        MASKED_LAST=tma and OLD_TRITON and head_dim == 128, TMA=tma, PRECISION=precision,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out, lse
