"""Songs of a run while it trains: made from fixed requests with the averaged weights of a
checkpoint, so that one can hear what the loss does not say.

    RUN/songs/step-00000500/1.ogg, 1.png, 1.json        and in TensorBoard under songs/

A process of its own makes them, on rank 0's machine, at the lowest priority and on the CPU unless
the recipe says otherwise: it reads the checkpoint that was saved anyway, so no rank waits for a
song. While it works on one checkpoint, the next ones that are due are passed over. At its end the
run waits for the last songs, `songs.wait` seconds at most.

    listener = Listener(recipe, folder)
    listener.saved(500)                    # after the checkpoint of step 500 is on the disk
    for made in listener.made(): ...       # (step, files) of songs that are finished
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mudit_engine.training.recipe import Recipe

FOLDER = "songs"
NICENESS = 19

log = logging.getLogger(__name__)


class Listener:
    """Starts the process that makes songs, and says when they are there.

    Args:
        recipe: of the run, with `songs.every` above 0.
        folder: of the run.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.config, self.folder = recipe.songs, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._step = 0

    def saved(self, step: int) -> None:
        """A checkpoint of this step is on the disk."""
        if step == 0 or step % self.config.every:
            return
        if self._process is not None:
            log.info("songs of step %d are left out: those of %d are being made", step, self._step)
            return
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.config.threads)}
        # a process that no launcher started: it is not one of the ranks
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        if self.config.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._step = step
        where = self.folder / FOLDER
        where.mkdir(exist_ok=True)
        with (where / "songs.log").open("ab") as told:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self.folder), str(step)],
                env=environment,
                stdout=told,
                stderr=told,
            )

    def made(self, *, wait: float = 0.0) -> Iterator[tuple[int, list[Path]]]:
        """(step, audio files) when the songs of a checkpoint are finished since the last call;
        within `wait` seconds.
        """
        if self._process is None:
            return
        try:
            code = self._process.wait(wait) if wait else self._process.poll()
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            return
        self._process = None
        place = self.folder / FOLDER / f"step-{self._step:08d}"
        if code:
            log.warning(
                "the songs of step %d were not made (exit %d): %s says why",
                self._step,
                code,
                self.folder / FOLDER / "songs.log",
            )
            return
        yield self._step, sorted(place.glob("*.ogg"))

    def close(self) -> None:
        """Ends a process that is still at work."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def make_songs(run: Path, step: int) -> list[Path]:
    """Makes the songs of a checkpoint, by the run's own recipe. Returns the audio files."""
    import torch

    from mudit_engine.files import read_text
    from mudit_engine.pipeline import SongPipeline
    from mudit_engine.request import SongRequest
    from mudit_engine.training.checkpoints.export_part import export_part
    from mudit_engine.training.recipe import parse_recipe

    fields = json.loads(read_text(run / "recipe.json", "recipe"))
    recipe = parse_recipe(fields, source=str(run / "recipe.json"))
    config = recipe.songs
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    place = run / FOLDER / f"step-{step:08d}"
    with tempfile.TemporaryDirectory(prefix="mudit-songs-") as folder:
        export_part(
            run,
            Path(folder) / "model",
            tag=f"step-{step:08d}",
            weights="ema" if recipe.ema.enabled else "raw",
        )
        device = config.device if config.device != "auto" else None
        pipeline = SongPipeline.from_pretrained(Path(folder) / "model", device=device)
        longest = pipeline.config.max_seconds
        files = []
        for number, wanted in enumerate(config.requests, 1):
            given: dict[str, Any] = {"seconds": min(config.seconds, longest), "seed": 0, **wanted}
            (song,) = pipeline.generate([SongRequest(**given)])
            place.mkdir(parents=True, exist_ok=True)
            files.append(place / f"{number}.ogg")
            song.save(files[-1], spectrogram=True)
    seconds = time.monotonic() - started
    print(f"step {step}: {len(files)} songs in {seconds:.1f} s", flush=True)
    return files


if __name__ == "__main__":
    os.nice(NICENESS)
    make_songs(Path(sys.argv[1]), int(sys.argv[2]))
