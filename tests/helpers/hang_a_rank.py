"""A training run on the ranks that a launcher started, of which the last is stopped (SIGSTOP) after
two steps, or sleeps with its process alive: hang_a_rank.py DATA OUT stop|sleep.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe

LIMIT = 15.0  # seconds at one place, once the steps have begun


def main(data: str, out: str, how: str) -> None:
    torch.set_num_threads(1)
    # a busy machine takes long to begin
    changes = {"parallel__timeout_seconds": 400, "data__packs_per_step": 2}
    recipe = small_recipe(Path(data), strategy="deepspeed", **changes)
    trainer = Trainer(recipe, Path(out), quiet=True)
    trainer._watch.beat = 1.0
    backward = trainer.strategy.backward

    def hang_or_go_on(phase: str, loss: torch.Tensor) -> None:
        if trainer.progress.step == 2:
            trainer._watch.limit = LIMIT
            if trainer.ranks.rank == trainer.ranks.world - 1:
                if how == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                else:
                    time.sleep(600)
        backward(phase, loss)

    trainer.strategy.backward = hang_or_go_on  # type: ignore[method-assign]
    trainer.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])
