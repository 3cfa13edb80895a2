"""Warp-specialised key gradients of ragged attention for sm_90a, in Gluon: what
attention_hopper_backward.py launches. Needs a Triton with triton.experimental.gluon.

    p = exp2(scale log2(e) k q^T - lse),  dv = p do
    ds = p (v do^T - delta),  dk = scale ds q

with q rotated, and lse log2(e) and delta side by side in `state`, both left by the kernel of the
query gradients. A program is persistent: it takes one (key tile, head) after another from the
worklist. One warp copies the queries' tiles and those of do into a ring; two groups of four warps
have 64 keys each. Keys lie down, so that p and ds come out of one product in the registers in which
the next one wants them, and nothing is exchanged. In a group the probabilities are made while
v do^T runs, and ds while dv += p do does.

    q_full, do_full  the copies into a place have landed     producer -> both groups
    q_free, do_free  both groups are done with a place       groups -> producer

profiling/simulator.py executes this source with every copy and product as late as it may be.
Source: Shah et al. 2024, FlashAttention-3 (arXiv 2407.08608); Dao 2023 (arXiv 2307.08691) for the
gradients.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .attention_hopper_kernels import (
    GROUP_ROWS,
    LOG2E,
    copy_tile,
    describe_keys,
    item_of,
    load_queries,
    store_result,
)


@gluon.jit
def query_producer(
    q_ptr, do_ptr, stride_q_row, stride_do_row, tiles_ptr, n_items, n_heads, streams, queries, dos,
    bars, MAIN: gl.constexpr, REST: gl.constexpr, BLOCK_Q: gl.constexpr, STAGES: gl.constexpr,
    LAYOUT: gl.constexpr, REST_LAYOUT: gl.constexpr,
):  # fmt: skip
    """One warp: copies the query tiles of all items into the rings, as far ahead as places are
    free.
    """
    q_full, q_free, do_full, do_free = bars
    q_main, q_rest = queries
    do_main, do_rest = dos
    width = streams * n_heads * (MAIN + REST)
    end = gl.load(tiles_ptr + 2) + gl.maximum(gl.load(tiles_ptr + 3), 1)
    dq_main, dq_rest, ddo_main, ddo_rest = describe_keys(
        q_ptr, do_ptr, stride_q_row, stride_do_row, width, end, MAIN, REST, BLOCK_Q, LAYOUT,
        REST_LAYOUT,
    )  # fmt: skip
    trip = 0
    for turn in range(gl.cdiv(n_items, gl.num_programs(0))):
        item = item_of(turn, n_items)
        if item < n_items:
            tile = tiles_ptr + item // n_heads * 6
            q_start = gl.load(tile + 2)
            q_rows = gl.load(tile + 3)
            column = (gl.load(tile + 4) * n_heads + item % n_heads) * (MAIN + REST)
            if (q_start + q_rows != end) & (q_rows > 0):
                end = q_start + q_rows
                # a descriptor in use must not change: what is still copied has to land before
                for back in gl.static_range(STAGES):
                    if trip > back:
                        place = (trip - 1 - back) % STAGES
                        parity = (trip - 1 - back) // STAGES & 1
                        mbarrier.wait(q_full.index(place), parity)
                        mbarrier.wait(do_full.index(place), parity)
                dq_main, dq_rest, ddo_main, ddo_rest = describe_keys(
                    q_ptr, do_ptr, stride_q_row, stride_do_row, width, end, MAIN, REST, BLOCK_Q,
                    LAYOUT, REST_LAYOUT,
                )  # fmt: skip
            for j in range(gl.cdiv(q_rows, BLOCK_Q)):
                row = q_start + j * BLOCK_Q
                place = trip % STAGES
                parity = trip // STAGES & 1
                mbarrier.wait(q_free.index(place), parity ^ 1)
                copy_tile(
                    dq_main, dq_rest, row, column, q_full.index(place), q_main.index(place),
                    q_rest.index(place), BLOCK_Q, MAIN, REST,
                )  # fmt: skip
                mbarrier.wait(do_free.index(place), parity ^ 1)
                copy_tile(
                    ddo_main, ddo_rest, row, column, do_full.index(place), do_main.index(place),
                    do_rest.index(place), BLOCK_Q, MAIN, REST,
                )  # fmt: skip
                trip += 1


@gluon.jit
def issue_transposed(
    main, rest, other_main, other_rest, REST: gl.constexpr, BLOCK_Q: gl.constexpr, S: gl.constexpr
):  # fmt: skip
    """Begins own rows times other rows^T, whose value is there after the wait that covers it."""
    s = gl.zeros([GROUP_ROWS, BLOCK_Q], gl.float32, S)
    s = warpgroup_mma(main, other_main.permute((1, 0)), s, use_acc=False, is_async=True)
    if REST > 0:
        s = warpgroup_mma(rest, other_rest.permute((1, 0)), s, is_async=True)
    return s


@gluon.jit
def key_consumer(
    GROUP: gl.constexpr, k_ptr, v_ptr, state_ptr, dk_ptr, dv_ptr, tiles_ptr, scale, n_items,
    n_heads, n_rows, stride_k_row, stride_v_row, keys, values,
    queries, dos, bars, MAIN: gl.constexpr, REST: gl.constexpr, BLOCK_Q: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Four warps: the gradients of key rows [64 GROUP, 64 GROUP + 64) of every item."""
    trip = 0
    for turn in range(gl.cdiv(n_items, gl.num_programs(0))):
        item = item_of(turn, n_items)
        if item < n_items:
            tile = tiles_ptr + item // n_heads * 6
            head = item % n_heads
            first = gl.load(tile) + GROUP * GROUP_ROWS
            rows_left = gl.load(tile + 1) - GROUP * GROUP_ROWS
            q_start = gl.load(tile + 2)
            q_rows = gl.load(tile + 3)
            stream = gl.load(tile + 4)
            key_gradients(
                GROUP, k_ptr, v_ptr, state_ptr, dk_ptr, dv_ptr, first, rows_left, q_start, q_rows,
                stream, head, scale, n_heads, n_rows, stride_k_row, stride_v_row, tile, keys,
                values, queries, dos, bars, trip, MAIN, REST, BLOCK_Q, STAGES,
            )  # fmt: skip
            trip += gl.cdiv(q_rows, BLOCK_Q)


@gluon.jit
def key_gradients(
    GROUP: gl.constexpr, k_ptr, v_ptr, state_ptr, dk_ptr, dv_ptr, first, rows_left, q_start,
    q_rows, stream, head, scale, n_heads, n_rows, stride_k_row, stride_v_row, tile, keys, values,
    queries, dos, bars, trip, MAIN: gl.constexpr, REST: gl.constexpr, BLOCK_Q: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """One item: `rows_left` key rows (0 or less: none) from row `first`, of one head. trip: how
    many query tiles this group has been through.
    """
    HEAD_DIM: gl.constexpr = MAIN + REST
    WIDE: gl.constexpr = REST if REST > 0 else 16  # without a rest nothing of it is compiled
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_Q, 16])
    O1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, MAIN, 16])
    O2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 16])
    P1: gl.constexpr = gl.DotOperandLayout(0, O1, 2)
    P2: gl.constexpr = gl.DotOperandLayout(0, O2, 2)
    dtype: gl.constexpr = k_ptr.dtype.element_ty
    q_full, q_free, do_full, do_free = bars
    q_main, q_rest = queries
    do_main, do_rest = dos
    k1 = keys[0].index(GROUP)
    k2 = keys[1].index(GROUP)
    v1 = values[0].index(GROUP)
    v2 = values[1].index(GROUP)

    row0 = first.to(gl.int64)
    key = k_ptr + row0 * stride_k_row + head * HEAD_DIM
    value = v_ptr + row0 * stride_v_row + head * HEAD_DIM
    q_head = (stream * n_heads + head).to(gl.int64)
    state = state_ptr + 2 * (q_head * n_rows + q_start)
    load_queries(k1, key, key, key, rows_left, stride_k_row, False, 0, MAIN, HEAD_DIM)
    load_queries(v1, value, value, value, rows_left, stride_v_row, False, 0, MAIN, HEAD_DIM)
    if REST > 0:
        load_queries(k2, key, key, key, rows_left, stride_k_row, False, MAIN, REST, HEAD_DIM)
        load_queries(v2, value, value, value, rows_left, stride_v_row, False, MAIN, REST, HEAD_DIM)
    # products read shared memory by another road than stores write it
    fence_async_shared()

    scale_log2 = scale * LOG2E
    dk1 = gl.zeros([GROUP_ROWS, MAIN], gl.float32, O1)
    dk2 = gl.zeros([GROUP_ROWS, WIDE], gl.float32, O2)
    dv1 = gl.zeros([GROUP_ROWS, MAIN], gl.float32, O1)
    dv2 = gl.zeros([GROUP_ROWS, WIDE], gl.float32, O2)
    columns = gl.arange(0, BLOCK_Q, gl.SliceLayout(0, S))

    for j in range(gl.cdiv(q_rows, BLOCK_Q)):
        place = (trip + j) % STAGES
        parity = (trip + j) // STAGES & 1
        mbarrier.wait(q_full.index(place), parity)
        s_later = issue_transposed(
            k1, k2, q_main.index(place), q_rest.index(place), REST, BLOCK_Q, S
        )
        mbarrier.wait(do_full.index(place), parity)
        dp_later = issue_transposed(
            v1, v2, do_main.index(place), do_rest.index(place), REST, BLOCK_Q, S
        )
        # a query beyond the segment has probability 0, whatever its zeros give
        inside = columns < q_rows - j * BLOCK_Q
        at = state + 2 * (j * BLOCK_Q + columns)
        lse = gl.load(at, mask=inside, other=float("inf"))
        delta = gl.load(at + 1, mask=inside, other=0.0)
        s = warpgroup_mma_wait(2 if REST > 0 else 1, deps=[s_later])
        p = gl.exp2(s * scale_log2 - lse[None, :])
        p_cast = p.to(dtype)
        p1 = gl.convert_layout(p_cast, P1, assert_trivial=True)
        dv1_later = warpgroup_mma(p1, do_main.index(place), dv1, is_async=True)
        if REST > 0:
            p2 = gl.convert_layout(p_cast, P2, assert_trivial=True)
            dv2_later = warpgroup_mma(p2, do_rest.index(place), dv2, is_async=True)
        dp = warpgroup_mma_wait(2 if REST > 0 else 1, deps=[dp_later])
        ds_cast = (p * (dp - delta[None, :])).to(dtype)
        ds1 = gl.convert_layout(ds_cast, P1, assert_trivial=True)
        dk1_later = warpgroup_mma(ds1, q_main.index(place), dk1, is_async=True)
        if REST > 0:
            ds2 = gl.convert_layout(ds_cast, P2, assert_trivial=True)
            dk2_later = warpgroup_mma(ds2, q_rest.index(place), dk2, is_async=True)
            dv1, dv2, p1, p2 = warpgroup_mma_wait(2, deps=[dv1_later, dv2_later, p1, p2])
            mbarrier.arrive(do_free.index(place), count=1)
            dk1, dk2, ds1, ds2 = warpgroup_mma_wait(0, deps=[dk1_later, dk2_later, ds1, ds2])
        else:
            dv1, p1 = warpgroup_mma_wait(1, deps=[dv1_later, p1])
            mbarrier.arrive(do_free.index(place), count=1)
            dk1, ds1 = warpgroup_mma_wait(0, deps=[dk1_later, ds1])
        mbarrier.arrive(q_free.index(place), count=1)

    # the tile is read again: a few loads are cheaper than registers held through the loop
    first = gl.load(tile, volatile=True) + GROUP * GROUP_ROWS
    rows_left = gl.load(tile + 1, volatile=True) - GROUP * GROUP_ROWS
    stride_dk_row = n_heads * HEAD_DIM
    own = first.to(gl.int64) * stride_dk_row + head * HEAD_DIM
    store_result(k1, dk1 * scale, dk_ptr + own, rows_left, stride_dk_row, 0, MAIN)
    store_result(v1, dv1, dv_ptr + own, rows_left, stride_dk_row, 0, MAIN)
    if REST > 0:
        store_result(k2, dk2 * scale, dk_ptr + own, rows_left, stride_dk_row, MAIN, REST)
        store_result(v2, dv2, dv_ptr + own, rows_left, stride_dk_row, MAIN, REST)


@gluon.jit(do_not_specialize=["n_items", "n_rows"])
def attention_hopper_dkv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, state_ptr, dk_ptr, dv_ptr, tiles_ptr, scale, n_items, n_heads,
    streams, n_rows, stride_q_row, stride_do_row, stride_k_row, stride_v_row, MAIN: gl.constexpr,
    REST: gl.constexpr, BLOCK_Q: gl.constexpr, STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = k_ptr.dtype.element_ty
    OWN: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_ROWS, MAIN], dtype)
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_Q, MAIN], dtype)
    WIDE: gl.constexpr = REST if REST > 0 else MAIN
    OWN_REST: gl.constexpr = gl.NVMMASharedLayout.get_default_for([GROUP_ROWS, WIDE], dtype)
    REST_LAYOUT: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_Q, WIDE], dtype)

    k_main = gl.allocate_shared_memory(dtype, [2, GROUP_ROWS, MAIN], OWN)
    v_main = gl.allocate_shared_memory(dtype, [2, GROUP_ROWS, MAIN], OWN)
    q_main = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_Q, MAIN], LAYOUT)
    do_main = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_Q, MAIN], LAYOUT)
    k_rest = k_main
    v_rest = v_main
    q_rest = q_main
    do_rest = do_main
    if REST > 0:
        k_rest = gl.allocate_shared_memory(dtype, [2, GROUP_ROWS, REST], OWN_REST)
        v_rest = gl.allocate_shared_memory(dtype, [2, GROUP_ROWS, REST], OWN_REST)
        q_rest = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_Q, REST], REST_LAYOUT)
        do_rest = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_Q, REST], REST_LAYOUT)

    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    q_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    do_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    do_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for i in gl.static_range(STAGES):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(do_full.index(i), count=1)
        mbarrier.init(q_free.index(i), count=2)
        mbarrier.init(do_free.index(i), count=2)

    bars = (q_full, q_free, do_full, do_free)
    keys = (k_main, k_rest)
    values = (v_main, v_rest)
    queries = (q_main, q_rest)
    dos = (do_main, do_rest)
    gl.warp_specialize(
        [
            (key_consumer, (
                0, k_ptr, v_ptr, state_ptr, dk_ptr, dv_ptr, tiles_ptr, scale, n_items, n_heads,
                n_rows, stride_k_row, stride_v_row,
                keys, values, queries, dos, bars, MAIN, REST, BLOCK_Q, STAGES,
            )),
            (key_consumer, (
                1, k_ptr, v_ptr, state_ptr, dk_ptr, dv_ptr, tiles_ptr, scale, n_items, n_heads,
                n_rows, stride_k_row, stride_v_row,
                keys, values, queries, dos, bars, MAIN, REST, BLOCK_Q, STAGES,
            )),
            (query_producer, (
                q_ptr, do_ptr, stride_q_row, stride_do_row, tiles_ptr, n_items, n_heads, streams,
                queries, dos, bars, MAIN, REST, BLOCK_Q, STAGES, LAYOUT, REST_LAYOUT,
            )),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
