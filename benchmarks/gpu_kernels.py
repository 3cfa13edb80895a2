"""Stages of benchmarks/gpu_run.py that look at kernels alone.

    numerics(StageRun("numerics", folder, seconds=220, dry=False))

numerics proves every op on the device, attention_peers and kernels time ours beside others',
sweep times other tiles. What is wrong is a row of its own and gets no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.benchmarks import measure_kernels as kernels_benchmark
from mudit_engine.benchmarks.gpu_stage import StageRun
from mudit_engine.benchmarks.measure_kernels_cases import COMPILED, EAGER, FULL, OURS, TINY, cases
from mudit_engine.benchmarks.measure_kernels_cases import Size as CaseSize
from mudit_engine.kernels import attention_backward, attention_forward
from mudit_engine.kernels.attention import attention, attention_reference
from mudit_engine.kernels.attention_forward import Config
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.kernels.worklist import Segments

BF16_ERROR = 1e-2  # relative L2 of bf16 attention against fp32, above which no time is given


def numerics(run: StageRun) -> None:
    """Every op, forward and gradients, against float64, twice for the same bits."""
    edges = CaseSize(
        ((1, 1), (127, 0), (128, 65), (129, 257), (0, 3), (1291, 483), (700, 0)), 1536, 96
    )
    sizes = {"tiny": TINY} if run.dry else {"edges": edges, "full": FULL}
    for name, size in sizes.items():
        for dtype in (torch.bfloat16,) if run.dry else (torch.bfloat16, torch.float16):
            for op in ("attention", "pack", "norm", "gelu", "guided_step"):
                for head_dim in run.head_dims if op in ("attention", "pack") else (96,):
                    work = partial(_hold_all, run, op, head_dim, name, size, dtype)
                    run.attempt(f"{op} K{head_dim} {dtype} {name}", work)


def _hold_all(
    run: StageRun, op: str, head_dim: int, name: str, size: CaseSize, dtype: torch.dtype
) -> None:
    for case in cases(size, ops=(op,), head_dims=(head_dim,), dtype=dtype, device=run.device):
        _hold(run, case, head_dim, name, str(dtype))


def _hold(run: StageRun, case: Any, head_dim: int, size: str, dtype: str) -> None:
    """A row for each direction of a case: its error against float64, and whether bits repeat."""
    results = kernels_benchmark.results
    truth = results(case, case.providers[EAGER], torch.float64)
    eager = results(case, case.providers[EAGER], None)
    got, again = (results(case, case.providers[OURS], None) for _ in range(2))
    for way, tensors in got.items():
        error, ratio = kernels_benchmark.distance(tensors, eager[way], truth[way])
        same = all(torch.equal(a, b) for a, b in zip(tensors, again[way], strict=True))
        run.emit(
            "numerics", op=f"{case.op}_{way}", head_dim=head_dim, dtype=dtype, size=size,
            error=error, ratio_to_bar=ratio, same_bits=same, ok=ratio <= 1 and same,
        )  # fmt: skip


@dataclass
class _Dense:
    """Self-attention of some songs: inputs, segments, truth."""

    lengths: list[int]
    q: Tensor
    k: Tensor
    v: Tensor
    segments: Segments
    cos: Tensor
    sin: Tensor
    flops: float


def self_attention(run: StageRun, lengths: Sequence[int], head_dim: int) -> _Dense:
    heads, rows = (128 if run.dry else 1536) // head_dim, sum(lengths)
    g = torch.Generator(device=run.device).manual_seed(head_dim)
    q, k, v = (
        torch.randn(rows, heads, head_dim, generator=g, device=run.device).bfloat16()
        for _ in range(3)
    )
    positions = torch.cat([torch.arange(n) for n in lengths]).float()
    cos, sin = (table[None].to(run.device) for table in rope_table(positions, head_dim))
    flops = 4.0 * head_dim * heads * sum(n * n for n in lengths)
    segments = Segments.self_attention(lengths)
    return _Dense(list(lengths), q, k, v, segments, cos, sin, flops)


def attention_peers(run: StageRun) -> None:
    """Ours against SDPA (flash, cuDNN), torch's varlen kernel and flex_attention."""
    shapes = {
        "dense 4x2048": [2048] * 4,
        "dense 1x16384": [16384],
        "ragged 8 songs": [323, 646, 1292, 2800] * 2,
    }
    for head_dim in run.head_dims:
        for shape, lengths in shapes.items():
            tiny = [n // 512 + 1 for n in lengths]
            given = self_attention(run, tiny if run.dry else lengths, head_dim)
            truth = truth_of(given, rotated=False)
            for name, provider in _providers(run, given).items():
                work = partial(_compare, run, name, provider, given, truth, shape, head_dim)
                run.attempt(f"{name} {shape} K{head_dim}", work)


def truth_of(given: _Dense, *, rotated: bool) -> Tensor:
    """The same in fp32."""
    tables = (given.cos, given.sin) if rotated else (None, None)
    with torch.no_grad():
        return attention_reference(
            given.q.float(), given.k.float(), given.v.float(), given.segments, *tables
        )


def _compare(
    run: StageRun, name: str, provider: Callable[..., Tensor], given: _Dense, truth: Tensor,
    shape: str, head_dim: int,
) -> None:  # fmt: skip
    leaves = [x.clone().requires_grad_() for x in (given.q, given.k, given.v)]
    out = provider(*leaves)
    rotated = "rope" in name
    error = None if rotated else float((out.detach().float() - truth).norm() / truth.norm())
    row = {"provider": name, "shape": shape, "head_dim": head_dim, "error": error}
    if error is not None and not error < BF16_ERROR:
        run.emit("wrong", **row, ok=False)
        return
    with torch.no_grad():
        forward = run.milliseconds(lambda: provider(*leaves))
    run.emit("attention_fwd", **row, **run.rates(given.flops, forward))
    upstream = torch.randn_like(out)
    backward = run.milliseconds(
        lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True), 10
    )
    run.emit("attention_bwd", **row, **run.rates(2.5 * given.flops, backward))


def _providers(run: StageRun, given: _Dense) -> dict[str, Callable[..., Tensor]]:
    segments, lengths = given.segments, given.lengths
    found: dict[str, Callable[..., Tensor]] = {
        OURS: lambda q, k, v: attention(q, k, v, segments),
        f"{OURS}+rope": lambda q, k, v: attention(q, k, v, segments, given.cos, given.sin),
    }
    if run.dry:
        return found
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.attention.varlen import varlen_attn

    cumulative = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to("cuda", torch.int32)
    longest = max(lengths)
    found["varlen"] = lambda q, k, v: varlen_attn(q, k, v, cumulative, cumulative, longest, longest)
    if len(set(lengths)) == 1:
        for name, backend in (
            ("sdpa flash", SDPBackend.FLASH_ATTENTION),
            ("sdpa cudnn", SDPBackend.CUDNN_ATTENTION),
        ):

            def dense(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend = backend) -> Tensor:
                parts = (x.unflatten(0, (len(lengths), -1)).transpose(1, 2) for x in (q, k, v))
                with sdpa_kernel(backend):
                    out = F.scaled_dot_product_attention(*parts)
                return out.transpose(1, 2).flatten(0, 1)

            found[name] = dense
    song = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).cuda()
    rows = sum(lengths)
    mask = create_block_mask(lambda b, h, i, j: song[i] == song[j], None, None, rows, rows)
    flex = torch.compile(flex_attention, dynamic=False)
    found["flex"] = lambda q, k, v: flex(
        *(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask
    )[0].transpose(0, 1)
    return found


FORWARD_TILES = [
    Config(128, 128, 8, 2, tma=True), Config(128, 128, 8, 3, tma=True),
    Config(128, 64, 8, 2, tma=True), Config(128, 64, 8, 3, tma=True),
    Config(128, 64, 8, 4, tma=True), Config(64, 64, 4, 3, tma=True),
    Config(64, 128, 4, 2, tma=True), Config(128, 64, 4, 2, tma=True),
    Config(128, 128, 8, 2), Config(128, 64, 8, 3),
]  # fmt: skip
KEY_TILES = [
    Config(64, 128, 8, 2, tma=True), Config(64, 128, 8, 2, tma=True, paired=True),
    Config(64, 128, 8, 3, tma=True), Config(64, 64, 4, 2, tma=True),
    Config(32, 128, 8, 3, tma=True),
]  # fmt: skip
QUERY_TILES = [
    Config(128, 128, 8, 2, tma=True), Config(128, 64, 8, 2, tma=True),
    Config(128, 64, 8, 3, tma=True), Config(64, 64, 4, 2, tma=True),
]  # fmt: skip


def sweep(run: StageRun) -> None:
    """Other tiles than those that were chosen by counting instructions."""
    for head_dim in run.head_dims:
        given = self_attention(run, [33, 40] if run.dry else [2800] * 4, head_dim)
        truth = truth_of(given, rotated=True)
        for config in FORWARD_TILES[:1] if run.dry else FORWARD_TILES:
            work = partial(_sweep_forward, run, config, given, truth, head_dim)
            run.attempt(f"fwd K{head_dim} {config}", work)
        pairs = [(one, KEY_TILES[0]) for one in QUERY_TILES]
        pairs += [(QUERY_TILES[0], one) for one in KEY_TILES[1:]]
        for pair in pairs[:1] if run.dry else pairs:
            run.attempt(
                f"bwd K{head_dim} {pair}", partial(_sweep_backward, run, pair, given, head_dim)
            )


def _sweep_forward(
    run: StageRun, config: Config, given: _Dense, truth: Tensor, head_dim: int
) -> None:
    tiles = given.segments.query_tiles(config.block_q, run.device)

    def forward() -> Tensor:
        return attention_forward.forward(
            given.q, given.k, given.v, given.cos, given.sin, tiles, config,
            scale=head_dim**-0.5, precision="tf32", covered=True,
        )[0]  # fmt: skip

    error = float((forward().float() - truth).norm() / truth.norm())
    run.emit(
        "fwd_tiles", head_dim=head_dim, config=dataclasses.astuple(config), error=error,
        ok=error < BF16_ERROR, **run.rates(given.flops, run.milliseconds(forward)),
    )  # fmt: skip


def _sweep_backward(
    run: StageRun, pair: tuple[Config, Config], given: _Dense, head_dim: int
) -> None:
    segments, options = given.segments, {"scale": head_dim**-0.5, "precision": "tf32"}
    forward = attention_forward.forward_config(
        head_dim, torch.bfloat16, attention_forward.target_capability()
    )
    out, lse = attention_forward.forward(
        given.q, given.k, given.v, given.cos, given.sin,
        segments.query_tiles(forward.block_q, run.device), forward, **options, covered=True,
    )  # fmt: skip
    upstream = torch.randn_like(out)
    tiles = (
        segments.query_tiles(pair[0].block_q, run.device),
        segments.key_tiles(pair[1].block_k, run.device),
    )

    def backward() -> object:
        return attention_backward.backward(
            upstream, None, given.q, given.k, given.v, out, lse, given.cos, given.sin, *tiles, pair,
            **options, q_covered=True, k_covered=True,
        )  # fmt: skip

    run.emit(
        "bwd_tiles", head_dim=head_dim, dq=dataclasses.astuple(pair[0]),
        dkv=dataclasses.astuple(pair[1]),
        **run.rates(2.5 * given.flops, run.milliseconds(backward, 10)),
    )  # fmt: skip


def kernels(run: StageRun) -> None:
    """Every op against its peers."""
    peak = None if run.dry else run.peak()
    for op in ("norm", "pack", "gelu", "guided_step", "attention"):
        for head_dim in run.head_dims if op in ("attention", "pack") else (96,):
            run.attempt(f"{op} K{head_dim}", partial(_measure, run, op, head_dim, peak))


def _measure(run: StageRun, op: str, head_dim: int, peak: dict[str, float] | None) -> None:
    size = TINY if run.dry else FULL
    for case in cases(
        size, ops=(op,), head_dims=(head_dim,), dtype=torch.bfloat16, device=run.device
    ):
        if op == "attention":  # minutes of compilation; its peers have a stage of their own
            case.providers.pop(COMPILED, None)
        for row in kernels_benchmark.measure(case, "bf16", peers=True, rounds=20, peak=peak):
            run.emit("kernel", **{k: v for k, v in row.items() if v is not None})
