"""A finished (or interrupted) run's weights as a part of a model folder: config.json and
<part>.safetensors, from the averaged weights.

export_part(Path("runs/a"), Path("runs/a/model"), dtype="float16")
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mudit_engine.config import load_config
from mudit_engine.errors import ConfigError, InputError, ModelError
from mudit_engine.models.complete import DIT_FIELDS, PartSource, complete_folder, write_card
from mudit_engine.models.fewstep import write_student
from mudit_engine.models.folder import (
    Part,
    build_part,
    load_part,
    model_folder,
    save_config,
    save_part,
)
from mudit_engine.models.lora import LoraSet, LoraSpec, add_lora, save_lora
from mudit_engine.models.parts import part_file
from mudit_engine.training.checkpoints.checkpoint import Checkpoints
from mudit_engine.training.dataset.encoded_with import read_encoder
from mudit_engine.training.recipe import Recipe, parse_recipe

if TYPE_CHECKING:
    from torch import nn

    from mudit_engine.config import ModelConfig
    from mudit_engine.training.checkpoints.saved_state import SavedState

log = logging.getLogger(__name__)

PART_OF_TASK: dict[str, Part] = {
    "vae": "vae",
    "chinmu": "chinmu",
    "dit-pretrain": "dit",
    "dit-finetune": "dit",
    "dit-align": "dit",
    "dit-distill": "dit",
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

    Parts that the folder lacks are copied from the models that the data set was encoded with and
    the training began from; of a LoRA run the merged weights are written, and folder/lora. That of
    a dit-distill run is a few-step student of the model that it began from (models/fewstep.py).

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
    if recipe.task == "lyrics":
        from mudit_engine.training.checkpoints.export_lyrics import export_lyrics

        return export_lyrics(found, recipe, folder, dtype=dtype)
    part = PART_OF_TASK[recipe.task]
    config = _merged_config(load_config(found), part, folder)
    saved = SavedState(found, PHASE_OF_PART[part])
    if weights == "ema" and saved.ema_updates is None:
        raise InputError(
            f"'{found}' holds no averaged weights (ema.enabled was false): export with --weights "
            f"raw"
        )
    if recipe.lora is None:
        module = build_part(part, config)
        if part == "vae" and recipe.vae.train == "decoder":
            _take_encoder(module, recipe)
        module = _trained(saved, part, module, weights)
    else:
        module = _with_lora(saved, recipe, config, folder, weights, dtype)
    file = save_part(part, module, folder, dtype=torch.float16 if dtype == "float16" else None)
    if part == "chinmu" and hasattr(module.text, "save_assets"):
        module.text.save_assets(folder / "text_encoder")
    save_config(config, folder)
    if missing := complete_folder(folder, _sources(recipe)):
        log.warning(
            "'%s' lacks %s: export the runs that trained them into it too",
            folder,
            ", ".join(f"{name}.safetensors" for name in missing),
        )
    step = json.loads((found / "trainer.json").read_text(encoding="utf-8"))["progress"]["step"]
    write_card(folder, {f"{part} trained by": f"{recipe.name}, {step} steps"})
    return file


def _trained(saved: SavedState, part: Part, module: nn.Module, weights: str) -> nn.Module:
    """`module` with the run's weights; frozen ones stay as they are, as no run saves them."""
    prefix = f"{part}."
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    own = {name: value for name, value in module.state_dict().items() if name not in frozen}
    shapes = {f"{prefix}{name}": value.shape for name, value in own.items()}
    state = saved.buffers()  # the average holds parameters only
    state |= saved.whole("weight", shapes) if saved.sharded else {}
    if weights == "ema":
        state |= saved.whole("ema", shapes)
    given = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    module.load_state_dict({name: module.state_dict()[name] for name in frozen} | given)
    return module


def _take_encoder(module: nn.Module, recipe: Recipe) -> None:
    """The encoder that a decoder was trained behind, from where the run had it."""
    assert recipe.init is not None
    base = model_folder(recipe.init)
    trained = load_part("vae", load_config(base), base)
    module.encoder.load_state_dict(trained.encoder.state_dict())
    module.encoder.requires_grad_(False)


def _with_lora(
    saved: SavedState,
    recipe: Recipe,
    config: ModelConfig,
    folder: Path,
    weights: str,
    dtype: Literal["float32", "float16"],
) -> nn.Module:
    """The song transformer that the LoRA was trained on with it merged; the LoRA by itself goes to
    folder/lora.
    """
    assert recipe.lora is not None and recipe.init is not None
    base = model_folder(recipe.init)
    around, lora = build_part("dit", config), recipe.lora
    settings = add_lora(
        around, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, parts=lora.parts
    )
    shapes = {f"dit.{name}": p.shape for name, p in around.named_parameters() if p.requires_grad}
    state = saved.whole("ema" if weights == "ema" else "weight", shapes)
    tensors = {name.removeprefix("dit."): value for name, value in state.items()}
    half = dtype == "float16"
    save_lora(folder / "lora", tensors, settings, base=str(recipe.init), half=half)
    if recipe.task == "dit-distill":
        write_student(folder / "lora", sampler=config.sampler, dit=part_file(base, "dit"))
    module = load_part("dit", load_config(base), base)
    LoraSet(module).use([LoraSpec(folder / "lora")])
    return module


def _sources(recipe: Recipe) -> list[PartSource]:
    """Where parts that were not trained may come from: what the data set was encoded with, and what
    the training started from, if it holds the same weights.
    """
    encoder = read_encoder(Path(recipe.data.folder))
    known = encoder.sha256 if encoder is not None else {}
    folders = [encoder.model] if encoder is not None else []
    if recipe.init is not None:
        with contextlib.suppress(ModelError):
            folders.append(model_folder(recipe.init))
    return [PartSource(folder, known) for folder in folders]


def _merged_config(ours: ModelConfig, part: Part, folder: Path) -> ModelConfig:
    if not (folder / "config.json").is_file():
        return ours
    there = load_config(folder)
    # the codec and the text encoder that are there stay as they were trained; the song model brings
    # what generation goes by
    names = DIT_FIELDS if part == "dit" else (part,)
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
