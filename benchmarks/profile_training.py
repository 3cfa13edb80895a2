"""A profile of training steps: reading songs, forward, backward, the optimiser.

# or: mudit profile train
document = profile_train("tiny-dit-pretrain", (), steps=2, settings=Settings())
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.benchmarks.profiles import Settings, Work, profile
from mudit_engine.errors import InputError
from mudit_engine.profiling.ranges import Watch
from mudit_engine.training.recipe import Recipe, load_recipe
from mudit_engine.training.trainer import Trainer


def profile_train(
    recipe: str, overrides: Sequence[str], *, steps: int, settings: Settings
) -> dict[str, Any]:
    """The document of `steps` steps of a recipe, on its own songs, or on random ones where they are
    not here.
    """
    loaded = load_recipe(recipe, overrides=list(overrides))
    with tempfile.TemporaryDirectory() as place:
        folder, about = Path(place), {"recipe": recipe}
        if not Path(loaded.data.folder).exists():
            settings.report(f"no songs in '{loaded.data.folder}': random ones instead")
            write_songs(folder / "songs", loaded)
            more = [*overrides, f"data.folder={folder / 'songs'}", "init=null"]
            loaded = load_recipe(recipe, overrides=more)
            about["songs"] = "random"
        trainer = Trainer(loaded, folder / "run", quiet=True)
        return profile(_work(trainer, steps, about), settings)


def write_songs(folder: Path, recipe: Recipe, songs: int = 48) -> None:
    """Random songs of up to a minute, if a pack takes them, for the recipe's task. Raises
    InputError for a task that learns from audio.
    """
    import numpy as np

    from mudit_engine.training.dataset.shard_writer import ShardWriter
    from mudit_engine.training.dataset.shards import song_fields

    config = recipe.model_config_resolved()
    if not recipe.task.startswith("dit"):
        raise InputError(
            f"task '{recipe.task}' learns from audio, and '{recipe.data.folder}' has none: give "
            f"--set data.folder=FOLDER"
        )
    longest = min(60.0, (recipe.data.pack_size - 8) / config.vae.frame_rate)
    rng, channels = np.random.default_rng(0), config.dit.latent_channels
    fields = song_fields(latent_channels=channels, description_width=config.dit.description_width)
    with ShardWriter(folder, fields) as writer:
        for number in range(songs):
            seconds = float(rng.uniform(0.5, 1.0)) * longest
            frames = int(seconds * config.vae.frame_rate)
            kinds = np.stack(
                [rng.integers(0, 3, 4), np.zeros(4), np.ones(4), np.zeros(4), np.ones(4)], 1
            )
            song = {
                "latents": rng.normal(size=(frames, channels)),
                "phonemes": rng.integers(8, 100, int(4 * seconds)),
                "fragments": rng.normal(size=(4, config.dit.description_width)),
                "fragment_kinds": kinds,
            }
            writer.add(f"song-{number:03d}", song, metadata={"seconds": seconds})


def _work(trainer: Trainer, steps: int, about: dict[str, Any]) -> Work:
    strategy, modules = trainer.strategy, trainer.task.modules
    audio: list[float] = []

    def run() -> None:
        # the same songs every time, read here and now: loading threads would hide what they cost
        places = trainer.sampler.walk(0, 0)
        seconds = 0.0
        for step, (epoch, epoch_step) in zip(range(steps), places, strict=False):
            work = trainer._load(step, epoch, epoch_step)
            trainer._step(work)
            seconds += sum(batch.seconds for batch, _ in work.batches)
        audio.append(seconds)

    def watch(watching: Watch) -> None:
        watching.function(trainer, "_load", "data")
        watching.function(strategy, "forward")
        watching.function(strategy, "backward")
        watching.function(strategy, "step", "optimiser")

    def weights() -> dict[str, list[Tensor]]:
        parameters = [p for module in modules.values() for p in module.parameters()]
        found: dict[str, list[Tensor]] = {"weights": parameters}
        optimizers = getattr(strategy, "optimizers", {})
        found["optimiser"] = [
            value
            for optimizer in optimizers.values()
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        for ema in getattr(strategy, "emas", {}).values():
            found["optimiser"] += list(ema.shadow.values())
        return found

    run()
    name = f"{about['recipe']}: {steps} training steps"
    return Work(
        title=f"{name}, {audio[0]:.0f} s of songs, {trainer.recipe.precision}",
        run=run,
        watch=watch,
        modules=[(module, 3) for module in modules.values()],
        weights=weights,
        device=strategy.device,
        dtype=torch.bfloat16 if trainer.recipe.precision == "bf16" else torch.float32,
        audio_seconds=audio[0],
        about=about,
    )
