"""A rank under torchrun whose rank 1 kills itself in step 6 of its first life: run_restarts.py DATA
OUT.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from fault_runs import arm, recipe_for
from mudit_engine.training.ranks import leave
from mudit_engine.training.trainer import Trainer


def main(data: str, out: str) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(recipe_for(Path(data), stage=2), Path(out), quiet=True)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and trainer.ranks.rank == 1:
        arm(trainer, "optimizer step", 6)
    trainer.run()
    trainer.strategy.close()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
