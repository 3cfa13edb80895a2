"""Two documents of results, figure by figure: what grew, what shrank, and whether the growth is
more than is allowed.

    report = compare(read_document(a)["results"], read_document(b)["results"], fail_over=0.05)
    # or: mudit bench compare A.json B.json --fail-over 5%

Rows are matched by their words (benchmark, case, provider, op, arch ...), figures by their names. A
count is compared as it is. A time with samples is worse only when the whole interval of its ratio
(a bootstrap of the medians) lies above the limit, so that noise raises nothing; with a handful of
samples only what no noise explains is seen.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

LESS_IS_BETTER = frozenset(
    [
        "seconds_p50",
        "cpu_seconds_p50",
        "seconds",
        "cpu_seconds",
        "memory_bytes",
        "joules",
        "flops",
        "bytes",
        "launches",
        "programs",
        "allocations",
        "allocated_bytes",
        "peak_bytes",
        "variants",
        "operators",
        "registers",
        "spill_bytes",
        "shared_bytes",
        "loop_instructions",
        "loop_local_accesses",
        "own_modules",
        "packages",
        "peak_memory_mib",
        "bytes_moved",
        "ms_p50",
        "plan_cpu_s",
        "real_time_factor",
        "both_seconds",
    ]
)
MORE_IS_BETTER = frozenset(
    [
        "ratio",
        "cpu_ratio",
        "ratio_to_peer",
        "ratio_to_torch",
        "cpu_ratio_to_torch",
        "gemm_peak_fraction",
        "gemm_cpu_fraction",
        "audio_seconds_per_second",
        "tflops",
        "gigabytes_per_second",
        "ceiling_overlap",
        "ceiling_serial",
        "songs_per_cpu_second",
        "read_songs_per_cpu_s",
        "cast_songs_per_cpu_s",
        "efficiency",
    ]
)
TIMES = frozenset(("seconds_p50", "cpu_seconds_p50", "seconds", "cpu_seconds", "ms_p50"))
# words of a row that say how it was run, and not what it is
CIRCUMSTANCES = frozenset(("note", "reference", "machine", "command", "role"))
DRAWS, CONFIDENCE = 2000, 0.99


@dataclass(frozen=True)
class Change:
    """One figure in both documents. `change` is the share by which it got worse (negative: better);
    low and high its interval, equal to it for a count.
    """

    row: str
    figure: str
    before: float
    after: float
    change: float
    low: float
    high: float
    worse: bool


@dataclass(frozen=True)
class Report:
    """Changes, the worst first, and the rows that only one document has."""

    changes: list[Change]
    only_before: list[str]
    only_after: list[str]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.worse]

    def document(self) -> dict[str, Any]:
        return {
            "regressions": len(self.regressions),
            "changes": [asdict(change) for change in self.changes if change.change],
            "equal": sum(not change.change for change in self.changes),
            "only_before": self.only_before,
            "only_after": self.only_after,
        }


@dataclass(frozen=True)
class Figure:
    value: float
    samples: Sequence[float] = ()


def flatten(results: Any, place: str = "") -> Iterator[tuple[tuple[str, str], Figure]]:
    """((row, figure), value) of every number in a document whose name is known."""
    if isinstance(results, Mapping):
        words = [
            str(value)
            for key, value in results.items()
            if isinstance(value, str | bool) and key not in CIRCUMSTANCES
        ]
        here = " · ".join(part for part in (place, *words) if part)
        samples = results.get("samples") or ()
        for key, value in results.items():
            name = str(key).rsplit("/", 1)[-1]
            known = name in LESS_IS_BETTER or name in MORE_IS_BETTER
            # names such as parallel_flops count as what they end with
            known = known or any(name.endswith(f"_{one}") for one in LESS_IS_BETTER)
            if isinstance(value, Mapping | list):
                yield from flatten(value, f"{here} · {key}" if key != "figures" else here)
            elif isinstance(value, int | float) and not isinstance(value, bool) and known:
                yield (here, str(key)), Figure(float(value), samples if name in TIMES else ())
    elif isinstance(results, list):
        for one in results:
            if isinstance(one, Mapping | list):
                yield from flatten(one, place)


def compare(before: Any, after: Any, *, fail_over: float = 0.05) -> Report:
    """All figures that both documents have. A figure is worse when it changed for the worse by more
    than `fail_over` as a share, certainly so where there are samples.
    """
    first, second = dict(flatten(before)), dict(flatten(after))
    changes = [_change(key, first[key], second[key], fail_over) for key in first if key in second]
    rows = ({row for row, _ in first}, {row for row, _ in second})
    return Report(
        sorted(changes, key=lambda change: (-change.worse, -change.change)),
        sorted(rows[0] - rows[1]),
        sorted(rows[1] - rows[0]),
    )


def _change(key: tuple[str, str], before: Figure, after: Figure, fail_over: float) -> Change:
    row, figure = key
    name = figure.rsplit("/", 1)[-1]

    def worsening(old: float, new: float) -> float:
        if old == new:
            return 0.0
        if name in MORE_IS_BETTER:
            old, new = new, old
        return new / old - 1 if old else float("inf")

    change = worsening(before.value, after.value)
    low = high = change
    if len(before.samples) > 1 and len(after.samples) > 1:
        low, high = ratio_interval(before.samples, after.samples)
        low, high = low - 1, high - 1
    worse = low > fail_over
    return Change(row, figure, before.value, after.value, min(change, 1e9), low, high, worse)


def ratio_interval(
    before: Sequence[float], after: Sequence[float], *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The interval of median(after) / median(before): a bootstrap of both, the same every time."""
    draw = random.Random(0)
    ratios = sorted(
        statistics.median(draw.choices(after, k=len(after)))
        / statistics.median(draw.choices(before, k=len(before)))
        for _ in range(DRAWS)
    )
    edge = round((1 - confidence) / 2 * DRAWS)
    return ratios[edge], ratios[-1 - edge]
