"""One `pytest` runs everything: Triton kernels are interpreted, as there is no GPU to count on (TRITON_INTERPRET=0: run them on one)."""

from __future__ import annotations

import os

# read by triton.jit when a kernel module is first imported, which any test file may do
os.environ.setdefault("TRITON_INTERPRET", "1")
