"""The costs of a network, kept from one plan to the next: finding them runs it on fake tensors,
which is most of what a plan takes.

    costs = fit(config, precision="bf16", checkpointing="full")     # step_cost.fit, or what it gave

They are kept in the user's cache folder under a digest of everything that they depend on: the
configuration but for the number of blocks, the precision, the sources of network, loss and ledger,
and torch's version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from mudit_engine.config import ModelConfig
from mudit_engine.files import cache_folder, write_json
from mudit_engine.models import dit, outline
from mudit_engine.training.planning import step_cost
from mudit_engine.training.planning.step_cost import Checkpointing, CostModel, Precision
from mudit_engine.training.tasks import dit as task


def fit(
    config: ModelConfig, *, precision: Precision = "bf16", checkpointing: Checkpointing = "none"
) -> CostModel:
    """step_cost.fit, at once where its result is kept."""
    path = cache_folder() / f"plan-{_digest(config, precision, checkpointing)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text(encoding="utf-8"))
        planes: Any = [
            {name: tuple(known[part][name]) for name in step_cost.LINEAR} for part in PARTS
        ]
        return CostModel(config.dit, checkpointing, precision, *planes)
    found = step_cost.fit(config, precision=precision, checkpointing=checkpointing)
    with contextlib.suppress(OSError):  # a home that cannot be written costs time alone
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {part: getattr(found, part) for part in PARTS})
    return found


PARTS = ("outer", "inner")


def _digest(config: ModelConfig, precision: str, checkpointing: str) -> str:
    shape = {**config.dit.model_dump(mode="json"), "blocks": None}
    parts = [json.dumps([shape, config.path.model_dump(mode="json"), precision, checkpointing])]
    parts.append(torch.__version__)
    for module in (dit, outline, step_cost, task):
        parts.append(Path(str(module.__file__)).read_text(encoding="utf-8"))
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:24]
