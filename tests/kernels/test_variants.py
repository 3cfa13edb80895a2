"""How often kernels are compiled: batches of ever new lengths share a few variants.

Counted in a process of its own: this one interprets.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forked import run_compiling

MOST = 4
KERNELS = {
    "attention_fwd_kernel", "attention_bwd_dq_kernel", "attention_bwd_dkv_kernel",
    "norm_fwd_kernel", "norm_bwd_kernel", "pack_fwd_kernel", "pack_bwd_kernel",
    "_bias_gelu_fwd_kernel", "_bias_gelu_bwd_kernel", "_segment_sum_kernel", "_guided_step_kernel",
}  # fmt: skip


@pytest.mark.static
@pytest.mark.parametrize("batches", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_random_batches_share_a_few_variants(batches: int, tmp_path: Path) -> None:
    """A length that reached a constant would be a variant a batch."""
    out = tmp_path / "variants.json"
    module = "mudit_engine.benchmarks.static_variants"
    run_compiling(module, "--batches", str(batches), "--out", str(out), log=tmp_path / "log")
    rows = json.loads(out.read_text())["results"]
    for arch in ("sm_80", "sm_90"):
        assert {row["kernel"] for row in rows if row["arch"] == arch} == KERNELS
    many = [(r["kernel"], r["arch"], r["mode"]) for r in rows if r["variants"] > MOST]
    assert many == []
