"""The page of benchmarks/scaling.py: one file, three plots, the fitted laws and the figures.

page = html(document)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from mudit_engine.profiling.drawings import GRID, MUTED, WIDTH, line, size, svg, text, time
from mudit_engine.profiling.page import STYLE, bold_start, table

COLOURS = ("#3b5bdb", "#e8590c", "#2b8a3e", "#862e9c")
Point = tuple[float, float]


def plot(
    series: Mapping[str, Sequence[Point]],
    *,
    laws: Mapping[str, Callable[[float], float]],
    x_label: str,
    x_unit: Callable[[float], str],
    y_unit: Callable[[float], str],
) -> str:
    """Points and the laws through them, both axes logarithmic."""
    left, right, top, height = 90, 20, 26, 260
    points = [point for one in series.values() for point in one if point[1] > 0]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points) / 1.5, max(y for _, y in points) * 1.5
    width = WIDTH - left - right

    def place(x: float, y: float) -> Point:
        across = math.log(x / low_x) / math.log(high_x / low_x) if high_x > low_x else 0.5
        return left + 14 + (width - 28) * across, top + height * (
            1 - math.log(y / low_y) / math.log(high_y / low_y)
        )

    parts = []
    for power in range(math.ceil(math.log10(low_y)), math.floor(math.log10(high_y)) + 1):
        y = place(low_x, 10.0**power)[1]
        parts += [
            line(left, y, WIDTH - right, y),
            text(left - 8, y + 4, y_unit(10.0**power), anchor="end", colour=MUTED, size=11),
        ]
    for x_value in sorted({x for x, _ in points}):
        x = place(x_value, low_y)[0]
        parts += [
            line(x, top, x, top + height, GRID),
            text(x, top + height + 16, x_unit(x_value), anchor="middle", colour=MUTED, size=11),
        ]
    parts.append(text(left + width / 2, top + height + 34, x_label, anchor="middle", colour=MUTED))
    at = float(left)
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        if name in laws:
            curve = [
                low_x * (high_x / low_x) ** (step / 60) for step in range(61) if high_x > low_x
            ]
            path = " ".join(
                f"{x:.1f},{y:.1f}"
                for x, y in (place(one, max(laws[name](one), low_y)) for one in curve)
            )
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        for x_value, y_value in values:
            x, y = place(x_value, max(y_value, low_y))
            title = f"{name}: {y_unit(y_value)} at {x_unit(x_value)}"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
                f"<title>{escape(title)}</title></circle>"
            )
        parts += [
            f'<circle cx="{at + 5:.1f}" cy="11" r="4" fill="{colour}"/>',
            text(at + 14, 15, name, size=11),
        ]
        at += 34 + 6.4 * len(name)
    return svg(top + height + 42, parts, x_label)


def law_of(coefficients: Sequence[float]) -> Callable[[float], float]:
    return lambda t: sum(c * t**k for k, c in enumerate(coefficients))


def in_words(name: str, coefficients: Sequence[float], unit: str) -> str:
    """A law as a line of text, T in frames."""
    terms = [
        f"{value:.3g} {unit}" + ("" if power == 0 else " T" if power == 1 else f" T^{power}")
        for power, value in enumerate(coefficients)
        if value
    ]
    return f"{name}: {' + '.join(terms) or '0'}"


def html(document: Mapping[str, Any]) -> str:
    """The page of a scale document."""
    length, env = document["length"], document["env"]
    rows, laws, misses = length["rows"], length["laws"], length["worst_miss"]
    measured = [row for row in rows if "cpu_seconds_least" in row]
    where = " · ".join(
        (
            f"torch {env['versions'].get('torch')}",
            f"commit {env.get('commit')}",
            str(env.get("cpu")),
            f"{document['threads']} threads",
        )
    )
    last = rows[-1]
    attention = laws["flops"][2] * last["frames"] ** 2 / last["flops"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>Scale</title><style>{STYLE}</style><h1>What a song costs as it grows</h1>",
        f"<p class=muted>{escape(where)}<br><code>{escape(str(env.get('command')))}</code></p>",
        f"<p>A guided step of one song, size {escape(document['size'])}. The laws, T in latent "
        f"frames ({rows[0]['frames'] / rows[0]['seconds_of_song']:.1f} a second):</p><ul>",
        f"<li>{bold_start(in_words('FLOPs, counted', laws['flops'], 'FLOP'))} (within "
        f"{100 * misses['flops']:.2g} %); at {last['seconds_of_song']} s the square is "
        f"{100 * attention:.0f} % of it</li>",
        f"<li>{bold_start(in_words('CPU seconds, measured', laws['cpu_seconds'], 's'))} (within "
        f"{100 * misses['cpu_seconds']:.0f} %)</li>",
        f"<li>{bold_start(in_words('memory, counted', laws['memory_bytes'], 'B'))} (within "
        f"{100 * misses['memory_bytes']:.2g} %): linear, nothing of attention's square is "
        f"kept</li></ul>",
        "<h2>Length</h2>",
        plot(
            {
                "CPU seconds of a step": [
                    (row["seconds_of_song"], row["cpu_seconds_least"]) for row in measured
                ]
            },
            laws={"CPU seconds of a step": _by_seconds(laws["cpu_seconds"], rows)},
            x_label="seconds of song",
            x_unit=lambda value: f"{value:g} s",
            y_unit=time,
        ),
        plot(
            {
                "memory of a step": [
                    (row["seconds_of_song"], row["memory_bytes"]) for row in measured
                ]
            },
            laws={"memory of a step": _by_seconds(laws["memory_bytes"], rows)},
            x_label="seconds of song",
            x_unit=lambda value: f"{value:g} s",
            y_unit=size,
        ),
        table(
            [
                ("song", True),
                ("frames", True),
                ("GFLOP", True),
                ("CPU time", True),
                ("memory", True),
            ],
            [
                [
                    f"{row['seconds_of_song']} s",
                    f"{row['frames']:,}",
                    f"{row['flops'] / 1e9:,.4g}",
                    time(row["cpu_seconds_least"]) if "cpu_seconds_least" in row else "",
                    size(row["memory_bytes"]) if "memory_bytes" in row else "",
                ]
                for row in rows
            ],
        ),
        "<h2>Songs in a batch</h2><p>Songs of 30 s in one step.</p>",
        plot(
            {
                "CPU seconds a song": [
                    (row["songs"], row["cpu_seconds_a_song"]) for row in document["batch"]
                ]
            },
            laws={},
            x_label="songs in a step",
            x_unit=lambda value: f"{value:g}",
            y_unit=time,
        ),
        table(
            [("songs", True), ("CPU time a song", True), ("memory", True)],
            [
                [str(row["songs"]), time(row["cpu_seconds_a_song"]), size(row["memory_bytes"])]
                for row in document["batch"]
            ],
        ),
        "<h2>Size of the model</h2><p>By count: nothing here was timed.</p>",
        plot(
            {
                f"TFLOP of a step at {seconds} s": [
                    (row["parameters"], row[f"tflop_{seconds}s"]) for row in document["model"]
                ]
                for seconds in (30, 120, 260)
            },
            laws={},
            x_label="parameters of the song transformer",
            x_unit=lambda value: f"{value / 1e6:,.0f} M",
            y_unit=lambda value: f"{value:g} TFLOP",
        ),
        table(
            [("preset", False), ("parameters", True)]
            + [(f"TFLOP, {s} s", True) for s in (30, 120, 260)]
            + [(f"attention, {s} s", True) for s in (30, 120, 260)],
            [
                [row["preset"], f"{row['parameters'] / 1e6:,.1f} M"]
                + [f"{row[f'tflop_{s}s']:.3g}" for s in (30, 120, 260)]
                + [f"{100 * row[f'attention_share_{s}s']:.0f} %" for s in (30, 120, 260)]
                for row in document["model"]
            ],
        ),
    ]
    raw = json.dumps(document, ensure_ascii=False).replace("</", "<\\/")
    parts.append(f'<script id="scale" type="application/json">{raw}</script></html>')
    return "\n".join(parts) + "\n"


def _by_seconds(
    coefficients: Sequence[float], rows: Sequence[Mapping[str, Any]]
) -> Callable[[float], float]:
    """The law of frames, asked in seconds of song."""
    rate = rows[-1]["frames"] / rows[-1]["seconds_of_song"]
    law = law_of(coefficients)
    return lambda seconds: law(seconds * rate)
