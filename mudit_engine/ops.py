"""The one door to the kernels: every hot op, on the backend that fits the tensors or the one that
was named.

    out = ops.attention(q, k, v, segments, cos, sin)
    with ops.use("eager"):                     # or "triton", "flash"
        ...

Left alone, CUDA tensors take `triton` and all others `eager` (the plain references of kernels/). A
named backend that cannot serve a call raises: nothing falls back in silence. `flash` is a backend
of attention alone; other ops then run as if nothing was named.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.errors import InputError
from mudit_engine.kernels import adaln
from mudit_engine.kernels import attention as attention_kernels
from mudit_engine.kernels import guided_step as guided_step_kernels
from mudit_engine.kernels import pack_qkv as packing
from mudit_engine.kernels.adaln import Runs
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.kernels.worklist import Segments
from mudit_engine.layouts import dense, sharded
from mudit_engine.layouts.dense import DenseKeys, DenseStreams, PerSequence
from mudit_engine.layouts.flash import varlen_attention
from mudit_engine.layouts.sharded import ShardedSegments

BACKENDS = ("eager", "triton", "flash")

_named: ContextVar[str | None] = ContextVar("mudit_backend", default=None)
# (thread, backend) of every `use` that is open, in the order they were opened. torch.compile traces
# no ContextVar; this it reads, and compiles anew when it has changed.
_open: tuple[tuple[str, str], ...] = ()
_lock = threading.Lock()


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Every op inside runs on `backend`, in this thread. Raises InputError for an unknown name.

    Compiled code knows no threads: it takes the backend that one of them has named, and raises
    while several have.
    """
    global _open
    if backend not in BACKENDS:
        raise InputError(f"unknown backend '{backend}': choose one of {', '.join(BACKENDS)}")
    mine = (str(threading.get_ident()), backend)
    with _lock:
        _open = (*_open, mine)
    token = _named.set(backend)
    try:
        yield
    finally:
        _named.reset(token)
        with _lock:
            last = len(_open) - 1 - _open[::-1].index(mine)
            _open = _open[:last] + _open[last + 1 :]


def _name() -> str | None:
    """The backend that was named, None if none was."""
    if not torch.compiler.is_compiling():
        return _named.get()
    if not _open:
        return None
    for thread, _ in _open:
        if thread != _open[0][0]:
            raise InputError("ops.use is open in several threads: compile in one at a time")
    return _open[-1][1]


def backend_of(x: Tensor) -> str:
    """The backend that attention on x takes now."""
    return _name() or ("triton" if x.is_cuda else "eager")


def _triton(x: Tensor) -> bool:
    """Whether any other op on x takes the Triton kernels."""
    named = _name()
    return x.is_cuda if named in (None, "flash") else named == "triton"


def _inference(*tensors: Tensor | None) -> bool:
    """True when buffers may be overwritten: nothing here is recorded for a backward pass."""
    return not torch.is_grad_enabled() or not any(
        t is not None and t.requires_grad for t in tensors
    )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments | DenseKeys | DenseStreams | ShardedSegments,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Ragged attention: q [T, S H, K], k and v [L, H, K], tables [S, T, K/2] or None -> [T, S H, K]
    (kernels/attention.py).
    """
    if isinstance(segments, ShardedSegments):
        return sharded.attention(q, k, v, segments, cos, sin, scale=scale, whole=attention)
    if not isinstance(segments, Segments):
        return dense.attention(q, k, v, segments, cos, sin, scale=scale)
    if backend_of(q) == "triton":
        return attention_kernels.attention(q, k, v, segments, cos, sin, scale=scale)
    if backend_of(q) == "flash":
        return varlen_attention(q, k, v, segments, cos, sin, scale=scale)
    return attention_kernels.attention_reference(q, k, v, segments, cos, sin, scale=scale)


def pack_qkv(
    qkv: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    q_streams: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits a fused projection; normalises q and k, rotates k (kernels/pack_qkv.py)."""
    if _triton(qkv):
        return packing.pack_qkv(qkv, q_gain, k_gain, cos, sin, heads=heads, q_streams=q_streams)
    return packing.pack_qkv_reference(
        qkv, q_gain, k_gain, cos, sin, heads=heads, q_streams=q_streams
    )


def pack_kv(
    kv: Tensor, k_gain: Tensor | None, cos: Tensor, sin: Tensor, *, heads: int
) -> tuple[Tensor, Tensor]:
    """Splits and rotates the cached side of cross-attention (kernels/pack_qkv.py)."""
    if _triton(kv):
        return packing.pack_kv(kv, k_gain, cos, sin, heads=heads)
    return packing.pack_kv_reference(kv, k_gain, cos, sin, heads=heads)


def rms_norm(x: Tensor, gain: Tensor | None) -> Tensor:
    """RMSNorm over the last axis (the query of serial cross-attention)."""
    return F.rms_norm(x, x.shape[-1:], gain, packing.EPS)


def layer_norm_modulate(
    x: Tensor, shift: Tensor | None, scale: Tensor | None, runs: Runs | PerSequence | None
) -> Tensor:
    """LayerNorm, then (1 + scale) and shift of each run's row (kernels/adaln.py)."""
    if isinstance(runs, PerSequence):
        return dense.layer_norm_modulate(x, shift, scale)
    if _triton(x):
        return adaln.layer_norm_modulate(x, shift, scale, runs)
    return adaln.layer_norm_modulate_reference(x, shift, scale, runs)


def residual_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    runs: Runs | PerSequence | None,
) -> tuple[Tensor, Tensor]:
    """x + gate y and its modulated LayerNorm, the residual stream read and written once; over x
    itself when nothing needs a gradient.
    """
    if isinstance(runs, PerSequence):
        return dense.residual_norm(x, y, gate, shift, scale)
    if _triton(x):
        return adaln.residual_norm(
            x, y, gate, shift, scale, runs, inplace=_inference(x, y, gate, shift, scale)
        )
    return adaln.residual_norm_reference(
        x, y, gate, shift, scale, runs, inplace=_inference(x, y, gate, shift, scale)
    )


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu_tanh(x W^T + b): a matrix product and its epilogue (kernels/bias_gelu.py)."""
    if _triton(x):
        from mudit_engine.kernels.bias_gelu import bias_gelu

        return bias_gelu(F.linear(x, weight), bias)
    u = F.linear(x, weight, bias)  # the CPU's GEMM adds the bias for nothing
    return (
        torch.ops.aten.gelu_(u, approximate="tanh")
        if _inference(u)
        else F.gelu(u, approximate="tanh")
    )


def guided_step(
    x: Tensor,
    kept: Tensor,
    out: Tensor,
    noise: Tensor | None,
    rows: Tensor,
    spans: SongRows,
    *,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Guidance and one sampler update (kernels/guided_step.py), over x and kept where `inplace`."""
    if _triton(x):
        return guided_step_kernels.guided_step(x, kept, out, noise, rows, spans, inplace=inplace)
    new_x, new_kept = guided_step_kernels.guided_step_reference(x, kept, out, noise, rows, spans)
    return (x.copy_(new_x), kept.copy_(new_kept)) if inplace else (new_x, new_kept)
