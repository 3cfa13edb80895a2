"""Starts a training of two ranks again and again, each with DeepSpeed and gloo, and counts how its
processes end: leave_often.py TIMES [--busy N].

The programs are loaded once and forked, so that a start costs what joining, a few steps' worth of
collectives and leaving cost. `--busy` keeps N more processes computing meanwhile: what ends in the
wrong order shows when a thread is not scheduled for a while. Prints {"exit code": processes}.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections import Counter

import torch

from mudit_engine.training.ranks import join, leave, local_world

RANKS, STEPS = 2, 3


def busy() -> int:
    """A process that computes until it is told to stop."""
    process = os.fork()
    while process == 0:
        torch.randn(256, 256).sum()
    return process


def rank(place: dict[str, str]) -> None:
    os.environ.update(place)
    ranks = join(torch.device("cpu"), timeout_seconds=300)
    import deepspeed

    layer = torch.nn.Linear(8, 8)
    engine, *_ = deepspeed.initialize(
        model=layer,
        optimizer=torch.optim.AdamW(layer.parameters()),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
        },
    )
    for step in range(STEPS):
        engine.backward(engine(torch.ones(1, 8)).square().sum())
        engine.step()
        assert ranks.gather(step) == [step] * RANKS
    del engine
    ranks.close()


def start() -> list[int]:
    """One training: the exit codes of its ranks."""
    processes = []
    for place in local_world(RANKS):
        process = os.fork()
        if process == 0:
            try:
                rank(place)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            leave(0)
        processes.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("times", type=int)
    parser.add_argument("--busy", type=int, default=0)
    options = parser.parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    import deepspeed  # before the forks

    assert deepspeed.__version__
    others = [busy() for _ in range(options.busy)]
    try:
        codes = Counter(code for _ in range(options.times) for code in start())
    finally:
        for process in others:
            os.kill(process, signal.SIGKILL)
    print(json.dumps(codes))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
