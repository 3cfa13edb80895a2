"""What a run leaves to read: metrics.jsonl with every step, TensorBoard when it is installed, a
progress bar, the loss curve as a picture.

with RunLog(folder, recipe, start_step=0) as log:
    log.step({"step": 0, "loss": 1.9, ...})
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mudit_engine.availability import available, install_command
from mudit_engine.files import atomic_path, write_json
from mudit_engine.hardware import environment
from mudit_engine.training.log_services import open_services
from mudit_engine.training.recipe import Recipe

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

METRICS, SONGS, RANKS = "metrics.jsonl", "songs.jsonl", "ranks.jsonl"

log = logging.getLogger(__name__)


class RunLog:
    """Writers of one run. A resumed run cuts metrics.jsonl at the step it resumes from, so that the
    file reads as one uninterrupted run.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, *, start_step: int, quiet: bool = False
    ) -> None:
        self.folder, self.recipe = folder, recipe
        path = folder / METRICS
        _cut(path, start_step)
        _cut(folder / RANKS, start_step)
        self._file = path.open("a", encoding="utf-8")
        self._songs = self._open_songs(start_step) if recipe.log.songs else None
        self._board = self._tensorboard(start_step)
        self._services = open_services(folder, recipe)
        self._progress, self._bar = (None, None) if quiet else _progress_bar(recipe, start_step)
        self._last = time.monotonic()
        self._last_step = start_step

    def step(self, metrics: dict[str, Any]) -> None:
        """One step: a line in the file; every log.every steps also TensorBoard and the terminal."""
        self._file.write(json.dumps(metrics) + "\n")
        step = metrics["step"]
        if self._progress is not None and self._bar is not None:
            loss = metrics.get("loss")  # None where it was not finite
            self._progress.update(
                self._bar, completed=step + 1, loss=float("nan") if loss is None else loss
            )
        if (step + 1) % self.recipe.log.every and step + 1 != self.recipe.steps:
            return
        self._file.flush()
        now = time.monotonic()
        rate = (step + 1 - self._last_step) / max(now - self._last, 1e-9)
        self._last, self._last_step = now, step + 1
        figures = {
            name: value
            for name, value in {**metrics, "steps_per_s": rate}.items()
            if name != "step" and isinstance(value, (int, float))
        }
        self._tell("train", figures, step)
        shown = {
            k: v
            for k, v in metrics.items()
            if isinstance(v, float) and k in ("loss", "grad_norm", "lr", "wait_s")
        }
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        log.info("step %d of %d  %s  %.3g steps/s", step + 1, self.recipe.steps, text, rate)

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"validation_step": step, **metrics}) + "\n")
        self._file.flush()
        self._tell("validation", metrics, step)
        log.info(
            "validation at step %d  %s",
            step,
            "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()),
        )

    def songs(self, step: int, ids: list[str]) -> None:
        """The songs of a step: an account of what was seen, which a resumed run cuts as it cuts the
        metrics.
        """
        if self._songs is not None:
            self._songs.write(json.dumps({"step": step, "songs": ids}, ensure_ascii=False) + "\n")

    def ranks(self, step: int, table: list[dict[str, float]]) -> None:
        """Times of every rank's mean step since the last table, in ranks.jsonl and TensorBoard."""
        if not table:
            return
        with (self.folder / RANKS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "ranks": table}) + "\n")
        figures = {
            f"{name}/rank{int(row['rank']):03d}": value
            for row in table
            for name, value in row.items()
            if name != "rank"
        }
        self._tell("ranks", figures, step)

    def made(self, step: int, files: list[Path]) -> None:
        """Songs that were made with the weights of a step: audio and spectrogram, in TensorBoard
        and with the services.

        Args:
            step: of the checkpoint.
            files: audio files, each with a .png of its spectrum beside it.
        """
        log.info("songs of step %d: %s", step, ", ".join(map(str, files)))
        for service in self._services:
            service.songs(files, step)
        if self._board is None:
            return
        from matplotlib import image

        from mudit_engine.audio import load_audio

        for file in files:
            audio_cS, rate = load_audio(file)
            name = f"songs/{file.stem}"
            self._board.add_audio(name, audio_cS.mean(0, keepdim=True), step, sample_rate=rate)
            picture = image.imread(file.with_suffix(".png"))[..., :3]
            self._board.add_image(f"{name}/spectrum", picture, step, dataformats="HWC")
        self._board.flush()

    def flush(self) -> None:
        """To the disk: called before a checkpoint is published, so that the metrics of a kept step
        are kept too.
        """
        for file in (self._file, self._songs):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())

    def _open_songs(self, start_step: int) -> Any:
        _cut(self.folder / SONGS, start_step)
        return (self.folder / SONGS).open("a", encoding="utf-8")

    def _tell(self, group: str, figures: dict[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
        for service in self._services:
            service.log({f"{group}/{name}": value for name, value in figures.items()}, step)

    def _tensorboard(self, start_step: int) -> Any:
        if not self.recipe.log.tensorboard:
            return None
        if not available("tensorboard"):
            log.info(
                "tensorboard is not installed (%s): metrics go to %s only",
                install_command("tensorboard"),
                METRICS,
            )
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=start_step)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._file.close()
        if self._songs is not None:
            self._songs.close()
        if self._board is not None:
            self._board.close()
        for service in self._services:
            service.close(failed=error is not None)


class SilentLog(RunLog):
    """What the other ranks write: nothing."""

    def __init__(self) -> None:
        pass

    def step(self, metrics: dict[str, Any]) -> None:
        pass

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def songs(self, step: int, ids: list[str]) -> None:
        pass

    def ranks(self, step: int, table: list[dict[str, float]]) -> None:
        pass

    def made(self, step: int, files: list[Path]) -> None:
        pass

    def flush(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def open_log(folder: Path, recipe: Recipe, *, start_step: int, quiet: bool, main: bool) -> RunLog:
    return RunLog(folder, recipe, start_step=start_step, quiet=quiet) if main else SilentLog()


def describe_run(folder: Path, recipe: Recipe, extra: dict[str, Any]) -> None:
    """Writes recipe.json (resolved: `mudit train` takes it back) and run.json (versions, commit,
    machine, command).
    """
    write_json(folder / "recipe.json", recipe.resolved())
    write_json(folder / "run.json", {**environment(), **extra})


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(steps, validations) of a run."""
    steps: list[dict[str, Any]] = []
    validations: list[dict[str, Any]] = []
    for line in (folder / METRICS).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        (validations if "validation_step" in row else steps).append(row)
    return steps, validations


def plot_curves(folder: Path) -> Path | None:
    """loss.png: the loss of every step, its running median, validation, gradient norm, learning
    rate. None: nothing to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    steps, validations = read_metrics(folder)
    steps = [row for row in steps if row["loss"] is not None]
    if len(steps) < 2:
        return None
    x, loss = np.array([row["step"] for row in steps]), np.array([row["loss"] for row in steps])
    window = max(1, len(x) // 50)
    smooth = [np.median(loss[max(0, i - window) : i + 1]) for i in range(len(x))]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 6), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    top.plot(x, loss, color="0.8", linewidth=0.6, label="step")
    top.plot(x, smooth, color="C0", label=f"median of {window + 1}")
    if validations:
        top.plot(
            [row["validation_step"] for row in validations],
            [row["loss"] for row in validations],
            "o-",
            color="C3",
            ms=3,
            label="validation (EMA)",
        )
    low, high = np.percentile(loss, (0, 99))
    top.set(ylabel="loss", ylim=(low - 0.05 * (high - low), high + 0.1 * (high - low) + 1e-9))
    top.legend()
    bottom.plot(
        x,
        [row["grad_norm"] if row["grad_norm"] is not None else np.nan for row in steps],
        color="C1",
        linewidth=0.6,
    )
    bottom.set(ylabel="gradient norm", yscale="log", xlabel="step")
    rate = bottom.twinx()
    rate.plot(x, [row["lr"] for row in steps], color="C2")
    rate.set_ylabel("learning rate", color="C2")
    figure.suptitle(folder.name)
    path = folder / "loss.png"
    with atomic_path(path) as aside:
        figure.savefig(aside, dpi=110)
    plt.close(figure)
    return path


def _progress_bar(recipe: Recipe, start_step: int) -> tuple[Progress | None, TaskID | None]:
    if not sys.stderr.isatty():
        return None, None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    return progress, progress.add_task(
        recipe.name, total=recipe.steps, completed=start_step, loss=float("nan")
    )


def _cut(path: Path, start_step: int) -> None:
    """Drops the lines of steps from `start_step` on, and a last line that a kill cut in half."""
    if not path.exists():
        return
    with path.open("rb") as file, atomic_path(path) as aside, aside.open("wb") as kept:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                break
            # validation after step n - 1 is written with the number n
            if row.get("step", -1) < start_step and row.get("validation_step", 0) <= start_step:
                kept.write(line)
