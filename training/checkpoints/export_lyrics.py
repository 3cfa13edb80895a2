"""A lyric run's weights as others load them: an adapter in peft's layout with the hash of its base,
or a whole model in transformers' layout.

    export_lyrics(tag, recipe, Path("runs/a/model"), dtype="float16")

An adapter is written from the checkpoint alone: the base is not loaded again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from mudit_engine import __version__
from mudit_engine.errors import InputError
from mudit_engine.files import atomic_path, write_json
from mudit_engine.lyric_model.base import ADAPTER_WEIGHTS, NOTE, find_base
from mudit_engine.training.dataset.lyric_set import SCRATCH, LyricSet
from mudit_engine.training.tasks.lyrics import small_config

if TYPE_CHECKING:
    from mudit_engine.training.recipe import Recipe

_PREFIX, _NAME = "lyrics.", ".default."  # of the task's module; of peft's adapter inside it


def export_lyrics(
    tag: Path, recipe: Recipe, folder: Path, *, dtype: Literal["float32", "float16"] = "float32"
) -> Path:
    """Writes what the run of a checkpoint trained. Returns the weights' file."""
    run = json.loads((tag / "config.json").read_text(encoding="utf-8"))["lyrics"]
    trained = json.loads((tag / "trainer.json").read_text(encoding="utf-8"))
    state = {
        name.removeprefix(_PREFIX): value.to(getattr(torch, dtype)).contiguous()
        for name, value in trained_weights(tag, run["shapes"]).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    if run["method"] == "full":
        file = _whole(state, recipe, folder, digest=trained["identity"]["data"])
    else:
        file = _adapter(state, recipe, folder)
    note = {
        "mudit_engine": __version__,
        "method": run["method"],
        "base": recipe.lyrics.base,
        "base_sha256": run["base_sha256"],
        "data": recipe.data.folder,
        "steps": trained["progress"]["step"],
        "seed": recipe.seed,
    }
    write_json(folder / NOTE, note)
    return file


def trained_weights(tag: Path, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The trained weights of a checkpoint of any strategy and world."""
    from mudit_engine.training.checkpoints.saved_state import SavedState

    saved = SavedState(tag, "model")
    if not saved.sharded:
        return saved.buffers()
    return saved.whole("weight", {name: torch.Size(shape) for name, shape in shapes.items()})


def _adapter(state: dict[str, Tensor], recipe: Recipe, folder: Path) -> Path:
    from peft import LoraConfig

    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in state})
    stage = recipe.lyrics
    LoraConfig(
        r=stage.rank,
        lora_alpha=stage.alpha,
        lora_dropout=stage.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=stage.base,
        inference_mode=True,
    ).save_pretrained(str(folder))
    file = folder / ADAPTER_WEIGHTS
    with atomic_path(file) as aside:
        save_file(
            {name.replace(_NAME, "."): value for name, value in state.items()},
            aside,
            {"format": "pt"},
        )
    return file


def _whole(state: dict[str, Tensor], recipe: Recipe, folder: Path, *, digest: str) -> Path:
    """config.json, tokenizer and weights, as transformers saves them. Raises InputError when the
    data, which a tokenizer of characters comes from, is another one now.
    """
    songs = LyricSet.of_recipe(recipe)
    if recipe.lyrics.base == SCRATCH and songs.digest != digest:
        raise InputError(
            f"the data '{recipe.data.folder}' has changed since the run was trained: its "
            f"characters would be other tokens. Bring it back, or train again"
        )
    tokenizer = songs.tokenizer
    if recipe.lyrics.base == SCRATCH:
        config = small_config(recipe.lyrics, tokenizer)
    else:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(find_base(recipe.lyrics.base).folder)
    config.dtype = next(iter(state.values())).dtype
    config.architectures = config.architectures or ["Qwen3ForCausalLM"]
    config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    file = folder / "model.safetensors"
    with atomic_path(file) as aside:
        save_file(state, aside, {"format": "pt"})
    return file
