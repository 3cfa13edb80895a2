"""The attention that people know: the algorithm of Triton's fused-attention tutorial,
re-implemented as a peer for static figures.

Dense [B, H, N, D] tensors of equal lengths that are multiples of the tile, head width padded to a
power of two, no rotation, delta from a pass of its own. Same online softmax and same recomputation
in the backward as kernels/attention_*.py, so that at equal tiles the difference is what the code
around them costs. Source: Dao 2023, FlashAttention-2; Triton documentation, "Fused Attention".

    with compile_for("sm_80") as builds:
        peer_forward(head_dim=96, config=Config(128, 64, 4, 2))
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mudit_engine.kernels.attention_forward import Config


@triton.jit
def peer_fwd_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, scale_log2, stride_head, stride_row, n_rows,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    base = tl.program_id(1).to(tl.int64) * stride_head
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    cols, keys = tl.arange(0, WIDTH), tl.arange(0, BLOCK_K)
    inside = cols < HEAD_DIM
    q = tl.load(
        q_ptr + base + rows[:, None] * stride_row + cols[None, :], mask=inside[None, :], other=0.0
    )
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    o = tl.zeros([BLOCK_Q, WIDTH], tl.float32)
    k_tile = k_ptr + base + keys[None, :] * stride_row + cols[:, None]
    v_tile = v_ptr + base + keys[:, None] * stride_row + cols[None, :]
    for _ in tl.range(0, n_rows, BLOCK_K):
        s = tl.dot(q, tl.load(k_tile, mask=inside[:, None], other=0.0))
        m_new = tl.maximum(m, tl.max(s, 1) * scale_log2)
        p = tl.math.exp2(s * scale_log2 - m_new[:, None])
        alpha = tl.math.exp2(m - m_new)
        total = total * alpha + tl.sum(p, 1)
        v = tl.load(v_tile, mask=inside[None, :], other=0.0)
        o = tl.dot(p.to(v.dtype), v, o * alpha[:, None])
        m = m_new
        k_tile += BLOCK_K * stride_row
        v_tile += BLOCK_K * stride_row
    tl.store(lse_ptr + tl.program_id(1) * n_rows + rows, m + tl.log2(total))
    target = out_ptr + base + rows[:, None] * stride_row + cols[None, :]
    tl.store(target, (o / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside[None, :])


@triton.jit
def peer_bwd_dq_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr, lse_ptr, delta_ptr, scale_log2, stride_head, stride_row,
    n_rows, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    base = tl.program_id(1).to(tl.int64) * stride_head
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    cols, keys = tl.arange(0, WIDTH), tl.arange(0, BLOCK_K)
    inside = cols < HEAD_DIM
    own = base + rows[:, None] * stride_row + cols[None, :]
    q = tl.load(q_ptr + own, mask=inside[None, :], other=0.0)
    do = tl.load(do_ptr + own, mask=inside[None, :], other=0.0)
    lse = tl.load(lse_ptr + tl.program_id(1) * n_rows + rows)[:, None]
    delta = tl.load(delta_ptr + tl.program_id(1) * n_rows + rows)[:, None]
    dq = tl.zeros([BLOCK_Q, WIDTH], tl.float32)
    k_tile = k_ptr + base + keys[None, :] * stride_row + cols[:, None]
    v_tile = v_ptr + base + keys[None, :] * stride_row + cols[:, None]
    for _ in tl.range(0, n_rows, BLOCK_K):
        k_t = tl.load(k_tile, mask=inside[:, None], other=0.0)
        v_t = tl.load(v_tile, mask=inside[:, None], other=0.0)
        p = tl.math.exp2(tl.dot(q, k_t) * scale_log2 - lse)
        ds = (p * (tl.dot(do, v_t) - delta)).to(k_t.dtype)
        dq += tl.dot(ds, tl.trans(k_t))
        k_tile += BLOCK_K * stride_row
        v_tile += BLOCK_K * stride_row
    tl.store(dq_ptr + own, dq.to(dq_ptr.dtype.element_ty), mask=inside[None, :])


@triton.jit
def peer_bwd_dkv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, scale_log2, stride_head,
    stride_row, n_rows, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    base = tl.program_id(1).to(tl.int64) * stride_head
    rows = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    cols, queries = tl.arange(0, WIDTH), tl.arange(0, BLOCK_Q)
    inside = cols < HEAD_DIM
    own = base + rows[:, None] * stride_row + cols[None, :]
    k = tl.load(k_ptr + own, mask=inside[None, :], other=0.0)
    v = tl.load(v_ptr + own, mask=inside[None, :], other=0.0)
    dk = tl.zeros([BLOCK_K, WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_K, WIDTH], tl.float32)
    q_tile = q_ptr + base + queries[None, :] * stride_row + cols[:, None]
    do_tile = do_ptr + base + queries[:, None] * stride_row + cols[None, :]
    state = tl.program_id(1) * n_rows + queries
    for start in tl.range(0, n_rows, BLOCK_Q):
        q_t = tl.load(q_tile, mask=inside[:, None], other=0.0)
        p_t = tl.math.exp2(tl.dot(k, q_t) * scale_log2 - tl.load(lse_ptr + state + start)[None, :])
        do = tl.load(do_tile, mask=inside[None, :], other=0.0)
        dv += tl.dot(p_t.to(do.dtype), do)
        ds_t = (p_t * (tl.dot(v, tl.trans(do)) - tl.load(delta_ptr + state + start)[None, :])).to(
            do.dtype
        )
        dk += tl.dot(ds_t, tl.trans(q_t))
        q_tile += BLOCK_Q * stride_row
        do_tile += BLOCK_Q * stride_row
    tl.store(dv_ptr + own, dv.to(dv_ptr.dtype.element_ty), mask=inside[None, :])
    tl.store(dk_ptr + own, dk.to(dk_ptr.dtype.element_ty), mask=inside[None, :])


def _tensors(head_dim: int, count: int, rows: int, heads: int) -> list[torch.Tensor]:
    return [torch.zeros(1, heads, rows, head_dim, dtype=torch.bfloat16) for _ in range(count)]


def peer_forward(*, head_dim: int, config: Config, rows: int = 1024, heads: int = 4) -> None:
    """Launches the peer's forward kernel on zeros, for compile_for()."""
    q, k, v, out = _tensors(head_dim, 4, rows, heads)
    lse = torch.zeros(q.shape[:3])
    peer_fwd_kernel[(q.shape[2] // config.block_q, q.shape[1])](
        q, k, v, out, lse, 0.1, q.stride(1), q.stride(2), q.shape[2], HEAD_DIM=head_dim,
        WIDTH=triton.next_power_of_2(head_dim), BLOCK_Q=config.block_q, BLOCK_K=config.block_k,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def peer_backward(
    *, head_dim: int, configs: tuple[Config, Config], rows: int = 1024, heads: int = 4
) -> None:
    """Launches the peer's two backward kernels on zeros, for compile_for()."""
    q, k, v, do, *grads = _tensors(head_dim, 7, rows, heads)
    lse, delta = torch.zeros(2, *q.shape[:3])
    shared = (0.1, q.stride(1), q.stride(2), q.shape[2])
    for kernel, outputs, config, block in (
        (peer_bwd_dq_kernel, grads[:1], configs[0], configs[0].block_q),
        (peer_bwd_dkv_kernel, grads[1:], configs[1], configs[1].block_k),
    ):
        kernel[(q.shape[2] // block, q.shape[1])](
            q, k, v, do, *outputs, lse, delta, *shared, HEAD_DIM=head_dim,
            WIDTH=triton.next_power_of_2(head_dim), BLOCK_Q=config.block_q, BLOCK_K=config.block_k,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
