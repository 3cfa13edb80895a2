"""Plots of the static reports as PNG: a roofline of ceilings, and the ceilings of attention against
peers.

    roofline(rows), ceilings(rows)  # bytes, or None without a rated row

Upper bounds in shares of a chip's peak; nothing here is a speed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from mudit_engine.benchmarks.static_figures import PEER
from mudit_engine.profiling.sass import MACHINES

Row = dict[str, Any]
INK, MUTED, GRID = "#1f2430", "#667085", "#e4e7ec"
COLOURS = {
    "attention": "#3b5bdb",
    "pack": "#0c8599",
    "norm": "#2b8a3e",
    "bias": "#e8590c",
    "guided": "#862e9c",
    "segment": "#868e96",
}
FAMILIES = {
    "attention": "attention",
    "pack": "pack: RoPE, QK-norm",
    "norm": "norm",
    "bias": "bias + GELU",
    "guided": "guided step",
}


def is_peer(row: Row) -> bool:
    return str(row["variant"]).startswith(PEER)


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
    """PNG: intensity against the share of the tensor-core peak that each kernel's ceilings leave.
    None without a rated row.

    A line joins a kernel's serial and overlap ceiling. What streams is drawn at its share of the
    bandwidth roof.
    """
    rated = [
        r
        for r in rows
        if r.get("intensity") and r.get("ceiling_overlap") and r["op"] != "segment_sum"
    ]
    arches = list(dict.fromkeys(r["arch"] for r in rated))
    if not arches:
        return None
    figure, axes = _figure(6.4 * len(arches), 4.6, len(arches))
    for axis, arch in zip(axes, arches, strict=True):
        machine = MACHINES[arch]
        # share of the peak per FLOP/byte
        per_byte = machine.bandwidth / 1e3 / machine.tensor_tflops
        ridge = 1 / per_byte
        x = [0.3, ridge, 4e3]
        axis.plot(x, [min(1, v * per_byte) for v in x], color=INK, linewidth=1.4)
        axis.annotate(
            f"{machine.bandwidth} GB/s",
            (14, 14 * per_byte),
            xytext=(-8, 10),
            textcoords="offset points",
            rotation=40,
            color=MUTED,
            fontsize=8,
        )
        axis.annotate(f"tensor cores, {machine.tensor_tflops:.0f} TFLOP/s dense "
                      f"bf16", (4e3, 1), xytext=(0, 5), textcoords="offset points",
                      ha="right", color=MUTED, fontsize=8)  # fmt: skip
        for r in (r for r in rated if r["arch"] == arch):
            # head widths share an intensity: side by side instead of on top of each other
            at = (
                r["intensity"]
                * {64: 0.9, 96: 1.0, 128: 1.11}.get(r["head_dim"], 1.0)
                * (1.03 if is_peer(r) else 1.0)
            )
            roof = min(1.0, r["intensity"] * per_byte) if r["ceiling_of"] == "dram" else 1.0
            high, low = (roof * r[f"ceiling_{kind}"] for kind in ("overlap", "serial"))
            colour, face = _colour(r), "white" if is_peer(r) else _colour(r)
            axis.plot([at, at], [low, high], color=colour, linewidth=1, alpha=0.55)
            axis.plot(
                [at],
                [high],
                marker="o",
                markersize=5,
                color=colour,
                markerfacecolor=face,
                linestyle="none",
            )
        axis.set(xscale="log", yscale="log", xlim=(0.3, 4e3), ylim=(8e-4, 1.6))
        axis.set_title(f"{machine.name} ({arch})", loc="left", fontsize=10, color=INK)
        axis.set_xlabel("FLOP per byte of DRAM that the work needs", fontsize=8, color=MUTED)
        axis.set_ylabel(
            "share of the tensor-core peak: bounds, not speeds", fontsize=8, color=MUTED
        )
        families = dict.fromkeys(r["op"].split("_")[0] for r in rated)
        kinds = [(FAMILIES[family], COLOURS[family], COLOURS[family]) for family in families] + [
            ("ours", INK, INK),
            ("a peer", INK, "white"),
        ]
        for text, colour, face in kinds:
            axis.plot(
                [],
                [],
                marker="o",
                linestyle="none",
                markersize=5,
                color=colour,
                markerfacecolor=face,
                label=text,
            )
        axis.legend(loc="lower right", fontsize=8, frameon=False, labelcolor=INK)
    return _png(figure)


def ceilings(rows: Sequence[Row]) -> bytes | None:
    """PNG: serial to overlap ceiling of every attention kernel, ours (filled) above the peers
    (hollow) at the same tile.
    """
    rated = [r for r in rows if r.get("ceiling_overlap") and r["ceiling_of"] == "tensor"]
    arches = list(dict.fromkeys(r["arch"] for r in rated))
    if not arches:
        return None
    groups = list(dict.fromkeys((r["op"], r["head_dim"]) for r in rated))
    variants = list(dict.fromkeys(r["variant"] for r in rated))
    step = 0.8 / len(variants)
    figure, axes = _figure(
        6.4 * len(arches), 0.9 + 0.19 * len(groups) * max(2, len(variants)), len(arches)
    )
    for axis, arch in zip(axes, arches, strict=True):
        for r in (r for r in rated if r["arch"] == arch):
            y = (
                groups.index((r["op"], r["head_dim"]))
                + (variants.index(r["variant"]) - (len(variants) - 1) / 2) * step
            )
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
                    label,
                    (min(low, high), y),
                    xytext=(-6, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=6.5,
                    color=colour,
                )
        axis.set_yticks(
            range(len(groups)), [f"{op.removeprefix('attention_')} {head}" for op, head in groups]
        )
        axis.set(xlim=(20, 103), ylim=(len(groups) - 0.4, -0.6))
        axis.set_title(f"{MACHINES[arch].name} ({arch})", loc="left", fontsize=10, color=INK)
        axis.set_xlabel(
            "static ceiling, serial to overlap, % of the tensor-core peak", fontsize=8, color=MUTED
        )
    return _png(figure)
