"""The host's part of a step: measured with launches stubbed, and small once a step is captured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.static
def test_a_captured_step_costs_the_host_next_to_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mudit_engine.benchmarks.host_cost", "--songs", "1"]
    done = subprocess.run(
        [*command, "--turns", "1", "--out", str(tmp_path / "host.json")],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "host.json").read_text())
    host = {row["op"]: row["host_us"] for row in document["results"]}
    assert document["schema_version"] == 1 and document["env"]
    assert host.keys() >= {"attention", "pack_qkv", "residual_norm", "step", "captured_step"}
    assert host["captured_step"] * 5 <= host["step"]
