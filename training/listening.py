"""Songs of a run while it trains: made from fixed requests with the averaged weights of a
checkpoint, so that one can hear what the loss does not say.

    RUN/songs/step-00000500/1.ogg, 1.png, 1.json     and in TensorBoard under songs/

A process of its own makes them, on rank 0's machine, at a low priority and on the CPU unless the
recipe says otherwise. It reads the checkpoint that was saved anyway, so no rank waits for a
song. Of the checkpoints that come due while it works, the newest is next. At its end the run waits
for the last songs, `songs.wait` seconds at most.

    listener = Listener(recipe, folder)
    listener.saved(500)                    # after the checkpoint of step 500 is on the disk
    for made in listener.made(): ...       # (step, audio files) of songs that are finished
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mudit_engine.request import SongRequest, request_from_fields

if TYPE_CHECKING:
    from mudit_engine.training.recipe import Recipe, SongsConfig

FOLDER, TOLD = "songs", "songs.log"
NICENESS = 10  # at 19 a busy machine gave a song no time at all
# what makes a process one of a launcher's ranks
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

log = logging.getLogger(__name__)


def wanted_songs(config: SongsConfig, *, longest: float | None = None) -> list[SongRequest]:
    """The requests of a recipe's section `songs`.

    Args:
        config: the section.
        longest: seconds that the model can make at most.

    Raises:
        InputError: for a request that is none, named by its number.

    Examples:
        >>> from mudit_engine.training.recipe import SongsConfig
        >>> [one.seconds for one in wanted_songs(SongsConfig(), longest=12.0)]
        [12.0, 12.0]
    """
    seconds = config.seconds if longest is None else min(config.seconds, longest)
    return [
        request_from_fields({"seconds": seconds, "seed": 0, **fields}, where=f"songs.requests {n}")
        for n, fields in enumerate(config.requests, 1)
    ]


class Listener:
    """Starts the process that makes songs, and says when they are there.

    Args:
        recipe: of the run.
        folder: of the run.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.config, self.folder = recipe.songs, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._step = 0
        self._next: int | None = None

    def saved(self, step: int) -> None:
        """A checkpoint of this step is on the disk."""
        if not self.config.every or step == 0 or step % self.config.every:
            return
        if self._process is None:
            self._start(step)
            return
        if self._next is not None:
            log.info("songs of step %d are left out: those of %d take long", self._next, self._step)
        self._next = step

    def made(self, *, wait: float = 0.0) -> Iterator[tuple[int, list[Path]]]:
        """(step, audio files) of songs that were finished since the last call, or are within `wait`
        seconds.
        """
        end = time.monotonic() + wait
        while self._process is not None:
            try:
                code = self._process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                return
            self._process = None
            step, following, self._next = self._step, self._next, None
            if following is not None:
                self._start(following)
            if code:
                log.warning(
                    "the songs of step %d were not made (exit %d): %s says why",
                    step,
                    code,
                    self.folder / FOLDER / TOLD,
                )
                continue
            yield step, sorted((self.folder / FOLDER / f"step-{step:08d}").glob("*.ogg"))

    def close(self) -> None:
        """Ends a process that is still at work."""
        if self._process is not None:
            log.info("songs of step %d are left out: the run ends", self._step)
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self, step: int) -> None:
        environment = {
            name: value for name, value in os.environ.items() if name not in LAUNCHED
        } | {"OMP_NUM_THREADS": str(self.config.threads)}
        if self.config.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._step = step
        where = self.folder / FOLDER
        where.mkdir(exist_ok=True)
        with (where / TOLD).open("ab") as told:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self.folder), str(step)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=told,
                start_new_session=True,  # Ctrl-C is for the run, which ends it
            )


def make_songs(run: Path, step: int) -> list[Path]:
    """Makes the songs of a checkpoint, by the run's own recipe. Returns the audio files."""
    import torch

    from mudit_engine.files import read_text
    from mudit_engine.pipeline import SongPipeline
    from mudit_engine.training.checkpoints.export_part import export_part
    from mudit_engine.training.recipe import parse_recipe

    fields = json.loads(read_text(run / "recipe.json", "recipe"))
    recipe = parse_recipe(fields, source=str(run / "recipe.json"))
    config = recipe.songs
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    place = run / FOLDER / f"step-{step:08d}"
    with tempfile.TemporaryDirectory(prefix="mudit-songs-") as folder:
        model = Path(folder) / "model"
        export_part(
            run,
            model,
            tag=f"step-{step:08d}",
            weights="ema" if recipe.ema.enabled else "raw",
        )
        device = config.device if config.device != "auto" else None
        pipeline = SongPipeline.from_pretrained(model, device=device)
        place.mkdir(parents=True, exist_ok=True)
        files = []
        for number, request in enumerate(
            wanted_songs(config, longest=pipeline.config.max_seconds), 1
        ):
            (song,) = pipeline.generate([request])
            files.append(place / f"{number}.ogg")
            song.save(files[-1], spectrogram=True)
    seconds = time.monotonic() - started
    print(f"step {step}: {len(files)} songs in {seconds:.1f} s", flush=True)
    return files


if __name__ == "__main__":
    os.nice(NICENESS)
    make_songs(Path(sys.argv[1]), int(sys.argv[2]))
