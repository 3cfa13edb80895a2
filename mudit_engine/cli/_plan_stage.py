"""`mudit plan RECIPE` for codec and ChinMu: the state of every phase on a rank. Their activations
and their time are not modelled, and it says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mudit_engine.cli._console import emit_json, print_table

if TYPE_CHECKING:
    from mudit_engine.training.planning.clusters import Cluster
    from mudit_engine.training.recipe import Recipe


def show_stage(recipe: Recipe, cluster: Cluster, *, as_json: bool) -> None:
    """Prints the plan. Raises InputError for a task without one."""
    from mudit_engine.training.planning.stage_plan import plan_stage

    document = plan_stage(recipe, cluster)
    if as_json:
        emit_json(document)
        return
    rows = [
        [
            phase,
            f"{found['parameters']:,}",
            *(f"{found['memory'].get(kind, 0) / (1 << 30):.3f}" for kind in document["kinds"]),
        ]
        for phase, found in document["phases"].items()
    ]
    columns = ["phase", "parameters", *(f"{kind} GiB" for kind in document["kinds"])]
    print_table(f"State of a rank: {recipe.name}", columns, rows, numeric=columns[1:])
    facts = [
        ("in all", f"{document['memory_bytes'] / (1 << 30):.2f} of {cluster.gpu.memory_gib:g} GiB"),
        ("a step", f"{document['packs_per_step']} packs on {cluster.world} ranks"),
        ("left for activations", f"{document['room_bytes'] / (1 << 30):.1f} GiB"),
        ("not modelled", "activations and time of this stage"),
    ]
    print_table("In all", ["", ""], facts)
