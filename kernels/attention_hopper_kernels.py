"""Warp-specialised forward of ragged attention for sm_90a, in Gluon: what attention_hopper.py
launches. Needs a Triton with triton.experimental.gluon; nothing else imports this file.

    m' = max(m, rowmax(s)),  p = exp2(s - m'),
    total = total exp2(m - m') + rowsum(p),  o = o exp2(m - m') + p v
    s = scale log2(e) R(q) k^T,  out = o / total

A program is persistent: it takes one (query tile, head) after another from the worklist. One warp
copies keys and values into rings of shared memory; two groups of four warps each attend with 64
query rows. In a group, the products of a trip are issued together, so that the exponentials of
tile j + 1 run while the tensor cores are at o += p_j v_j; the groups take turns in issuing, so that
one's exponentials run under the other's products.

    issue s = q k[j + 1]; issue o += p[j] v[j]; wait for s; exponentials of s; wait for o; rescale o

What orders what (a ring has STAGES places, each with a barrier "full" and a barrier "free"):

    k_full, v_full   the copies into a place have landed     producer -> both groups
    k_free, v_free   both groups are done with a place       groups -> producer
    turns            the other group has issued its products group -> group

profiling/simulator.py executes this source with every copy and product as late as it may be.
Source: Shah et al. 2024, FlashAttention-3 (arXiv 2407.08608), for the two overlaps.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .attention_forward import forward_metadata

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
GROUP_ROWS = gl.constexpr(64)
"""Query rows of a group of warps: what one wgmma takes."""


@gluon.jit
def item_of(turn, n_items):
    """The item that this program takes in its turn. Items come longest first, so the order of the
    programs is turned around in every other turn: who had the longest gets the shortest.
    """
    programs = gl.num_programs(0)
    place = gl.program_id(0)
    if turn % 2 == 1:
        place = programs - 1 - place
    return turn * programs + place


@gluon.jit
def describe_keys(
    k_ptr, v_ptr, stride_k_row, stride_v_row, width, end, MAIN: gl.constexpr, REST: gl.constexpr,
    BLOCK_K: gl.constexpr, LAYOUT: gl.constexpr, REST_LAYOUT: gl.constexpr,
):  # fmt: skip
    """Descriptors of the column chunks of all heads' keys and values, which end at row `end`: what
    a copy reads beyond it is 0, because rows of the next song must not enter, not even times 0.
    """
    k_main = tma.make_tensor_descriptor(
        k_ptr, [end, width], [stride_k_row, 1], [BLOCK_K, MAIN], LAYOUT
    )
    v_main = tma.make_tensor_descriptor(
        v_ptr, [end, width], [stride_v_row, 1], [BLOCK_K, MAIN], LAYOUT
    )
    k_rest = k_main
    v_rest = v_main
    if REST > 0:
        k_rest = tma.make_tensor_descriptor(
            k_ptr, [end, width], [stride_k_row, 1], [BLOCK_K, REST], REST_LAYOUT
        )
        v_rest = tma.make_tensor_descriptor(
            v_ptr, [end, width], [stride_v_row, 1], [BLOCK_K, REST], REST_LAYOUT
        )
    return k_main, k_rest, v_main, v_rest


@gluon.jit
def copy_tile(
    main, rest, row, column, full, place_main, place_rest, BLOCK_K: gl.constexpr,
    MAIN: gl.constexpr, REST: gl.constexpr,
):  # fmt: skip
    """Starts the copies of one tile; `full` completes when all its bytes have landed."""
    BYTES: gl.constexpr = 2 * BLOCK_K * (MAIN + REST)
    mbarrier.expect(full, BYTES)
    tma.async_copy_global_to_shared(main, [row, column], full, place_main)
    if REST > 0:
        tma.async_copy_global_to_shared(rest, [row, column + MAIN], full, place_rest)


@gluon.jit
def producer(
    k_ptr, v_ptr, stride_k_row, stride_v_row, tiles_ptr, n_items, n_heads, keys, values, bars,
    MAIN: gl.constexpr, REST: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
    LAYOUT: gl.constexpr, REST_LAYOUT: gl.constexpr,
):  # fmt: skip
    """One warp: copies the key tiles of all items into the rings, as far ahead as places are free.
    The ragged tile of an item comes first, then the whole ones.
    """
    k_full, k_free, v_full, v_free, _ = bars
    k_main, k_rest = keys
    v_main, v_rest = values
    width = n_heads * (MAIN + REST)
    end = gl.load(tiles_ptr + 2) + gl.maximum(gl.load(tiles_ptr + 3), 1)
    dk_main, dk_rest, dv_main, dv_rest = describe_keys(
        k_ptr, v_ptr, stride_k_row, stride_v_row, width, end, MAIN, REST, BLOCK_K, LAYOUT,
        REST_LAYOUT,
    )  # fmt: skip
    trip = 0
    for turn in range(gl.cdiv(n_items, gl.num_programs(0))):
        item = item_of(turn, n_items)
        if item < n_items:
            tile = tiles_ptr + item // n_heads * 6
            k_start = gl.load(tile + 2)
            k_rows = gl.load(tile + 3)
            column = item % n_heads * (MAIN + REST)
            if (k_start + k_rows != end) & (k_rows > 0):
                end = k_start + k_rows
                # a descriptor in use must not change: what is still copied has to land before
                for back in gl.static_range(STAGES):
                    if trip > back:
                        place = (trip - 1 - back) % STAGES
                        parity = (trip - 1 - back) // STAGES & 1
                        mbarrier.wait(k_full.index(place), parity)
                        mbarrier.wait(v_full.index(place), parity)
                dk_main, dk_rest, dv_main, dv_rest = describe_keys(
                    k_ptr, v_ptr, stride_k_row, stride_v_row, width, end, MAIN, REST, BLOCK_K,
                    LAYOUT, REST_LAYOUT,
                )  # fmt: skip
            n_tiles = gl.cdiv(k_rows, BLOCK_K)
            for j in range(n_tiles):
                row = k_start + gl.where(j == 0, n_tiles - 1, j - 1) * BLOCK_K
                place = trip % STAGES
                parity = trip // STAGES & 1
                mbarrier.wait(k_free.index(place), parity ^ 1)
                copy_tile(
                    dk_main, dk_rest, row, column, k_full.index(place), k_main.index(place),
                    k_rest.index(place), BLOCK_K, MAIN, REST,
                )  # fmt: skip
                mbarrier.wait(v_free.index(place), parity ^ 1)
                copy_tile(
                    dv_main, dv_rest, row, column, v_full.index(place), v_main.index(place),
                    v_rest.index(place), BLOCK_K, MAIN, REST,
                )  # fmt: skip
                trip += 1


@gluon.jit
def load_queries(
    q_shared, q_ptr, cos_ptr, sin_ptr, n_rows, stride, ROTATE: gl.constexpr, COL: gl.constexpr,
    WIDTH: gl.constexpr, HEAD_DIM: gl.constexpr,
):  # fmt: skip
    """One column chunk of the group's queries into shared memory, rotated; rows from n_rows on
    are 0. Both halves of a row are loaded whole: a slice within a swizzle could not be stored.
    """
    HALF: gl.constexpr = WIDTH // 2
    L: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    rows = gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, L))
    cols = gl.arange(0, WIDTH, gl.SliceLayout(0, L))
    mask = (rows < n_rows)[:, None]
    at = rows[:, None] * stride + COL
    x = gl.load(q_ptr + (at + cols[None, :]), mask=mask, other=0.0)
    if ROTATE:
        first = cols < HALF
        partner = gl.where(first, cols + HALF, cols - HALF)
        y = gl.load(q_ptr + (at + partner[None, :]), mask=mask, other=0.0).to(gl.float32)
        angles = rows[:, None] * (HEAD_DIM // 2) + COL // 2 + (cols % HALF)[None, :]
        cos = gl.load(cos_ptr + angles, mask=mask, other=0.0)
        sin = gl.load(sin_ptr + angles, mask=mask, other=0.0)
        # the first half is a cos - b sin, the second b cos + a sin
        turned = x.to(gl.float32) * cos + y * gl.where(first[None, :], -sin, sin)
        x = turned.to(q_ptr.dtype.element_ty)
    q_shared.store(x)


@gluon.jit
def store_result(
    q_shared, x, out_ptr, n_rows, stride, COL: gl.constexpr, WIDTH: gl.constexpr
):  # fmt: skip
    """Writes x to one column chunk of the group's rows, through the tile of the queries, which are
    dead by then: it carries x to a layout that writes whole rows.
    """
    L: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    q_shared.store(x.to(out_ptr.dtype.element_ty))
    rows = gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, L))
    cols = gl.arange(0, WIDTH, gl.SliceLayout(0, L))
    pointers = out_ptr + (rows[:, None] * stride + COL + cols[None, :])
    gl.store(pointers, q_shared.load(L), mask=(rows < n_rows)[:, None])


@gluon.jit
def issue_scores(
    q_main, q_rest, k_main, k_rest, REST: gl.constexpr, BLOCK_K: gl.constexpr, S: gl.constexpr
):  # fmt: skip
    """Begins s = q k^T, whose value is there after the wait that covers it."""
    s = gl.zeros([GROUP_ROWS, BLOCK_K], gl.float32, S)
    s = warpgroup_mma(q_main, k_main.permute((1, 0)), s, use_acc=False, is_async=True)
    if REST > 0:
        s = warpgroup_mma(q_rest, k_rest.permute((1, 0)), s, is_async=True)
    return s


@gluon.jit
def consumer(
    GROUP: gl.constexpr, q_ptr, cos_ptr, sin_ptr, out_ptr, lse_ptr, tiles_ptr, scale, n_items,
    n_heads, n_rows, stride_q_row, stride_q_head, stride_out_row, queries, keys, values, bars,
    MAIN: gl.constexpr, REST: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
    ROTATE: gl.constexpr,
):  # fmt: skip
    """Four warps: attends with query rows [64 GROUP, 64 GROUP + 64) of every item."""
    trip = 0
    waits = 0
    for turn in range(gl.cdiv(n_items, gl.num_programs(0))):
        item = item_of(turn, n_items)
        if item < n_items:
            tile = tiles_ptr + item // n_heads * 6
            head = item % n_heads
            first = gl.load(tile) + GROUP * GROUP_ROWS
            rows_left = gl.load(tile + 1) - GROUP * GROUP_ROWS
            k_rows = gl.load(tile + 3)
            stream = gl.load(tile + 4)
            attend_item(
                GROUP, q_ptr, cos_ptr, sin_ptr, out_ptr, lse_ptr, first, rows_left, k_rows, stream,
                head, scale, n_heads, n_rows, stride_q_row, stride_q_head, stride_out_row, queries,
                keys, values, bars, trip, waits, MAIN, REST, BLOCK_K, STAGES, ROTATE,
            )  # fmt: skip
            n_tiles = gl.cdiv(k_rows, BLOCK_K)
            trip += n_tiles
            waits += gl.maximum(n_tiles - 1, 0)


@gluon.jit
def attend_item(
    GROUP: gl.constexpr, q_ptr, cos_ptr, sin_ptr, out_ptr, lse_ptr, first, rows_left, k_rows,
    stream, head, scale, n_heads, n_rows, stride_q_row, stride_q_head, stride_out_row, queries,
    keys, values, bars, trip, waits, MAIN: gl.constexpr, REST: gl.constexpr,
    BLOCK_K: gl.constexpr, STAGES: gl.constexpr, ROTATE: gl.constexpr,
):  # fmt: skip
    """One item: `rows_left` query rows (0 or less: none) from row `first`, of one head. trip and
    waits: how many key tiles and turns this group has been through.
    """
    HEAD_DIM: gl.constexpr = MAIN + REST
    WIDE: gl.constexpr = REST if REST > 0 else 16  # without a rest nothing of it is compiled
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_K, 16])
    O1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, MAIN, 16])
    O2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 16])
    S_ROW: gl.constexpr = gl.SliceLayout(1, S)
    P1: gl.constexpr = gl.DotOperandLayout(0, O1, 2)
    P2: gl.constexpr = gl.DotOperandLayout(0, O2, 2)
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    k_full, k_free, v_full, v_free, turns = bars
    k_main, k_rest = keys
    v_main, v_rest = values
    q1 = queries[0].index(GROUP)
    q2 = queries[1].index(GROUP)

    q_head = (stream * n_heads + head).to(gl.int64)
    row0 = first.to(gl.int64)
    query = q_ptr + row0 * stride_q_row + q_head * stride_q_head
    cos = cos_ptr
    sin = sin_ptr
    if ROTATE:
        table = (stream.to(gl.int64) * n_rows + row0) * (HEAD_DIM // 2)
        cos += table
        sin += table
    out = out_ptr + row0 * stride_out_row + q_head * HEAD_DIM
    lse = lse_ptr + q_head * n_rows + row0
    lse_rows = gl.arange(0, GROUP_ROWS, S_ROW)

    n_tiles = gl.cdiv(k_rows, BLOCK_K)
    if n_tiles == 0:
        empty = gl.zeros([GROUP_ROWS, MAIN], gl.float32, O1)
        store_result(q1, empty, out, rows_left, stride_out_row, 0, MAIN)
        if REST > 0:
            nothing = gl.zeros([GROUP_ROWS, WIDE], gl.float32, O2)
            store_result(q2, nothing, out, rows_left, stride_out_row, MAIN, REST)
        minus = gl.full([GROUP_ROWS], float("-inf"), gl.float32, S_ROW)
        gl.store(lse + lse_rows, minus, mask=lse_rows < rows_left)
    else:
        load_queries(q1, query, cos, sin, rows_left, stride_q_row, ROTATE, 0, MAIN, HEAD_DIM)
        if REST > 0:
            load_queries(q2, query, cos, sin, rows_left, stride_q_row, ROTATE, MAIN, REST, HEAD_DIM)
        # products read shared memory by another road than stores write it
        fence_async_shared()

        scale_log2 = scale * LOG2E
        o1 = gl.zeros([GROUP_ROWS, MAIN], gl.float32, O1)
        o2 = gl.zeros([GROUP_ROWS, WIDE], gl.float32, O2)

        # The ragged tile comes first and masked, while there is no accumulator to survive it
        place = trip % STAGES
        parity = trip // STAGES & 1
        mbarrier.wait(k_full.index(place), parity)
        s = issue_scores(q1, q2, k_main.index(place), k_rest.index(place), REST, BLOCK_K, S)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_free.index(place), count=1)
        keys_of = (n_tiles - 1) * BLOCK_K + gl.arange(0, BLOCK_K, gl.SliceLayout(0, S))
        s = gl.where((keys_of < k_rows)[None, :], s, float("-inf"))
        m = gl.max(s, 1) * scale_log2
        p = gl.exp2(s * scale_log2 - m[:, None])
        total = gl.sum(p, 1)
        p_cast = p.to(dtype)
        mbarrier.wait(v_full.index(place), parity)

        for j in range(1, n_tiles):
            before = (trip + j - 1) % STAGES
            place = (trip + j) % STAGES
            parity = (trip + j) // STAGES & 1
            mbarrier.wait(k_full.index(place), parity)
            # group 0 begins; the other is let in when these products are issued
            mbarrier.wait(turns.index(GROUP), ((waits + j - 1) & 1) ^ (1 - GROUP))
            s_later = issue_scores(
                q1, q2, k_main.index(place), k_rest.index(place), REST, BLOCK_K, S
            )
            p1 = gl.convert_layout(p_cast, P1, assert_trivial=True)
            o1_later = warpgroup_mma(p1, v_main.index(before), o1, is_async=True)
            if REST > 0:
                p2 = gl.convert_layout(p_cast, P2, assert_trivial=True)
                o2_later = warpgroup_mma(p2, v_rest.index(before), o2, is_async=True)
            mbarrier.arrive(turns.index(1 - GROUP), count=1)
            s = warpgroup_mma_wait(2 if REST > 0 else 1, deps=[s_later])
            mbarrier.arrive(k_free.index(place), count=1)
            m_new = gl.maximum(m, gl.max(s, 1) * scale_log2)
            p = gl.exp2(s * scale_log2 - m_new[:, None])
            alpha = gl.exp2(m - m_new)
            m = m_new
            total = total * alpha + gl.sum(p, 1)
            # Polling a barrier is a branch. Without one here, ptxas hoists the wait for the
            # products over the exponentials, which then overlap with nothing.
            mbarrier.wait(v_full.index(place), parity)
            # p depends on the wait: its registers replace those that the products read
            if REST > 0:
                o1, o2, p1, p2, p = warpgroup_mma_wait(0, deps=[o1_later, o2_later, p1, p2, p])
            else:
                o1, p1, p = warpgroup_mma_wait(0, deps=[o1_later, p1, p])
            p_cast = p.to(dtype)
            mbarrier.arrive(v_free.index(before), count=1)
            o1 = o1 * gl.convert_layout(alpha, gl.SliceLayout(1, O1))[:, None]
            if REST > 0:
                o2 = o2 * gl.convert_layout(alpha, gl.SliceLayout(1, O2))[:, None]

        last = (trip + n_tiles - 1) % STAGES
        p1 = gl.convert_layout(p_cast, P1, assert_trivial=True)
        o1_later = warpgroup_mma(p1, v_main.index(last), o1, is_async=True)
        if REST > 0:
            p2 = gl.convert_layout(p_cast, P2, assert_trivial=True)
            o2_later = warpgroup_mma(p2, v_rest.index(last), o2, is_async=True)
            o1, o2, p1, p2 = warpgroup_mma_wait(0, deps=[o1_later, o2_later, p1, p2])
        else:
            o1, p1 = warpgroup_mma_wait(0, deps=[o1_later, p1])
        mbarrier.arrive(v_free.index(last), count=1)

        gl.store(lse + lse_rows, m * LN2 + gl.log(total), mask=lse_rows < rows_left)
        r = 1.0 / total
        r1 = gl.convert_layout(r, gl.SliceLayout(1, O1))[:, None]
        store_result(q1, o1 * r1, out, rows_left, stride_out_row, 0, MAIN)
        if REST > 0:
            r2 = gl.convert_layout(r, gl.SliceLayout(1, O2))[:, None]
            store_result(q2, o2 * r2, out, rows_left, stride_out_row, MAIN, REST)


@gluon.jit(launch_metadata=forward_metadata, do_not_specialize=["n_items", "n_rows"])
def attention_hopper_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, out_ptr, lse_ptr, tiles_ptr, scale, n_items, n_heads,
    n_rows, stride_q_row, stride_q_head, stride_k_row, stride_v_row, stride_out_row,
    HEAD_DIM: gl.constexpr, MAIN: gl.constexpr, REST: gl.constexpr, BLOCK_Q: gl.constexpr,
    BLOCK_K: gl.constexpr, STAGES: gl.constexpr, ROTATE: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_K, MAIN], dtype)
    WIDE: gl.constexpr = REST if REST > 0 else MAIN
    REST_LAYOUT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_K, WIDE], dtype)

    q_main = gl.allocate_shared_memory(dtype, [2, GROUP_ROWS, MAIN], LAYOUT)
    k_main = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_K, MAIN], LAYOUT)
    v_main = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_K, MAIN], LAYOUT)
    q_rest = q_main
    k_rest = k_main
    v_rest = v_main
    if REST > 0:
        q_rest = gl.allocate_shared_memory(dtype, [2, GROUP_ROWS, REST], REST_LAYOUT)
        k_rest = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_K, REST], REST_LAYOUT)
        v_rest = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_K, REST], REST_LAYOUT)

    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_free.index(i), count=2)
        mbarrier.init(v_free.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)

    bars = (k_full, k_free, v_full, v_free, turns)
    queries = (q_main, q_rest)
    keys = (k_main, k_rest)
    values = (v_main, v_rest)
    gl.warp_specialize(
        [
            (consumer, (
                0, q_ptr, cos_ptr, sin_ptr, out_ptr, lse_ptr, tiles_ptr, scale, n_items, n_heads,
                n_rows, stride_q_row, stride_q_head, stride_out_row, queries, keys, values, bars,
                MAIN, REST, BLOCK_K, STAGES, ROTATE,
            )),
            (consumer, (
                1, q_ptr, cos_ptr, sin_ptr, out_ptr, lse_ptr, tiles_ptr, scale, n_items, n_heads,
                n_rows, stride_q_row, stride_q_head, stride_out_row, queries, keys, values, bars,
                MAIN, REST, BLOCK_K, STAGES, ROTATE,
            )),
            (producer, (
                k_ptr, v_ptr, stride_k_row, stride_v_row, tiles_ptr, n_items, n_heads, keys,
                values, bars, MAIN, REST, BLOCK_K, STAGES, LAYOUT, REST_LAYOUT,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
