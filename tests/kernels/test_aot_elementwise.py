"""Row-wise kernels as machine code, with no GPU: no spills, 16-byte accesses, no more bytes than
the operation needs.

The committed figures are benchmarks/results/static_elementwise.json; a kernel that needs more than
they say is a regression.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from forked import run_compiling
from mudit_engine.benchmarks.static_elementwise import PROCESSORS_SHARE, WIDTH, traffic
from mudit_engine.profiling import strict
from mudit_engine.profiling.aot import ARCHITECTURES

ROOT = Path(__file__).parents[2]
COMMITTED = json.loads((ROOT / "benchmarks/results/static_elementwise.json").read_text())["rows"]
KEY = ("op", "variant", "dtype", "arch")


def figures(folder: Path, arch: str, *options: str) -> list[dict]:
    """Compiled in a process of its own: this one interprets."""
    out = folder / f"{arch}.json"
    module = "mudit_engine.benchmarks.static_elementwise"
    run_compiling(module, "--arch", arch, *options, "--out", str(out), log=folder / "log")
    return json.loads(out.read_text())["rows"]


def hold_bars(row: dict) -> None:
    name = "-".join(row[k] for k in KEY)
    assert row["spill_bytes"] == 0 and row["loop_local_accesses"] == 0, f"{name} spills"
    assert not row["ptxas_warnings"], name
    assert row["wide_in_loops"] > 0 and row["narrow_in_loops"] <= row["scalars"], (
        f"{name} has accesses below 16 bytes"
    )


def hold_committed(rows: list[dict]) -> None:
    committed = {tuple(row[k] for k in KEY): row for row in COMMITTED}
    for row in rows:
        hold_bars(row)
        bar = committed[tuple(row[k] for k in KEY)]
        for figure in ("wide_in_loops", "narrow_in_loops", "shared_bytes"):
            assert row[figure] <= bar[figure], (
                f"{'-'.join(row[k] for k in KEY)}: {figure} {row[figure]}, committed {bar[figure]}"
            )
        assert row["blocks_per_sm"] >= bar["blocks_per_sm"], (
            f"{'-'.join(row[k] for k in KEY)}: fewer blocks fit a multiprocessor"
        )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_committed_figures_hold_the_bars(arch):
    rows = [row for row in COMMITTED if row["arch"] == arch]
    assert rows
    for row in rows:
        hold_bars(row)


@pytest.mark.parametrize(
    ("arch", "variants"),
    [("sm_80", "residual_norm,pack/96"), ("sm_90", "bias_gelu,pack/96,guided_step")],
)
def test_compiles_to_the_committed_figures(arch, variants, tmp_path):
    hold_committed(figures(tmp_path, arch, "--variants", variants, "--dtypes", "bf16"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_compiles_to_the_committed_figures(arch, tmp_path):
    variants = ",".join(dict.fromkeys(row["variant"] for row in COMMITTED))
    rows = figures(tmp_path, arch, "--variants", variants)
    assert len(rows) == sum(row["arch"] == arch for row in COMMITTED)
    hold_committed(rows)


# Bytes are counted lane by lane in the interpreter (elements under a live mask, every program),
# over one multiprocessor's share of eight whole songs; the minimum reads every input and writes
# every output once. Second passes count in full.
SHARE = PROCESSORS_SHARE[0]


def row_bytes(dtype: torch.dtype = torch.bfloat16, width: int = WIDTH) -> int:
    return width * dtype.itemsize


def pack_bytes(head_dim: int, streams: int = 1) -> int:
    tables, section, gains = 4 * SHARE * head_dim, SHARE * row_bytes(), 2 * (streams + 1) * head_dim
    # forward: qkv in; q, k, v out. Backward: q and k of qkv and all gradients in, dqkv out
    return (2 * (streams + 2) * section + tables + gains) + (
        (3 * streams + 5) * section + tables + 2 * gains
    )


MINIMUM = {
    # forward x, y -> sum, h and three table rows; backward dsum, dh, sum, y -> dx, dy, two table
    # rows in and three out
    "residual_norm": row_bytes() * ((4 * SHARE + 3) + (6 * SHARE + 5)),
    "residual_norm/in_place": row_bytes() * (4 * SHARE + 3),
    "layer_norm_modulate": row_bytes() * ((2 * SHARE + 2) + (3 * SHARE + 3)),
    "bias_gelu": row_bytes(width=4 * WIDTH) * ((2 * SHARE + 1) + (3 * SHARE + 2)),
    "pack/96": pack_bytes(96),
    "pack/96x2": pack_bytes(96, streams=2),
    # qkv and kv in; q, k, v and k, v out; a table and a gain each (the queries' too)
    "pack/96/joint": SHARE * (6 + 4) * row_bytes() + 2 * 4 * SHARE * 96 + 3 * 2 * 96,
    "guided_step": SHARE * 96 * (5 * 4 + 2 * 2) + 4 * 11,
}


@pytest.mark.skipif(not strict.INTERPRETED, reason="the interpreter counts the bytes")
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "pack/96x2" else [])
        for name in MINIMUM
    ],
)
def test_bytes_moved_are_within_5_percent_of_the_minimum(variant):
    launches = traffic(variant, "bf16")
    ratio = sum(launch.requested for launch in launches) / MINIMUM[variant]
    assert 0.999 <= ratio <= 1.05, f"{ratio:.3f} x the minimum: {launches}"
    # what the ceilings take from tile sizes is what is counted, but for scalars and half-filled
    # last tiles
    live = {"residual_norm": 0.75, "residual_norm/in_place": 0.75, "layer_norm_modulate": 0.75}.get(
        variant
    )
    if live:
        assert launches[0].live == pytest.approx(live, rel=0.02)
