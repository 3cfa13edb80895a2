"""Static figures of the attention kernels for every architecture, with no GPU: what CI holds them
to, and peers at the same tiles beside.

Ceilings are shares of the tensor-core peak that the hot loop's instruction counts allow
(profiling/sass.py): not speeds.

    python -m mudit_engine.benchmarks.static_attention --arch sm_80,sm_90 --peers \\
      --out benchmarks/results/static_attention.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.benchmarks.peers_attention import peer_backward, peer_forward
from mudit_engine.benchmarks.static_figures import PEER, as_text, figures, write
from mudit_engine.kernels import attention_hopper, attention_hopper_backward
from mudit_engine.kernels.attention_backward import backward, backward_configs
from mudit_engine.kernels.attention_forward import OLD_TRITON, Config, forward, forward_config
from mudit_engine.kernels.worklist import Segments
from mudit_engine.profiling.aot import ARCHITECTURES, KernelBuild, compile_for
from mudit_engine.profiling.schedule import register_grants, schedule

HEAD_DIMS = (64, 96, 128)
ROWS, HEADS = 1536, 16
"""One song of 4:20 at the published frame rate."""
# variant -> (dtype, precision of fp32 products)
VARIANTS = {
    "bf16": (torch.bfloat16, "tf32"),
    "fp16": (torch.float16, "tf32"),
    "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"),
}
DTYPE_OF = {"bf16": "bf16", "fp16": "fp16", "tf32": "fp32", "ieee": "fp32"}
HOPPER = {"bf16": "hopper-bf16", "fp16": "hopper-fp16"}
"""Variants of the warp-specialised kernels: those that they take."""
# matrix products of one tile pair: q k, p v | q k, do v, ds k | q k, p do, do v, ds q
PRODUCTS = {"fwd": 2, "bwd_dq": 3, "bwd_dkv": 4}


def tiles(arch: str, head_dim: int, variant: str = "bf16") -> dict[str, Config]:
    """Our tile of every op."""
    dtype, precision = VARIANTS[variant]
    capability = int(arch.removeprefix("sm_"))
    by_query, by_key = backward_configs(head_dim, dtype, capability, precision)
    return {
        "fwd": forward_config(head_dim, dtype, capability, precision),
        "bwd_dq": by_query,
        "bwd_dkv": by_key,
    }


def requested_bytes(
    op: str, table: Tensor, config: Config, *, head_dim: int, heads: int, element: int, rotate: bool
) -> int:
    """Bytes that the programs of one launch ask for, L2 hits included: every tile streams the whole
    other side of its segment.

    `table` are the tiles (Segments.query_tiles, or key_tiles for bwd_dkv). tests hold this to a
    count lane by lane.
    """
    block = config.block_k if op == "bwd_dkv" else config.block_q
    own, other = int(table[:, 1].clamp(max=block).sum()), int(table[:, 3].sum())
    # what a program says of its own rows: q, out | q, o, do, dq | k, v, dk, dv; and of each of the
    # others: k, v | q, do
    row_tensors, row_floats, other_floats = {
        "fwd": (2, 1, 0),
        "bwd_dq": (4, 3, 0),
        "bwd_dkv": (4, 0, 2),
    }[op]
    if rotate and op != "bwd_dkv":
        # rotated queries pass through memory once; a table of angles for them, and one for the
        # gradient on its way back
        row_tensors, row_floats = (
            row_tensors + 2,
            row_floats + head_dim * (2 if op == "bwd_dq" else 1),
        )
    words = {"fwd": 8, "bwd_dq": 8, "bwd_dkv": 7}[op] * 4 * table.shape[0]
    moved = own * (row_tensors * head_dim * element + 4 * row_floats) + other * (
        2 * head_dim * element + 4 * other_floats
    )
    return heads * (moved + words)


def row(
    build: KernelBuild,
    *,
    op: str,
    variant: str,
    head_dim: int,
    dtype: str,
    config: Config,
    products: int | None = None,
) -> dict[str, Any]:
    """The figures of one attention kernel at tile `config`."""
    useful = 2 * (products or PRODUCTS[op]) * config.block_q * config.block_k * head_dim
    found = figures(
        build,
        op=f"attention_{op}",
        variant=variant,
        head_dim=head_dim,
        dtype=dtype,
        useful_flops=useful,
    )
    return found | {"tile": [config.block_q, config.block_k, build.warps, build.stages]}


def ours(arch: str, head_dim: int, variant: str) -> list[dict[str, Any]]:
    """Rows of the three kernels, launched as a fused projection hands them their inputs: strided
    rows, rotated queries.
    """
    dtype, precision = VARIANTS[variant]
    config = tiles(arch, head_dim, variant)
    segments = Segments.self_attention([ROWS])
    q, k, v = torch.zeros(ROWS, 3 * HEADS, head_dim, dtype=dtype).split(HEADS, 1)
    angles = torch.zeros(1, ROWS, head_dim // 2)
    out, lse = torch.zeros(ROWS, HEADS, head_dim, dtype=dtype), torch.zeros(HEADS, ROWS)
    scale = head_dim**-0.5
    tables = {
        "fwd": segments.query_tiles(config["fwd"].block_q, "cpu"),
        "bwd_dq": segments.query_tiles(config["bwd_dq"].block_q, "cpu"),
        "bwd_dkv": segments.key_tiles(config["bwd_dkv"].block_k, "cpu"),
    }
    with compile_for(arch) as builds:
        forward(
            q,
            k,
            v,
            angles,
            angles,
            tables["fwd"],
            config["fwd"],
            scale=scale,
            precision=precision,
            covered=True,
        )
        backward(
            out, None, q, k, v, out, lse, angles, angles, tables["bwd_dq"], tables["bwd_dkv"],
            (config["bwd_dq"], config["bwd_dkv"]), scale=scale, precision=precision, q_covered=True,
            k_covered=True,
        )  # fmt: skip
    rows = []
    for op, build in zip(PRODUCTS, builds, strict=True):
        moved = requested_bytes(
            op,
            tables[op],
            config[op],
            head_dim=head_dim,
            heads=HEADS,
            element=dtype.itemsize,
            rotate=True,
        )
        found = row(
            build,
            op=op,
            variant=variant,
            head_dim=head_dim,
            dtype=DTYPE_OF[variant],
            config=config[op],
        )
        rows.append(found | {"bytes_moved": moved})
    return rows


def hopper(head_dim: int, variant: str) -> list[dict[str, Any]]:
    """The warp-specialised forward for sm_90, with the order of its loop: each of its two groups of
    four warps has a copy of the loop, and the figures are of one of them.
    """
    dtype, _ = VARIANTS[variant]
    config = attention_hopper.CONFIG
    table = Segments.self_attention([ROWS]).query_tiles(config.block_q, "cpu")
    q, k, v = torch.zeros(ROWS, 3 * HEADS, head_dim, dtype=dtype).split(HEADS, 1)
    angles = torch.zeros(1, ROWS, head_dim // 2)
    with compile_for("sm_90") as builds:
        attention_hopper.forward(
            q, k, v, angles, angles, table, config, scale=head_dim**-0.5, precision="tf32",
            covered=True,
        )  # fmt: skip
    (build,) = builds
    group = replace(config, block_q=config.block_q // 2)
    found = row(
        build,
        op="fwd",
        variant=HOPPER[variant],
        head_dim=head_dim,
        dtype=DTYPE_OF[variant],
        config=group,
    )
    moved = requested_bytes(
        "fwd",
        table,
        config,
        head_dim=head_dim,
        heads=HEADS,
        element=dtype.itemsize,
        rotate=True,
    )
    return [found | order_of_loop(build, config) | {"bytes_moved": moved}]


def hopper_keys(head_dim: int, variant: str) -> list[dict[str, Any]]:
    """The same of the warp-specialised key gradients; none with a Triton that refuses them."""
    if OLD_TRITON:
        return []
    dtype, _ = VARIANTS[variant]
    config = attention_hopper_backward.dkv_config(head_dim)
    table = Segments.self_attention([ROWS]).key_tiles(config.block_k, "cpu")
    q, k, v = torch.zeros(ROWS, 3 * HEADS, head_dim, dtype=dtype).split(HEADS, 1)
    d_out, dk, dv = torch.zeros(3, ROWS, HEADS, head_dim, dtype=dtype).unbind()
    state = torch.zeros(HEADS, ROWS, 2)
    with compile_for("sm_90") as builds:
        attention_hopper_backward.key_gradients(
            q, k, v, d_out, state, dk, dv, table, scale=head_dim**-0.5
        )
    (build,) = builds
    found = row(
        build,
        op="bwd_dkv",
        variant=HOPPER[variant],
        head_dim=head_dim,
        dtype=DTYPE_OF[variant],
        config=replace(config, block_k=config.block_k // 2),
    )
    moved = requested_bytes(
        "bwd_dkv",
        table,
        config,
        head_dim=head_dim,
        heads=HEADS,
        element=dtype.itemsize,
        rotate=True,
    )
    return [found | order_of_loop(build, config) | {"bytes_moved": moved}]


def order_of_loop(build: KernelBuild, config: Config) -> dict[str, Any]:
    """What profiling/schedule.py reads of a loop: the worst of its copies."""
    trips = schedule(build.sass)
    return {
        "tile": [config.block_q, config.block_k, 12, config.stages],
        "loops": len(trips),
        "loop_registers": max(trip.registers for trip in trips),
        "register_grants": sorted(set(register_grants(build.sass))),
        "waits": sorted({trip.waits for trip in trips}),
        "exponentials_under_products": min(trip.overlapped for trip in trips),
    }


def tutorial(arch: str, head_dim: int) -> list[dict[str, Any]]:
    """The tutorial's algorithm at our tiles."""
    config = tiles(arch, head_dim)
    with compile_for(arch) as builds:
        peer_forward(head_dim=head_dim, config=config["fwd"], rows=ROWS, heads=HEADS)
        peer_backward(
            head_dim=head_dim, configs=(config["bwd_dq"], config["bwd_dkv"]), rows=ROWS, heads=HEADS
        )
    return [
        row(
            build,
            op=op,
            variant=f"{PEER}tutorial",
            head_dim=head_dim,
            dtype="bf16",
            config=config[op],
        )
        for op, build in zip(PRODUCTS, builds, strict=True)
    ]


def run(
    *,
    arches: Sequence[str] = ARCHITECTURES,
    head_dims: Sequence[int] = HEAD_DIMS,
    variants: Sequence[str] = ("bf16",),
    with_peers: bool = False,
) -> list[dict[str, Any]]:
    """Rows for all combinations; the tutorial's only where loops are rated against the A100 and the
    H100.
    """
    rows: list[dict[str, Any]] = []
    for arch in arches:
        for head_dim in head_dims:
            for variant in variants:
                rows += ours(arch, head_dim, variant)
                if arch == "sm_90" and variant in HOPPER:
                    rows += hopper(head_dim, variant) + hopper_keys(head_dim, variant)
            if with_peers and arch in ("sm_80", "sm_90"):
                rows += tutorial(arch, head_dim)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(ARCHITECTURES))
    parser.add_argument("--head-dims", default=",".join(map(str, HEAD_DIMS)))
    parser.add_argument("--variants", default="bf16", help=f"of {','.join(VARIANTS)}")
    parser.add_argument("--peers", action="store_true", help="also the tutorial's algorithm")
    parser.add_argument(
        "--out",
        type=Path,
        help="write or extend this file instead of printing; rows compiled again replace their "
        "elders",
    )
    options = parser.parse_args()
    head_dims = [int(k) for k in options.head_dims.split(",")]
    rows = run(
        arches=options.arch.split(","),
        head_dims=head_dims,
        variants=options.variants.split(","),
        with_peers=options.peers,
    )
    if options.out is None:
        print(as_text({"rows": rows}), end="")
        return
    if options.out.exists():
        made = {key(r) for r in rows}
        rows = [r for r in json.loads(options.out.read_text())["rows"] if key(r) not in made] + rows
    about = (
        "compiled, not measured: machine code of the attention kernels; ceilings are shares of the "
        "tensor-core peak, not speeds"
    )
    write(
        options.out,
        sorted(rows, key=key),
        about=about,
        command="python -m mudit_engine.benchmarks.static_attention",
    )


def key(r: dict[str, Any]) -> tuple[Any, ...]:
    """What tells two rows apart."""
    return r["op"], r["variant"], r["head_dim"], int(r["arch"].removeprefix("sm_"))


if __name__ == "__main__":
    main()
