"""The strategy that a recipe names.

strategy = make_strategy(recipe)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mudit_engine.errors import InputError, MissingError
from mudit_engine.training.parallel.strategy import Single, Strategy
from mudit_engine.training.ranks import launched_world

if TYPE_CHECKING:
    from mudit_engine.training.recipe import Recipe


def make_strategy(recipe: Recipe) -> Strategy:
    """The strategy a recipe names. Raises InputError when its device or precision cannot serve."""
    name = (
        recipe.device
        if recipe.device != "auto"
        else ("cuda" if torch.cuda.is_available() else "cpu")
    )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device='{name}' is unknown: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingError(
            f"device='{name}', but torch {torch.__version__} sees no CUDA device: use --set "
            f"device=cpu, or install a CUDA build of torch"
        )
    if recipe.strategy == "deepspeed":
        from mudit_engine.training.parallel.deepspeed_strategy import DeepSpeed

        return DeepSpeed(recipe, device)
    if launched_world() > 1:
        raise InputError(
            f"strategy 'single' was started on {launched_world()} ranks, which would all do the "
            f"same: use strategy=deepspeed"
        )
    return Single(device, precision=recipe.precision)
