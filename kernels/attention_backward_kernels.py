"""Backward kernels of ragged attention (kernels/attention_backward.py launches them): gradients of
queries and of keys and values, without atomics.

    delta = rowsum(do o),  p = exp2(scale log2(e) R(q) k^T - lse log2(e)),  ds = p (do v^T - delta)
    dq = R^-1(scale ds k),  dk = scale ds^T R(q),  dv = p^T do

The first kernel, over query tiles, gives dq, and leaves (lse log2(e), delta) pairs and the rotated
queries for the second, over key tiles. Every program writes rows that are its own. Source: Dao
2023, FlashAttention-2, algorithm 2.

    attention_bwd_dq_kernel[(tiles * heads,)](q, k, v, ..., out, d_out, lse, ..., dq, rotated, ...)
    attention_bwd_dkv_kernel[(tiles * heads,)](rotated, k, v, ..., d_out, state, dk, dv, ...)
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .attention_forward import LOG2E, load_rows, load_tile, rotate_rows, store_rows


@triton.jit
def _query_gradient_tile(
    q1, q2, do1, do2, dq1, dq2, lse, delta, scale_log2, k_ptr, v_ptr, k_main, k_rest, v_main,
    v_rest, keys, k_rows, first_row, column, STRIDE_K_ROW: tl.constexpr, STRIDE_V_ROW: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds one key tile to dq."""
    k1 = load_tile(
        k_ptr, k_main, keys, k_rows, first_row, column, STRIDE_K_ROW, 0, MAIN, MASKED, TMA
    )
    v1 = load_tile(
        v_ptr, v_main, keys, k_rows, first_row, column, STRIDE_V_ROW, 0, MAIN, MASKED, TMA
    )
    s = tl.dot(q1, k1.T, input_precision=PRECISION)
    dp = tl.dot(do1, v1.T, input_precision=PRECISION)
    if REST > 0:
        k2 = load_tile(
            k_ptr, k_rest, keys, k_rows, first_row, column, STRIDE_K_ROW, MAIN, REST, MASKED, TMA
        )
        v2 = load_tile(
            v_ptr, v_rest, keys, k_rows, first_row, column, STRIDE_V_ROW, MAIN, REST, MASKED, TMA
        )
        s = tl.dot(q2, k2.T, s, input_precision=PRECISION)
        dp = tl.dot(do2, v2.T, dp, input_precision=PRECISION)
    p = tl.math.exp2(s * scale_log2 - lse[:, None])
    if MASKED:
        # exp2(0 - lse) of a padding key may be infinite, and infinity times its zero row is not 0
        p = tl.where((keys < k_rows)[None, :], p, 0.0)
    ds = (p * (dp - delta[:, None])).to(k1.dtype)
    dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION)
    if REST > 0:
        dq2 = tl.dot(ds, k2, dq2, input_precision=PRECISION)
    return dq1, dq2


@triton.jit
def _store_unrotated(
    ptr,
    dq,
    cos_ptr,
    sin_ptr,
    rows,
    end,
    stride,
    angles,
    COL: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Writes R^-1(dq) of one column chunk. The halves of a pair lie in the same thread of an
    accumulator, so the split moves nothing.
    """
    HALF: tl.constexpr = WIDTH // 2
    a, b = tl.split(dq.reshape(rows.shape[0], 2, HALF).permute(0, 2, 1))
    cos = load_rows(cos_ptr + angles, rows, end, HEAD_DIM // 2, COL // 2, HALF, True)
    sin = load_rows(sin_ptr + angles, rows, end, HEAD_DIM // 2, COL // 2, HALF, True)
    store_rows(ptr, a * cos + b * sin, rows, end, stride, COL, HALF)
    store_rows(ptr, b * cos - a * sin, rows, end, stride, COL + HALF, HALF)


def _metadata(name: str, products: float) -> Any:
    def launch_metadata(
        grid: tuple[int, ...], metadata: Any, args: dict[str, Any]
    ) -> dict[str, Any]:
        """Useful work of a launch, for profilers. Reads the worklist back, so it runs only while
        one is attached.
        """
        table, q, head_dim, heads = (
            args["tiles_ptr"].cpu().long(),
            args["do_ptr"],
            args["HEAD_DIM"],
            args["n_heads"],
        )
        by_query = "dq_ptr" in args
        own, other = (
            table[:, 1].clamp(max=args["BLOCK_Q"] if by_query else args["BLOCK_K"]),
            table[:, 3],
        )
        element, read_once = q.element_size(), int(other[table[:, 5] == 0].sum())
        # by query: q, o, do in, R(q), dq out, k, v in; by key: k, v in, dk, dv out, R(q), do in;
        # lse and delta are fp32
        rows = (
            (5 * int(own.sum()) + 2 * read_once)
            if by_query
            else (4 * int(own.sum()) + 2 * read_once)
        )
        return {
            "name": f"{name}_K{head_dim}_{str(q.dtype).removeprefix('torch.')}",
            f"flops{8 * element}": 2.0 * products * head_dim * heads * int((own * other).sum()),
            "bytes": heads
            * (head_dim * element * rows + 8 * (int(own.sum()) if by_query else read_once)),
        }

    return launch_metadata


@triton.jit(launch_metadata=_metadata("attention_bwd_dq", 3), do_not_specialize=["n_rows"])
def attention_bwd_dq_kernel(
    q_ptr, k_ptr, v_ptr, k_main, k_rest, v_main, v_rest, out_ptr, do_ptr, lse_ptr, dlse_ptr,
    cos_ptr, sin_ptr, dq_ptr, rotated_ptr, state_ptr, tiles_ptr, scale, n_heads, n_rows,
    stride_q_row, stride_q_head, stride_k_head, stride_v_head, stride_out_row,
    STRIDE_K_ROW: tl.constexpr, STRIDE_V_ROW: tl.constexpr, HEAD_DIM: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ROTATE: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
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
    # out, do, dq and the rotated queries share one contiguous layout
    own = q_start * stride_out_row + q_head * HEAD_DIM
    row_state = q_head * n_rows + q_start

    rows = tl.arange(0, BLOCK_Q)
    if ROTATE:
        angles = (stream.to(tl.int64) * n_rows + q_start) * (HEAD_DIM // 2)
        rotated = rotated_ptr + own
        rotate_rows(
            q_ptr,
            rotated,
            cos_ptr + angles,
            sin_ptr + angles,
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
                q_ptr, rotated, cos_ptr + angles, sin_ptr + angles, rows, q_rows, stride_q_row,
                stride_out_row, MAIN, REST, HEAD_DIM
            )  # fmt: skip
        tl.debug_barrier()
        q_ptr = rotated
        stride_q_row = stride_out_row

    do1 = load_rows(do_ptr + own, rows, q_rows, stride_out_row, 0, MAIN, True)
    out1 = load_rows(out_ptr + own, rows, q_rows, stride_out_row, 0, MAIN, True)
    delta = tl.sum(do1.to(tl.float32) * out1.to(tl.float32), 1)
    do2 = do1
    if REST > 0:
        do2 = load_rows(do_ptr + own, rows, q_rows, stride_out_row, MAIN, REST, True)
        out2 = load_rows(out_ptr + own, rows, q_rows, stride_out_row, MAIN, REST, True)
        delta += tl.sum(do2.to(tl.float32) * out2.to(tl.float32), 1)
    if dlse_ptr is not None:
        # d lse / d s = p, so that a gradient of the softmax sums joins delta
        delta -= tl.load(dlse_ptr + row_state + rows, mask=rows < q_rows, other=0.0)
    state_ptr += 2 * row_state
    tl.store(state_ptr + 2 * rows + 1, delta, mask=rows < q_rows)
    lse = tl.load(lse_ptr + row_state + rows, mask=rows < q_rows, other=0.0) * LOG2E
    tl.store(state_ptr + 2 * rows, lse, mask=rows < q_rows)
    q1 = load_rows(q_ptr, rows, q_rows, stride_q_row, 0, MAIN, True)
    q2 = q1
    if REST > 0:
        q2 = load_rows(q_ptr, rows, q_rows, stride_q_row, MAIN, REST, True)

    scale_log2 = scale * LOG2E
    dq1 = tl.zeros([BLOCK_Q, MAIN], tl.float32)
    dq2 = tl.zeros([BLOCK_Q, REST if REST > 0 else 16], tl.float32)
    keys = tl.arange(0, BLOCK_K)
    column = head * HEAD_DIM
    whole = k_rows // BLOCK_K * BLOCK_K
    # By pointers the masked tile comes first, while no accumulator has to survive it. By
    # descriptors it comes last: the loop's wgmma must find accumulators that nothing else has
    # written, or ptxas serialises them (C7515).
    if not TMA:  # noqa: SIM102 - decided at compile time
        if whole < k_rows:
            dq1, dq2 = _query_gradient_tile(
                q1, q2, do1, do2, dq1, dq2, lse, delta, scale_log2, k_ptr, v_ptr, k_main, k_rest,
                v_main, v_rest, whole + keys, k_rows, k_start + whole, column, STRIDE_K_ROW,
                STRIDE_V_ROW, MAIN, REST, True, TMA, PRECISION,
            )  # fmt: skip
    for start in tl.range(0, whole, BLOCK_K):
        dq1, dq2 = _query_gradient_tile(
            q1, q2, do1, do2, dq1, dq2, lse, delta, scale_log2, k_ptr, v_ptr, k_main, k_rest,
            v_main, v_rest, start + keys, k_rows, k_start + start, column, STRIDE_K_ROW,
            STRIDE_V_ROW, MAIN, REST, False, TMA, PRECISION,
        )  # fmt: skip
    if TMA:  # noqa: SIM102
        if whole < k_rows:
            dq1, dq2 = _query_gradient_tile(
                q1, q2, do1, do2, dq1, dq2, lse, delta, scale_log2, k_ptr, v_ptr, k_main, k_rest,
                v_main, v_rest, whole + keys, k_rows, k_start + whole, column, STRIDE_K_ROW,
                STRIDE_V_ROW, MAIN, REST, True, TMA, PRECISION,
            )  # fmt: skip

    # the tile is read again: a few loads are cheaper than registers held through the loop
    q_start = tl.load(tile, volatile=True).to(tl.int64)
    q_end = q_start + tl.load(tile + 1, volatile=True)
    stream = tl.load(tile + 4, volatile=True)
    dq_ptr += (stream * n_heads + head).to(tl.int64) * HEAD_DIM
    out_rows = q_start + rows
    if ROTATE:
        angles = stream.to(tl.int64) * n_rows * (HEAD_DIM // 2)
        _store_unrotated(
            dq_ptr,
            dq1 * scale,
            cos_ptr,
            sin_ptr,
            out_rows,
            q_end,
            stride_out_row,
            angles,
            0,
            MAIN,
            HEAD_DIM,
        )
        if REST > 0:
            _store_unrotated(
                dq_ptr,
                dq2 * scale,
                cos_ptr,
                sin_ptr,
                out_rows,
                q_end,
                stride_out_row,
                angles,
                MAIN,
                REST,
                HEAD_DIM,
            )
    else:
        store_rows(dq_ptr, dq1 * scale, out_rows, q_end, stride_out_row, 0, MAIN)
        if REST > 0:
            store_rows(dq_ptr, dq2 * scale, out_rows, q_end, stride_out_row, MAIN, REST)


@triton.jit
def _load_chunks(
    ptr, desc_main, desc_rest, rows, n_rows, first_row, column, STRIDE: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Both column chunks of a tile (load_tile);
    the second repeats the first where there is none.
    """
    main = load_tile(ptr, desc_main, rows, n_rows, first_row, column, STRIDE, 0, MAIN, MASKED, TMA)
    rest = main
    if REST > 0:
        rest = load_tile(
            ptr, desc_rest, rows, n_rows, first_row, column, STRIDE, MAIN, REST, MASKED, TMA
        )
    return main, rest


@triton.jit
def _probabilities(k1, k2, q1, q2, lse, scale_log2, REST: tl.constexpr, PRECISION: tl.constexpr):
    """Of a tile of keys (down) and queries (across)."""
    s = tl.dot(k1, q1.T, input_precision=PRECISION)
    if REST > 0:
        s = tl.dot(k2, q2.T, s, input_precision=PRECISION)
    return tl.math.exp2(s * scale_log2 - lse[None, :])


@triton.jit
def _add_key_gradients(
    p,
    delta,
    v1,
    v2,
    q1,
    q2,
    do1,
    do2,
    dk1,
    dk2,
    dv1,
    dv2,
    REST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds one query tile to dk and dv."""
    dv1 = tl.dot(p.to(do1.dtype), do1, dv1, input_precision=PRECISION)
    dp = tl.dot(v1, do1.T, input_precision=PRECISION)
    if REST > 0:
        dv2 = tl.dot(p.to(do1.dtype), do2, dv2, input_precision=PRECISION)
        dp = tl.dot(v2, do2.T, dp, input_precision=PRECISION)
    ds = (p * (dp - delta[None, :])).to(q1.dtype)
    dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)
    if REST > 0:
        dk2 = tl.dot(ds, q2, dk2, input_precision=PRECISION)
    return dk1, dk2, dv1, dv2


@triton.jit
def _add_left_queries(
    q_ptr, do_ptr, state_ptr, k1, k2, v1, v2, dk1, dk2, dv1, dv2, whole, q_rows, scale_log2,
    STRIDE_Q_ROW: tl.constexpr, STRIDE_DO_ROW: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    BLOCK_Q: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the queries from `whole` on, fewer than a trip of the loop. Padding queries need no mask
    of their own: their q, do, lse and delta are 0, so p is finite and every product with them is 0.
    """
    queries = tl.arange(0, BLOCK_Q)
    for i in tl.static_range(TILES):
        left = whole + i * BLOCK_Q
        if left < q_rows:
            rows = left + queries
            live = rows < q_rows
            lse = tl.load(state_ptr + 2 * rows, mask=live, other=0.0)
            delta = tl.load(state_ptr + 2 * rows + 1, mask=live, other=0.0)
            q1, q2 = _load_chunks(
                q_ptr, None, None, rows, q_rows, 0, 0, STRIDE_Q_ROW, MAIN, REST, True, False
            )
            p = _probabilities(k1, k2, q1, q2, lse, scale_log2, REST, PRECISION)
            do1, do2 = _load_chunks(
                do_ptr, None, None, rows, q_rows, 0, 0, STRIDE_DO_ROW, MAIN, REST, True, False
            )
            dk1, dk2, dv1, dv2 = _add_key_gradients(
                p, delta, v1, v2, q1, q2, do1, do2, dk1, dk2, dv1, dv2, REST, PRECISION
            )
    return dk1, dk2, dv1, dv2


@triton.jit(launch_metadata=_metadata("attention_bwd_dkv", 4), do_not_specialize=["n_rows"])
def attention_bwd_dkv_kernel(
    q_ptr, k_ptr, v_ptr, q_main, q_rest, do_main, do_rest, do_ptr, state_ptr, dk_ptr, dv_ptr,
    tiles_ptr, scale, n_heads, n_rows, stride_q_head, stride_k_row, stride_k_head, stride_v_row,
    stride_v_head, stride_dk_row, STRIDE_Q_ROW: tl.constexpr, STRIDE_DO_ROW: tl.constexpr,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, PAIRED: tl.constexpr, TMA: tl.constexpr,
    LEFT_LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tiles_ptr + tl.program_id(0) // n_heads * 6
    head = tl.program_id(0) % n_heads
    k_start = tl.load(tile).to(tl.int64)
    k_rows = tl.load(tile + 1)
    q_start = tl.load(tile + 2)
    q_rows = tl.load(tile + 3)
    q_head = tl.load(tile + 4) * n_heads + head

    first = q_start.to(tl.int64)
    q_ptr += first * STRIDE_Q_ROW + q_head.to(tl.int64) * stride_q_head
    do_ptr += first * STRIDE_DO_ROW + q_head.to(tl.int64) * HEAD_DIM
    state_ptr += 2 * (q_head.to(tl.int64) * n_rows + first)
    k_ptr += k_start * stride_k_row + head.to(tl.int64) * stride_k_head
    v_ptr += k_start * stride_v_row + head.to(tl.int64) * stride_v_head

    rows = tl.arange(0, BLOCK_K)
    k1 = load_rows(k_ptr, rows, k_rows, stride_k_row, 0, MAIN, True)
    v1 = load_rows(v_ptr, rows, k_rows, stride_v_row, 0, MAIN, True)
    k2, v2 = k1, v1
    if REST > 0:
        k2 = load_rows(k_ptr, rows, k_rows, stride_k_row, MAIN, REST, True)
        v2 = load_rows(v_ptr, rows, k_rows, stride_v_row, MAIN, REST, True)

    scale_log2 = scale * LOG2E
    dk1 = tl.zeros([BLOCK_K, MAIN], tl.float32)
    dv1 = tl.zeros([BLOCK_K, MAIN], tl.float32)
    dk2 = tl.zeros([BLOCK_K, REST if REST > 0 else 16], tl.float32)
    dv2 = tl.zeros([BLOCK_K, REST if REST > 0 else 16], tl.float32)
    queries = tl.arange(0, BLOCK_Q)
    column = q_head * HEAD_DIM
    # PAIRED: a trip takes two query tiles, whose descriptor loads share one wait
    TRIP: tl.constexpr = 2 * BLOCK_Q if PAIRED else BLOCK_Q
    whole = q_rows // TRIP * TRIP
    # What is left of the segment comes first, while few registers are taken, unless ptxas then
    # serialises the loop's wgmma (LEFT_LAST).
    if not LEFT_LAST:
        dk1, dk2, dv1, dv2 = _add_left_queries(
            q_ptr, do_ptr, state_ptr, k1, k2, v1, v2, dk1, dk2, dv1, dv2, whole, q_rows, scale_log2,
            STRIDE_Q_ROW, STRIDE_DO_ROW, MAIN, REST, BLOCK_Q, TRIP // BLOCK_Q, PRECISION,
        )  # fmt: skip

    # All loads stand before the first product, so that descriptor loads wait on one barrier. The
    # loop counts rows of the buffer and carries the address of the states: were one derived from
    # the other, LLVM would count in 64 bits, which costs registers and instructions.
    states = state_ptr + tl.arange(0, 2 * BLOCK_Q)
    for row in tl.range(q_start, q_start + whole, TRIP):
        lse, delta = tl.split(tl.load(states).reshape(BLOCK_Q, 2))
        offsets = row - q_start + queries
        q1, q2 = _load_chunks(
            q_ptr,
            q_main,
            q_rest,
            offsets,
            q_rows,
            row,
            column,
            STRIDE_Q_ROW,
            MAIN,
            REST,
            False,
            TMA,
        )
        if TMA:
            do1, do2 = _load_chunks(
                do_ptr,
                do_main,
                do_rest,
                offsets,
                q_rows,
                row,
                column,
                STRIDE_DO_ROW,
                MAIN,
                REST,
                False,
                TMA,
            )
        if PAIRED:
            lse_b, delta_b = tl.split(tl.load(states + 2 * BLOCK_Q).reshape(BLOCK_Q, 2))
            offsets += BLOCK_Q
            q3, q4 = _load_chunks(
                q_ptr,
                q_main,
                q_rest,
                offsets,
                q_rows,
                row + BLOCK_Q,
                column,
                STRIDE_Q_ROW,
                MAIN,
                REST,
                False,
                TMA,
            )
            do3, do4 = _load_chunks(
                do_ptr,
                do_main,
                do_rest,
                offsets,
                q_rows,
                row + BLOCK_Q,
                column,
                STRIDE_DO_ROW,
                MAIN,
                REST,
                False,
                TMA,
            )
        p = _probabilities(k1, k2, q1, q2, lse, scale_log2, REST, PRECISION)
        if not TMA:
            do1, do2 = _load_chunks(
                do_ptr,
                do_main,
                do_rest,
                offsets,
                q_rows,
                row,
                column,
                STRIDE_DO_ROW,
                MAIN,
                REST,
                False,
                TMA,
            )
        dk1, dk2, dv1, dv2 = _add_key_gradients(
            p, delta, v1, v2, q1, q2, do1, do2, dk1, dk2, dv1, dv2, REST, PRECISION
        )
        if PAIRED:
            p = _probabilities(k1, k2, q3, q4, lse_b, scale_log2, REST, PRECISION)
            dk1, dk2, dv1, dv2 = _add_key_gradients(
                p, delta_b, v1, v2, q3, q4, do3, do4, dk1, dk2, dv1, dv2, REST, PRECISION
            )
        states += 2 * TRIP
    if LEFT_LAST:
        dk1, dk2, dv1, dv2 = _add_left_queries(
            q_ptr, do_ptr, state_ptr, k1, k2, v1, v2, dk1, dk2, dv1, dv2, whole, q_rows, scale_log2,
            STRIDE_Q_ROW, STRIDE_DO_ROW, MAIN, REST, BLOCK_Q, TRIP // BLOCK_Q, PRECISION,
        )  # fmt: skip

    k_start = tl.load(tile, volatile=True).to(tl.int64)
    k_end = k_start + tl.load(tile + 1, volatile=True)
    out_rows = k_start + rows
    own = head.to(tl.int64) * HEAD_DIM
    store_rows(dv_ptr + own, dv1, out_rows, k_end, stride_dk_row, 0, MAIN)
    store_rows(dk_ptr + own, dk1 * scale, out_rows, k_end, stride_dk_row, 0, MAIN)
    if REST > 0:
        store_rows(dv_ptr + own, dv2, out_rows, k_end, stride_dk_row, MAIN, REST)
        store_rows(dk_ptr + own, dk2 * scale, out_rows, k_end, stride_dk_row, MAIN, REST)
