"""From operations to answers: where a run's time goes, how far each part is from what this machine
can do, and the three largest costs that could be avoided, in words.

    least    of a product or attention: FLOPs / measured GEMM rate; of anything else: bytes /
             measured copy rate; of a copy: nothing, since it need not be
    avoidable = seconds - least, never negative
    host     a stage's time in which no operation ran: Python, dispatch, waiting

    groups = group(ops)
    costs = avoidable_costs(groups, stages, rates)[:3]

An operation that a group's least says is free is one that could be left out or joined to another;
whether that is worth it is for the reader to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mudit_engine.profiling.ledger import Op

COMPUTE = ("product", "attention")
ADVICE = {
    "product": "fewer and wider products (more songs a step), or a narrower dtype, take less",
    "attention": "short segments are many small calls: longer or batched ones come nearer to it",
    "norm": "join it to the operation before or after it, so that the rows are read once",
    "pointwise": "join it to a neighbour (a product's epilogue, a norm): the rows are read once",
    "copy": "write results where they are wanted (views, out=, in place), or keep them for later",
    "random": "draw once for all steps, or on the device that uses it",
    "spectrum": "a real transform of a fitting length, or fewer of them",
    "other": "look at the trace",
    "host": "fewer and larger operations, or a captured graph, leave less to Python and dispatch",
}


@dataclass(frozen=True)
class Rates:
    """What this machine gave in this run: FLOP/s of a product, bytes/s of a copy."""

    flops: float
    bytes: float
    device: str


@dataclass
class Group:
    """Operations of one name at one place."""

    stage: str
    place: str
    name: str
    kind: str
    calls: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    flops: float = 0.0
    bytes: int = 0
    shapes: str = ""
    _largest: float = field(default=-1.0, repr=False)

    def add(self, op: Op) -> None:
        self.calls += 1
        self.seconds += op.seconds
        self.cpu_seconds += op.cpu_seconds
        self.flops += op.flops
        self.bytes += op.bytes
        if op.seconds > self._largest:
            self._largest, self.shapes = op.seconds, op.shapes

    def least(self, rates: Rates) -> float:
        """Seconds that this machine would need at its best."""
        if self.kind == "copy":
            return 0.0
        if self.kind in COMPUTE and self.flops:
            return self.flops / rates.flops
        return self.bytes / rates.bytes

    def avoidable(self, rates: Rates) -> float:
        return max(self.seconds - self.least(rates), 0.0)

    def document(self, rates: Rates) -> dict[str, Any]:
        found = {key: value for key, value in asdict(self).items() if not key.startswith("_")}
        seconds = max(self.seconds, 1e-12)
        return found | {
            "flops_per_second": self.flops / seconds,
            "bytes_per_second": self.bytes / seconds,
            "intensity": self.flops / max(self.bytes, 1),
            "least_seconds": self.least(rates),
            "avoidable_seconds": self.avoidable(rates),
            "bound": "compute" if self.kind in COMPUTE else "memory",
            "peak_fraction": self.flops / seconds / rates.flops
            if self.kind in COMPUTE
            else self.bytes / seconds / rates.bytes,
        }


@dataclass(frozen=True)
class Stage:
    """A part of the run, timed with nothing but a clock at its ends."""

    name: str
    seconds: float
    cpu_seconds: float
    calls: int


@dataclass(frozen=True)
class AvoidableCost:
    """Something that takes longer than it must."""

    what: str
    stage: str
    kind: str
    seconds: float
    share: float
    words: str


def fastest(rounds: Sequence[Sequence[Op]], *, by_cpu: bool = False) -> list[Op]:
    """The run's operations, each at its fastest over the rounds: whatever else the machine did only
    added. Rounds that ran other operations than the first are left out.

    by_cpu: the processor's time counts where it is less, as on a machine that others use; what one
    thread computes takes no longer when it is left alone.
    """
    first = rounds[0]
    same = [one for one in rounds if [op.name for op in one] == [op.name for op in first]]
    found = [min(ops, key=lambda op: op.seconds) for ops in zip(*same, strict=True)]
    if by_cpu:
        cpus = [min(op.cpu_seconds for op in ops) for ops in zip(*same, strict=True)]
        found = [
            replace(op, seconds=min(op.seconds, cpu)) for op, cpu in zip(found, cpus, strict=True)
        ]
    return found


def group(ops: Iterable[Op]) -> list[Group]:
    """Groups by stage, place and name, the longest first."""
    found: dict[tuple[str, str, str], Group] = {}
    for op in ops:
        stage, _, place = op.place.partition("/")
        key = (stage, place, op.name)
        if key not in found:
            found[key] = Group(stage, place, op.name, op.kind)
        found[key].add(op)
    return sorted(found.values(), key=lambda one: -one.seconds)


def host_seconds(groups: Iterable[Group], stages: Iterable[Stage]) -> dict[str, float]:
    """Time of each stage in which no operation ran."""
    busy: dict[str, float] = {}
    for one in groups:
        busy[one.stage] = busy.get(one.stage, 0.0) + one.seconds
    return {stage.name: max(stage.seconds - busy.get(stage.name, 0.0), 0.0) for stage in stages}


def avoidable_costs(
    groups: Sequence[Group], stages: Sequence[Stage], rates: Rates
) -> list[AvoidableCost]:
    """All avoidable costs, the largest first, in words. Copies count together by stage, as does the
    host; the rest by stage and kind of operation.
    """
    total = sum(stage.seconds for stage in stages) or 1.0
    together: dict[tuple[str, str], list[Group]] = {}
    for one in groups:
        together.setdefault((one.stage, one.kind), []).append(one)
    costs = []
    for (stage, kind), members in together.items():
        lost = sum(one.avoidable(rates) for one in members)
        costs.append(_in_words(stage, kind, members, lost, lost / total, rates))
    launches = {stage.name: 0 for stage in stages}
    for one in groups:
        launches[one.stage] = launches.get(one.stage, 0) + one.calls
    for name, seconds in host_seconds(groups, stages).items():
        count = launches.get(name, 0)
        each = f", {seconds / count * 1e6:.0f} µs for each of {count:,} operations" if count else ""
        words = (
            f"{_share(seconds / total)} of the run is the host's in {name}: {_time(seconds)} in "
            f"which no operation ran{each}. {_sentence(ADVICE['host'])}"
        )
        costs.append(
            AvoidableCost(f"host in {name}", name, "host", seconds, seconds / total, words)
        )
    return sorted(costs, key=lambda cost: -cost.seconds)


def _in_words(
    stage: str, kind: str, members: Sequence[Group], lost: float, share: float, rates: Rates
) -> AvoidableCost:
    seconds, calls = sum(one.seconds for one in members), sum(one.calls for one in members)
    least = sum(one.least(rates) for one in members)
    first = max(members, key=lambda one: one.avoidable(rates))
    where = f"{first.place + ': ' if first.place else ''}{first.name} of {first.shapes}"
    if kind == "copy":
        moved = sum(one.bytes for one in members)
        why = f"{calls:,} copies of {moved / 2**20:,.0f} MiB in all take {_time(seconds)}"
    elif kind in COMPUTE:
        flops = sum(one.flops for one in members)
        rate = flops / max(seconds, 1e-12)
        why = (
            f"{calls:,} calls run at {rate / 1e9:,.0f} GFLOP/s, {_share(rate / rates.flops)} of "
            f"the measured GEMM rate: {_time(seconds)} instead of {_time(least)}"
        )
    else:
        why = (
            f"{calls:,} operations take {_time(seconds)}, where their bytes at the rate of a copy "
            f"would take {_time(least)}"
        )
    title = {
        "product": "products",
        "attention": "attention",
        "norm": "norms",
        "pointwise": "elementwise work",
        "copy": "copies",
        "random": "noise",
        "spectrum": "transforms",
    }.get(kind, kind)
    words = (
        f"{_share(share)} of the run is lost in {stage} on {title}: {why}. Most of it at {where}. "
        f"{_sentence(ADVICE[kind])}"
    )
    return AvoidableCost(f"{title} in {stage}", stage, kind, lost, share, words)


def ideal_to_actual(
    groups: Sequence[Group], stages: Sequence[Stage], rates: Rates
) -> list[tuple[str, float]]:
    """Steps of a waterfall from the best this machine could do to what it took: (label, seconds),
    which add up to the stages' time, or to the operations' where these took longer watched.
    """
    compute = [one for one in groups if one.kind in COMPUTE]
    steps = [("all FLOPs at the GEMM rate", sum(one.least(rates) for one in compute))]
    for kind, label in (("product", "products below it"), ("attention", "attention below it")):
        steps.append((label, sum(one.avoidable(rates) for one in compute if one.kind == kind)))
    for kinds, label in (
        (("norm", "pointwise", "other"), "norms and elementwise"),
        (("copy",), "copies"),
        (("random",), "noise"),
        (("spectrum",), "transforms"),
    ):
        steps.append((label, sum(one.seconds for one in groups if one.kind in kinds)))
    steps.append(("host", sum(host_seconds(groups, stages).values())))
    return [step for step in steps if step[1] > 0]


def stage_documents(
    stages: Sequence[Stage], groups: Sequence[Group], rates: Rates
) -> list[dict[str, Any]]:
    """Every stage with its FLOPs, bytes, operations, share and fraction of the GEMM rate."""
    total = sum(stage.seconds for stage in stages) or 1.0
    host = host_seconds(groups, stages)
    rows = []
    for stage in stages:
        own = [one for one in groups if one.stage == stage.name]
        flops, moved = sum(one.flops for one in own), sum(one.bytes for one in own)
        rows.append(
            asdict(stage)
            | {
                "share": stage.seconds / total,
                "flops": flops,
                "bytes": moved,
                "operations": sum(one.calls for one in own),
                "gemm_fraction": flops / max(stage.seconds, 1e-12) / rates.flops,
                "host_seconds": host[stage.name],
            }
        )
    return rows


def memory_timeline(moments: Sequence[Any], *, points: int = 400) -> list[dict[str, Any]]:
    """At most `points` moments, each the largest of its share of the run: peaks are kept."""
    if not moments:
        return []
    span = max(moments[-1].at, 1e-9)
    best: dict[int, Any] = {}
    for moment in moments:
        slot = min(int(moment.at / span * points), points - 1)
        if slot not in best or sum(moment.bytes.values()) > sum(best[slot].bytes.values()):
            best[slot] = moment
    return [
        {"at": best[slot].at, "place": best[slot].place, "bytes": dict(best[slot].bytes)}
        for slot in sorted(best)
    ]


def launch_gaps(trace: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a GPU did by a torch.profiler trace (Chrome's format): kernels, the time in which it ran
    any, and the gaps between. None for a trace without kernels.

    A gap is the host's when the next kernel was launched (its runtime call ended) after the one
    before it had finished; else it is the device's own.
    """
    events = trace.get("traceEvents", [])
    kernels = sorted(
        (
            (float(e["ts"]), float(e["ts"]) + float(e.get("dur", 0)), _correlation(e))
            for e in events
            if e.get("ph") == "X" and e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
        ),
        key=lambda one: one[0],
    )
    if not kernels:
        return None
    launched = {
        e["args"]["correlation"]: float(e["ts"]) + float(e.get("dur", 0))
        for e in events
        if e.get("ph") == "X"
        and e.get("cat") in ("cuda_runtime", "cuda_driver")
        and "correlation" in e.get("args", {})
    }
    busy = gaps = host = 0.0
    end = kernels[0][0]
    for start, stop, correlation in kernels:
        if start > end:
            gaps += start - end
            if launched.get(correlation, start) > end:
                host += start - end
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    span = end - kernels[0][0]
    return {
        "kernels": len(kernels),
        "seconds": span / 1e6,
        "busy_seconds": busy / 1e6,
        "gap_seconds": gaps / 1e6,
        "host_bound_seconds": host / 1e6,
        "busy_share": busy / span if span else 1.0,
        "host_bound_share": host / span if span else 0.0,
    }


def _correlation(event: Mapping[str, Any]) -> int | None:
    """The number that a kernel shares with the call that launched it."""
    return event.get("args", {}).get("correlation")


def captured_graph_bytes(snapshot: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of torch.cuda.memory_snapshot()'s segments that belong to captured graphs: those of a
    pool of their own.
    """
    return sum(
        int(segment["total_size"])
        for segment in snapshot
        if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if value < 0.1 else f"{100 * value:.0f} %"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
