"""Three steps of a small song transformer on the ranks that a launcher started, in fp32 and in bf16
with two precisions of the gradient: reduce_precision.py DATA OUT STAGE.

Rank 0 writes, for each, the dtypes of what was summed over the ranks, the dtype in which
micro-batches were added up, and the gradient norms.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from mudit_engine.training.dataset.shards import Shards
from mudit_engine.training.tasks.choose import make_task
from mudit_engine.training.trainer import Trainer
from run_ranks import wake
from small_songs import small_recipe

WAYS: dict[str, dict[str, Any]] = {
    "exact": {"precision": "fp32"},
    "fp32": {"precision": "bf16"},
    "bf16": {
        "precision": "bf16",
        "parallel__reduce_dtype": "bf16",
        "parallel__accumulate_dtype": "bf16",
    },
}


def main(data: Path, out: Path, stage: int) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    sent: set[str] = set()
    # once: DeepSpeed keeps the functions that it finds when the ranks first join
    for call in ("all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter"):
        if hasattr(dist, call):
            setattr(dist, call, _noting(getattr(dist, call), sent))
    for name, changes in WAYS.items():
        recipe = small_recipe(
            data,
            strategy="deepspeed",
            parallel__zero_stage=stage,
            data__packs_per_step=8,
            steps=3,
            schedule__warmup=0,
            optimizer__clip=1e9,
            checkpoint__every=3,
            **changes,
        )
        task = make_task(recipe, Shards(recipe.data.folder))
        wake(task, 0.05)
        sent.clear()
        trainer = Trainer(recipe, out / f"{name}-{stage}", task=task, quiet=True)
        trainer.run()
        rows = [json.loads(line) for line in _lines(out / f"{name}-{stage}" / "metrics.jsonl")]
        optimizer: Any = trainer.strategy.engines["model"].engine.optimizer  # type: ignore[attr-defined]
        added = str(optimizer.gradient_accumulation_dtype).removeprefix("torch.")
        norms = [row["grad_norm"] for row in rows]
        found[name] = {"sent": sorted(sent), "added": added, "norms": norms}
    if trainer.ranks.main:
        (out / f"stage-{stage}.json").write_text(json.dumps(found))
    trainer.strategy.close()


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if "grad_norm" in line]


def _noting(original: Any, sent: set[str]) -> Any:
    def call(*tensors: Any, **options: Any) -> Any:
        for tensor in (*tensors, *options.values()):
            large = torch.is_tensor(tensor) and tensor.numel() > 64
            # the trainer's own sums are fp64
            if large and tensor.dtype in (torch.float32, torch.bfloat16):
                sent.add(str(tensor.dtype).removeprefix("torch."))
        return original(*tensors, **options)

    return call


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
