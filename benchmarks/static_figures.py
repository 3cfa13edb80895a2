"""What is said of every compiled kernel, ours or a peer's: one row of the static reports, and how a
report is written to a file.

    with compile_for("sm_90") as builds:
        ...
    figures(builds[0], op="norm_fwd", variant="residual_norm", dtype="bf16")

Nothing here is measured: registers, spills and instructions are read from machine code, ceilings
are shares of a peak (profiling/sass.py).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from mudit_engine.profiling.aot import KernelBuild
from mudit_engine.profiling.sass import MACHINES, analyse

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PEER = "peer:"
"""What the variant of a peer's row starts with."""


def figures(
    build: KernelBuild,
    *,
    op: str,
    variant: str,
    dtype: str,
    head_dim: int | None = None,
    useful_flops: float | None = None,
    live: float | None = None,
) -> dict[str, Any]:
    """The row of one compiled launch. useful_flops: of one trip of its hot loop by one block; live:
    see analyse().

    Bytes are filled in by those who know them: bytes_minimum from the kernel's own metadata,
    bytes_moved None until counted.
    """
    report = analyse(build, useful_flops=useful_flops, live=live)
    loop = report.loops[0] if report.loops else None
    mma = report.counts.get("mma", 0)
    return {
        "op": op,
        "variant": variant,
        "head_dim": head_dim,
        "dtype": dtype,
        "arch": build.arch,
        "machine": MACHINES[build.arch].name,
        "warps": build.warps,
        "stages": build.stages,
        "registers": build.registers,
        "spill_bytes": build.spill_bytes,
        "loop_local_accesses": report.loop_local_accesses,
        "shared_bytes": build.shared_bytes,
        "scratch_bytes": build.scratch_bytes,
        "blocks_per_sm": report.blocks_per_sm,
        "tma_loads": report.tma_loads,
        "mma_instructions": mma,
        "mma_useful_ratio": round(1 / loop.useful, 3) if loop and mma else None,
        "loop_instructions": loop.instructions if loop else None,
        "loop_counts": loop.counts if loop else None,
        # per 4096 FLOP of a warp, which is one m16n8k16
        "instructions_per_mma": round(loop.instructions * build.warps * 4096 / loop.flops, 3)
        if loop and mma
        else None,
        "ceiling_of": loop.goal if loop else None,
        "ceiling_overlap": round(loop.overlap, 4) if loop else None,
        "ceiling_serial": round(loop.serial, 4) if loop else None,
        "bound": loop.bound if loop else None,
        "wide_in_loops": sum(
            n for each in report.loops for width, n in each.accesses.items() if width == 16
        ),
        "narrow_in_loops": sum(
            n for each in report.loops for width, n in each.accesses.items() if width < 16
        ),
        "access_bytes": {str(width): n for width, n in sorted(report.global_access_bytes.items())},
        "flops": build.flops,
        "bytes_minimum": build.bytes_moved,
        # FLOP per byte that has to come from or go to DRAM
        "intensity": round(build.flops / build.bytes_moved, 3)
        if build.flops and build.bytes_moved
        else None,
        "bytes_moved": None,
        "ptxas_warnings": list(build.ptxas_warnings),
    }


def skipped(
    *, op: str, variant: str, arch: str, dtype: str, head_dim: int | None = None, reason: str
) -> dict[str, Any]:
    """The row of a peer that could not be had: nothing but the reason."""
    return {
        "op": op,
        "variant": variant,
        "head_dim": head_dim,
        "dtype": dtype,
        "arch": arch,
        "skipped": reason,
    }


def as_text(document: dict[str, Any]) -> str:
    """JSON with one row a line, so that a change of one kernel is a change of its line."""
    head = json.dumps({k: v for k, v in document.items() if k != "rows"}, indent=1).removesuffix(
        "\n}"
    )
    lines = ",\n".join("  " + json.dumps(row) for row in document["rows"])
    return f'{head},\n "rows": [\n{lines}\n ]\n}}\n'


def write(path: Path, rows: Sequence[dict[str, Any]], *, about: str, command: str) -> None:
    """Writes the document aside and renames it."""
    document = {
        "about": about,
        "command": command,
        "versions": {
            "triton": triton.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "rows": list(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(as_text(document))
    os.replace(aside, path)
