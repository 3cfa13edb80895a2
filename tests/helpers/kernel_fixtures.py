"""Fixtures of tests that launch kernels, which run Triton in its interpreter, repaired and watched
by strict.py. On a GPU:
TRITON_INTERPRET=0 pytest tests/kernels.

Triton chooses between interpreter and compiler when a kernel module is imported, so the switch is
thrown here and in tests/conftest.py, before any kernel is imported. Tests of compiled code
(test_aot_*) therefore compile in a process of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from mudit_engine.profiling import strict

if strict.INTERPRETED:
    strict.install()


@pytest.fixture(autouse=True)
def strict_launches() -> Iterator[None]:
    """Bounds, races and NaN-filled outputs in every kernel test."""
    torch.manual_seed(0)
    if not strict.INTERPRETED:
        yield
        return
    with strict.checked():
        yield


@pytest.fixture
def device() -> str:
    """cpu under the interpreter, cuda otherwise."""
    return "cpu" if strict.INTERPRETED else "cuda"
