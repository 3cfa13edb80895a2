"""How every benchmark times: providers in turns, quantiles over the rounds, ratios within a round,
CPU seconds, energy where the card tells.

    times = interleave({"mudit": ours, "peer": theirs}, rounds=20)
    times["mudit"].p50, ratio(times, "mudit", "peer")        # how many times as fast

A round runs each provider once, and the order turns from round to round, so that no provider always
follows the same one; `aba` runs them forth and back instead. Ratios are medians of the ratios
within a round: what slows the machine for a while slows both. CPU seconds are those of all threads
of the process: on a machine that others use too they say more than seconds do.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

Call = Callable[[], object]
GEMM_SIZE = (1536, 1536, 6144)
COPY_BYTES = 1 << 27


@dataclass
class Times:
    """Seconds of each round of one provider, on the clock and on the processor, and joules (None
    without a meter).
    """

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Seconds that `share` of the rounds stay within."""
        return quantile(self.walls, share)

    @property
    def p50(self) -> float:
        return self.quantile(0.5)

    @property
    def cpu_p50(self) -> float:
        return statistics.median(self.cpus)


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between neighbours, as numpy's default."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def settle() -> None:
    """Waits for the device, where there is one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def turns(names: Sequence[str], rounds: int, *, aba: bool = False) -> Iterator[list[str]]:
    """The order of each round: turning, or forth and back."""
    for number in range(rounds):
        if aba:
            yield list(names) if number % 2 == 0 else list(reversed(names))
        else:
            shift = number % len(names)
            yield [*names[shift:], *names[:shift]]


def interleave(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    warm: bool = True,
    aba: bool = False,
    before: Mapping[str, Call] | None = None,
    cpu: Callable[[], float] = time.process_time,
) -> dict[str, Times]:
    """Times of every provider. `before` is called ahead of a provider's turn, off the clock; `cpu`
    is the clock of CPU seconds.

    The garbage collector rests meanwhile: it would run in whichever provider's turn its threshold
    falls.
    """
    times = {name: Times() for name in calls}
    if warm:
        for name, call in calls.items():
            if before and name in before:
                before[name]()
            call()
    meter = energy_meter()
    with _no_collection():
        for order in turns(list(calls), rounds, aba=aba):
            for name in order:
                if before and name in before:
                    before[name]()
                settle()
                used = meter() if meter else 0.0
                wall, used_cpu = time.perf_counter(), cpu()
                calls[name]()
                settle()
                found = times[name]
                found.walls.append(time.perf_counter() - wall)
                found.cpus.append(cpu() - used_cpu)
                if meter:
                    found.joules.append(meter() - used)
    return times


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def ratio(times: Mapping[str, Times], name: str, reference: str, *, cpu: bool = False) -> float:
    """How many times as fast as the reference: the median over the rounds."""
    own, other = times[name], times[reference]
    pairs = zip(own.cpus if cpu else own.walls, other.cpus if cpu else other.walls, strict=True)
    return statistics.median(theirs / max(ours, 1e-9) for ours, theirs in pairs)


def energy_meter() -> Callable[[], float] | None:
    """Joules that the first GPU has used since its driver was loaded, as NVML tells them; None
    where it does not.
    """
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml  # comes with many GPU images, and nothing else here needs it

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no package, no driver, or a card without the counter
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000.0


@dataclass(frozen=True)
class Gemm:
    """The yardstick of a run: products of the MLP's shape at 1,536 frames, timed in turns with the
    providers.
    """

    call: Call
    flops: float

    @classmethod
    def of(
        cls, dtype: torch.dtype = torch.float32, *, device: str = "cpu", repeats: int = 3
    ) -> Gemm:
        m, k, n = GEMM_SIZE
        a = torch.randn(m, k, device=device).to(dtype)
        b = torch.randn(k, n, device=device).to(dtype)

        def call() -> None:
            for _ in range(repeats):
                a @ b

        return cls(call, 2.0 * m * k * n * repeats)


@dataclass(frozen=True)
class Copy:
    """The other yardstick: a copy larger than any cache, which reads and writes `bytes`."""

    call: Call
    bytes: int

    @classmethod
    def of(cls, *, device: str = "cpu") -> Copy:
        source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return cls(lambda: target.copy_(source), 2 * COPY_BYTES)


def resident_bytes(field: str) -> int:
    """Memory of this process: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
