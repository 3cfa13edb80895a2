"""Backward pass of ragged attention (kernels/attention.py): tile sizes, and the launches of the two
kernels in attention_backward_kernels.py.

    dq = R^-1(scale ds k),  dk = scale ds^T R(q),  dv = p^T do

with p the probabilities and ds their gradients. Each program writes rows that are its own, so that
results do not depend on the order of programs. The first launch, over query tiles, gives dq and
leaves what the second, over key tiles, needs of every query row.

    dq, dk, dv = backward(
        d_out, None, q, k, v, out, lse, cos, sin, q_tiles, k_tiles, configs,
        scale=K**-0.5, precision="tf32",
    )
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .attention_backward_kernels import attention_bwd_dkv_kernel, attention_bwd_dq_kernel
from .attention_forward import OLD_TRITON, Config, chunks, describable, describe, family

# (family, head width) -> tiles of the query-gradient and of the key-gradient kernel for 16-bit
# inputs
_TILES = {
    (80, 64): (Config(128, 32, 4, 2), Config(32, 128, 4, 2)),
    (80, 96): (Config(128, 32, 4, 2), Config(32, 128, 8, 2)),
    (80, 128): (Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    (86, 64): (Config(128, 32, 4, 2), Config(64, 64, 4, 2)),
    (86, 96): (Config(128, 32, 4, 2), Config(32, 128, 8, 2)),
    (86, 128): (Config(64, 64, 4, 2), Config(32, 64, 4, 2)),
    # two query tiles a trip halve the waits and address arithmetic of the descriptors; at width 128
    # registers do not suffice
    (90, 64): (Config(128, 64, 8, 2, tma=True), Config(64, 128, 8, 2, tma=True, paired=True)),
    (90, 96): (Config(128, 128, 8, 2, tma=True), Config(64, 128, 8, 2, tma=True, paired=True)),
    (90, 128): (Config(128, 128, 8, 2, tma=True), Config(64, 128, 8, 2, tma=True)),
    # 128 x 128 at width 96 comes out of triton 3.7.1 as an empty kernel
    (100, 64): (Config(128, 64, 8, 2, tma=True), Config(64, 128, 8, 2, tma=True)),
    (100, 96): (Config(128, 64, 8, 2, tma=True), Config(64, 128, 8, 2, tma=True)),
    (100, 128): (Config(128, 64, 8, 2, tma=True), Config(64, 128, 8, 2, tma=True)),
}


def backward_configs(
    head_dim: int, dtype: torch.dtype, capability: int, precision: str = "tf32"
) -> tuple[Config, Config]:
    """Tiles of the query-gradient and of the key-gradient kernel for a device, chosen like
    forward_config().
    """
    target = family(capability)
    # where 32 query rows spill: sm_120 leaves ptxas fewer registers than sm_86, and tf32 keeps four
    # bytes an element
    narrow = Config(16, 64, 4, 2)
    if dtype != torch.float32:
        by_query, by_key = _TILES[target, head_dim]
        return by_query, narrow if capability >= 120 and head_dim == 96 else by_key
    if precision == "ieee":
        return Config(32, 32, 4, 1), Config(32, 32, 4, 1)
    if target >= 90:
        # keys of one warp group: two would share the 64 rows of a wgmma and compute some of them
        # twice; sm_100 keeps more of a tile in shared memory, of which 227 KB are there
        rows = 64 if target == 100 and head_dim == 128 else 128
        return Config(rows, 32, 4 if rows == 64 else 8, 2, tma=True), Config(
            32, 32 if head_dim == 128 else 64, 4, 2, tma=True
        )
    if head_dim == 128:
        return Config(32, 32, 4, 2), Config(32, 32, 4, 2)
    return Config(64, 32, 4, 2), narrow if target == 86 and head_dim == 96 else Config(32, 64, 8, 2)


def backward(
    d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    cos: Tensor | None, sin: Tensor | None, q_tiles: Tensor, k_tiles: Tensor,
    configs: tuple[Config, Config], *, scale: float, precision: str, q_covered: bool,
    k_covered: bool, key_gradients: Callable[..., None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq of q's shape, dk and dv of k's, all contiguous. d_lse is the gradient of lse, or None; out
    and lse are what forward() returned. key_gradients: launches another kernel for dk and dv
    (attention_hopper_backward.key_gradients).

    q_tiles and k_tiles are Segments.query_tiles(configs[0].block_q) and
    Segments.key_tiles(configs[1].block_k); covered says that they reach every row, so that nothing
    has to be cleared first.
    """
    n_rows, _, head_dim = q.shape
    heads = k.shape[1]
    main, rest = chunks(head_dim)
    d_out = d_out.contiguous()
    d_lse = None if d_lse is None else d_lse.contiguous()
    new = {True: torch.empty, False: torch.zeros}
    dq = new[q_covered](q.shape, dtype=q.dtype, device=q.device)
    dk = new[k_covered](k.shape, dtype=k.dtype, device=k.device)
    dv = new[k_covered](v.shape, dtype=v.dtype, device=v.device)
    # (lse log2(e), delta) of every row, side by side: one load fetches both
    state = torch.empty(*lse.shape, 2, dtype=torch.float32, device=q.device)
    rotated = q if cos is None else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    by_query, by_key = configs
    if q_tiles.shape[0]:
        tma = by_query.tma and describable(k) and describable(v)
        k_main, k_rest = describe(k, by_query.block_k, head_dim) if tma else (None, None)
        v_main, v_rest = describe(v, by_query.block_k, head_dim) if tma else (None, None)
        attention_bwd_dq_kernel[(q_tiles.shape[0] * heads,)](
            q, k, v, k_main, k_rest, v_main, v_rest, out, d_out, lse, d_lse, cos, sin, dq, rotated,
            state, q_tiles, scale, heads, n_rows, q.stride(0), q.stride(1), k.stride(1),
            v.stride(1), out.stride(0), STRIDE_K_ROW=k.stride(0), STRIDE_V_ROW=v.stride(0),
            HEAD_DIM=head_dim, MAIN=main, REST=rest, BLOCK_Q=by_query.block_q,
            BLOCK_K=by_query.block_k, ROTATE=cos is not None, TMA=tma, PRECISION=precision,
            num_warps=by_query.warps, num_stages=by_query.stages,
        )  # fmt: skip
    if key_gradients is not None:
        key_gradients(rotated, k, v, d_out, state, dk, dv, k_tiles, scale=scale)
    elif k_tiles.shape[0]:
        tma = by_key.tma and describable(rotated) and describable(d_out)
        q_main, q_rest = describe(rotated, by_key.block_q, head_dim) if tma else (None, None)
        do_main, do_rest = describe(d_out, by_key.block_q, head_dim) if tma else (None, None)
        attention_bwd_dkv_kernel[(k_tiles.shape[0] * heads,)](
            rotated, k, v, q_main, q_rest, do_main, do_rest, d_out, state, dk, dv, k_tiles, scale,
            heads, n_rows, rotated.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            dk.stride(0), STRIDE_Q_ROW=rotated.stride(0), STRIDE_DO_ROW=d_out.stride(0),
            HEAD_DIM=head_dim, MAIN=main, REST=rest, BLOCK_Q=by_key.block_q, BLOCK_K=by_key.block_k,
            PAIRED=by_key.paired, TMA=tma,
            LEFT_LAST=tma and OLD_TRITON and head_dim == 128, PRECISION=precision,
            num_warps=by_key.warps, num_stages=by_key.stages,
        )  # fmt: skip
    return dq, dk, dv
