"""A stage of benchmarks/gpu_run.py on its way: its rows, its time, its device.

    run = StageRun("step", folder, seconds=200, dry=False)
    run.attempt("a case", lambda: run.emit("a row", ms=3.2))       # a line of folder/step.jsonl

A case that fails is a row that says so, and the next one runs. With `dry` everything is tiny and on
a CPU, interpreted: a rehearsal, without times that mean anything.
"""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mudit_engine.benchmarks import measure_kernels as kernels_benchmark


@dataclass
class StageRun:
    """A stage on its way: where its rows go, how long it may take, what it runs on."""

    stage: str
    folder: Path
    seconds: float
    dry: bool
    started: float = field(default_factory=time.monotonic)
    _peak: dict[str, float] | None = None

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def head_dims(self) -> tuple[int, ...]:
        return (64,) if self.dry else (128, 96, 64)

    def emit(self, what: str, **values: Any) -> None:
        """Appends a row to the stage's file, and prints it."""
        after = round(time.monotonic() - self.started, 1)
        row = {"stage": self.stage, "after_seconds": after, "what": what, **values}
        with (self.folder / f"{self.stage}.jsonl").open("a") as file:
            file.write(json.dumps(row, default=str) + "\n")
        shown = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
        print(" ".join(shown)[:400], flush=True)

    def attempt(self, what: str, work: Callable[[], None]) -> None:
        """Runs one case. Whatever it raises, and a stage that is out of time, is a row."""
        if time.monotonic() - self.started > self.seconds:
            self.emit(what, skipped="the stage is out of time: give it more --seconds")
            return
        try:
            work()
        except Exception as error:
            trace = traceback.format_exc()[-1200:]
            self.emit(what, error=f"{type(error).__name__}: {error}"[:500], trace=trace)
        if not self.dry:
            gc.collect()
            torch.cuda.empty_cache()

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], object], rounds: int = 20) -> dict[str, float]:
        """Wall time of a call that ends when the device is done: p50, p20, p80."""
        for _ in range(1 if self.dry else 3):
            call()
        self.wait()
        times = []
        for _ in range(1 if self.dry else rounds):
            start = time.perf_counter()
            call()
            self.wait()
            times.append(1e3 * (time.perf_counter() - start))
        p20, p50, p80 = kernels_benchmark.quantiles(times * 3 if len(times) < 2 else times)
        return {"ms_p50": p50, "ms_p20": p20, "ms_p80": p80}

    def peak(self) -> dict[str, float]:
        """What this device gives at most, measured once a stage: TFLOP/s and GB/s."""
        if self._peak is None:
            if self.dry:
                self._peak = {"tflops": 1.0, "gigabytes": 1.0}
            else:
                self._peak = kernels_benchmark.machine_peak(torch.bfloat16)
            self.emit("peak", **self._peak)
        return self._peak

    def rates(self, flops: float, ms: dict[str, float]) -> dict[str, float]:
        tflops = flops / ms["ms_p50"] / 1e9
        return {**ms, "tflops": tflops, "gemm_peak_fraction": tflops / self.peak()["tflops"]}
