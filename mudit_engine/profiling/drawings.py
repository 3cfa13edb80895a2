"""Drawings of a profile as SVG, made of nothing but text: a timeline of stages, the waterfall from
the ideal to the actual time, a roofline, memory by kind.

svg = roofline(document["operations"], document["rates"])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

INK, MUTED, GRID, PAPER = "#1f2430", "#667085", "#e4e7ec", "#ffffff"
COLOURS = {
    "product": "#3b5bdb",
    "attention": "#862e9c",
    "norm": "#2b8a3e",
    "pointwise": "#66a80f",
    "copy": "#e8590c",
    "random": "#0c8599",
    "spectrum": "#f08c00",
    "other": "#868e96",
    "host": "#c92a2a",
}
MEMORY = {
    "weights": "#3b5bdb",
    "plan": "#0c8599",
    "K/V": "#862e9c",
    "activations": "#f08c00",
    "gradients": "#2b8a3e",
    "optimiser": "#66a80f",
    "captured graphs": "#c92a2a",
}
STEPS = ("#3b5bdb", "#748ffc", "#b197fc", "#66a80f", "#e8590c", "#0c8599", "#f08c00", "#c92a2a")
WIDTH = 920


def svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = INK, size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" '
        f'font-size="{size}">{escape(text)}</text>'
    )


def rect(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width, 0.6):.2f}" height="{height:.1f}" '
        f'fill="{colour}" rx="1.5"><title>{escape(title)}</title></rect>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str = GRID, more: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'
    )


def time(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            value = seconds / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return "0"


def size(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            value = count / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{count:.0f} B"


def _ticks(most: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to `most`."""
    if most <= 0:
        return [0.0]
    raw = most / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [i * step for i in range(int(most / step) + 1)]


def timeline(spans: Sequence[Mapping[str, Any]]) -> str:
    """When each stage ran: a row a stage, time from left to right."""
    names = list(dict.fromkeys(str(span["stage"]) for span in spans))
    left, right, row = 110, 20, 24
    end = max((span["start"] + span["seconds"] for span in spans), default=1.0)
    scale = (WIDTH - left - right) / end
    parts = []
    bottom = 10 + row * len(names)
    for tick in _ticks(end):
        x = left + tick * scale
        parts += [
            line(x, 6, x, bottom),
            text(x, bottom + 16, time(tick), anchor="middle", colour=MUTED, size=11),
        ]
    for number, name in enumerate(names):
        y = 10 + number * row
        own = [span for span in spans if span["stage"] == name]
        parts.append(text(left - 10, y + 14, name, anchor="end"))
        for span in own:
            title = f"{name}: {time(span['seconds'])} from {time(span['start'])}"
            colour = STEPS[number % len(STEPS)]
            parts.append(
                rect(
                    left + span["start"] * scale, y + 3, span["seconds"] * scale, 15, colour, title
                )
            )
    return svg(bottom + 24, parts, "timeline of stages")


def waterfall(steps: Sequence[Sequence[Any]]) -> str:
    """From the least time this machine could take, bar by bar, to what the run took."""
    total = sum(step[1] for step in steps) or 1.0
    left, right, row = 190, 130, 26
    scale = (WIDTH - left - right) / total
    parts, at = [], 0.0
    bottom = 8 + row * (len(steps) + 1)
    for tick in _ticks(total):
        x = left + tick * scale
        parts += [
            line(x, 4, x, bottom),
            text(x, bottom + 16, time(tick), anchor="middle", colour=MUTED, size=11),
        ]
    for number, (label, seconds) in enumerate(steps):
        y = 8 + number * row
        parts.append(text(left - 10, y + 15, label, anchor="end"))
        title = f"{label}: {time(seconds)}"
        parts.append(
            rect(left + at * scale, y + 3, seconds * scale, 17, STEPS[number % len(STEPS)], title)
        )
        end = left + (at + seconds) * scale
        parts.append(
            text(
                end + 8,
                y + 16,
                f"{time(seconds)}  {100 * seconds / total:.1f} %",
                colour=MUTED,
                size=11,
            )
        )
        parts.append(line(end, y + 20, end, y + row + 3, MUTED, 'stroke-dasharray="2 2"'))
        at += seconds
    y = 8 + row * len(steps)
    parts.append(text(left - 10, y + 15, "what it took", anchor="end"))
    parts.append(rect(left, y + 3, total * scale, 17, INK, f"in all: {time(total)}"))
    parts.append(text(left + total * scale + 8, y + 16, time(total), colour=INK, size=11))
    return svg(bottom + 24, parts, "waterfall from the ideal to the actual time")


def roofline(operations: Sequence[Mapping[str, Any]], rates: Mapping[str, Any]) -> str:
    """FLOP/s against FLOPs a byte: the roof is what this machine gave, a disc is an operation, its
    area the time it took.
    """
    total = sum(op["seconds"] for op in operations)
    # what takes no time worth a disc would only stretch the axis
    points = [op for op in operations if op["flops"] > 0 and op["seconds"] > 1e-4 * total]
    left, right, top, height = 96, 20, 16, 330
    low, high = 0.05, 2000.0
    peak, band = rates["flops"], rates["bytes"]
    floor = min([peak / 1e4, *(op["flops_per_second"] / 2 for op in points)])
    roof = peak * 2
    width = WIDTH - left - right

    def x_of(value: float) -> float:
        return left + width * (math.log(value / low) / math.log(high / low))

    def y_of(value: float) -> float:
        return top + height * (1 - math.log(value / floor) / math.log(roof / floor))

    parts = []
    for power in range(-1, 4):
        x = x_of(10.0**power)
        parts += [
            line(x, top, x, top + height),
            text(x, top + height + 16, f"{10.0**power:g}", anchor="middle", colour=MUTED, size=11),
        ]
    for power in range(math.ceil(math.log10(floor)), math.floor(math.log10(roof)) + 1):
        y = y_of(10.0**power)
        parts += [
            line(left, y, WIDTH - right, y),
            text(left - 8, y + 4, _rate(10.0**power), anchor="end", colour=MUTED, size=11),
        ]
    parts.append(
        text(left + width / 2, top + height + 34, "FLOPs a byte", anchor="middle", colour=MUTED)
    )
    knee = min(max(peak / band, low), high)
    begin = max(band * low, floor) / band
    roofs = [(begin, band * begin), (knee, peak), (high, peak)]
    path = " ".join(f"{x_of(a):.1f},{y_of(b):.1f}" for a, b in roofs)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="2"/>')
    parts.append(
        text(x_of(high) - 4, y_of(peak) - 7, f"measured GEMM: {_rate(peak)}", anchor="end", size=11)
    )
    parts.append(
        text(x_of(knee) - 10, y_of(peak) + 26, f"copy: {size(band)}/s", anchor="end", size=11)
        if knee > low * 20
        else ""
    )
    most = max((op["seconds"] for op in points), default=1.0)
    for op in sorted(points, key=lambda one: -one["seconds"]):
        colour = COLOURS[op["kind"]]
        radius = max(3.0, 22 * math.sqrt(op["seconds"] / most))
        x = x_of(min(max(op["intensity"], low), high))
        y = y_of(max(op["flops_per_second"], floor))
        title = (
            f"{op['stage']} {op['place']} {op['name']} ({op['shapes']}): {time(op['seconds'])}, "
            f"{_rate(op['flops_per_second'])}, {100 * op['peak_fraction']:.0f} % of the roof"
        )
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" '
            f'fill-opacity="0.45" stroke="{colour}"><title>{escape(title)}</title></circle>'
        )
    x = left + 10.0
    for kind in dict.fromkeys(op["kind"] for op in points):
        parts += [
            rect(x, top + 6, 10, 10, COLOURS[kind], kind),
            text(x + 15, top + 15, kind, size=11),
        ]
        x += 30 + 7 * len(kind)
    return svg(top + height + 42, parts, "roofline")


def _rate(value: float) -> str:
    for unit, scale in (("TFLOP/s", 1e12), ("GFLOP/s", 1e9), ("MFLOP/s", 1e6), ("kFLOP/s", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} FLOP/s"


def memory(timeline: Sequence[Mapping[str, Any]]) -> str:
    """Living bytes by kind over the run, one upon another."""
    found = {kind for moment in timeline for kind, count in moment["bytes"].items() if count > 0}
    kinds = [kind for kind in MEMORY if kind in found] + sorted(found - MEMORY.keys())
    left, right, top, height = 80, 20, 26, 210
    end = max((moment["at"] for moment in timeline), default=1.0) or 1.0
    totals = [sum(moment["bytes"].get(kind, 0) for kind in kinds) for moment in timeline]
    most = max(totals, default=1) or 1
    width = WIDTH - left - right
    parts = []
    for tick in _ticks(most / 2**20, 4):
        y = top + height * (1 - tick * 2**20 / most)
        parts += [
            line(left, y, WIDTH - right, y),
            text(left - 8, y + 4, f"{tick:g} MiB", anchor="end", colour=MUTED, size=11),
        ]
    below = [0.0] * len(timeline)
    for kind in kinds:
        above = [
            b + moment["bytes"].get(kind, 0) for b, moment in zip(below, timeline, strict=True)
        ]
        edge = [
            (left + width * moment["at"] / end, top + height * (1 - value / most))
            for moment, value in zip(timeline, above, strict=True)
        ]
        base = [
            (left + width * moment["at"] / end, top + height * (1 - value / most))
            for moment, value in zip(timeline, below, strict=True)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*edge, *reversed(base)])
        colour = MEMORY.get(kind, MUTED)
        parts.append(
            f'<polygon points="{path}" fill="{colour}" fill-opacity="0.75">'
            f"<title>{escape(kind)}</title></polygon>"
        )
        below = above
    for tick in _ticks(end):
        x = left + width * tick / end
        parts.append(text(x, top + height + 16, time(tick), anchor="middle", colour=MUTED, size=11))
    x = float(left)
    for kind in kinds:
        parts += [
            rect(x, 6, 10, 10, MEMORY.get(kind, MUTED), kind),
            text(x + 15, 15, kind, size=11),
        ]
        x += 34 + 7 * len(kind)
    return svg(top + height + 24, parts, "memory by kind")
