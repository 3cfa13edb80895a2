"""Attention kernels as machine code, with no GPU: no spills in loops, no padded products, ceilings
that stay where they were committed.

The committed figures are benchmarks/results/static_attention.json. Kernels are compiled in a
process of its own: this one interprets.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import triton

from forked import run_compiling

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks/results/static_attention.json"
COMMITTED = {
    (r["op"], r["variant"], r["head_dim"], r["arch"]): r
    for r in json.loads(FILE.read_text())["rows"]
}
TRITON36 = json.loads((FILE.parent / "static_attention_triton36.json").read_text())
# what Triton 3.6 spills outside of loops on sm_90, in bytes: variant and head width of a kernel
SPILLS36 = {
    ("attention_bwd_dkv", "tf32", 128): 1536,
    ("attention_fwd", "hopper-bf16", 128): 12,
    ("attention_fwd", "hopper-fp16", 128): 12,
}
OURS = {key: r for key, r in COMMITTED.items() if not r["variant"].startswith("peer")}
# (arch, head width) -> least overlap and serial ceiling of the forward pass
FORWARD_BARS = {
    ("sm_80", 96): (0.95, 0.65),
    ("sm_80", 128): (0.80, 0.72),
    ("sm_90", 96): (0.95, 0.55),
    ("sm_90", 128): (0.95, 0.62),
}
# FlashAttention's Sm80 template at head width 96: 816 instructions for 192 matrix products
TEMPLATE_INSTRUCTIONS_PER_MMA = 816 / 192
SHARED_LIMIT = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}


def name(key: tuple) -> str:
    return "-".join(str(part) for part in key)


def hold_bars(row: dict, *, spill_bytes: int | None = None) -> None:
    """The bars that do not depend on what was committed. spill_bytes: outside of loops, where it is
    not what the architecture is given.
    """
    assert row["loop_local_accesses"] == 0
    assert not [w for w in row["ptxas_warnings"] if "C75" in w]
    assert row["shared_bytes"] <= SHARED_LIMIT[row["arch"]] * 1024
    if row["mma_useful_ratio"] is not None:
        assert row["mma_useful_ratio"] == 1.0
    if row["variant"] == "ieee":
        return  # exact products are for checking: no tensor cores, registers as the compiler likes
    assert row["mma_instructions"] > 0
    if spill_bytes is None:
        spill_bytes = {"sm_80": 16, "sm_90": 0}.get(row["arch"], 32)
    assert row["spill_bytes"] <= spill_bytes
    if row["variant"].startswith("hopper"):
        hold_schedule(row)
    if row["arch"] == "sm_90" and row["variant"] != "tf32":
        assert row["tma_loads"] > 0
    if row["op"] == "attention_fwd" and row["variant"] in ("bf16", "fp16"):
        overlap, serial = FORWARD_BARS.get((row["arch"], row["head_dim"]), (0.0, 0.0))
        assert (row["ceiling_overlap"] or 0) >= overlap and (row["ceiling_serial"] or 0) >= serial
        if row["head_dim"] == 96 and row["arch"] == "sm_80":
            assert row["instructions_per_mma"] <= 1.10 * TEMPLATE_INSTRUCTIONS_PER_MMA
        if row["head_dim"] == 96 and row["arch"] == "sm_90":
            assert row["registers"] <= 180


def hold_schedule(row: dict) -> None:
    """What makes the Hopper kernels worth having: in both groups of warps every exponential runs
    while products are in flight, with the registers that each group is given.
    """
    assert row["loops"] == 2 and row["exponentials_under_products"] == 1.0
    chunks = 2 if row["head_dim"] == 96 else 1
    if row["op"] == "attention_fwd":  # for the scores, then for what they were issued with
        assert row["waits"] == [[chunks, 0]]
    else:  # for the scores under do v, for do v under p do, for that under ds q, for all
        assert row["waits"] == [[chunks, chunks, chunks, 0]]
    assert {24, 240} <= set(row["register_grants"]) and row["loop_registers"] <= 240
    assert row["tma_loads"] > 0


def key_of(row: dict) -> tuple:
    return row["op"], row["variant"], row["head_dim"], row["arch"]


# the table of the Triton that is installed
HERE = (
    {key_of(row): row for row in TRITON36["rows"]}
    if triton.__version__.startswith("3.6.")
    else COMMITTED
)


def hold_here(row: dict) -> None:
    """The bars, and no worse than the figures that were committed for this Triton; half a point of
    ceiling is what address arithmetic may wander.
    """
    known = SPILLS36.get((row["op"], row["variant"], row["head_dim"]))
    hold_bars(row, spill_bytes=known if HERE is not COMMITTED else None)
    bar = HERE[key_of(row)]
    for figure in ("spill_bytes", "loop_local_accesses", "shared_bytes"):
        assert row[figure] <= bar[figure], f"{figure} {row[figure]}, committed {bar[figure]}"
    assert row["blocks_per_sm"] >= bar["blocks_per_sm"]
    for figure in ("ceiling_overlap", "ceiling_serial"):
        assert (row[figure] or 0) >= (bar[figure] or 0) - 0.005, (
            f"{figure} {row[figure]}, committed {bar[figure]}"
        )


def compiled(folder: Path, *options: str) -> list[dict]:
    out = folder / "static.json"
    module = "mudit_engine.benchmarks.static_attention"
    run_compiling(module, "--out", str(out), *options, log=folder / "log")
    return json.loads(out.read_text())["rows"]


@pytest.mark.parametrize("key", OURS, ids=name)
def test_committed_figures_hold_the_bars(key):
    hold_bars(OURS[key])


def test_triton_3_6_holds_the_same_bars():
    """What GPU images with torch 2.11 carry: compiled from a folder beside the environment."""
    assert TRITON36["versions"]["triton"].startswith("3.6.")
    assert {(r["head_dim"], r["arch"]) for r in TRITON36["rows"]} == {
        (width, arch) for width in (64, 96, 128) for arch in ("sm_80", "sm_90")
    }
    for row in TRITON36["rows"]:
        known = SPILLS36.get((row["op"], row["variant"], row["head_dim"]))
        hold_bars(row, spill_bytes=known if row["arch"] == "sm_90" else None)


def test_the_hopper_kernels_are_committed():
    wanted = {
        (op, f"hopper-{dtype}", k, "sm_90")
        for op in ("attention_fwd", "attention_bwd_dkv")
        for dtype in ("bf16", "fp16")
        for k in (64, 96, 128)
    }
    assert wanted <= OURS.keys()


def test_every_architecture_and_head_width_is_committed():
    kernels = ("attention_fwd", "attention_bwd_dq", "attention_bwd_dkv")
    wanted = {
        (op, "bf16", k, arch) for op in kernels for k in (64, 96, 128) for arch in SHARED_LIMIT
    }
    assert wanted <= OURS.keys()


@pytest.mark.parametrize(
    "key",
    [key for key in OURS if (key[0], "peer:tutorial", *key[2:]) in COMMITTED and key[1] == "bf16"],
    ids=name,
)
def test_no_figure_is_below_the_tutorials_algorithm(key):
    """At the same tile: no more wasted or spilled, and both ceilings at least as high."""
    row, peer = COMMITTED[key], COMMITTED[key[0], "peer:tutorial", *key[2:]]
    assert row["tile"] == peer["tile"]
    assert (
        row["mma_useful_ratio"] <= peer["mma_useful_ratio"]
        and row["spill_bytes"] <= peer["spill_bytes"]
    )
    assert row["ceiling_overlap"] >= peer["ceiling_overlap"]
    assert row["ceiling_serial"] >= peer["ceiling_serial"]


def test_compiles_to_the_committed_figures(tmp_path):
    """One width of the architecture with most kernels, five seconds each; the slow test compiles
    all. test_tensorrt_plugins.py compiles the forward pass for sm_80 too.
    """
    for row in compiled(tmp_path, "--arch", "sm_90", "--head-dims", "96"):
        hold_here(row)


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(SHARED_LIMIT))
def test_every_head_width_compiles_to_the_committed_figures(arch, tmp_path):
    variants = ",".join(
        v for v in ("bf16", "fp16", "tf32", "ieee") if ("attention_fwd", v, 96, arch) in HERE
    )
    if not variants:
        pytest.skip(f"no figures of {arch} were committed for Triton {triton.__version__}")
    for row in compiled(tmp_path, "--arch", arch, "--variants", variants):
        hold_here(row)
