"""The one door to the kernels: every hot op, on the backend that fits the tensors or the one that
was named.

    out = ops.attention(q, k, v, segments, cos, sin)
    with ops.use("eager"):                     # or "triton", "flash", "cudnn", ...
        ...

Left alone, CUDA tensors take `triton` and all others `eager` (the plain references of kernels/),
unless `mudit bench tune` measured another backend to be faster on this very device
(backends/table.py): then attention and the MLP's first product take that one where it can serve the
call, and the next one, with a reason in the log, where it cannot. A named backend that cannot serve
a call raises: nothing falls back in silence. All but `eager` and `triton` are backends of attention
alone; other ops then run as if nothing was named.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.backends import table
from mudit_engine.backends.epilogues import LINEAR_GELU
from mudit_engine.backends.registry import ATTENTION, asked
from mudit_engine.errors import InputError
from mudit_engine.kernels import adaln, adaln_traced
from mudit_engine.kernels import attention as attention_kernels
from mudit_engine.kernels import guided_step as guided_step_kernels
from mudit_engine.kernels import pack_qkv as packing
from mudit_engine.kernels.adaln_traced import RunTensors
from mudit_engine.kernels.guided_step import SongRows
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments
from mudit_engine.layouts import dense, sharded
from mudit_engine.layouts.dense import DenseKeys, DenseStreams, PerSequence
from mudit_engine.layouts.sharded import ShardedSegments

log = logging.getLogger(__name__)

BACKENDS = tuple(ATTENTION)

_named: ContextVar[str | None] = ContextVar("mudit_backend", default=None)
# (thread, backend) of every `use` that is open, in the order they were opened. torch.compile traces
# no ContextVar; this it reads, and compiles anew when it has changed.
_open: tuple[tuple[str, str], ...] = ()
_lock = threading.Lock()


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Runs every operation inside the block on one backend, in this thread.

    Compiled code knows no threads: it takes the backend that one of them has named, and raises
    while several have.

    Args:
        backend: "eager" (the plain references), "triton" (the kernels), or one of attention alone
            (backends/registry.py); other ops then run as if nothing was named.

    Raises:
        InputError: for an unknown name. A call inside that the backend cannot serve raises too:
            nothing falls back in silence.

    Examples:
        >>> import torch
        >>> with use("eager"):
        ...     backend_of(torch.zeros(1))
        'eager'
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
    """The backend that attention on x takes now.

    Args:
        x: any tensor; only its device counts.

    Returns:
        The name given to `use`, else "triton" for CUDA tensors and "eager" for all others, whatever
        a table of this device puts before it.

    Examples:
        >>> import torch
        >>> backend_of(torch.zeros(1))
        'eager'
    """
    return _name() or ("triton" if x.is_cuda else "eager")


def _triton(x: Tensor) -> bool:
    """Whether any other op on x takes the Triton kernels."""
    named = _name()
    return named == "triton" if named in ("eager", "triton") else x.is_cuda


def _orders(kind: str) -> table.Table | None:
    """The table that says what is fastest on this kind of device; none in compiled code."""
    if torch.compiler.is_compiling() or kind not in ("cpu", "cuda"):
        return None
    return table.in_force(kind).table


_told: set[str] = set()


def _fell_back(text: str) -> None:
    """Says once why the fastest backend does not run."""
    if text not in _told:
        _told.add(text)
        log.warning("%s", text)


def _measured(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> str | None:
    """The backend of attention that the table in force puts first, of those that can serve this
    call; None without a table or without a row for it. Asked once a layout.
    """
    if (orders := _orders(q.device.type)) is None:
        return None
    call = asked(q, k, v, segments)
    key = ("measured", id(orders), call)
    if key not in segments.plans:
        longest = max([0, *(item[3] for item in segments.items)])
        op = "attention_grad" if call.grad else "attention"
        chosen = None
        for name in orders.order(op, call.head_dim, call.dtype, longest):
            refused = ATTENTION[name].refuses(call) if name in ATTENTION else "it is unknown here"
            if refused is None:
                chosen = name
                break
            _fell_back(f"attention does not run on '{name}', the fastest measured: {refused}")
        segments.plans[key] = chosen
    found: str | None = segments.plans[key]
    return found


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
    """Attention of packed sequences: each query row sees the key rows of its segment and no others.

    Queries are rotated inside; keys come rotated, by `pack_qkv` or `pack_kv`.

    Args:
        q: [T, S H, K] of a float dtype: T packed rows, S streams of H heads, K head width.
        k: [L, H, K] keys, already rotated.
        v: [L, H, K] values.
        segments: which rows see which: `Segments` of packed rows; masks of padded rows
            (layouts/dense.py); or segments shared by ranks (layouts/sharded.py).
        cos: fp32 [S, T, K/2] of the queries' rotary angles, a table a stream; None rotates nothing.
        sin: fp32 [S, T, K/2], as cos.
        scale: what q k is multiplied by; None is 1 / sqrt(K).

    Returns:
        [T, S H, K] of q's dtype. Rows of segments without keys, and rows of none, are 0.

    Raises:
        ValueError: for shapes or dtypes that the backend does not take.

    Source:
        Dao 2023, FlashAttention-2 (arXiv 2307.08691); Su et al. 2021, RoPE (arXiv 2104.09864).

    Examples:
        Two songs of 3 and 5 rows, packed end to end:

        >>> import torch
        >>> q, k, v = torch.randn(3, 8, 2, 64).unbind()
        >>> attention(q, k, v, Segments.self_attention([3, 5])).shape
        torch.Size([8, 2, 64])
    """
    if isinstance(segments, ShardedSegments):
        return sharded.attention(q, k, v, segments, cos, sin, scale=scale, whole=attention)
    if not isinstance(segments, Segments):
        return dense.attention(q, k, v, segments, cos, sin, scale=scale)
    name = _name() or _measured(q, k, v, segments) or ("triton" if q.is_cuda else "eager")
    if name == "triton":
        return attention_kernels.attention(q, k, v, segments, cos, sin, scale=scale)
    if name == "eager":
        return attention_kernels.attention_reference(q, k, v, segments, cos, sin, scale=scale)
    backend = ATTENTION[name]
    if (refused := backend.refuses(asked(q, k, v, segments))) is not None:
        raise refused
    return backend.attend(q, k, v, segments, cos, sin, scale=scale)


def pack_qkv(
    qkv: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    q_streams: int = 1,
    k_out: Tensor | None = None,
    v_out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits a fused projection into queries, keys and values, normalises q and k, and rotates k.

    Args:
        qkv: [T, (S + 2) H K]: queries of stream 0, keys, values, then queries of the other streams.
        q_gain: [S, K], the gains of the queries' RMS norm; None leaves them as they are.
        k_gain: [K], the gain of the keys; None likewise.
        cos: fp32 [T, K/2], the keys' rotary angles (`rope_table`).
        sin: fp32 [T, K/2].
        heads: H.
        q_streams: S.
        k_out: [T, H, K], where the keys are written, such as rows of a buffer that holds lyric
            keys behind them; no gradients then.
        v_out: [T, H, K], likewise for the values.

    Returns:
        q [T, S H, K] normalised, k [T, H, K] normalised and rotated, v [T, H, K].

    Source:
        Su et al. 2021 (arXiv 2104.09864); Henry et al. 2020, QK-norm (arXiv 2010.04245).

    Examples:
        >>> import torch
        >>> from mudit_engine.kernels.rotary import rope_table
        >>> cos, sin = rope_table(torch.arange(5.0), 64)
        >>> q, k, v = pack_qkv(torch.randn(5, 3 * 2 * 64), None, None, cos, sin, heads=2)
        >>> q.shape, k.shape, v.shape
        (torch.Size([5, 2, 64]), torch.Size([5, 2, 64]), torch.Size([5, 2, 64]))
    """
    if _triton(qkv):
        return packing.pack_qkv(
            qkv, q_gain, k_gain, cos, sin,
            heads=heads, q_streams=q_streams, k_out=k_out, v_out=v_out,
        )  # fmt: skip
    q, k, v = packing.pack_qkv_reference(
        qkv, q_gain, k_gain, cos, sin, heads=heads, q_streams=q_streams
    )
    return q, k if k_out is None else k_out.copy_(k), v if v_out is None else v_out.copy_(v)


def pack_kv(
    kv: Tensor, k_gain: Tensor | None, cos: Tensor, sin: Tensor, *, heads: int
) -> tuple[Tensor, Tensor]:
    """Splits a projection into keys and values, normalises the keys and rotates them.

    This is the side of cross-attention that is computed once a song.

    Args:
        kv: [L, 2 H K]: keys, then values.
        k_gain: [K], the gain of the keys' RMS norm; None leaves them as they are.
        cos: fp32 [L, K/2], rotary angles.
        sin: fp32 [L, K/2].
        heads: H.

    Returns:
        k [L, H, K] and v [L, H, K].

    Examples:
        >>> import torch
        >>> from mudit_engine.kernels.rotary import rope_table
        >>> tables = rope_table(torch.arange(7.0), 64)
        >>> k, v = pack_kv(torch.randn(7, 2 * 2 * 64), None, *tables, heads=2)
        >>> k.shape
        torch.Size([7, 2, 64])
    """
    if _triton(kv):
        return packing.pack_kv(kv, k_gain, cos, sin, heads=heads)
    return packing.pack_kv_reference(kv, k_gain, cos, sin, heads=heads)


def rms_norm(x: Tensor, gain: Tensor | None) -> Tensor:
    """RMS norm over the last axis, x / sqrt(mean(x^2) + eps) times a gain.

    Args:
        x: [..., K] of a float dtype.
        gain: [K]; None is 1.

    Returns:
        A tensor like x.

    Source:
        Zhang and Sennrich 2019 (arXiv 1910.07467).

    Examples:
        >>> import torch
        >>> rms_norm(torch.full((4,), 3.0), torch.full((4,), 2.0)).round()
        tensor([2., 2., 2., 2.])
    """
    if gain is not None and gain.dtype != x.dtype:
        return packing.rms_norm_reference(x, gain)  # under autocast: weights fp32, rows bf16
    # autocast may widen the result, and attention takes queries of the keys' type
    return F.rms_norm(x, x.shape[-1:], gain, packing.EPS).to(x.dtype)


def layer_norm_modulate(
    x: Tensor, shift: Tensor | None, scale: Tensor | None, runs: Runs | PerSequence | None
) -> Tensor:
    """LayerNorm without affine terms, then scale and shift by a row of a table.

        h = LN(x) (1 + scale[r]) + shift[r]        r: the table row of the packed row

    Args:
        x: [T, D] of a float dtype.
        shift: [R, D] table, a row for each modulation; rows may be strided. None for both tables
            gives the plain LayerNorm.
        scale: [R, D], as shift.
        runs: which table row each run of packed rows takes; None where there is no table.

    Returns:
        [T, D] of x's dtype.

    Source:
        Peebles and Xie 2023, section 3.2, adaLN (arXiv 2212.09748).

    Examples:
        >>> import torch
        >>> x, table = torch.randn(5, 8), torch.zeros(2, 8)
        >>> h = layer_norm_modulate(x, table, table, Runs(((2, 0), (3, 1))))   # 2 rows, then 3
        >>> bool(torch.allclose(h, torch.nn.functional.layer_norm(x, (8,), eps=1e-6), atol=1e-5))
        True
    """
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
    runs: Runs | RunTensors | PerSequence | None,
) -> tuple[Tensor, Tensor]:
    """Adds a gated branch to the residual stream, then normalises and modulates the sum.

        x' = x + gate[r] y        h = LN(x') (1 + scale[r]) + shift[r]

    Args:
        x: [T, D], the residual stream. It is overwritten where nothing needs a gradient.
        y: [T, D], what a branch adds.
        gate: [R, D] table; None is 1.
        shift: [R, D] table; None with scale None gives the plain LayerNorm.
        scale: [R, D] table.
        runs: which table row each run of packed rows takes; None where there is no table; in code
            that is compiled for any runs, RunTensors.

    Returns:
        x' and h, both [T, D] of x's dtype.

    Source:
        Peebles and Xie 2023, section 3.2, adaLN-Zero (arXiv 2212.09748).

    Examples:
        >>> import torch
        >>> x, y = torch.randn(2, 5, 8).unbind()
        >>> total, h = residual_norm(x.clone(), y, None, None, None, None)
        >>> bool(torch.allclose(total, x + y))
        True
    """
    if isinstance(runs, PerSequence):
        return dense.residual_norm(x, y, gate, shift, scale)
    if isinstance(runs, RunTensors):
        if _triton(x):
            return adaln_traced.residual_norm_traced(x, y, gate, shift, scale, runs)
        return adaln_traced.residual_norm_indexed(x, y, gate, shift, scale, runs)
    if _triton(x):
        return adaln.residual_norm(
            x, y, gate, shift, scale, runs, inplace=_inference(x, y, gate, shift, scale)
        )
    return adaln.residual_norm_reference(
        x, y, gate, shift, scale, runs, inplace=_inference(x, y, gate, shift, scale)
    )


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A matrix product with bias, followed by the tanh form of GELU.

        h = gelu_tanh(x W^T + b)

    Args:
        x: [T, D] of a float dtype.
        weight: [M, D].
        bias: [M].

    Returns:
        [T, M] of x's dtype.

    Source:
        Hendrycks and Gimpel 2016, eq. 2 (arXiv 1606.08415).

    Examples:
        >>> import torch
        >>> linear_gelu(torch.randn(3, 8), torch.randn(16, 8), torch.zeros(16)).shape
        torch.Size([3, 16])
    """
    return LINEAR_GELU[_linear_gelu_backend(x, weight, bias)](x, weight, bias)


def _linear_gelu_backend(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    usual = "triton" if _triton(x) else "eager"
    if _name() in ("eager", "triton") or (orders := _orders(x.device.type)) is None:
        return usual
    if not _inference(x, weight, bias):
        return usual
    names = orders.order("linear_gelu", x.shape[-1], x.dtype, x.shape[0])
    return next((name for name in names if name in LINEAR_GELU), usual)


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
    """Guidance and one update of the latents, by a row of coefficients for each song.

        out = uncond + w (cond - uncond)
        x' = a x + b out + c kept + d noise        kept' = p x + q out

    Args:
        x: fp32 [T, C], packed latents of all songs.
        kept: fp32 [T, C], what the sampler keeps from step to step; not read where c is 0.
        out: [N, C] of a float dtype, the network's packed output for all sequences.
        noise: fp32 [T, C] of standard normal values; None where every d is 0.
        rows: fp32 [B, 7], a row (a, b, c, d, p, q, w) for each song.
        spans: where each song lies in x and in out.
        inplace: writes x' and kept' over x and kept.

    Returns:
        x' and kept', fp32 [T, C].

    Source:
        Ho and Salimans 2022, guidance (arXiv 2207.12598); diffusion/samplers.py for the tables.

    Examples:
        One song of 2 frames, one Euler step without guidance (b = -0.5):

        >>> import torch
        >>> x, out = torch.zeros(2, 8), torch.ones(2, 8)
        >>> rows = torch.tensor([[1.0, -0.5, 0, 0, 0, 1, 1]])
        >>> x, kept = guided_step(x, torch.zeros(2, 8), out, None, rows, SongRows(((0, 2, 0, -1),)))
        >>> float(x[0, 0]), float(kept[0, 0])
        (-0.5, 1.0)
    """
    if _triton(x):
        return guided_step_kernels.guided_step(x, kept, out, noise, rows, spans, inplace=inplace)
    new_x, new_kept = guided_step_kernels.guided_step_reference(x, kept, out, noise, rows, spans)
    return (x.copy_(new_x), kept.copy_(new_kept)) if inplace else (new_x, new_kept)
