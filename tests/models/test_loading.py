"""What opening a model costs: no compiler, no initialisers, and the same weights."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import torch

from mudit_engine.cli._console import loading
from mudit_engine.config import load_config
from mudit_engine.models.folder import build_part, load_part, model_folder, save_part

OPEN = """
import sys
import torch
from mudit_engine.runtime.load import open_model
open_model("tiny", dtype=torch.float32, device="cpu")
print([name for name in ("torch._dynamo", "sympy", "torch._inductor") if name in sys.modules])
"""


def test_opening_a_model_imports_no_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_network_is_whole_after_loading() -> None:
    folder = model_folder("tiny")
    config = load_config(folder)
    loaded = load_part("dit", config, folder)
    built = build_part("dit", config)
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == shapes
    assert not torch.equal(loaded.final.weight, built.final.weight)


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    """Contracts, students and data sets know weights by the sha256 of their file."""
    module = torch.nn.Linear(3, 2)
    written = {save_part("dit", module, tmp_path / str(n)).read_bytes() for n in range(12)}
    assert len(written) == 1


def test_the_collector_runs_again_after_loading() -> None:
    gc.unfreeze()  # what the tests' own imports were left out of
    assert gc.isenabled()
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > 0
