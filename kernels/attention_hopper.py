"""Ragged attention by a warp-specialised kernel of an H100's own (sm_90a): what attention() of
attention.py computes, in bf16 and fp16. Its gradient is that of attention(), from the same sums.

    o_i = sum_j softmax_j(scale R(p_i) q_i . k_j) v_j

The kernel (attention_hopper_kernels.py) is written in Gluon, which is imported at the first launch:
a Triton without it is named by refusal(), and everything else works.

    out = attention_hopper(q, k, v, segments, cos, sin)  # q [T, S H, K], k and v [L, H, K]
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from .attention import attend, gradients, keep_for_backward, record, unwritten
from .attention_forward import Config, chunks, describable, results, target_capability
from .rows import on_device, unobserved
from .worklist import Segments

DTYPES = (torch.bfloat16, torch.float16)
CAPABILITY = 90
CONFIG = Config(block_q=128, block_k=128, warps=4, stages=2, tma=True)
"""Two groups of 64 query rows; 128 keys a tile, and two tiles of keys and of values on their way.
warps: of each of the two groups."""
# Three groups of warps share 65,536 registers: 168 each at launch, then 240 for those that attend
# and 24 for the one that copies
LAUNCH_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS = 168, 240, 24
PROCESSORS = 132
"""Of an H100, where no device can be asked."""

simulated_kernel: Any = None
"""What is launched instead of the compiled kernel (profiling/simulator.py)."""


@cache
def _gluon() -> str | None:
    """What Triton lacks, None for nothing."""
    names = ("triton.experimental", "triton.experimental.gluon")
    if all(importlib.util.find_spec(name) is not None for name in names):
        return None
    return (
        f"Triton {triton.__version__} has no triton.experimental.gluon, in which the Hopper "
        f"kernel is written: install triton 3.6 or newer, or take backend='triton'"
    )


def refusal(device: torch.device) -> str | None:
    """Why the kernel cannot run on a device, None if it can.

    Args:
        device: where the tensors are.

    Returns:
        A sentence for the user: what was found, and what to do.

    Examples:
        >>> import torch
        >>> "NVIDIA H100" in refusal(torch.device("cpu"))
        True
    """
    if simulated_kernel is not None:
        return None
    if (reason := _gluon()) is not None:
        return reason
    capability = 0
    with contextlib.suppress(RuntimeError), on_device(device):  # Triton may find no driver at all
        capability = target_capability()
    if capability == CAPABILITY:
        return None
    where = f"{device} is sm_{capability}" if device.type == "cuda" else f"the device is {device}"
    return (
        f"the Hopper kernel runs on an NVIDIA H100, H200 or GH200 (sm_90) alone, and {where}: "
        f"take backend='triton' or 'eager'"
    )


def hopper_config(
    head_dim: int, dtype: torch.dtype, capability: int, precision: str = "tf32"
) -> Config:
    """The tiles of the kernel: the same for all that it takes. Raises ValueError for fp32."""
    if dtype not in DTYPES:
        raise ValueError(f"{dtype} has no Hopper kernel (bfloat16, float16): use backend='triton'")
    return CONFIG


def _load() -> Any:
    """The kernel: compiled, or what stands in for it."""
    if simulated_kernel is not None:
        return simulated_kernel
    from .attention_hopper_kernels import attention_hopper_kernel

    return attention_hopper_kernel


def processors(device: torch.device) -> int:
    """How many programs run at once: one to a multiprocessor."""
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def forward(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor | None, sin: Tensor | None, tiles: Tensor,
    config: Config, *, scale: float, precision: str, covered: bool, programs: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As attention_forward.forward. k and v that a descriptor cannot reach are copied.

    programs: how many share the work; None is one to a multiprocessor.
    """
    n_rows, _, head_dim = q.shape
    heads = k.shape[1]
    out, lse = results(q, covered=covered)
    items = tiles.shape[0] * heads
    if not items:
        return out, lse
    if not k.shape[0]:  # no segment has keys, but a descriptor needs a row
        k = v = q.new_zeros(1, heads, head_dim)
    k, v = (x if describable(x) else x.clone(memory_format=torch.contiguous_format) for x in (k, v))
    main, rest = chunks(head_dim)
    grid = (min(items, programs or processors(q.device)),)

    def scratch(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=q.device)

    def launch() -> None:
        triton.set_allocator(scratch)  # descriptors are made on the device
        _load()[grid](
            q, k, v, cos, sin, out, lse, tiles, scale, items, heads, n_rows, q.stride(0),
            q.stride(1), k.stride(0), v.stride(0), out.stride(0), HEAD_DIM=head_dim, MAIN=main,
            REST=rest, BLOCK_Q=config.block_q, BLOCK_K=config.block_k, STAGES=config.stages,
            ROTATE=cos is not None, CONSUMER_REGISTERS=CONSUMER_REGISTERS,
            PRODUCER_REGISTERS=PRODUCER_REGISTERS, num_warps=config.warps,
            maxnreg=LAUNCH_REGISTERS,
        )  # fmt: skip

    # the allocator is set for this launch alone
    contextvars.copy_context().run(launch)
    return out, lse


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor | None, sin: Tensor | None, q_tiles: Tensor,
    dq_tiles: Tensor, dkv_tiles: Tensor, scale: float, precision: str, q_covered: bool,
    k_covered: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """attention_fwd by the Hopper kernel: the same arguments, the same results."""
    if (reason := refusal(q.device)) is not None:  # compiled code asks here
        raise ValueError(reason)
    with on_device(q.device):
        config = hopper_config(q.shape[-1], q.dtype, CAPABILITY)
        return forward(
            q, k, v, cos, sin, q_tiles, config, scale=scale, precision=precision, covered=q_covered
        )


attention_hopper_fwd = torch.library.custom_op(
    "mudit::attention_hopper_fwd", _forward, mutates_args=()
)
attention_hopper_fwd.register_fake(unwritten)
attention_hopper_fwd.register_autograd(gradients, setup_context=keep_for_backward)


def attention_hopper(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention of every segment by the warp-specialised kernel of an H100.

    Differentiable in q, k and v if no two segments share key rows. No GPU has run it yet: it is
    compiled for sm_90a, and its synchronisation is simulated.

    Args:
        q: [T, S H, K] in bf16 or fp16, K 64, 96 or 128. Rows and heads may be strided.
        k: [L, H, K] of the same dtype, already rotated.
        v: [L, H, K].
        segments: which rows see which.
        cos: fp32 [S, T, K/2], rotary angles of the queries; None rotates nothing.
        sin: fp32 [S, T, K/2].
        scale: what q k is multiplied by, positive; None is 1 / sqrt(K).

    Returns:
        A contiguous [T, S H, K] of q's dtype.

    Raises:
        ValueError: on any other device, with a Triton that has no Gluon, for fp32, or for shapes
            that attention() refuses.

    Source:
        Shah et al. 2024, FlashAttention-3 (arXiv 2407.08608).

    Examples:
        >>> import torch
        >>> q, k, v = torch.randn(3, 8, 2, 64).bfloat16().unbind()
        >>> if refusal(q.device) is None:  # on an H100
        ...     out = attention_hopper(q, k, v, Segments.self_attention([3, 5]))
    """
    hopper_config(q.shape[-1], q.dtype, CAPABILITY)
    if unobserved(q, k, v):
        if (reason := refusal(q.device)) is not None:
            raise ValueError(reason)
        return attend(q, k, v, segments, cos, sin, scale, "tf32", forward, hopper_config)
    return record(attention_hopper_fwd, CONFIG.block_q, q, k, v, segments, cos, sin, scale, "tf32")
