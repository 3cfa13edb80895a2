"""One self-contained page of kernel figures: a roofline of static ceilings, ours against peers, and
every row in a table.

    html(static_rows, measured_rows, env)  # or: mudit bench kernels --static --html report.html

Nothing on the page is a speed unless a GPU gave it: static points are upper bounds, in shares of
the chip's peak.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mudit_engine.benchmarks.report_plots import GRID, INK, MUTED, Row, ceilings, is_peer, roofline
from mudit_engine.hardware import environment
from mudit_engine.profiling.sass import MACHINES

STATIC_COLUMNS = {
    "op": "op", "variant": "variant", "head_dim": "head", "dtype": "dtype", "tile": "tile",
    "warps": "warps", "registers": "registers", "spill_bytes": "spill B",
    "loop_local_accesses": "local in loop", "shared_bytes": "shared B",
    "blocks_per_sm": "blocks/SM", "mma_instructions": "MMAs",
    "mma_useful_ratio": "MMA executed/useful", "loop_instructions": "loop instr.",
    "mix": "loop mix", "ceiling_of": "ceiling of", "ceiling_overlap": "overlap",
    "ceiling_serial": "serial", "bound": "bound by", "ratio": "bytes moved/min",
    "access": "access width", "ptxas_warnings": "ptxas warnings",
}  # fmt: skip
STYLE = f"""
body {{ font: 14px/1.5 system-ui, sans-serif; color: {INK}; margin: 2rem auto; max-width: 1500px; }}
body {{ padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
p, li {{ max-width: 60rem; }} img {{ max-width: 100%; }} .scroll {{ overflow-x: auto; }}
code {{ background: #f2f4f7; padding: 0 .25em; border-radius: 3px; }}
table {{ border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; position: sticky; top: 0; background: #fff; vertical-align: bottom; }}
th {{ border-bottom: 2px solid {INK}; }}
th, td {{ padding: .2rem .55rem; }} td {{ border-bottom: 1px solid {GRID}; white-space: nowrap; }}
td.number {{ text-align: right; }} tr.peer td {{ color: {MUTED}; }}
tr.bad td {{ background: #fff4e6; }} td.wrap {{ white-space: normal; }}
.muted {{ color: {MUTED}; }}
"""


def cells(row: Row) -> dict[str, Any]:
    """The row's values as the tables print them."""
    percent = {
        k: f"{100 * row[k]:.1f} %"
        for k in ("ceiling_overlap", "ceiling_serial")
        if row.get(k) is not None
    }
    moved, least = row.get("bytes_moved"), row.get("bytes_minimum")
    mix = row.get("loop_counts") or {}
    return row | percent | {
        "tile": "x".join(map(str, row["tile"][:2])) if row.get("tile") else None,
        "mix": " ".join(
            f"{pipe} {n}" for pipe, n in sorted(mix.items(), key=lambda item: -item[1])
        ),
        "ratio": f"{moved / least:.2f}" if moved and least else None,
        "access": " ".join(
            f"{int(width) * 8}b x{n}" for width, n in (row.get("access_bytes") or {}).items()
        )
        or None,
        "ptxas_warnings": "; ".join(row.get("ptxas_warnings") or ()) or None,
    }  # fmt: skip


def _table(columns: dict[str, str], rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in columns.values())
    body = []
    for row in rows:
        kind = (
            "peer"
            if is_peer(row)
            else "bad"
            if row.get("ptxas_warnings") or row.get("loop_local_accesses")
            else ""
        )
        if row.get("skipped"):
            lead = "".join(
                f"<td>{escape(str(row.get(key) or ''))}</td>" for key in list(columns)[:4]
            )
            body.append(
                f'<tr class="peer">{lead}<td class="wrap" '
                f'colspan="{len(columns) - 4}">{escape(row["skipped"])}</td></tr>'
            )
            continue
        values = cells(row)
        tds = []
        for key in columns:
            value = values.get(key)
            number = isinstance(value, int | float) or str(value).endswith(" %")
            text = (
                f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
            )
            tds.append(f"<td{' class=number' if number else ''}>{escape(text)}</td>")
        body.append(f'<tr class="{kind}">{"".join(tds)}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _image(png: bytes | None, text: str) -> str:
    return (
        f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        if png
        else ""
    )


NOTES = {
    "roofline": """
<ul><li>Filled: ours; hollow: peers at the same tile. A line runs from the serial ceiling (nothing
overlaps) to the overlap ceiling (everything hides behind the tensor cores, or behind DRAM for
kernels that stream).</li>
<li>Head widths 64, 96 and 128 of one kernel share an intensity and are drawn side by side.</li>
</ul>""",
    "static": """
<h2>How to read it</h2><ul>
<li><b>overlap, serial</b>: tensor / max(pipes) and tensor / (tensor + busiest other pipe) cycles of
the hot loop, times useful over executed FLOP. They see no latency, no bank conflicts and no overlap
between warp groups. Kernels that stream: the same against DRAM bandwidth. sm_100 runs its matrix
products asynchronously (tcgen05), of which such counts say nothing: no ceiling.</li>
<li><b>bytes moved/min</b>: what programs ask for, L2 hits included, over what must be read and
written once. Row-wise kernels are counted lane by lane in the interpreter; attention by its
worklist (every query tile streams all keys of its song).</li>
<li>Peers do less per launch: Liger's and flash-attn's norms know no modulation row per song, their
rotary kernels no QK-norm and no split of the projection; Liger's GELU is gated and adds no bias.
The tutorial's attention knows no ragged batch and no rotation.</li>
<li><b>local in loop</b>: spills that are paid on every trip. <b>spill B</b>: spill bytes in the
whole text.</li></ul>""",
    "compiled": "<p>Compiled, not measured: no GPU was used. Ceilings are bounds from instruction "
    "counts, <b>not speeds</b>.</p>",
    "interpreted": "<p><b>Not measured:</b> interpreted at tiny sizes, to run the code and hold "
    "results to float64. No speeds.</p>",
}


def html(
    static: Sequence[Row],
    measured: Sequence[Row],
    env: dict[str, Any],
    *,
    measured_columns: dict[str, str] | None = None,
) -> str:
    """The page. `measured` are rows of measure_kernels (none: the page says that nothing was)."""
    packages = ", ".join(
        f"{name} {v}"
        for name, v in env["versions"].items()
        if name in ("mudit-engine", "torch", "triton", "python")
    )
    gpus = ", ".join(env.get("gpus") or ()) or "no GPU"
    where = " · ".join((packages, f"commit {env.get('commit')}", str(env.get("cpu")), gpus))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport "
        "content='width=device-width'><title>Kernels</title>",
        f"<style>{STYLE}</style><h1>Kernels</h1>",
        f"<p class=muted>{escape(where)}",
        f"<br><code>{escape(str(env.get('command')))}</code></p>",
    ]
    if measured:
        parts.append(
            "<h2>Measured</h2>"
            if all(r["measured"] for r in measured)
            else "<h2>Interpreted</h2>" + NOTES["interpreted"]
        )
        parts.append(_table(measured_columns or {key: key for key in measured[0]}, measured))
    else:
        parts.append(NOTES["compiled"])
    if static:
        parts += [
            "<h2>Roofline of static ceilings</h2>",
            _image(roofline(static), "Static ceilings against arithmetic intensity"),
        ]
        parts += [
            NOTES["roofline"],
            "<h2>Attention against peers</h2>",
            _image(ceilings(static), "Ceilings of the attention kernels"),
        ]
        for arch in dict.fromkeys(r["arch"] for r in static):
            parts.append(f"<h2>{escape(arch)}, {escape(MACHINES[arch].name)}</h2>")
            parts.append(_table(STATIC_COLUMNS, [r for r in static if r["arch"] == arch]))
        parts.append(NOTES["static"])
    return "\n".join(parts) + "\n"


def write(path: Path, *, static: Sequence[Row], measured: Sequence[Row]) -> None:
    """Writes the page aside and renames it."""
    from mudit_engine.benchmarks.measure_kernels import columns

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(
        html(static, measured, environment(), measured_columns=columns(measured)), encoding="utf-8"
    )
    os.replace(aside, path)
