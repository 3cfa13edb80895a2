"""Launches are counted without a GPU: kernels, programs, variants, and Triton is itself again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mudit_engine.errors import InputError, MuditError
from mudit_engine.profiling import strict
from mudit_engine.profiling.launches import Launches, count_launches

CODE = """
import json, torch
from mudit_engine.kernels.bias_gelu import bias_gelu
from mudit_engine.profiling.aot import compile_for
from mudit_engine.profiling.launches import count_launches
x, bias = torch.zeros(130, 64, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.bfloat16)
with count_launches("sm_90") as counted:
    bias_gelu(x, bias)
    bias_gelu(x, bias)
    bias_gelu(x.float(), bias.float())
with compile_for("sm_90") as builds:
    bias_gelu(x, bias)
print(json.dumps([counted.launches, counted.by_kernel(), builds[0].registers]))
"""


def test_counts_and_leaves_no_trace() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    launches, kernels, registers = json.loads(done.stdout.splitlines()[-1])
    assert len(launches) == 3 and launches[0] == launches[1]
    (counts,) = kernels.values()
    assert counts["launches"] == 3 and counts["variants"] == 2 and counts["programs"] >= 6
    # what was counted is not taken for compiled
    assert registers > 0


def test_refuses_what_it_cannot_count() -> None:
    with pytest.raises(InputError, match="sm_70"), count_launches("sm_70"):
        pass
    if strict.INTERPRETED:
        with pytest.raises(MuditError, match="TRITON_INTERPRET=1"), count_launches("sm_90"):
            pass
    assert Launches().programs == 0
