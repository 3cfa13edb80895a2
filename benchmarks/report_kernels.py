"""One self-contained page of kernel figures: a roofline of static ceilings, ours against peers, and every row in a table.

    html(static_rows, measured_rows, env)                       # or: mudit bench kernels --static --html report.html

Nothing on the page is a speed unless a GPU gave it: static points are upper bounds, in shares of the chip's peak.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from mudit_engine.benchmarks.static_figures import PEER
from mudit_engine.profiling.sass import MACHINES

Row = dict[str, Any]
INK, MUTED, GRID = "#1f2430", "#667085", "#e4e7ec"
COLOURS = {"attention": "#3b5bdb", "pack": "#0c8599", "norm": "#2b8a3e", "bias": "#e8590c", "guided": "#862e9c", "segment": "#868e96"}
STATIC_COLUMNS = {
    "op": "op", "variant": "variant", "head_dim": "head", "dtype": "dtype", "tile": "tile", "warps": "warps", "registers": "registers",
    "spill_bytes": "spill B", "loop_local_accesses": "local in loop", "shared_bytes": "shared B", "blocks_per_sm": "blocks/SM",
    "mma_instructions": "MMAs", "mma_useful_ratio": "MMA executed/useful", "loop_instructions": "loop instr.", "mix": "loop mix",
    "ceiling_of": "ceiling of", "ceiling_overlap": "overlap", "ceiling_serial": "serial", "bound": "bound by", "ratio": "bytes moved/min",
    "access": "access width", "ptxas_warnings": "ptxas warnings",
}  # fmt: skip
STYLE = f"""
body {{ font: 14px/1.5 system-ui, sans-serif; color: {INK}; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }} p, li {{ max-width: 60rem; }}
img {{ max-width: 100%; }} .scroll {{ overflow-x: auto; }} code {{ background: #f2f4f7; padding: 0 .25em; border-radius: 3px; }}
table {{ border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; position: sticky; top: 0; background: #fff; border-bottom: 2px solid {INK}; vertical-align: bottom; }}
th, td {{ padding: .2rem .55rem; }} td {{ border-bottom: 1px solid {GRID}; white-space: nowrap; }}
td.number {{ text-align: right; }} tr.peer td {{ color: {MUTED}; }} tr.bad td {{ background: #fff4e6; }} td.wrap {{ white-space: normal; }}
.muted {{ color: {MUTED}; }}
"""


def is_peer(row: Row) -> bool:
    return str(row["variant"]).startswith(PEER)


def name_of(row: Row) -> str:
    """Short name of a row on a plot: attention_fwd 96, norm_bwd residual_norm."""
    head = f" {row['head_dim']}" if row.get("head_dim") else ""
    return f"{row['op'].removeprefix('attention_')}{head}"


def _colour(row: Row) -> str:
    return COLOURS.get(row["op"].split("_")[0], INK)


def _figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=MUTED, labelsize=8)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def roofline(rows: Sequence[Row]) -> bytes | None:
    """PNG: intensity against the share of the tensor-core peak that each kernel's ceilings leave. None without a rated row.

    A line joins a kernel's serial and overlap ceiling. What streams is drawn at its share of the bandwidth roof.
    """
    rated = [r for r in rows if r.get("intensity") and r.get("ceiling_overlap") and r["op"] != "segment_sum"]
    arches = list(dict.fromkeys(r["arch"] for r in rated))
    if not arches:
        return None
    figure, axes = _figure(6.4 * len(arches), 4.6, len(arches))
    for axis, arch in zip(axes, arches, strict=True):
        machine = MACHINES[arch]
        per_byte = machine.bandwidth / 1e3 / machine.tensor_tflops  # share of the peak per FLOP/byte
        ridge = 1 / per_byte
        x = [0.3, ridge, 4e3]
        axis.plot(x, [min(1, v * per_byte) for v in x], color=INK, linewidth=1.4)
        axis.annotate(
            f"{machine.bandwidth} GB/s",
            (2, 2 * per_byte),
            xytext=(-8, 10),
            textcoords="offset points",
            rotation=34,
            color=MUTED,
            fontsize=8,
        )
        axis.annotate(f"tensor cores, {machine.tensor_tflops:.0f} TFLOP/s dense bf16", (4e3, 1), xytext=(0, 5), textcoords="offset points",
                      ha="right", color=MUTED, fontsize=8)  # fmt: skip
        labelled: set[str] = set()
        for r in (r for r in rated if r["arch"] == arch):
            # head widths share an intensity: side by side instead of on top of each other
            at = r["intensity"] * {64: 0.9, 96: 1.0, 128: 1.11}.get(r["head_dim"], 1.0) * (1.03 if is_peer(r) else 1.0)
            roof = min(1.0, r["intensity"] * per_byte) if r["ceiling_of"] == "dram" else 1.0
            high, low = (roof * r[f"ceiling_{kind}"] for kind in ("overlap", "serial"))
            colour, face = _colour(r), "white" if is_peer(r) else _colour(r)
            axis.plot([at, at], [low, high], color=colour, linewidth=1, alpha=0.55)
            axis.plot([at], [high], marker="o", markersize=5, color=colour, markerfacecolor=face, linestyle="none")
            family = r["op"].split("_")[0]
            if not is_peer(r) and family not in labelled:
                labelled.add(family)
                text = {"bias": "bias + GELU", "guided": "guided step", "pack": "pack (RoPE, QK-norm)"}.get(family, family)
                left = family != "attention"
                axis.annotate(text, (at, low if left else 0.33), xytext=(8 if left else 0, -3), textcoords="offset points",
                              color=colour, fontsize=8, ha="left" if left else "center")  # fmt: skip
        axis.set(xscale="log", yscale="log", xlim=(0.3, 4e3), ylim=(8e-4, 1.6))
        axis.set_title(f"{machine.name} ({arch})", loc="left", fontsize=10, color=INK)
        axis.set_xlabel("FLOP per byte of DRAM that the work needs", fontsize=8, color=MUTED)
        axis.set_ylabel("share of the tensor-core peak: bounds, not speeds", fontsize=8, color=MUTED)
    return _png(figure)


def ceilings(rows: Sequence[Row]) -> bytes | None:
    """PNG: serial to overlap ceiling of every attention kernel, ours (filled) above the peers (hollow) at the same tile."""
    rated = [r for r in rows if r.get("ceiling_overlap") and r["ceiling_of"] == "tensor"]
    arches = list(dict.fromkeys(r["arch"] for r in rated))
    if not arches:
        return None
    groups = list(dict.fromkeys((r["op"], r["head_dim"]) for r in rated))
    variants = list(dict.fromkeys(r["variant"] for r in rated))
    step = 0.8 / len(variants)
    figure, axes = _figure(6.4 * len(arches), 0.9 + 0.19 * len(groups) * max(2, len(variants)), len(arches))
    for axis, arch in zip(axes, arches, strict=True):
        for r in (r for r in rated if r["arch"] == arch):
            y = groups.index((r["op"], r["head_dim"])) + (variants.index(r["variant"]) - (len(variants) - 1) / 2) * step
            low, high = 100 * r["ceiling_serial"], 100 * r["ceiling_overlap"]
            colour = MUTED if is_peer(r) else COLOURS["attention"]
            axis.plot([low, high], [y, y], color=colour, linewidth=1.6)
            axis.plot(
                [low, high],
                [y, y],
                marker="o",
                markersize=4.5,
                color=colour,
                markerfacecolor="white" if is_peer(r) else colour,
                linestyle="none",
            )
            if is_peer(r) or len(variants) > 2:
                label = r["variant"].removeprefix(PEER) if is_peer(r) else f"ours {r['variant']}"
                axis.annotate(
                    label, (low, y), xytext=(-6, 0), textcoords="offset points", ha="right", va="center", fontsize=6.5, color=colour
                )
        axis.set_yticks(range(len(groups)), [f"{op.removeprefix('attention_')} {head}" for op, head in groups])
        axis.set(xlim=(20, 103), ylim=(len(groups) - 0.4, -0.6))
        axis.set_title(f"{MACHINES[arch].name} ({arch})", loc="left", fontsize=10, color=INK)
        axis.set_xlabel("static ceiling, serial to overlap, % of the tensor-core peak", fontsize=8, color=MUTED)
    return _png(figure)


def cells(row: Row) -> dict[str, Any]:
    """The row's values as the tables print them."""
    percent = {k: f"{100 * row[k]:.1f} %" for k in ("ceiling_overlap", "ceiling_serial") if row.get(k) is not None}
    moved, least = row.get("bytes_moved"), row.get("bytes_minimum")
    mix = row.get("loop_counts") or {}
    return row | percent | {
        "tile": "x".join(map(str, row["tile"][:2])) if row.get("tile") else None,
        "mix": " ".join(f"{pipe} {n}" for pipe, n in sorted(mix.items(), key=lambda item: -item[1])),
        "ratio": f"{moved / least:.2f}" if moved and least else None,
        "access": " ".join(f"{int(width) * 8}b x{n}" for width, n in (row.get("access_bytes") or {}).items()) or None,
        "ptxas_warnings": "; ".join(row.get("ptxas_warnings") or ()) or None,
    }  # fmt: skip


def _table(columns: dict[str, str], rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in columns.values())
    body = []
    for row in rows:
        kind = "peer" if is_peer(row) else "bad" if row.get("ptxas_warnings") or row.get("loop_local_accesses") else ""
        if row.get("skipped"):
            lead = "".join(f"<td>{escape(str(row.get(key) or ''))}</td>" for key in list(columns)[:4])
            body.append(f'<tr class="peer">{lead}<td class="wrap" colspan="{len(columns) - 4}">{escape(row["skipped"])}</td></tr>')
            continue
        values = cells(row)
        tds = []
        for key in columns:
            value = values.get(key)
            number = isinstance(value, int | float) or str(value).endswith(" %")
            text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
            tds.append(f"<td{' class=number' if number else ''}>{escape(text)}</td>")
        body.append(f'<tr class="{kind}">{"".join(tds)}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _image(png: bytes | None, text: str) -> str:
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">' if png else ""


def html(static: Sequence[Row], measured: Sequence[Row], env: dict[str, Any], *, measured_columns: dict[str, str] | None = None) -> str:
    """The page. `measured` are rows of measure_kernels (none: the page says that nothing was)."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Kernels</title>",
        f"<style>{STYLE}</style><h1>Kernels</h1>",
        f"<p class=muted>{escape(', '.join(f'{k} {v}' for k, v in env['versions'].items() if k in ('mudit-engine', 'torch', 'triton', 'python')))}",
        f" · commit {escape(str(env.get('commit')))} · {escape(str(env.get('cpu')))}"
        f" · {escape(', '.join(env.get('gpus') or ()) or 'no GPU')}<br><code>{escape(str(env.get('command')))}</code></p>",
    ]
    if measured:
        on_device = all(r.get("measured") for r in measured)
        parts.append("<h2>Measured</h2>")
        if not on_device:
            parts.append(
                "<p><b>Not measured:</b> interpreted at tiny sizes, to run the code and hold the results to float64. No speeds.</p>"
            )
        parts.append(_table(measured_columns or {key: key for key in measured[0]}, measured))
    else:
        parts.append(
            "<p>Compiled, not measured: no GPU was used. Ceilings are upper bounds from instruction counts; <b>no number here is a speed.</b></p>"
        )
    if static:
        parts += [
            "<h2>Roofline of static ceilings</h2>",
            _image(roofline(static), "Roofline: static ceilings against arithmetic intensity"),
            "<ul><li>Filled: ours; hollow: peers at the same tile. A line runs from the serial ceiling (nothing overlaps) to the overlap ceiling"
            " (everything hides behind the tensor cores, or behind DRAM for kernels that stream).</li>"
            "<li>Head widths 64, 96 and 128 of one kernel share an intensity and are drawn side by side.</li></ul>",
            "<h2>Attention against peers</h2>",
            _image(ceilings(static), "Serial and overlap ceilings of the attention kernels"),
        ]
        for arch in dict.fromkeys(r["arch"] for r in static):
            parts += [
                f"<h2>{escape(arch)}, {escape(MACHINES[arch].name)}</h2>",
                _table(STATIC_COLUMNS, [r for r in static if r["arch"] == arch]),
            ]
        parts.append(
            "<h2>How to read it</h2><ul>"
            "<li><b>overlap, serial</b>: tensor / max(pipes) and tensor / (tensor + busiest other pipe) cycles of the hot loop, times useful/executed"
            " FLOP. They see no latency, no bank conflicts and no overlap between warp groups. Streaming kernels: the same against DRAM bandwidth."
            " sm_100 runs its matrix products asynchronously (tcgen05), where such counting says nothing: no ceiling.</li>"
            "<li><b>bytes moved/min</b>: what programs ask for, L2 hits included, over what must be read and written once. Row-wise kernels are"
            " counted lane by lane in the interpreter; attention by its worklist (every query tile streams all keys of its song).</li>"
            "<li>Peers do less per launch: Liger's and flash-attn's norms know no modulation row per song, their rotary kernels no QK-norm and"
            " no split of the projection, Liger's GELU is gated and has no bias. The tutorial's attention knows no ragged batch and no rotation.</li>"
            "<li><b>local in loop</b>: spills that are paid on every trip. <b>spill B</b>: spill bytes in the whole text.</li></ul>"
        )
    return "\n".join(parts) + "\n"
