"""A trace of chosen steps by torch's profiler, one file a rank: what `mudit train --profile 10:13`
writes.

    trace = StepTrace(parse_steps("10:13"), folder, rank=0)
    trace.before(step); ...; trace.after(step)          # RUN/profile/rank-00000.json.gz

Open it in chrome://tracing, Perfetto or HTA. The steps slow down while they are recorded.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError

FOLDER = "profile"

log = logging.getLogger(__name__)


def parse_steps(text: str) -> range:
    """ "10:13" as steps 10, 11 and 12. Raises InputError."""
    found = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(
            f"--profile {text!r} must be FIRST:END, for example 10:13 for the steps 10, 11 and 12"
        )
    return range(int(found[1]), int(found[2]))


class StepTrace:
    """Records the steps of a range."""

    def __init__(self, steps: range, folder: Path, *, rank: int) -> None:
        self.steps, self.path = steps, folder / FOLDER / f"rank-{rank:05d}.json.gz"
        self._profiler: Any = None

    def before(self, step: int) -> None:
        """Called as a step's batch is asked for."""
        if step in self.steps and self._profiler is None:
            from torch.profiler import ProfilerActivity, profile, supported_activities

            wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA}
            self._profiler = profile(
                activities=sorted(supported_activities() & wanted, key=str), record_shapes=True
            )
            self._profiler.start()

    def after(self, step: int) -> None:
        """Called when a step is done."""
        if self._profiler is not None and step + 1 >= self.steps.stop:
            self.close()

    def close(self) -> None:
        """Writes what there is: also of a run that ended before the last of the steps."""
        if self._profiler is None:
            return
        self._profiler.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.path))
        self._profiler = None
        log.info("trace of steps %d to %d: %s", self.steps[0], self.steps[-1], self.path)
