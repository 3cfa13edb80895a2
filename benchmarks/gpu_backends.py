"""Stages of benchmarks/gpu_run.py that look at other packages' kernels behind our contract.

    backends(StageRun("backends", folder, seconds=120, dry=False))

backends proves each backend of attention on the device, forward and gradients, against float64 by
the bar of `mudit bench tune`; tune makes the table of the card, in OUT/backends.json: copied into
mudit_engine/backends/tables it ships, named by MUDIT_BACKENDS it is followed.
"""

from __future__ import annotations

from functools import partial

import torch

from mudit_engine.backends import table
from mudit_engine.benchmarks import tune as tuning
from mudit_engine.benchmarks.gpu_stage import StageRun
from mudit_engine.benchmarks.tune import Tuning, contests

TINY = (9, 3)
EDGES = (1, 64, 129, 300)


def backends(run: StageRun) -> None:
    """A row a backend and case: its error and the bar, or why it does not serve the case."""
    dtypes = (torch.bfloat16,) if run.dry else (torch.bfloat16, torch.float16, torch.float32)
    asked = Tuning(
        device=run.device, head_dims=run.head_dims, dtypes=dtypes, heads=1 if run.dry else 2,
        widths=(64,) if run.dry else (1536,), songs={0: TINY if run.dry else EDGES},
    )  # fmt: skip
    for contest in contests(asked):
        case = {"op": contest.op, "width": contest.width, "dtype": str(contest.dtype)}
        for name, reason in contest.skipped.items():
            run.emit("backend", backend=name, **case, skipped=reason)
        for name in contest.providers:
            run.attempt(f"{name} {case}", partial(_hold, run, contest, name, case))


def _hold(run: StageRun, contest: tuning.Contest, name: str, case: dict[str, object]) -> None:
    with torch.set_grad_enabled(contest.op.endswith("_grad")):
        truth, plain = contest.reference(torch.float64), contest.reference(contest.dtype)
        error, bar = tuning.distance(contest.providers[name](), plain, truth)
    run.emit(
        "backend", backend=name, **case, error=error, ratio_to_bar=error / bar, ok=error <= bar
    )


def tune(run: StageRun) -> None:
    """The card's table: every backend that is right, in turns."""
    small = {"widths": (64,), "heads": 1, "songs": {0: TINY}, "rounds": 1} if run.dry else {}
    found = tuning.tune(
        Tuning(
            device=run.device,
            head_dims=run.head_dims,
            dtypes=(torch.bfloat16,),
            seconds=run.seconds,
            report=lambda text: print(text, flush=True),
            **small,  # type: ignore[arg-type]
        )
    )
    for row in found.details:
        run.emit("tuned", **{name: value for name, value in row.items() if name != "backends"})
        for name, one in row["backends"].items():
            case = {key: row[key] for key in ("op", "width", "dtype", "rows_up_to")}
            run.emit("backend", backend=name, **case, **one)
    table.write(found, run.folder / "backends.json")
