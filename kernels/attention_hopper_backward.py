"""Key gradients of ragged attention by a warp-specialised kernel of an H100's own (sm_90a), in bf16
and fp16; those of the queries come from the kernel of attention_backward.py, which also leaves the
rotated queries and the softmax sums that this one reads.

    dk = scale ds^T R(q),  dv = p^T do

    out = attention_hopper_grad(q, k, v, segments, cos, sin)  # with its gradients
    key_gradients(rotated, k, v, d_out, state, dk, dv, k_tiles, scale=scale)

The kernel (attention_hopper_backward_kernels.py) is written in Gluon, which is imported at the
first launch.
"""

from __future__ import annotations

import contextvars
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from . import attention_forward, attention_hopper
from .attention import gradients, keep_for_backward, record, unwritten
from .attention_backward import backward, backward_configs
from .attention_forward import OLD_TRITON, Config, chunks, describable
from .attention_hopper import (
    CAPABILITY,
    CONSUMER_REGISTERS,
    LAUNCH_REGISTERS,
    PRODUCER_REGISTERS,
    hopper_config,
    processors,
)
from .rows import on_device
from .worklist import Segments

BLOCK_K = 128
"""Keys of a program: two groups of 64."""

simulated_kernel: Any = None
"""What is launched instead of the compiled kernel (profiling/simulator.py)."""


def refusal(device: torch.device) -> str | None:
    """Why the kernel cannot run on a device, None if it can (attention_hopper.refusal).

    Examples:
        >>> import torch
        >>> "NVIDIA H100" in refusal(torch.device("cpu"))
        True
    """
    if simulated_kernel is None and OLD_TRITON:
        return (
            f"the Hopper kernel of the gradients was compiled with Triton 3.7, and this is "
            f"{triton.__version__}: install triton 3.7 or newer, or take backend='hopper'"
        )
    return attention_hopper.refusal(device)


def dkv_config(head_dim: int) -> Config:
    """Queries of a tile, keys of a program and tiles on their way: at width 128 the accumulators of
    both gradients leave registers for 32 queries.
    """
    return Config(
        block_q=32 if head_dim == 128 else 64, block_k=BLOCK_K, warps=4, stages=2, tma=True
    )


def _load() -> Any:
    """The kernel: compiled, or what stands in for it."""
    if simulated_kernel is not None:
        return simulated_kernel
    from .attention_hopper_backward_kernels import attention_hopper_dkv_kernel

    return attention_hopper_dkv_kernel


def key_gradients(
    rotated: Tensor, k: Tensor, v: Tensor, d_out: Tensor, state: Tensor, dk: Tensor, dv: Tensor,
    k_tiles: Tensor, *, scale: float, programs: int | None = None,
) -> None:  # fmt: skip
    """Writes dk and dv.

    Args:
        rotated: [T, S H, K], the queries as attention saw them.
        k: [L, H, K].
        v: [L, H, K].
        d_out: [T, S H, K], contiguous.
        state: fp32 [S H, T, 2], lse log2(e) and delta of every query row.
        dk: [L, H, K], contiguous; rows of no tile stay as they are.
        dv: [L, H, K], likewise.
        k_tiles: Segments.key_tiles(BLOCK_K).
        scale: what q k is multiplied by.
        programs: how many share the work; None is one to a multiprocessor.
    """
    n_rows, q_heads, head_dim = rotated.shape
    heads = k.shape[1]
    items = k_tiles.shape[0] * heads
    if not items:
        return
    main, rest = chunks(head_dim)
    config = dkv_config(head_dim)
    rotated, k, v, d_out = (
        x if describable(x) else x.clone(memory_format=torch.contiguous_format)
        for x in (rotated, k, v, d_out)
    )
    grid = (min(items, programs or processors(k.device)),)

    def scratch(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=k.device)

    def launch() -> None:
        triton.set_allocator(scratch)  # descriptors are made on the device
        _load()[grid](
            rotated, k, v, d_out, state, dk, dv, k_tiles, scale, items, heads, q_heads // heads,
            n_rows, rotated.stride(0), d_out.stride(0), k.stride(0), v.stride(0), MAIN=main,
            REST=rest, BLOCK_Q=config.block_q,
            STAGES=config.stages, CONSUMER_REGISTERS=CONSUMER_REGISTERS,
            PRODUCER_REGISTERS=PRODUCER_REGISTERS, num_warps=config.warps,
            maxnreg=LAUNCH_REGISTERS,
        )  # fmt: skip

    # the allocator is set for this launch alone
    contextvars.copy_context().run(launch)


attention_hopper_grad_fwd = torch.library.custom_op(
    "mudit::attention_hopper_grad_fwd", attention_hopper._forward, mutates_args=()
)
attention_hopper_grad_fwd.register_fake(unwritten)


@torch.library.custom_op("mudit::attention_hopper_bwd", mutates_args=())
def attention_hopper_bwd(
    d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    cos: Tensor | None, sin: Tensor | None, dq_tiles: Tensor, dkv_tiles: Tensor, scale: float,
    precision: str, q_covered: bool, k_covered: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """attention_bwd with the Hopper kernel for k and v: the same arguments, the same results."""
    with on_device(q.device):
        configs = backward_configs(
            q.shape[-1], q.dtype, attention_forward.target_capability(), precision
        )
        return backward(
            d_out, d_lse, q, k, v, out, lse, cos, sin, dq_tiles, dkv_tiles, configs, scale=scale,
            precision=precision, q_covered=q_covered, k_covered=k_covered,
            key_gradients=key_gradients,
        )  # fmt: skip


@attention_hopper_bwd.register_fake
def _(d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Any:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


attention_hopper_grad_fwd.register_autograd(
    partial(gradients, backward=attention_hopper_bwd), setup_context=keep_for_backward
)


def attention_hopper_grad(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """attention_hopper() whose gradients of k and v come from a warp-specialised kernel, too.

    No GPU has run it yet: it is compiled for sm_90a, and its synchronisation is simulated.

    Args:
        q: [T, S H, K] in bf16 or fp16, K 64, 96 or 128. Rows and heads may be strided.
        k: [L, H, K] of the same dtype, already rotated.
        v: [L, H, K].
        segments: which rows see which; no two may share key rows where gradients are recorded.
        cos: fp32 [S, T, K/2], rotary angles of the queries; None rotates nothing.
        sin: fp32 [S, T, K/2].
        scale: what q k is multiplied by, positive; None is 1 / sqrt(K).

    Returns:
        A contiguous [T, S H, K] of q's dtype.

    Raises:
        ValueError: as attention_hopper(), and with a Triton before 3.7.

    Source:
        Dao 2023, FlashAttention-2 (arXiv 2307.08691), for the gradients.

    Examples:
        >>> import torch
        >>> q, k, v = torch.randn(3, 8, 2, 64).bfloat16().requires_grad_().unbind()
        >>> if refusal(q.device) is None:  # on an H100
        ...     attention_hopper_grad(q, k, v, Segments.self_attention([3, 5])).sum().backward()
    """
    hopper_config(q.shape[-1], q.dtype, CAPABILITY)
    if (reason := refusal(q.device)) is not None:
        raise ValueError(reason)
    block_q = attention_hopper.CONFIG.block_q
    operator = attention_hopper_grad_fwd
    return record(operator, block_q, q, k, v, segments, cos, sin, scale, "tf32", block_k=BLOCK_K)
