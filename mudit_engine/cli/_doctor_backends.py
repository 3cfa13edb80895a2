"""What can compute attention here, and the table in force: a part of `mudit doctor`."""

from __future__ import annotations

from typing import Any

from mudit_engine.cli._console import print_table

Row = dict[str, Any]
HEAD_DIM = 128  # of the presets that are not the smallest


def backends_report() -> Row:
    """Of the device that songs are made on: each backend, and why it does not run; the table that
    says which one is fastest, or why there is none.
    """
    import torch

    from mudit_engine.backends import table
    from mudit_engine.backends.registry import ATTENTION, Asked, capability
    from mudit_engine.errors import InputError

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    card = capability(torch.device(kind, 0)) if kind == "cuda" else 0
    call = Asked(kind, card, dtype, HEAD_DIM, grad=False)
    rows = []
    for backend in ATTENTION.values():
        refused = backend.refuses(call)
        rows.append(
            {
                "backend": backend.name,
                "about": backend.about,
                "runs": refused is None,
                "reason": None if refused is None else str(refused),
            }
        )
    try:
        standing = table.in_force(kind)
    except InputError as error:
        standing = table.Standing(None, None, str(error))
    return {
        "device": kind,
        "dtype": table.dtype_name(dtype),
        "head_dim": HEAD_DIM,
        "backends": rows,
        "table": {
            "in_force": standing.table is not None,
            "path": str(standing.path) if standing.path else None,
            "reason": standing.reason,
        },
    }


def print_backends(report: Row) -> None:
    cells = [
        [row["backend"], row["about"], ("runs", "green") if row["runs"] else row["reason"]]
        for row in report["backends"]
    ]
    title = f"Attention on {report['device']}, {report['dtype']}, head width {report['head_dim']}"
    print_table(title, ["backend", "", ""], cells)
    found = report["table"]
    state = f"in force, {found['path']}" if found["in_force"] else "none in force"
    print_table("Table of backends", ["", ""], [(state, found["reason"])])
