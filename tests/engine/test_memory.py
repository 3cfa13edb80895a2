"""Freed memory is kept once a model is open, unless the process was told otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from mudit_engine.hardware import keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory()
def work(times):
    for _ in range(times):
        torch.ones(1 << 24) + 1
work(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
def test_pages_are_not_faulted_in_again() -> None:
    def faults(**more: str) -> tuple[str, int]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | more
        done = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, env=env, check=True
        )
        kept, count = done.stdout.split()
        return kept, int(count)

    # Blocks of 64 MB, since glibc by itself keeps those of up to 32 MB once one was freed. What is
    # at the heap's end may make it grow by another pair or two, of 48 blocks.
    kept, few = faults()
    left_alone, many = faults(MALLOC_ARENA_MAX="2")
    assert (kept, left_alone) == ("True", "False")
    assert few < many / 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_given_back_when_asked() -> None:
    """In a process of its own: what 200 small blocks leave in the heap goes back to the system."""
    code = (
        "import ctypes, sys\n"
        "from pathlib import Path\n"
        "from mudit_engine.hardware import give_back_memory, keep_freed_memory\n"
        "keep_freed_memory()\n"
        "def resident():\n"
        "    text = Path('/proc/self/status').read_text()\n"
        "    return int(text.split('VmRSS:')[1].split()[0])\n"
        "blocks = [bytearray(b'x' * 300_000) for _ in range(200)]\n"
        "del blocks\n"
        "before = resident()\n"
        "told = give_back_memory()\n"
        "print(before - resident() > 30_000 if told else 'no glibc')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("True", "no glibc")
