"""Which precision a processor multiplies matrices in fastest, by measurement: half a second, once a
machine.

    auto_dtype()                    # torch.bfloat16 or torch.float32
    measured().bf16_gflops          # what was found, and kept

No flag of a processor tells: bf16 products are 40 to 80 times as slow as fp32 where the
instructions are emulated, 2.1 to 2.5 times as fast with avx512_bf16, more with AMX. So products of
a step's shape are timed in both, in turns, and bf16 is taken where it is at least WORTH times as
fast: it halves the bits of a result, and a near draw is not worth that.

The finding is kept in the user's cache under the processor's name and flags, torch's version and
the number of threads, so that one machine always takes the same precision. A song's sidecar names
it, and `--precision` replays it elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mudit_engine.errors import OutputError
from mudit_engine.files import cache_folder, write_json
from mudit_engine.hardware import machine

log = logging.getLogger(__name__)

WORTH = 1.3
SECONDS = 0.5
PROBE, PRODUCT = (64, 256, 256), (512, 1536, 1536)
HOPELESS = 4.0
"""A probe this many times slower in bf16 ends the measurement: its products would take seconds."""


@dataclass(frozen=True)
class Finding:
    """GFLOP/s of a product in fp32 and in bf16 (of the probe, where bf16 was hopeless)."""

    fp32_gflops: float
    bf16_gflops: float

    @property
    def dtype(self) -> torch.dtype:
        fast = self.bf16_gflops >= WORTH * self.fp32_gflops
        return torch.bfloat16 if fast else torch.float32


def auto_dtype() -> torch.dtype:
    """The precision of networks on this machine's processor."""
    return measured().dtype


@functools.cache
def measured() -> Finding:
    """The finding of this machine: from the cache, or measured now and kept."""
    path, key = cache_folder() / "precision.json", machine_key()
    known = _read(path)
    if key in known:
        return known[key]
    found = measure()
    log.info(
        "products: %.0f GFLOP/s in fp32, %.0f in bf16; kept in %s",
        found.fp32_gflops,
        found.bf16_gflops,
        path,
    )
    try:
        write_json(path, {name: asdict(one) for name, one in (known | {key: found}).items()})
    except OutputError as error:  # a home that cannot be written: it is measured again next time
        log.info("%s", error)
    return found


def measure() -> Finding:
    """Times products in both precisions, in turns, for SECONDS at most."""
    probe = _rates(PROBE, rounds=3, until=time.perf_counter() + SECONDS)
    if probe.bf16_gflops * HOPELESS < probe.fp32_gflops:
        return probe
    return _rates(PRODUCT, rounds=15, until=time.perf_counter() + SECONDS)


def _rates(shape: tuple[int, int, int], *, rounds: int, until: float) -> Finding:
    m, k, n = shape
    pairs = [
        (torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for a, b in pairs:  # pages, thread pools, kernels that are made when first called
        a @ b
    times: list[tuple[float, float]] = []
    while len(times) < rounds and (not times or time.perf_counter() < until):
        found = []
        for a, b in pairs:
            start = time.perf_counter()
            a @ b
            found.append(time.perf_counter() - start)
        times.append((found[0], found[1]))
    # the median of the ratios within a turn: what slows the machine for a while slows both
    ratio = statistics.median(fp32 / bf16 for fp32, bf16 in times)
    fp32 = 2e-9 * m * k * n / min(one for one, _ in times)
    return Finding(fp32, fp32 * ratio)


def machine_key() -> str:
    """What a finding depends on."""
    here = machine()
    parts = (here.cpu, *here.cpu_flags, torch.__version__, str(torch.get_num_threads()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Finding]:
    """Findings of a cache file; none of one that is missing or not ours."""
    try:
        return {
            key: Finding(float(one["fp32_gflops"]), float(one["bf16_gflops"]))
            for key, one in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
