"""Metrics to services that keep them: Weights & Biases and MLflow, when the recipe names a project
or an experiment there.

    for service in open_services(folder, recipe):
        service.log({"train/loss": 0.61}, step=100)

A run that resumes goes on in the run that the service knows already: its id is kept in the run's
folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mudit_engine.availability import require
from mudit_engine.files import write_text

if TYPE_CHECKING:
    from mudit_engine.training.recipe import Recipe


class Service(Protocol):
    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def songs(self, files: Sequence[Path], step: int) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class Wandb:
    """One run of a Weights & Biases project. WANDB_MODE=offline keeps it on the disk."""

    def __init__(self, folder: Path, recipe: Recipe, project: str) -> None:
        require("wandb", f"log.wandb={project!r}")
        import wandb

        note = folder / "wandb.id"
        known = note.read_text(encoding="utf-8").strip() if note.is_file() else None
        config = recipe.resolved()
        self.run: Any = wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            config=config,
            id=known,
            resume="allow",
        )
        write_text(note, self.run.id)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.run.log(dict(figures), step=step)

    def songs(self, files: Sequence[Path], step: int) -> None:
        import wandb

        # at the service's own newest step: it takes no earlier one any more
        told: dict[str, Any] = {"songs/of_step": step}
        for file in files:
            caption = f"step {step}"
            told[f"songs/{file.stem}"] = wandb.Audio(str(file), caption=caption)
            picture = str(file.with_suffix(".png"))
            told[f"songs/{file.stem}/spectrum"] = wandb.Image(picture, caption=caption)
        self.run.log(told)

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Mlflow:
    """One run of an MLflow experiment, where MLFLOW_TRACKING_URI says (default: this folder)."""

    def __init__(self, folder: Path, recipe: Recipe, experiment: str) -> None:
        require("mlflow", f"log.mlflow={experiment!r}")
        import mlflow

        self.mlflow: Any = mlflow
        note = folder / "mlflow.id"
        known = note.read_text(encoding="utf-8").strip() if note.is_file() else None
        mlflow.set_experiment(experiment)
        run = mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        write_text(note, run.info.run_id)
        if known is None:
            mlflow.log_dict(recipe.resolved(), "recipe.json")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.mlflow.log_metrics(dict(figures), step=step)

    def songs(self, files: Sequence[Path], step: int) -> None:
        for file in files:
            for path in (file, file.with_suffix(".png")):
                self.mlflow.log_artifact(str(path), artifact_path=f"songs/step-{step:08d}")

    def close(self, *, failed: bool) -> None:
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


def open_services(folder: Path, recipe: Recipe) -> list[Service]:
    """The services that the recipe names. Raises MissingError, with the install command, for one
    that is not installed.
    """
    services: list[Service] = []
    if recipe.log.wandb is not None:
        services.append(Wandb(folder, recipe, recipe.log.wandb))
    if recipe.log.mlflow is not None:
        services.append(Mlflow(folder, recipe, recipe.log.mlflow))
    return services
