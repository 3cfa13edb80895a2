"""Signals that ask a run to stop: it saves after the step that runs, on all ranks after the same
one.

stop = Stop()
with stop.noting():
    ...
    if stop.signal is not None: raise InterruptedRun("...", signal_number=stop.signal)
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType

from mudit_engine.errors import MuditError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

log = logging.getLogger(__name__)


class InterruptedRun(MuditError):
    """A signal asked the run to stop; its state was saved. `exit_code` is 130 for Ctrl-C, 128 +
    signal for others.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Stop:
    """Which signal this process got, and which any rank has told of."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.heard: int | None = None

    def told(self) -> list[float]:
        """What the other ranks are told: a 1 for the signal that came."""
        return [float(self.signal == number) for number in SIGNALS]

    def hear(self, counts: list[float]) -> None:
        """How many ranks told of each signal."""
        got = [number for number, count in zip(SIGNALS, counts, strict=True) if count]
        self.heard = max(got) if got else None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Inside, SIGINT, SIGTERM and SIGUSR1 are noted; a second SIGINT stops at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self.signal == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = number
            log.warning(
                "%s: saving after this step%s",
                signal.Signals(number).name,
                ", again to stop at once" if number == signal.SIGINT else "",
            )

        before = {}
        # not the main thread (a notebook's worker, a test): no handlers then
        with contextlib.suppress(ValueError):
            before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
