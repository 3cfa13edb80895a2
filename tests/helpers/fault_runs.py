"""Trainings that are killed, cut short, bit-flipped and starved of disk at random, until they end:
what did they lose?

    python tests/helpers/fault_runs.py --faults 200 --seed 0 --out faults.json

Each training is started again and again, by another number of ranks and another ZeRO stage each
time, and meets one fault a start, until it has done all its steps. Then the songs it saw, step by
step, and its last loss must be those of a run that nothing disturbed.

Ranks are forked from one process that has imported everything, so that a start costs a second.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mudit_engine.training.checkpoints.checkpoint import Checkpoints, find_fault
from mudit_engine.training.ranks import local_world
from mudit_engine.training.recipe import Recipe
from mudit_engine.training.runlog import read_metrics
from small_songs import small_recipe, write_songs

STEPS, EVERY, KEEP = 12, 2, 3
# where a rank kills itself: (what to count, how many of them a whole run has at most)
PLACES = {
    "start": 1,
    "forward": 2 * STEPS,
    "backward": 2 * STEPS,
    "optimizer step": STEPS,
    "after a rank's file": STEPS // EVERY,
    "before the manifest": STEPS // EVERY,
    "before the rename": STEPS // EVERY,
    "before latest": STEPS // EVERY,
    "loading": 1,
}
KILLED_RANK, PREEMPTED, FULL_DISK = 137, 143, 75
TIMEOUT = 600.0


def recipe_for(data: Path, *, stage: int | None) -> Recipe:
    """The training; `stage` None is strategy single."""
    changes: dict[str, Any] = {
        "steps": STEPS, "checkpoint__every": EVERY, "checkpoint__keep": KEEP,
        "data__packs_per_step": 3, "log__songs": True,
    }  # fmt: skip
    if stage is not None:
        changes |= {
            "strategy": "deepspeed",
            "parallel__zero_stage": stage,
            "parallel__timeout_seconds": TIMEOUT,
        }
    return small_recipe(data, **changes)


def fork_ranks(world: int, body: Callable[[int], None], log: Path) -> dict[int, int]:
    """Runs body(rank) in `world` forked processes; when one of them fails the others are ended, as
    launchers do. Exit codes by rank.
    """
    ranks: dict[int, int] = {}
    for rank, place in enumerate(local_world(world)):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                with log.open("ab", buffering=0) as output:
                    os.dup2(output.fileno(), 1)
                    os.dup2(output.fileno(), 2)
                os.environ.update(place)
                body(rank)
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        ranks[process] = rank
    codes: dict[int, int] = {}
    deadline = time.monotonic() + TIMEOUT
    while ranks:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            if time.monotonic() > deadline:
                for left in ranks:
                    os.kill(left, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.02)
            continue
        rank = ranks.pop(process)
        code = os.waitstatus_to_exitcode(status)
        codes[rank] = 128 - code if code < 0 else code
        if codes[rank] != 0 and ranks:
            time.sleep(0.2)  # others may fail by themselves
            for left in ranks:
                os.kill(left, signal.SIGKILL)
    return codes


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(trainer: Any, place: str, count: int) -> None:
    """Has this process kill itself at the count-th time that it comes to a place."""
    from mudit_engine.training.checkpoints import checkpoint

    left = [count]

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                die()
            return original(*args, **kwargs)

        return wrapped

    strategy = trainer.strategy
    if place == "forward":
        strategy.forward = before(strategy.forward)
    elif place == "backward":
        strategy.backward = before(strategy.backward)
    elif place == "optimizer step":
        strategy.step = before(strategy.step)
    elif place == "loading":
        strategy.load = before(strategy.load)
    elif place == "after a rank's file":
        checkpoint._describe = before(checkpoint._describe)
    elif place == "before the manifest":
        trainer.ranks.gather = before(trainer.ranks.gather)
    elif place == "before the rename":
        os.rename = before(os.rename)
    elif place == "before latest":
        checkpoint.write_text = before(checkpoint.write_text)


def run_ranks(
    recipe: Recipe, out: Path, world: int, log: Path, fault: dict[str, Any]
) -> dict[int, int]:
    def body(rank: int) -> None:
        from mudit_engine.errors import OutputError
        from mudit_engine.training.stopping import InterruptedRun
        from mudit_engine.training.trainer import Trainer

        mine = fault.get("rank") == rank
        if mine and fault["kind"] == "kill" and fault["place"] == "start":
            die()
        trainer = Trainer(recipe, out, quiet=True)
        if mine and fault["kind"] == "kill":
            arm(trainer, fault["place"], fault["count"])
        if mine and fault["kind"] == "full disk":
            limit_files(trainer, fault["count"])
        if mine and fault["kind"] == "preemption":
            preempt(trainer, fault["count"])
        try:
            trainer.run()
        except OutputError as error:
            print(error)
            raise SystemExit(FULL_DISK) from None
        except InterruptedRun as stop:
            raise SystemExit(stop.exit_code) from None
        trainer.strategy.close()
        if rank == 0 and "modules" in fault:
            Path(fault["modules"]).write_text("\n".join(sys.modules))

    return fork_ranks(world, body, log)


def preempt(trainer: Any, count: int) -> None:
    """This rank alone is sent SIGTERM in its count-th forward pass: all ranks save after that step
    and stop.
    """
    forward, left = trainer.strategy.forward, [count]

    def signalled(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(*args)

    trainer.strategy.forward = signalled


def limit_files(trainer: Any, count: int) -> None:
    """From the count-th checkpoint on, the kernel takes no more than 3000 bytes a file from this
    process.
    """
    save, left = trainer.strategy.save, [count]

    def limited(folder: Path) -> None:
        left[0] -= 1
        if left[0] > 0:
            return save(folder)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            return save(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    trainer.strategy.save = limited


def damage(run: Path, choose: random.Random, *, age: int) -> str | None:
    """Spoils one file of a checkpoint (age 0: the newest), as long as a good older one is left.
    Returns what was done.
    """
    tags = Checkpoints(run / "checkpoints").tags()
    # starts that die before they save may have left several spoilt ones
    if all(find_fault(tag) for tag in tags[age + 1 :]):
        return None
    path = choose.choice(sorted(tags[age].iterdir()))
    size = path.stat().st_size
    how = choose.choice(["bit flip", "truncation", "loss of a file"])
    if how == "bit flip" and size:
        content = bytearray(path.read_bytes())
        content[choose.randrange(size)] ^= 1 << choose.randrange(8)
        path.write_bytes(content)
    elif how == "truncation" and size:
        os.truncate(path, choose.randrange(size))
    else:
        path.unlink()
    return how


def songs_of(run: Path) -> list[list[str]]:
    return [
        sorted(json.loads(line)["songs"])
        for line in (run / "songs.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def last_loss(run: Path) -> float:
    return float(read_metrics(run)[0][-1]["loss"])


def disturbed_training(
    data: Path, out: Path, choose: random.Random, worlds: list[int], log: Path
) -> tuple[Counter[str], int]:
    """One training with a fault at (nearly) every start, until it is done: (faults by kind,
    starts).
    """
    faults: Counter[str] = Counter()
    starts = 0
    while True:
        starts += 1
        world = choose.choice(worlds)
        stage = choose.choice([0, 1, 2, 3] if world > 1 else [None, 0, 1, 2, 3])
        kinds = ["kill", "kill", "kill", "full disk", "preemption", "none"]
        fault: dict[str, Any] = {"kind": choose.choice(kinds), "rank": choose.randrange(world)}
        if fault["kind"] == "kill":
            fault["place"] = choose.choice(list(PLACES))
            # early rather than late: a start then does a few steps, and a training meets many
            # faults
            fault["count"] = 1 + choose.randrange(min(PLACES[fault["place"]], 8))
        else:
            fault["count"] = 1 + choose.randrange(2 if fault["kind"] == "full disk" else 8)
        codes = run_ranks(recipe_for(data, stage=stage), out, world, log, fault)
        done = set(codes.values()) == {0}
        if not done:
            expected = {
                "kill": {0, KILLED_RANK, 1},
                "full disk": {FULL_DISK},
                "preemption": {PREEMPTED},
                "none": {0},
            }[fault["kind"]]
            # 1: a collective whose other end died; the launcher may end those that outlive the
            # cause
            if not set(codes.values()) - {KILLED_RANK} <= expected or codes[fault["rank"]] not in (
                KILLED_RANK,
                PREEMPTED,
                FULL_DISK,
            ):
                start = f"start {starts} ({world} ranks, stage {stage}, {fault})"
                raise AssertionError(f"{start} ended with {codes}: {log.read_text()[-3000:]}")
            faults[f"kill: {fault['place']}" if fault["kind"] == "kill" else fault["kind"]] += 1
        # disks rot at rest too: the newest checkpoint, at times the one before it as well
        for age in range(choose.choice([0, 0, 1, 2])):
            if (how := damage(out, choose, age=age)) is not None:
                faults[how] += 1
                done = False
        if done:
            return faults, starts


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)

    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    import deepspeed

    import mudit_engine.training.trainer  # noqa: F401 - before the forks

    assert deepspeed.__version__
    began, choose = time.monotonic(), random.Random(options.seed)
    total: Counter[str] = Counter()
    starts, trainings, losses, worst = 0, 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = write_songs(root / "songs")
        log = root / "ranks.log"
        codes = run_ranks(
            recipe_for(data, stage=1),
            root / "undisturbed",
            2,
            log,
            {"kind": "none", "modules": str(root / "modules")},
        )
        assert set(codes.values()) == {0}, log.read_text()[-3000:]
        # what a run imports on its way: once here, and not in every fork
        for name in (root / "modules").read_text().split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        songs, loss = songs_of(root / "undisturbed"), last_loss(root / "undisturbed")
        while total.total() < options.faults:
            out = root / f"training-{trainings}"
            faults, more = disturbed_training(data, out, choose, options.worlds, log)
            error = abs(last_loss(out) - loss) / abs(loss)
            worst = max(worst, error)
            if songs_of(out) != songs or error > 1e-6:
                losses += 1
                print(
                    f"training {trainings} lost something: relative error of its last loss "
                    f"{error:.2e}",
                    file=sys.stderr,
                )
            total += faults
            starts, trainings = starts + more, trainings + 1
            cpu = sum(os.times()[:4])
            state = (
                f"{total.total()} faults, {starts} starts, {trainings} trainings, {losses} losses, "
                f"{cpu:.0f} CPU-s"
            )
            print(state, file=sys.stderr, flush=True)
            shutil.rmtree(out)
            log.unlink(missing_ok=True)
    report = {
        "faults": total.total(), "by_kind": dict(sorted(total.items())), "trainings": trainings,
        "starts": starts, "losses": losses, "worst_relative_error_of_the_last_loss": worst,
        "steps": STEPS, "worlds": sorted(set(options.worlds)), "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(sum(os.times()[:4]), 1),
    }  # fmt: skip
    if options.out:
        from mudit_engine.files import write_json
        from mudit_engine.hardware import environment

        write_json(options.out, {"env": environment(), "results": report})
    return report


if __name__ == "__main__":
    found = main()
    print(json.dumps(found, indent=1))
    sys.exit(4 if found["losses"] else 0)
