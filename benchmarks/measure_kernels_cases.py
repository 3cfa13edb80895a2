"""What the kernel benchmark runs: every op on ragged songs, with its float64 truth and the other
ways to compute the same.

    asked = {"ops": ("attention", "norm"), "head_dims": (96,), "dtype": torch.bfloat16}
    for case in cases(FULL, **asked, device="cuda"):
        out = case.providers["mudit"](*case.inputs)

All providers take the same packed rows and give the same tensors: what another library needs around
its kernel (padding, a loop over songs, the rotation of queries) is part of its time, as it would be
part of a model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.availability import available, install_command
from mudit_engine.backends.registry import ATTENTION, FLASH, asked
from mudit_engine.kernels.adaln import (
    layer_norm_modulate,
    layer_norm_modulate_reference,
    residual_norm,
    residual_norm_reference,
)
from mudit_engine.kernels.attention import attention, attention_reference
from mudit_engine.kernels.bias_gelu import bias_gelu, bias_gelu_reference
from mudit_engine.kernels.guided_step import SongRows, guided_step, guided_step_reference
from mudit_engine.kernels.pack_qkv import pack_qkv, pack_qkv_reference
from mudit_engine.kernels.rotary import rope_table, rotate_reference
from mudit_engine.kernels.runs import Runs
from mudit_engine.kernels.worklist import Segments

Provider = Callable[..., tuple[Tensor, ...]]
OURS, EAGER = "mudit", "eager"
COMPILED = "torch.compile"


@dataclass(frozen=True)
class Size:
    """Songs (frames, lyric tokens) and the network around them."""

    songs: tuple[tuple[int, int], ...]
    width: int
    channels: int

    @property
    def frames(self) -> list[int]:
        return [frames for frames, _ in self.songs]


# 30, 60, 120 and 260 s at 10.77 Hz with their phonemes, each twice: four guided songs, or a
# training batch
FULL = Size(((323, 120), (646, 240), (1292, 480), (2800, 1024)) * 2, width=1536, channels=96)
TINY = Size(((37, 5), (1, 0), (20, 9)), width=384, channels=8)


@dataclass
class Case:
    """One op at one size. providers: name -> function of `inputs`; the eager reference also runs in
    float64.
    """

    op: str
    head_dim: int | None
    rows: int
    inputs: list[Tensor]
    providers: dict[str, Provider]
    flops: float
    """Useful products of one forward pass; 0 where time goes to memory."""
    differentiable: bool = True
    missing: dict[str, str] = field(default_factory=dict)
    """Providers that cannot be had here, and why."""


def _rope(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = rope_table(positions, head_dim)
    return (cos.double(), sin.double()) if dtype == torch.float64 else (cos, sin)


def _positions(lengths: Sequence[int], device: str) -> Tensor:
    return torch.cat([torch.arange(n) for n in lengths]).float().to(device)


def _foreign(name: str, segments: Segments, cos: Tensor, sin: Tensor) -> Provider:
    """A backend of attention as a provider; the rotation of its queries is part of its time."""

    def provider(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (ATTENTION[name].attend(q, k, v, segments, cos, sin, scale=None),)

    return provider


def attention_case(size: Size, head_dim: int, dtype: torch.dtype, device: str) -> Case:
    """Self- and cross-attention of a parallel block, in one launch of ours."""
    frames, lyrics = size.frames, [tokens for _, tokens in size.songs]
    rows, heads = sum(frames), size.width // head_dim
    segments = Segments.self_attention(frames) + Segments.cross_attention(
        frames, lyrics, k_offset=rows, stream=1
    )
    positions = _positions(frames, device)
    cos, sin = (torch.stack((table, table)) for table in _rope(positions, head_dim, dtype))
    g = torch.Generator().manual_seed(head_dim)
    keys = (rows + sum(lyrics), heads)
    q, k, v = (
        torch.randn(n, h, head_dim, generator=g).to(device, dtype)
        for n, h in ((rows, 2 * heads), keys, keys)
    )

    def eager(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (attention_reference(q, k, v, segments, cos.to(_wide(q)), sin.to(_wide(q))),)

    def padded(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (_padded_attention(q, k, v, frames, lyrics, cos, sin),)

    providers: dict[str, Provider] = {
        # eager fp32 products are exact, so ours are too
        OURS: lambda q, k, v: (
            attention(
                q,
                k,
                v,
                segments,
                cos,
                sin,
                precision="ieee" if q.dtype == torch.float32 else "tf32",
            ),
        ),
        EAGER: eager,
        "sdpa padded": padded,
        COMPILED: eager,
    }
    missing = {}
    for name in (*FLASH, "varlen"):
        if (refused := ATTENTION[name].refuses(asked(q, k, v, segments))) is not None:
            missing[name] = str(refused)
        else:
            providers[name] = _foreign(name, segments, cos, sin)
    pairs = sum(n * n + n * tokens for n, tokens in size.songs)
    return Case(
        "attention",
        head_dim,
        rows,
        [q, k, v],
        providers,
        4.0 * head_dim * heads * pairs,
        missing=missing,
    )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _padded_attention(
    q: Tensor, k: Tensor, v: Tensor, frames: list[int], lyrics: list[int], cos: Tensor, sin: Tensor
) -> Tensor:
    """Both streams as dense batches with a mask, padded to the longest song: what a model without
    ragged kernels does.
    """
    heads, rows = k.shape[1], sum(frames)
    outs = []
    for stream, lengths, first in ((0, frames, 0), (1, lyrics, rows)):
        query = rotate_reference(
            q[:, stream * heads : (stream + 1) * heads], cos[stream], sin[stream]
        )
        keys, values = k[first : first + sum(lengths)], v[first : first + sum(lengths)]
        q_pad, k_pad, v_pad = (
            torch.nn.utils.rnn.pad_sequence(list(x.split(counts)), batch_first=True).transpose(1, 2)
            for x, counts in ((query, frames), (keys, lengths), (values, lengths))
        )
        kept = (
            torch.arange(k_pad.shape[2], device=q.device)
            < torch.tensor(lengths, device=q.device)[:, None]
        )
        # a song without lyrics attends to nothing: any one key keeps its softmax finite, and its
        # result is 0
        some = kept | (~kept.any(1, keepdim=True))
        out = F.scaled_dot_product_attention(q_pad, k_pad, v_pad, attn_mask=some[:, None, None])
        out = out * kept.any(1)[:, None, None, None]
        outs.append(
            torch.cat([song[:, :n].transpose(0, 1) for song, n in zip(out, frames, strict=True)])
        )
    return torch.cat(outs, 1)


def _modulation(size: Size, dtype: torch.dtype, device: str) -> tuple[Runs, list[Tensor]]:
    g = torch.Generator().manual_seed(1)
    tables = (0.3 * torch.randn(3, len(size.songs), size.width, generator=g)).to(device, dtype)
    return Runs(tuple((n, i) for i, n in enumerate(size.frames))), list(tables)


def _liger_norm() -> Provider | None:
    if not available("liger_kernel"):
        return None
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    def norm(x: Tensor, shift: Tensor, scale: Tensor, runs: Runs) -> tuple[Tensor, ...]:
        # its weight and bias are one row: a launch for every song
        return (
            torch.cat(
                [
                    LigerLayerNormFunction.apply(part, 1 + scale[r], shift[r], 1e-6)
                    for part, r in runs.split(x)
                ]
            ),
        )

    return norm


def norm_cases(size: Size, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """LayerNorm + modulation, and the same after a gated residual."""
    rows = sum(size.frames)
    runs, (gate, shift, scale) = _modulation(size, dtype, device)
    g = torch.Generator().manual_seed(2)
    x, y = (torch.randn(rows, size.width, generator=g).to(device, dtype) for _ in range(2))
    missing, liger = {}, _liger_norm()
    if liger is None:
        missing["liger"] = f"not installed: {install_command('liger_kernel')}"
    elif not device.startswith("cuda"):
        missing["liger"], liger = (
            "takes functions of CUDA's libdevice, which the interpreter has not",
            None,
        )

    def plain(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return (layer_norm_modulate_reference(x, shift, scale, runs),)

    def residual(
        x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, ...]:
        return residual_norm_reference(x, y, gate, shift, scale, runs)

    providers: dict[str, Provider] = {
        OURS: lambda x, shift, scale: (layer_norm_modulate(x, shift, scale, runs),),
        EAGER: plain,
        COMPILED: plain,
    }
    fused: dict[str, Provider] = {
        OURS: lambda x, y, gate, shift, scale: residual_norm(x, y, gate, shift, scale, runs),
        EAGER: residual,
        COMPILED: residual,
    }
    if liger is not None:
        norm = liger

        def after_residual(
            x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
        ) -> tuple[Tensor, ...]:
            total = torch.cat(
                [
                    torch.addcmul(a, b, gate[r])
                    for (a, r), (b, _) in zip(runs.split(x), runs.split(y), strict=True)
                ]
            )
            return total, *norm(total, shift, scale, runs)

        providers["liger"] = lambda x, shift, scale: norm(x, shift, scale, runs)
        fused["liger"] = after_residual
    yield Case(
        "layer_norm_modulate", None, rows, [x, shift, scale], providers, 0.0, missing=missing
    )
    yield Case("residual_norm", None, rows, [x, y, gate, shift, scale], fused, 0.0, missing=missing)


def pack_case(size: Size, head_dim: int, dtype: torch.dtype, device: str) -> Case:
    """Split of the fused projection, QK-norm, RoPE on k."""
    rows, heads = sum(size.frames), size.width // head_dim
    positions = _positions(size.frames, device)
    cos, sin = _rope(positions, head_dim, dtype)
    g = torch.Generator().manual_seed(3)
    qkv = torch.randn(rows, 3 * heads * head_dim, generator=g).to(device, dtype)
    q_gain, k_gain = (
        torch.rand(*shape, generator=g).add(0.5).to(device, dtype)
        for shape in ((1, head_dim), (head_dim,))
    )

    def eager(qkv: Tensor, q_gain: Tensor, k_gain: Tensor) -> tuple[Tensor, ...]:
        return pack_qkv_reference(
            qkv, q_gain, k_gain, cos.to(_wide(qkv)), sin.to(_wide(qkv)), heads=heads
        )

    providers: dict[str, Provider] = {
        OURS: lambda qkv, q_gain, k_gain: pack_qkv(qkv, q_gain, k_gain, cos, sin, heads=heads),
        EAGER: eager,
        COMPILED: eager,
    }
    return Case("pack_qkv", head_dim, rows, [qkv, q_gain, k_gain], providers, 0.0)


def gelu_case(size: Size, dtype: torch.dtype, device: str) -> Case:
    """Bias and tanh-GELU of the MLP."""
    rows = sum(size.frames)
    g = torch.Generator().manual_seed(4)
    x, bias = (
        torch.randn(*shape, generator=g).to(device, dtype)
        for shape in ((rows, 4 * size.width), (4 * size.width,))
    )

    def eager(x: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return (bias_gelu_reference(x, bias),)

    return Case(
        "bias_gelu",
        None,
        rows,
        [x, bias],
        {OURS: lambda x, b: (bias_gelu(x, b),), EAGER: eager, COMPILED: eager},
        0.0,
    )


def step_case(size: Size, dtype: torch.dtype, device: str) -> Case:
    """Guidance and a stochastic sampler update; state in fp32, the network's output in `dtype`."""
    frames = size.frames
    rows, starts = sum(frames), [sum(frames[:i]) for i in range(len(frames))]
    spans = SongRows(
        tuple((start, n, start, rows + start) for start, n in zip(starts, frames, strict=True))
    )
    g = torch.Generator().manual_seed(5)
    x, kept, noise = torch.randn(3, rows, size.channels, generator=g).to(device)
    out = torch.randn(2 * rows, size.channels, generator=g).to(device, dtype)
    table = torch.rand(len(frames), 7, generator=g).add(0.1).to(device)

    def eager(x: Tensor, kept: Tensor, out: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return guided_step_reference(x, kept, out, noise, table, spans)

    providers: dict[str, Provider] = {
        OURS: lambda x, kept, out, noise: guided_step(x, kept, out, noise, table, spans),
        EAGER: eager,
        COMPILED: eager,
    }
    return Case(
        "guided_step", None, rows, [x, kept, out, noise], providers, 0.0, differentiable=False
    )


def cases(
    size: Size, *, ops: Sequence[str], head_dims: Sequence[int], dtype: torch.dtype, device: str
) -> Iterator[Case]:
    """The cases of the families in `ops` (benchmarks/static_kernels.py names them), made one at a
    time.
    """
    for head_dim in head_dims:
        if "attention" in ops:
            yield attention_case(size, head_dim, dtype, device)
        if "pack" in ops:
            yield pack_case(size, head_dim, dtype, device)
    if "norm" in ops:
        yield from norm_cases(size, dtype, device)
    if "gelu" in ops:
        yield gelu_case(size, dtype, device)
    if "guided_step" in ops:
        yield step_case(size, dtype, device)
