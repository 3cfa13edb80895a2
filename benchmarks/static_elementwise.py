"""What the row-wise kernels compile to, for every architecture and with no GPU: registers, spills, and the width of their memory accesses.

Every op is launched as training or a sampler step launches it (12,184 packed rows: eight whole songs), compiled instead of run, and its
machine code read. `narrow_in_loops` counts the global accesses below 16 bytes inside loops (in the whole kernel where there is none).

    python -m mudit_engine.benchmarks.static_elementwise --arch sm_80,sm_90 --out benchmarks/results/static_elementwise.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from mudit_engine.kernels.adaln import Runs, layer_norm_modulate, residual_norm
from mudit_engine.kernels.bias_gelu import bias_gelu
from mudit_engine.kernels.guided_step import Spans, guided_step
from mudit_engine.kernels.rope import pack_kv, pack_qkv
from mudit_engine.profiling.aot import ARCHITECTURES, KernelBuild, compile_for
from mudit_engine.profiling.sass import MACHINES, Instruction, blocks_per_sm, parse

SONGS = (323, 646, 969, 1292, 1615, 2100, 2439, 2800)
"""Frames of eight songs of 30 to 260 s."""
ROWS, WIDTH = sum(SONGS), 1536
# mean and 1 / deviation of a row; spans and coefficients of a song
SCALARS = {"_norm_fwd_kernel": 2, "_norm_bwd_kernel": 2, "_guided_step_kernel": 11}


def _leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(*shape, dtype=dtype, requires_grad=True)


def _differentiate(outputs: tuple[Tensor, ...]) -> None:
    torch.autograd.backward(outputs, [o.detach() for o in outputs])


def _modulation(dtype: torch.dtype) -> tuple[Tensor, Runs]:
    return _leaf(len(SONGS), 6, WIDTH, dtype=dtype), Runs(tuple((frames, i) for i, frames in enumerate(SONGS)))


def _residual(dtype: torch.dtype) -> None:
    mod, runs = _modulation(dtype)
    x, y = _leaf(ROWS, WIDTH, dtype=dtype), _leaf(ROWS, WIDTH, dtype=dtype)
    _differentiate(residual_norm(x, y, mod[:, 2], mod[:, 0], mod[:, 1], runs))


def _residual_in_place(dtype: torch.dtype) -> None:
    mod, runs = _modulation(dtype)
    x = torch.zeros(ROWS, WIDTH, dtype=dtype)
    with torch.no_grad():
        residual_norm(x, x.clone(), mod[:, 2], mod[:, 0], mod[:, 1], runs, inplace=True)


def _residual_plain(dtype: torch.dtype) -> None:
    x, y = _leaf(ROWS, WIDTH, dtype=dtype), _leaf(ROWS, WIDTH, dtype=dtype)
    _differentiate(residual_norm(x, y, None, None, None, None))


def _norm(dtype: torch.dtype) -> None:
    mod, runs = _modulation(dtype)
    _differentiate((layer_norm_modulate(_leaf(ROWS, WIDTH, dtype=dtype), mod[:, 0], mod[:, 1], runs),))


def _gelu(dtype: torch.dtype) -> None:
    _differentiate((bias_gelu(_leaf(ROWS, 4 * WIDTH, dtype=dtype), _leaf(4 * WIDTH, dtype=dtype)),))


def _pack(dtype: torch.dtype, head_dim: int, *, streams: int = 1) -> None:
    table, heads = torch.zeros(ROWS, head_dim // 2), WIDTH // head_dim
    qkv, q_gain, k_gain = (
        _leaf(ROWS, (streams + 2) * WIDTH, dtype=dtype),
        _leaf(streams, head_dim, dtype=dtype),
        _leaf(head_dim, dtype=dtype),
    )
    _differentiate(pack_qkv(qkv, q_gain, k_gain, table, table, heads=heads, q_streams=streams))


def _pack_joint(dtype: torch.dtype, head_dim: int) -> None:
    """A sampler step: frames into the buffer that already holds the lyric keys; and those lyric keys, packed once per song."""
    lyrics, heads = 900, WIDTH // head_dim
    table, gain = torch.zeros(ROWS, head_dim // 2), torch.zeros(head_dim, dtype=dtype)
    k, v = torch.zeros(2, ROWS + lyrics, heads, head_dim, dtype=dtype)
    qkv, kv = torch.zeros(ROWS, 3 * WIDTH, dtype=dtype), torch.zeros(lyrics, 2 * WIDTH, dtype=dtype)
    with torch.no_grad():
        pack_qkv(qkv, gain[None], gain, table, table, heads=heads, k_out=k[:ROWS], v_out=v[:ROWS])
        pack_kv(kv, gain, table[:lyrics], table[:lyrics], heads=heads, k_out=k[ROWS:], v_out=v[ROWS:])


def _step(dtype: torch.dtype) -> None:
    starts = [sum(SONGS[:i]) for i in range(len(SONGS))]
    spans = Spans(tuple((start, frames, start, ROWS + start) for start, frames in zip(starts, SONGS, strict=True)))
    x, kept, noise = torch.zeros(3, ROWS, 96)
    guided_step(x, kept, torch.zeros(2 * ROWS, 96, dtype=dtype), noise, torch.zeros(len(SONGS), 7), spans)


VARIANTS: dict[str, Callable[[torch.dtype], None]] = {
    "residual_norm": _residual,
    "residual_norm/in_place": _residual_in_place,
    "residual_norm/plain": _residual_plain,
    "layer_norm_modulate": _norm,
    "bias_gelu": _gelu,
    "pack/64": lambda dtype: _pack(dtype, 64),
    "pack/96": lambda dtype: _pack(dtype, 96),
    "pack/128": lambda dtype: _pack(dtype, 128),
    "pack/96x2": lambda dtype: _pack(dtype, 96, streams=2),
    "pack/96/joint": lambda dtype: _pack_joint(dtype, 96),
    "guided_step": _step,
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def loop_accesses(code: list[Instruction], labels: dict[str, int]) -> tuple[list[int], int]:
    """(bytes per thread of every global access inside a loop, local accesses there). A loop is what a backward branch spans."""
    inside: set[int] = set()
    for i, instruction in enumerate(code):
        target = next((labels[name] for name in labels if instruction.base == "BRA" and f"({name})" in instruction.operands), i)
        if target < i:
            inside.update(range(target, i + 1))
    chosen = [code[i] for i in sorted(inside)] or code
    widths = [ins.access_bytes for ins in chosen if ins.base in ("LDG", "STG", "LDGSTS")]
    return widths, sum(ins.pipe == "local" for ins in chosen)


def row(variant: str, dtype: str, build: KernelBuild) -> dict[str, Any]:
    code, labels = parse(build.sass)
    widths, local = loop_accesses(code, labels)
    return {
        "op": build.kernel.strip("_").removesuffix("_kernel"),
        "variant": variant,
        "dtype": dtype,
        "arch": build.arch,
        "warps": build.warps,
        "registers": build.registers,
        "spill_bytes": build.spill_bytes,
        "shared_bytes": build.shared_bytes,
        "blocks_per_sm": blocks_per_sm(MACHINES[build.arch], registers=build.registers, warps=build.warps, shared_bytes=build.shared_bytes),
        "loop_local_accesses": local,
        "wide_in_loops": sum(width == 16 for width in widths),
        "narrow_in_loops": sum(width < 16 for width in widths),
        "scalars": SCALARS.get(build.kernel, 0),
        "ptxas_warnings": list(build.ptxas_warnings),
    }


def run(
    *, arches: Sequence[str] = ARCHITECTURES, variants: Sequence[str] = tuple(VARIANTS), dtypes: Sequence[str] = ("bf16", "fp32")
) -> list[dict[str, Any]]:
    """Rows of every distinct kernel that the variants launch."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for arch in arches:
        for variant in variants:
            for dtype in dtypes:
                with compile_for(arch) as builds:
                    VARIANTS[variant](DTYPES[dtype])
                for build in builds:
                    # the second pass of the sums is the same kernel for many ops
                    key = (
                        arch,
                        build.kernel,
                        dtype,
                        None if "segment_sum" in build.kernel else variant,
                        build.constants.get("D"),
                        build.grid[2:],
                    )
                    if key not in rows:
                        rows[key] = row(variant, dtype, build)
    return list(rows.values())


def as_text(document: dict[str, Any]) -> str:
    """JSON with one row a line, so that a change of one kernel is a change of its lines."""
    head = json.dumps({k: v for k, v in document.items() if k != "rows"}, indent=1).removesuffix("\n}")
    lines = ",\n".join("  " + json.dumps(row) for row in document["rows"])
    return f'{head},\n "rows": [\n{lines}\n ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(ARCHITECTURES))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--dtypes", default="bf16,fp32")
    parser.add_argument("--out", type=Path, help="write here instead of to the terminal")
    options = parser.parse_args()
    rows = run(arches=options.arch.split(","), variants=options.variants.split(","), dtypes=options.dtypes.split(","))
    document = {
        "about": "compiled, not measured: machine code of the row-wise kernels",
        "command": "python -m mudit_engine.benchmarks.static_elementwise",
        "versions": {"triton": triton.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    text = as_text(document)
    if options.out is None:
        print(text, end="")
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        aside = options.out.with_suffix(".tmp")
        aside.write_text(text)
        os.replace(aside, options.out)


if __name__ == "__main__":
    main()
