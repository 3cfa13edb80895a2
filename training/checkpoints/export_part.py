"""A finished (or interrupted) run's weights as a part of a model folder: config.json and
<part>.safetensors, from the averaged weights.

export_part(Path("runs/a"), Path("runs/a/model"), dtype="float16")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mudit_engine.config import load_config
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.models.folder import Part, build_part, save_config, save_part
from mudit_engine.training.checkpoints.checkpoint import Checkpoints
from mudit_engine.training.recipe import parse_recipe

if TYPE_CHECKING:
    from mudit_engine.config import ModelConfig

PART_OF_TASK: dict[str, Part] = {
    "vae": "vae",
    "chinmu": "chinmu",
    "dit-pretrain": "dit",
    "dit-finetune": "dit",
}
PHASE_OF_PART = {"vae": "generator", "chinmu": "model", "dit": "model"}


def export_part(
    run: Path,
    folder: Path,
    *,
    tag: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    dtype: Literal["float32", "float16"] = "float32",
) -> Path:
    """Writes the part that a run trained into a model folder, beside the parts that are there.

    Args:
        run: folder of the run.
        folder: the model folder; an existing config.json keeps its other parts and must agree on
            what parts share.
        tag: of the checkpoint; None is the newest good one.
        weights: "ema", their average, or "raw".
        dtype: how they are stored.

    Returns:
        The weights' file.

    Raises:
        InputError: when the run has no good checkpoint or the folder does not fit.

    Examples:
        >>> export_part(trained_run, new_folder).name
        'dit.safetensors'
    """
    import torch

    from mudit_engine.training.checkpoints.saved_state import SavedState

    checkpoints = Checkpoints(run / "checkpoints")
    found = checkpoints.newest_good() if tag is None else checkpoints.named(tag)
    if found is None:
        raise InputError(f"'{run}' holds no checkpoint: train first, or name the run's folder")
    recipe = parse_recipe(
        json.loads((found / "recipe.json").read_text(encoding="utf-8")),
        source=str(found / "recipe.json"),
    )
    part = PART_OF_TASK[recipe.task]
    config = _merged_config(load_config(found), part, folder)
    module = build_part(part, config)
    phase, prefix = PHASE_OF_PART[part], f"{part}."
    saved = SavedState(found, phase)
    shapes = {f"{prefix}{name}": value.shape for name, value in module.state_dict().items()}
    state = saved.buffers()  # the average holds parameters only
    state |= saved.whole("weight", shapes) if saved.sharded else {}
    if weights == "ema":
        if saved.ema_updates is None:
            raise InputError(
                f"'{found}' holds no averaged weights (ema.enabled was false): export with "
                f"--weights raw"
            )
        state |= saved.whole("ema", shapes)
    module.load_state_dict(
        {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
    )
    file = save_part(part, module, folder, dtype=torch.float16 if dtype == "float16" else None)
    if part == "chinmu" and hasattr(module.text, "save_assets"):
        module.text.save_assets(folder / "text_encoder")
    save_config(config, folder)
    return file


def _merged_config(ours: ModelConfig, part: Part, folder: Path) -> ModelConfig:
    if not (folder / "config.json").is_file():
        return ours
    there = load_config(folder)
    # the codec and the text encoder that are there stay as they were trained; the song model brings
    # what generation goes by
    names = ("dit", "path", "sampler", "name", "max_seconds") if part == "dit" else (part,)
    ours_fields = ours.model_dump()
    try:
        return type(there).model_validate(
            {**there.model_dump(), **{name: ours_fields[name] for name in names}}
        )
    except ValueError as error:
        raise ConfigError(
            f"'{folder}' holds parts that do not go with this {part}: {error}. Export to another "
            f"folder"
        ) from None
