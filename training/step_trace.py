"""A trace of chosen steps by torch's profiler, one file a rank: what `mudit train --profile 10:13`
(the recipe's log.profile) writes.

    trace = StepTrace(parse_steps("10:13"), folder, rank=0)
    trace.before(step); ...; trace.after(step)      # RUN/profile/steps-10-12-rank-00000.json.gz

Each step is a span "step 10", from asking for its batch to its end. The step before the first only
warms the profiler up. Steps slow down while they are recorded. Open a trace in Perfetto
(https://ui.perfetto.dev) or chrome://tracing.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError

FOLDER = "profile"

log = logging.getLogger(__name__)


def parse_steps(text: str) -> range:
    """Reads "10:13" as steps 10, 11 and 12.

    Raises:
        InputError: for anything else.

    Examples:
        >>> list(parse_steps("10:13"))
        [10, 11, 12]
    """
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text.strip())
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(
            f"the steps to profile are '{text}', which is not FIRST:END: write 10:13 for the steps "
            f"10, 11 and 12"
        )
    return range(int(found[1]), int(found[2]))


class StepTrace:
    """Records the steps of a range.

    Args:
        steps: which; None records nothing.
        folder: of the run.
        rank: whose file it is.

    Examples:
        >>> trace = StepTrace(None, Path("runs/a"), rank=0)
        >>> trace.before(0)
        >>> trace.after(0)
    """

    def __init__(self, steps: range | None, folder: Path, *, rank: int) -> None:
        self.steps, self.folder, self.rank = steps, folder / FOLDER, rank
        self._profiler: Any = None
        self._span: Any = None
        self._recorded: list[int] = []

    def before(self, step: int) -> None:
        """Called before a step's batch is asked for."""
        if self.steps is None or not self.steps.start - 1 <= step < self.steps.stop:
            return
        if self._profiler is None:
            self._start(step)
        if step in self.steps:
            from torch.profiler import record_function

            self._span = record_function(f"step {step}")
            self._span.__enter__()

    def after(self, step: int) -> None:
        """Called when a step is done; writes the file after the last one."""
        if self._profiler is None:
            return
        self._end_span()
        if self.steps is not None and step in self.steps:
            self._recorded.append(step)
            if step + 1 == self.steps.stop:
                self.close()
                return
        self._profiler.step()

    def close(self) -> None:
        """Writes what there is, also of a run that ends before the last of the steps."""
        if self._profiler is None:
            return
        self._end_span()
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        if not self._recorded:
            return
        first, last = self._recorded[0], self._recorded[-1]
        path = self.folder / f"steps-{first}-{last}-rank-{self.rank:05d}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
        log.info("trace of steps %d to %d: %s", first, last, path)

    def _start(self, step: int) -> None:
        from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

        assert self.steps is not None
        first = max(step, self.steps.start)
        wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA}
        with warnings.catch_warnings():
            # step 0 has none before it
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
            told = schedule(wait=0, warmup=first - step, active=self.steps.stop - first, repeat=1)
        self._profiler = profile(
            activities=sorted(supported_activities() & wanted, key=str),
            schedule=told,
            record_shapes=True,
        )
        self._profiler.start()

    def _end_span(self) -> None:
        if self._span is not None:
            with contextlib.suppress(RuntimeError):  # ended by another thread than began it
                self._span.__exit__(None, None, None)
            self._span = None
