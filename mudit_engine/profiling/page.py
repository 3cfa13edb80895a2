"""A profile as one self-contained page: what was run, where its time went, how far that is from
what the machine can do, the three largest avoidable costs in words, and the raw JSON inside.

    page = html(document)                          # or: mudit profile generate --html profile.html

No script runs and nothing is loaded from elsewhere. The JSON lies in <script id="profile"
type="application/json"> for tools: document.getElementById("profile").textContent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mudit_engine.profiling import drawings
from mudit_engine.profiling.drawings import GRID, INK, MUTED, size, time

SHOWN_OPERATIONS = 24
STYLE = f"""
body {{ font: 14px/1.5 system-ui, sans-serif; color: {INK}; margin: 2rem auto; max-width: 960px;
  padding: 0 1rem; background: #fff; }}
h1 {{ font-size: 1.5rem; margin-bottom: .2rem; }} h2 {{ font-size: 1.1rem; margin-top: 2.2rem; }}
p, li {{ max-width: 46rem; }} .muted {{ color: {MUTED}; }} svg {{ width: 100%; height: auto; }}
svg text {{ font-family: system-ui, sans-serif; }}
code {{ background: #f2f4f7; padding: 0 .25em; border-radius: 3px; overflow-wrap: anywhere; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: .7rem; margin: 1.2rem 0; }}
.card {{ border: 1px solid {GRID}; border-radius: 8px; padding: .55rem .8rem; }}
.card b {{ display: block; font-size: 1.05rem; white-space: nowrap; font-variant-numeric: tabular-nums; }}
.card span {{ color: {MUTED}; font-size: 12px; }}
ol.costs li {{ margin: .5rem 0; }} ol.costs b {{ font-variant-numeric: tabular-nums; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; width: 100%; }}
th {{ text-align: left; border-bottom: 2px solid {INK}; vertical-align: bottom; white-space: nowrap; }}
th, td {{ padding: .22rem .5rem; }} td {{ border-bottom: 1px solid {GRID}; white-space: nowrap; }}
th.number, td.number {{ text-align: right; }}
.bar {{ display: inline-block; height: 8px; border-radius: 2px; background: #3b5bdb; }}
.warn {{ border-left: 3px solid #e8590c; padding-left: .7rem; }}
"""  # noqa: E501


def html(document: Mapping[str, Any]) -> str:
    """The page of a profile's document (benchmarks/profiles.py makes one)."""
    env, rates = document["env"], document["rates"]
    versions = env["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in ("mudit-engine", "torch", "triton")
        if name in versions
    )
    where = " · ".join(
        part
        for part in (
            packages,
            f"commit {env['commit']}" if env.get("commit") else "",
            str(env.get("cpu")),
            ", ".join(env.get("gpus") or ()) or "no GPU",
            f"{document['threads']} threads",
        )
        if part
    )
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{escape(document['title'])}</title><style>{STYLE}</style>",
        f"<h1>{escape(document['title'])}</h1>",
        f"<p class=muted>{escape(where)}<br><code>{escape(str(env.get('command')))}</code></p>",
    ]
    if document["busy"]:
        parts.append(
            f"<p class=warn>The machine was busy with other work (load {document['load']:.1f} on "
            f"{env['cores']} cores): every operation and stage is shown at its fastest of "
            f"{document['rounds']} rounds, by the clock or by the processor's, whichever is "
            f"less.</p>"
        )
    parts.append(_cards(document))
    parts.append("<h2>The three largest avoidable costs</h2><ol class=costs>")
    parts += [f"<li>{bold_start(cost['words'])}</li>" for cost in document["costs"][:3]]
    parts.append("</ol>")
    parts.append("<h2>From the ideal to the actual time</h2>")
    parts.append(drawings.waterfall(document["waterfall"]))
    parts.append(
        "<p class=muted>The first bar is the time that all counted FLOPs would take at the GEMM "
        "rate measured in this run; each further bar is what the run spent beyond it.</p>"
    )
    parts.append("<h2>Stages</h2>")
    parts.append(drawings.timeline(document["spans"]))
    parts.append(_stages(document["stages"]))
    parts.append("<h2>Roofline</h2>")
    parts.append(drawings.roofline(document["operations"], rates))
    parts.append(
        "<p class=muted>A disc is one operation at one place, its area the time it took. The roof "
        "is what this machine gave in this run: a product of large matrices, and "
        "a copy. "
        "Operations that multiply no matrices count no FLOPs; the table below holds them to the "
        "copy rate, which what lies in a cache exceeds.</p>"
    )
    if document["memory"]["timeline"]:
        parts.append("<h2>Memory by kind</h2>")
        parts.append(drawings.memory(document["memory"]["timeline"]))
        parts.append(_peak(document["memory"]))
    if document.get("gpu"):
        parts.append(_gpu(document["gpu"]))
    parts.append("<h2>Operations</h2>")
    parts.append(_operations(document["operations"]))
    raw = json.dumps(document, ensure_ascii=False).replace("</", "<\\/")
    parts.append(f'<script id="profile" type="application/json">{raw}</script></html>')
    return "\n".join(parts) + "\n"


def bold_start(words: str) -> str:
    head, colon, rest = words.partition(":")
    return f"<b>{escape(head)}</b>{colon}{escape(rest)}"


def _cards(document: Mapping[str, Any]) -> str:
    total = sum(stage["seconds"] for stage in document["stages"])
    flops = sum(stage["flops"] for stage in document["stages"])
    host = sum(stage["host_seconds"] for stage in document["stages"])
    cards = [("in all", time(total))]
    if document.get("audio_seconds"):
        cards.append(("audio a second", f"{document['audio_seconds'] / total:.3g} s"))
    cards += [
        ("counted work", f"{flops / 1e9:,.3g} GFLOP"),
        ("of the GEMM rate", f"{100 * flops / total / document['rates']['flops']:.0f} %"),
        ("outside operations", f"{100 * host / total:.1f} %"),
        ("memory at most", size(document["memory"]["peak_bytes"])),
    ]
    inside = "".join(
        f"<div class=card><b>{escape(value)}</b><span>{escape(label)}</span></div>"
        for label, value in cards
    )
    return f"<div class=cards>{inside}</div>"


def table(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; a column says whether it holds numbers."""
    head = "".join(f"<th{' class=number' if n else ''}>{escape(c)}</th>" for c, n in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=number' if number else ''}>{cell}</td>"
            for cell, (_, number) in zip(row, columns, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=scroll>{table}</div>"


def _bar(share: float) -> str:
    return f'<span class=bar style="width:{max(1, round(70 * min(share, 1)))}px"></span>'


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        ("stage", False),
        ("time", True),
        ("share", True),
        ("", False),
        ("CPU time", True),
        ("calls", True),
        ("operations", True),
        ("GFLOP", True),
        ("moved", True),
        ("of GEMM rate", True),
        ("host", True),
    ]
    rows = [
        [
            escape(s["name"]),
            time(s["seconds"]),
            f"{100 * s['share']:.1f} %",
            _bar(s["share"]),
            time(s["cpu_seconds"]),
            f"{s['calls']:,}",
            f"{s['operations']:,}",
            f"{s['flops'] / 1e9:,.4g}",
            size(s["bytes"]),
            f"{100 * s['gemm_fraction']:.0f} %",
            time(s["host_seconds"]),
        ]
        for s in stages
    ]
    return table(columns, rows)


def _operations(operations: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        ("stage", False),
        ("place", False),
        ("operation", False),
        ("kind", False),
        ("calls", True),
        ("time", True),
        ("of roof", True),
        ("avoidable", True),
        ("GFLOP", True),
        ("moved", True),
        ("largest of", False),
    ]
    rows = [
        [
            escape(op["stage"]),
            escape(op["place"]),
            escape(op["name"]),
            f'<span style="color:{drawings.COLOURS[op["kind"]]}">●</span> {op["kind"]}',
            f"{op['calls']:,}",
            time(op["seconds"]),
            f"{100 * op['peak_fraction']:.0f} %",
            time(op["avoidable_seconds"]),
            f"{op['flops'] / 1e9:,.4g}" if op["flops"] else "",
            size(op["bytes"]),
            escape(op["shapes"]),
        ]
        for op in operations[:SHOWN_OPERATIONS]
    ]
    left = len(operations) - len(rows)
    more = f"<p class=muted>and {left} more in the JSON of this page.</p>" if left > 0 else ""
    return table(columns, rows) + more


def _peak(memory: Mapping[str, Any]) -> str:
    parts = ", ".join(
        f"{escape(kind)} {size(count)}"
        for kind, count in sorted(memory["peak"].items(), key=lambda item: -item[1])
        if count > 0
    )
    where = f" in {escape(memory['peak_place'])}" if memory.get("peak_place") else ""
    return (
        f"<p class=muted>At most {size(memory['peak_bytes'])} of tensors{where}: {parts}. What "
        f"libraries take for themselves is not in it.</p>"
    )


def _gpu(gpu: Mapping[str, Any]) -> str:
    return (
        f"<h2>The GPU</h2><p>{gpu['kernels']:,} kernels and copies in {time(gpu['seconds'])}; the "
        f"device was busy for {100 * gpu['busy_share']:.0f} % of it and waited for the host in "
        f"{100 * gpu['host_bound_share']:.0f} % ({time(gpu['host_bound_seconds'])}; gaps in all "
        f"{time(gpu['gap_seconds'])}).</p>"
    )
