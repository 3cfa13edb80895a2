"""Pictures of a plan: memory of a rank by kind, a step's time by part, the time with the number of
nodes, and how songs fill packs.

    # memory.png, step.png, scaling.png, lengths.png
    for path in save_plots(plan, Path("plan")): ...

Memory is computed; every picture of time says that it is modelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mudit_engine.files import atomic_path
from mudit_engine.training.planning.clusters import GIB
from mudit_engine.training.planning.plan import Option, Plan, scaling

INK, MUTED, GRID = "#1f2430", "#667085", "#e4e7ec"
MEMORY = {
    "weights": "#1864ab",
    "gradients": "#4dabf7",
    "master": "#2b8a3e",
    "moments": "#69db7c",
    "average": "#c0eb75",
    "buckets": "#e8590c",
    "gathered": "#ffa94d",
    "step": "#ffd43b",
    "activations": "#862e9c",
    "reserve": "#ced4da",
}
TIME = {
    "products": "#1864ab",
    "attention": "#4dabf7",
    "traffic": "#0c8599",
    "host": "#ffd43b",
    "imbalance": "#ffa94d",
    "teacher": "#2b8a3e",
    "communication": "#e8590c",
    "optimiser": "#868e96",
}
NODES = (1, 2, 4, 8, 16, 32)
MOST_BARS = 9


def save_plots(plan: Plan, folder: Path) -> list[Path]:
    """Writes the pictures and returns their paths."""
    drawings = {
        "memory": _memory(plan),
        "step": _step(plan),
        "scaling": _scaling(plan),
        "lengths": _lengths(plan),
    }
    paths = []
    for name, figure in drawings.items():
        path = folder / f"{name}.png"
        with atomic_path(path) as aside:
            figure.savefig(aside, format="png")
        paths.append(path)
    return paths


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=MUTED, labelsize=8)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _title(plan: Plan) -> str:
    cluster = plan.request.cluster
    return (
        f"{plan.request.config.name}, {plan.request.precision}, {cluster.nodes} x "
        f"{cluster.gpus_per_node} {cluster.gpu.name}"
    )


def _label(option: Option) -> str:
    return (
        f"ZeRO-{option.stage}, checkpointing {option.checkpointing}, {option.micro_batches} x "
        f"{option.pack_size:,} frames"
    )


def _shown(plan: Plan) -> list[Option]:
    """The best of every stage and checkpointing, in the plan's order."""
    seen: dict[tuple[int, str], Option] = {}
    for option in plan.options:
        seen.setdefault((option.stage, option.checkpointing), option)
    return list(seen.values())[:MOST_BARS]


def _bars(
    axis: Any, options: Sequence[Option], parts: dict[str, str], values: Any, unit: float
) -> None:
    left = np.zeros(len(options))
    rows = np.arange(len(options))
    for part, colour in parts.items():
        widths = np.array([values(option).get(part, 0.0) for option in options]) / unit
        if widths.any():
            axis.barh(rows, widths, left=left, color=colour, label=part, height=0.62)
            left += widths
    for row, total in zip(rows, left, strict=True):
        axis.annotate(
            f"{total:.3g}",
            (total, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    axis.set_yticks(rows, [_label(option) for option in options])
    axis.invert_yaxis()
    axis.margins(x=0.08)
    axis.legend(
        fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=INK
    )


def _memory(plan: Plan) -> Any:
    options = _shown(plan)
    figure, (axis,) = _figure(9.6, 1.5 + 0.36 * len(options))
    _bars(axis, options, MEMORY, lambda option: option.memory, GIB)
    capacity = plan.request.cluster.gpu.memory_gib
    if max(option.peak_bytes for option in options) > 0.4 * capacity * GIB:
        axis.axvline(capacity, color=INK, linewidth=1, linestyle="--")
        axis.annotate(
            "the GPU's memory", (capacity, len(options) - 0.5), ha="right", xytext=(-4, 0),
            textcoords="offset points", fontsize=8, color=MUTED,
        )  # fmt: skip
    axis.set_title(
        f"Memory of the fullest rank: {_title(plan)}", loc="left", fontsize=10, color=INK
    )
    axis.set_xlabel(
        f"GiB, computed (of {capacity:g} GiB); reserve: context, fragmentation",
        fontsize=8,
        color=MUTED,
    )
    return figure


def _step(plan: Plan) -> Any:
    options = [option for option in _shown(plan) if option.fits] or _shown(plan)
    figure, (axis,) = _figure(9.6, 1.5 + 0.36 * len(options))
    _bars(axis, options, TIME, lambda option: option.seconds, 1e-3)
    axis.set_title(
        f"One step of {plan.request.batch_songs} songs, MODELLED: {_title(plan)}",
        loc="left",
        fontsize=10,
        color=INK,
    )
    axis.set_xlabel(
        "ms, modelled from stated peaks and assumed shares of them; not measured",
        fontsize=8,
        color=MUTED,
    )
    return figure


def _scaling(plan: Plan) -> Any:
    nodes = sorted({*NODES, plan.request.cluster.nodes})
    found = scaling(plan, nodes)
    figure, (left, right) = _figure(9.6, 3.6, 2)
    request = plan.request
    counts = [count for count, _ in found]
    worlds = np.array([count * request.cluster.gpus_per_node for count in counts])
    hours = np.array([option.gpu_hours for _, option in found])
    left.plot(worlds, hours / worlds, color=TIME["products"], marker="o", markersize=4)
    for world, total in zip(worlds, hours, strict=True):
        left.annotate(
            f"{total / world:.3g}",
            (world, total / world),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    left.tick_params(labelleft=False)
    ideal = hours[0] / worlds
    left.plot(worlds, ideal, color=MUTED, linewidth=1, linestyle="--")
    left.annotate(
        "ideal",
        (worlds[-1], ideal[-1]),
        xytext=(-14, 0),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=MUTED,
    )
    left.set(xscale="log", yscale="log")
    left.set_ylabel("hours, modelled", fontsize=8, color=MUTED)
    right.plot(
        worlds, 100 * hours[0] / hours, color=TIME["communication"], marker="o", markersize=4
    )
    right.set(xscale="log", ylim=(0, 105))
    right.set_ylabel("% of the smallest cluster's efficiency, modelled", fontsize=8, color=MUTED)
    for axis in (left, right):
        axis.set_xticks(worlds, [str(world) for world in worlds])
        axis.minorticks_off()
        axis.set_xlabel(
            f"GPUs ({request.cluster.gpu.name}), global batch of {request.batch_songs} songs",
            fontsize=8,
            color=MUTED,
        )
    work = f"{request.songs:,} songs x {request.epochs:g} epochs"
    left.set_title(f"{request.config.name}: {work}", loc="left", fontsize=10, color=INK)
    right.set_title(
        f"ZeRO-{plan.best.stage}, checkpointing {plan.best.checkpointing}",
        loc="left",
        fontsize=10,
        color=INK,
    )
    return figure


def _lengths(plan: Plan) -> Any:
    figure, (left, right) = _figure(9.6, 3.4, 2)
    lengths = plan.lengths
    left.hist(lengths.frames / lengths.frame_rate, bins=60, color=MEMORY["gradients"])
    left.set_xlabel("seconds of a song", fontsize=8, color=MUTED)
    left.set_ylabel(f"songs of {len(lengths.frames):,}", fontsize=8, color=MUTED)
    left.set_title(f"Lengths: {Path(lengths.source).name}", loc="left", fontsize=10, color=INK)
    packings = sorted(plan.packings.values(), key=lambda packing: packing.pack_size)
    names = [f"{packing.pack_size:,}\n{packing.songs:.1f} songs" for packing in packings]
    for offset, what, colour, values in (
        (-0.2, "filled", MEMORY["activations"], [100 * packing.efficiency for packing in packings]),
        (
            0.2,
            "mean rank / slowest rank",
            MEMORY["gathered"],
            [100 / packing.imbalance for packing in packings],
        ),
    ):
        bars = right.bar(
            np.arange(len(packings)) + offset, values, width=0.38, color=colour, label=what
        )
        right.bar_label(bars, fmt="%.1f", fontsize=8, color=INK)
    right.set_xticks(range(len(packings)), names)
    right.set_ylim(0, 118)
    right.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    right.set_xlabel("frames of a pack", fontsize=8, color=MUTED)
    right.set_ylabel("%", fontsize=8, color=MUTED)
    right.set_title("Packs by the training sampler", loc="left", fontsize=10, color=INK)
    return figure
