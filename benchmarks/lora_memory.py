"""Memory of training a LoRA against training all weights: peak of a process each, and the plan's
bytes.

    mudit bench run lora-memory --out out/lora_memory.json

A process makes the song transformer of musit-380m, narrower (`DIT`), and takes two steps of the
strategy `single` in fp32. What counts is the most that it ever held (resident set) less what it
held with everything imported. The plan is of the state and of the activations of whole weights:
peft's layers hold some more, and when the optimiser works activations are gone.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from mudit_engine.benchmarks.registry import Options, Row
from mudit_engine.errors import MuditError

if TYPE_CHECKING:
    from mudit_engine.config import ModelConfig
    from mudit_engine.training.recipe_stages import LoraConfig

DIT = {"width": 1024, "heads": 8, "blocks": 6}
WAYS: dict[str, dict[str, Any] | None] = {"lora, rank 16": {"rank": 16}, "all weights": None}
PACK = (256, 64)  # frames and lyric tokens


def run(options: Options) -> list[Row]:
    """A row a way; figures: planned bytes by kind, and of the peak."""
    rows = []
    for name, lora in WAYS.items():
        options.report(name)
        command = [sys.executable, "-m", "mudit_engine.benchmarks.lora_memory", json.dumps(lora)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            raise MuditError(f"'{name}' failed: {done.stderr[-2000:]}")
        told = json.loads(done.stdout.splitlines()[-1])
        row = Row("lora-memory", f"{told['parameters'] / 1e6:.0f} M parameters", name, "ours")
        row.role = "ours" if lora else "peer"
        row.memory_bytes, row.parameters, row.reference = (
            told["peak"],
            told["trained"],
            "all weights",
        )
        row.figures = told["planned"] | {"planned_error": told["planned"]["sum"] / told["peak"] - 1}
        rows.append(row)
    for row in rows:
        row.ratio = (rows[-1].memory_bytes or 0) / (row.memory_bytes or 1)
    return rows


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(config: ModelConfig, lora: LoraConfig | None) -> None:
    """Two steps of one way, in this process."""
    import torch

    from mudit_engine.diffusion.paths import make_path
    from mudit_engine.models.dit import DiT
    from mudit_engine.models.lora import add_lora
    from mudit_engine.training.parallel.strategy import Single
    from mudit_engine.training.planning.step_cost import Pack, make_inputs
    from mudit_engine.training.recipe import load_recipe
    from mudit_engine.training.recipe_stages import DitStage
    from mudit_engine.training.tasks.dit import DitLoss

    dit = DiT(config.dit)
    if lora is not None:
        add_lora(dit, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, parts=lora.parts)
    strategy = Single(torch.device("cpu"))
    loss = DitLoss(dit, make_path(config.path), DitStage())
    strategy.prepare({"model": loss}, load_recipe("tiny-dit-finetune"), lr_scale={}, ema=("model",))
    inputs = make_inputs(config.dit, Pack.of([PACK[0]], [PACK[1]]))
    for _ in range(2):
        strategy.begin("model", 1)
        total, _logs = strategy.forward("model", inputs)
        strategy.backward("model", total / PACK[0])
        strategy.step("model", lr=1e-4)


def work(lora: dict[str, Any] | None) -> dict[str, Any]:
    """The peak of one way in this process, and what was planned of it."""
    import torch

    from mudit_engine.config import load_config
    from mudit_engine.training.planning.state_bytes import Sharding, parameters_of, state_bytes
    from mudit_engine.training.planning.step_cost import Pack, run_once
    from mudit_engine.training.recipe_stages import LoraConfig

    torch.set_num_threads(1)
    base = load_config("musit-380m")
    config = base.model_copy(update={"dit": base.dit.model_copy(update=DIT)})
    setting = LoraConfig(**lora) if lora is not None else None
    parameters = parameters_of(config.dit, lora=setting)
    pack = Pack.of([PACK[0]], [PACK[1]])
    # the planner's runs, and whatever a first step imports, come before the yardstick
    cost = run_once(config, pack, precision="fp32", backend="eager")
    planned = state_bytes(parameters, Sharding(0, 1, precision="fp32"))
    planned |= {"activations": round(cost.peak_bytes)}
    small = {**DIT, "width": 128, "heads": 2, "blocks": 1}
    train(base.model_copy(update={"dit": base.dit.model_copy(update=small)}), setting)
    before = _peak()
    train(config, setting)
    return {
        "peak": _peak() - before,
        "parameters": parameters.count + parameters.frozen,
        "trained": parameters.count,
        "planned": {**planned, "sum": sum(planned.values())},
    }


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
