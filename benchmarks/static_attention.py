"""Static figures of the attention kernels for every architecture, with no GPU: what CI holds them to, and the tutorial's algorithm beside.

Ceilings are shares of the tensor-core peak that the hot loop's instruction counts allow (profiling/sass.py): not speeds.

    python -m mudit_engine.benchmarks.static_attention --arch sm_80,sm_90 --out benchmarks/results/static_attention.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from mudit_engine.benchmarks.peers_attention import peer_backward, peer_forward
from mudit_engine.kernels.attention_backward import backward, backward_configs
from mudit_engine.kernels.attention_forward import Config, forward, forward_config
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling.aot import ARCHITECTURES, KernelBuild, compile_for
from mudit_engine.profiling.sass import analyse

HEAD_DIMS = (64, 96, 128)
# variant -> (dtype, precision of fp32 products)
VARIANTS = {
    "bf16": (torch.bfloat16, "tf32"),
    "fp16": (torch.float16, "tf32"),
    "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"),
}
# matrix products of one tile pair: q k, p v | q k, do v, ds k | q k, p do, do v, ds q
PRODUCTS = {"fwd": 2, "bwd_dq": 3, "bwd_dkv": 4}


def row(build: KernelBuild, *, op: str, variant: str, head_dim: int, dtype: torch.dtype, config: Config) -> dict[str, Any]:
    """Everything that can be said of one compiled kernel."""
    useful = 2 * PRODUCTS[op] * config.block_q * config.block_k * head_dim
    report = analyse(build, useful_flops=useful)
    loop = report.loops[0] if report.loops else None
    return {
        "op": f"attention_{op}",
        "variant": variant,
        "head_dim": head_dim,
        "dtype": str(dtype).removeprefix("torch."),
        "arch": build.arch,
        "tile": [config.block_q, config.block_k, build.warps, build.stages],
        "registers": build.registers,
        "spill_bytes": build.spill_bytes,
        "loop_local_accesses": report.loop_local_accesses,
        "shared_bytes": build.shared_bytes,
        "blocks_per_sm": report.blocks_per_sm,
        "tma_loads": report.tma_loads,
        "mma_instructions": report.counts.get("mma", 0),
        "mma_useful_ratio": round(1 / loop.useful, 3) if loop else None,
        "loop_instructions": loop.instructions if loop else None,
        "loop_counts": loop.counts if loop else None,
        # per 4096 FLOP of a warp, which is one m16n8k16
        "instructions_per_mma": round(loop.instructions * build.warps * 4096 / loop.flops, 3) if loop else None,
        "ceiling_overlap": round(loop.overlap, 4) if loop else None,
        "ceiling_serial": round(loop.serial, 4) if loop else None,
        "bound": loop.bound if loop else None,
        "ptxas_warnings": list(build.ptxas_warnings),
    }


def ours(arch: str, head_dim: int, variant: str) -> Iterable[dict[str, Any]]:
    """Rows of the three kernels, launched as a fused projection hands them their inputs: 16 heads, strided rows, rotated queries."""
    dtype, precision = VARIANTS[variant]
    capability = int(arch.removeprefix("sm_"))
    config, configs = forward_config(head_dim, dtype, capability, precision), backward_configs(head_dim, dtype, capability, precision)
    rows, heads, segments = 1024, 16, Segments.self_attention([1024])
    q, k, v = torch.zeros(rows, 3 * heads, head_dim, dtype=dtype).split(heads, 1)
    table = torch.zeros(1, rows, head_dim // 2)
    out, lse = torch.zeros(rows, heads, head_dim, dtype=dtype), torch.zeros(heads, rows)
    options = {"scale": head_dim**-0.5, "precision": precision}
    with compile_for(arch) as builds:
        forward(q, k, v, table, table, segments.query_tiles(config.block_q, "cpu"), config, covered=True, **options)
        tiles = segments.query_tiles(configs[0].block_q, "cpu"), segments.key_tiles(configs[1].block_k, "cpu")
        backward(out, None, q, k, v, out, lse, table, table, *tiles, configs, q_covered=True, k_covered=True, **options)
    for op, build, tile in zip(PRODUCTS, builds, (config, *configs), strict=True):
        yield row(build, op=op, variant=variant, head_dim=head_dim, dtype=dtype, config=tile)


def peers(arch: str, head_dim: int) -> Iterable[dict[str, Any]]:
    """The tutorial's algorithm at our tiles."""
    capability = int(arch.removeprefix("sm_"))
    config = forward_config(head_dim, torch.bfloat16, capability)
    configs = backward_configs(head_dim, torch.bfloat16, capability)
    with compile_for(arch) as builds:
        peer_forward(head_dim=head_dim, config=config)
        peer_backward(head_dim=head_dim, configs=configs)
    for op, build, tile in zip(PRODUCTS, builds, (config, *configs), strict=True):
        yield row(build, op=op, variant="peer:tutorial", head_dim=head_dim, dtype=torch.bfloat16, config=tile)


def run(
    *,
    arches: Sequence[str] = ARCHITECTURES,
    head_dims: Sequence[int] = HEAD_DIMS,
    variants: Sequence[str] = ("bf16",),
    with_peers: bool = False,
) -> list[dict[str, Any]]:
    """Rows for all combinations; peers only where loops are rated against the A100 and the H100."""
    rows: list[dict[str, Any]] = []
    for arch in arches:
        for head_dim in head_dims:
            for variant in variants:
                rows += ours(arch, head_dim, variant)
            if with_peers and arch in ("sm_80", "sm_90"):
                rows += peers(arch, head_dim)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(ARCHITECTURES))
    parser.add_argument("--head-dims", default=",".join(map(str, HEAD_DIMS)))
    parser.add_argument("--variants", default="bf16", help=f"of {','.join(VARIANTS)}")
    parser.add_argument("--peers", action="store_true", help="also the tutorial's algorithm")
    parser.add_argument("--out", type=Path, help="write or extend this file instead of printing; rows compiled again replace their elders")
    options = parser.parse_args()
    head_dims = [int(k) for k in options.head_dims.split(",")]
    rows = run(arches=options.arch.split(","), head_dims=head_dims, variants=options.variants.split(","), with_peers=options.peers)
    if options.out is not None and options.out.exists():
        made = {key(r) for r in rows}
        rows = [r for r in json.loads(options.out.read_text())["rows"] if key(r) not in made] + rows
    document = {
        "about": "compiled, not measured: machine code of the attention kernels; ceilings are shares of the tensor-core peak, not speeds",
        "command": "python -m mudit_engine.benchmarks.static_attention",
        "versions": {"triton": triton.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "rows": sorted(rows, key=key),
    }
    text = json.dumps(document, indent=1) + "\n"
    if options.out is None:
        print(text, end="")
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    aside = options.out.with_suffix(".tmp")
    aside.write_text(text)
    os.replace(aside, options.out)


def key(r: dict[str, Any]) -> tuple[Any, ...]:
    """What tells two rows apart."""
    return r["op"], r["variant"], r["head_dim"], int(r["arch"].removeprefix("sm_"))


if __name__ == "__main__":
    main()
