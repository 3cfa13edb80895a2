"""How often kernels are compiled: batches of ever new lengths share a few variants.

Counted in a process of its own: this one interprets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 4
KERNELS = {
    "attention_fwd_kernel", "attention_bwd_dq_kernel", "attention_bwd_dkv_kernel",
    "norm_fwd_kernel", "norm_bwd_kernel", "pack_fwd_kernel", "pack_bwd_kernel",
    "_bias_gelu_fwd_kernel", "_bias_gelu_bwd_kernel", "_segment_sum_kernel", "_guided_step_kernel",
}  # fmt: skip


@pytest.mark.static
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_two_hundred_random_batches_share_a_few_variants(arch: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mudit_engine.benchmarks.static_variants", "--arch", arch]
    done = subprocess.run(
        [*command, "--batches", "200", "--out", str(tmp_path / "variants.json")],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "variants.json").read_text())["results"]
    assert {row["kernel"] for row in rows} == KERNELS
    assert {(r["kernel"], r["mode"]): r["variants"] for r in rows if r["variants"] > MOST} == {}
