"""One training on 4, then 2, then 3 ranks, at another ZeRO stage each, changed in the middle of an
epoch: run_worlds.py DATA OUT.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from fault_runs import recipe_for, run_ranks
from mudit_engine.training.recipe import Recipe

LEGS = ((4, 1, 2), (2, 3, 4), (3, 2, 9))  # ranks, stage, the step that the leg ends with


def leg(data: Path, stage: int | None, steps: int) -> Recipe:
    """A run that ends early: its learning rate does not ask for the number of steps."""
    recipe = recipe_for(data, stage=stage)
    fields = {
        "steps": steps,
        "schedule": recipe.schedule.model_copy(update={"kind": "constant", "warmup": 2}),
    }
    return recipe.model_copy(
        update=fields | {"data": recipe.data.model_copy(update={"pack_size": 64})}
    )


def main(data: Path, out: Path) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    import deepspeed

    import mudit_engine.training.trainer  # noqa: F401 - before the forks

    assert deepspeed.__version__
    for world, stage, steps in LEGS:
        log = out.with_suffix(".log")
        codes = run_ranks(leg(data, stage, steps), out, world, log, {"kind": "none"})
        assert set(codes.values()) == {0}, log.read_text()[-3000:]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
