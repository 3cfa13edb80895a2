"""`mudit plan --lyrics`: memory and time of tuning a language model on lyrics, by formula."""

from __future__ import annotations

from typing import Any

from mudit_engine.cli._console import emit_json, note, print_table

GIB = 1 << 30


def show(model: str, cluster: Any, *, songs: int | None, epochs: float, as_json: bool) -> None:
    """Prints the plan of `model` on a cluster."""
    from mudit_engine.training.planning.lyric_plan import model_shape, plan_lyrics

    document = plan_lyrics(
        model_shape(model), cluster, epochs=epochs, **({"songs": songs} if songs else {})
    )
    if as_json:
        emit_json(document)
        return
    shape, data, best = document["model"], document["data"], document["options"][0]
    rows = [
        ("model", f"{shape['name']}, {shape['weights']:,} weights"),
        ("adapters", f"{shape['adapter_weights']:,} weights of rank {shape['rank']}"),
        ("cluster", f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}"),
        ("songs", f"{data['songs']:,} x {data['epochs']:g} epochs"),
        ("pack", f"{data['pack_tokens']:,} tokens a rank, layers recomputed"),
    ]
    print_table("Plan of the lyric model (modelled)", ["", ""], rows)
    columns = ["method", "stage", "GiB a rank", "step ms", "GPU-hours"]
    table = [
        [
            option["method"],
            f"ZeRO-{option['zero_stage']}" if cluster.world > 1 else "one GPU",
            (f"{option['peak_bytes'] / GIB:.1f}", "" if option["fits"] else "red"),
            f"{1e3 * option['step_seconds']:.0f}",
            f"{option['gpu_hours']:.1f}" if option["fits"] else "does not fit",
        ]
        for option in document["options"]
    ]
    print_table("Options, best first (modelled)", columns, table, numeric=columns[2:])
    memory = [[kind, f"{size / GIB:.2f}"] for kind, size in best["memory"].items()]
    print_table("Memory of a rank (best option)", ["kind", "GiB"], memory, numeric=["GiB"])
    note(document["kind"])
