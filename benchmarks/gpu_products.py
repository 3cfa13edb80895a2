"""A stage of benchmarks/gpu_run.py that looks at the products of a step: epilogues that libraries
give, and FP8.

    products(StageRun("products", folder, seconds=200, dry=False))

A block's three widest products by every way there is, each held to float64 first: bias and GELU by
our kernel behind the product, by cuBLASLt's epilogue and by torch.compile's (CUTLASS, where it has
it); gate and residual by our norm's kernel behind the product and by torch.compile's epilogue; QKV
and MLP in FP8 by rows, scaling included. Then whole songs of the tiny model in FP8, held to their
own in bf16. With `dry` all of it runs on a CPU, tiny; what has no epilogue there says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mudit_engine import ops
from mudit_engine.backends.epilogues import LINEAR_GELU
from mudit_engine.benchmarks.gpu_stage import StageRun
from mudit_engine.kernels.runs import Runs
from mudit_engine.runtime.fp8 import Fp8Linear

HALF_ERROR, FP8_ERROR = 1e-2, 6e-2  # relative L2 against float64, above which no time is given
COMPILE = {"max_autotune": True, "max_autotune_gemm_backends": "ATEN,TRITON,CUTLASS"}

Way = Callable[[], Tensor]


def products(run: StageRun) -> None:
    """Rows of every product and way, and of whole songs in FP8."""
    width = 64 if run.dry else 1536
    for rows in (32,) if run.dry else (646, 5608):
        run.attempt(f"bias+gelu {rows}", partial(_bias_gelu, run, rows, width))
        run.attempt(f"gate+residual {rows}", partial(_gate_residual, run, rows, width))
        for name, wide, narrow in (("qkv", 3, 1), ("up", 4, 1), ("down", 1, 4)):
            run.attempt(
                f"fp8 {name} {rows}",
                partial(_fp8, run, name, rows, narrow * width, wide * width),
            )
    run.attempt("fp8 songs", partial(_songs, run))


def _compare(
    run: StageRun, what: str, rows: int, ways: dict[str, Way], truth: Tensor, flops: float,
    limits: dict[str, float],
) -> None:  # fmt: skip
    for name, way in ways.items():
        run.attempt(
            f"{what} {name}",
            partial(_one, run, what, name, rows, way, truth, flops, limits.get(name, HALF_ERROR)),
        )


def _one(
    run: StageRun, what: str, name: str, rows: int, way: Way, truth: Tensor, flops: float,
    limit: float,
) -> None:  # fmt: skip
    with torch.no_grad():
        error = float((way().double() - truth).norm() / truth.norm())
        if not error <= limit:
            run.emit("wrong", product=what, provider=name, error=error, limit=limit, ok=False)
            return
        ms = run.milliseconds(way)
    row = {"product": what, "provider": name, "rows": rows, "error": error, "ok": True}
    run.emit("product", **row, **run.rates(flops, ms))


def _drawn(run: StageRun, *shapes: Sequence[int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.randn(*shape, generator=g) * shape[-1] ** (-0.5 if i == 1 else 0.0))
        .to(run.device)
        .bfloat16()
        for i, shape in enumerate(shapes)
    ]


def _compiled(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(call, dynamic=False, options=dict(COMPILE))


def _bias_gelu(run: StageRun, rows: int, width: int) -> None:
    x, weight, bias = _drawn(run, (rows, width), (4 * width, width), (4 * width,))

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")

    ways: dict[str, Way] = {
        name: partial(call, x, weight, bias)
        for name, call in LINEAR_GELU.items()
        if name != "cublaslt" or not run.dry
    }
    if run.dry:
        run.emit("product", product="bias+gelu", provider="cublaslt", skipped="needs a CUDA device")
    else:
        ways["torch.compile"] = partial(_compiled(plain), x, weight, bias)
    truth = plain(x.double(), weight.double(), bias.double())
    _compare(run, "bias+gelu", rows, ways, truth, 2.0 * rows * width * 4 * width, {})


def _gate_residual(run: StageRun, rows: int, width: int) -> None:
    h, weight, bias, x, gate, shift, scale = _drawn(
        run, (rows, 4 * width), (width, 4 * width), (width,), (rows, width), *[(1, width)] * 3
    )
    runs = Runs(((rows, 0),))

    def ours() -> Tensor:
        with ops.use("eager" if run.dry else "triton"):
            return ops.residual_norm(
                x.clone(), F.linear(h, weight, bias), gate, shift, scale, runs
            )[1]

    def plain(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor, *mod: Tensor) -> Tensor:
        gate, shift, scale = mod
        total = x + gate * F.linear(h, weight, bias)
        return F.layer_norm(total, total.shape[-1:], eps=1e-6) * (1 + scale) + shift

    inputs = (h, weight, bias, x, gate, shift, scale)
    ways: dict[str, Way] = {"product, then our norm": ours, "eager": partial(plain, *inputs)}
    if not run.dry:
        ways["torch.compile"] = partial(_compiled(plain), *inputs)
    truth = plain(*(t.double() for t in inputs))
    _compare(run, "gate+residual", rows, ways, truth, 2.0 * rows * 4 * width * width, {})


def _fp8(run: StageRun, name: str, rows: int, narrow: int, wide: int) -> None:
    x, weight = _drawn(run, (rows, narrow), (wide, narrow))
    linear = nn.Linear(narrow, wide, bias=False, device=run.device, dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight.copy_(weight)
    fast = Fp8Linear(linear)
    ways: dict[str, Way] = {
        "bf16": partial(linear, x),
        "fp8": partial(fast.forward, x),
    }
    if not run.dry:
        ways["fp8, scaling compiled"] = partial(torch.compile(fast, dynamic=False), x)
    truth = F.linear(x.double(), weight.double())
    limits = {way: FP8_ERROR for way in ways if way != "bf16"}
    _compare(run, f"fp8 {name}", rows, ways, truth, 2.0 * rows * narrow * wide, limits)


def _songs(run: StageRun) -> None:
    from mudit_engine.runtime.cost import noise_song
    from mudit_engine.runtime.denoiser import Denoiser
    from mudit_engine.runtime.fp8 import LIMIT, hold_to, with_fp8
    from mudit_engine.runtime.load import open_model

    opened = open_model("tiny", device=run.device, dtype=torch.bfloat16)
    assert isinstance(opened.runtime, Denoiser)
    frames, steps = (16, 2) if run.dry else (323, 25)
    songs = [noise_song(opened.config, frames, steps=steps)]
    error = hold_to(Denoiser(with_fp8(opened.runtime.dit)), opened.runtime, songs)
    run.emit("songs in fp8", model="tiny", frames=frames, error=error, limit=LIMIT, ok=True)
