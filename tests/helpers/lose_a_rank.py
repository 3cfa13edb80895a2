"""A training run on the ranks that a launcher started, of which the last dies without a word after
two steps: lose_a_rank.py DATA OUT.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from mudit_engine.training.trainer import LostPeerError, Trainer
from small_songs import small_recipe


def main(data: str, out: str) -> None:
    torch.set_num_threads(1)
    recipe = small_recipe(Path(data), strategy="deepspeed", parallel__timeout_seconds=60)
    trainer = Trainer(recipe, Path(out), quiet=True)
    backward = trainer.strategy.backward

    def die_or_go_on(phase: str, loss: torch.Tensor) -> None:
        if trainer.progress.step == 2 and trainer.ranks.rank == trainer.ranks.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        backward(phase, loss)

    trainer.strategy.backward = die_or_go_on  # type: ignore[method-assign]
    try:
        trainer.run()
    except LostPeerError as error:
        print("LOST", error, flush=True)
        os._exit(7)  # without taking leave of a group that has a member less


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
