"""A training run that kills itself with SIGKILL at a chosen place: python run_and_die.py DATA OUT
PLACE STEP, or the same with `async` at the end for saves beside the steps.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from mudit_engine.training.checkpoints import async_save, checkpoint
from mudit_engine.training.parallel import strategy
from mudit_engine.training.trainer import Trainer
from small_songs import small_recipe


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def second(function: Any) -> Any:
    """The function once, and then the end."""
    calls = []

    def once(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs) if len(calls) == 1 else die()

    return once


def main(data: str, out: str, place: str, step: int, how: str = "") -> None:
    torch.set_num_threads(1)
    recipe = small_recipe(Path(data), checkpoint__asynchronous=how == "async")
    trainer = Trainer(recipe, Path(out), quiet=True)
    if place == "backward":
        backward = trainer.strategy.backward

        def kill_or_go_on(phase: str, loss: torch.Tensor) -> None:
            if trainer.progress.step == step:
                die()
            backward(phase, loss)

        trainer.strategy.backward = kill_or_go_on  # type: ignore[method-assign]
    else:
        save = trainer._save

        def armed_save(runlog: Any, **how: Any) -> None:
            if trainer.progress.step == step:
                if place == "save":  # the weights are written, the optimiser is not
                    strategy.optimizer_tensors = die
                elif place == "files":  # the first file is written, by the thread that saves
                    async_save.save_file = second(async_save.save_file)
                elif place == "rename":  # every file is written, the tag has no name yet
                    os.rename = die
                else:  # the tag has its name, `latest` names the one before
                    checkpoint.write_text = die
            save(runlog, **how)

        trainer._save = armed_save  # type: ignore[method-assign]
    trainer.run()
    raise SystemExit("it should have died")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
