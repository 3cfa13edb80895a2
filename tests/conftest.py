"""One `pytest` runs everything: Triton kernels are interpreted, as there is no GPU to count on
(TRITON_INTERPRET=0: run them on one).
"""

from __future__ import annotations

import os
import signal

# read by triton.jit when a kernel module is first imported, which any test file may do
os.environ.setdefault("TRITON_INTERPRET", "1")

# A runner started in the background of a script ignores Ctrl-C and would hand that down to the
# programs whose Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
