"""The embedded models from nothing: corpus, codec, its decoder's last training, text-audio encoder,
latents, pre-training, fine-tuning, the few-step student, the DDPM model, the phoneme recogniser,
and the figures of it all. What `make tiny` runs.

    python -m mudit_engine.training.tiny.pipeline --work data/tiny --songs 1000 --jobs 2
    python -m mudit_engine.training.tiny.pipeline --work data/tiny \\
      --only latents,pretrain --set pretrain:steps=200

Every step goes on where it was stopped, and a finished one is skipped, so the same command
continues after any interruption. With --jobs, steps that do not need each other run side by side
(the codec's decoder beside the song model, for example), each in a process of its own whose log is
in WORK/logs.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from mudit_engine.errors import InputError, MuditError
from mudit_engine.files import atomic_path, sha256_of
from mudit_engine.hardware import machine
from mudit_engine.models.fewstep import FOLDER as STUDENT
from mudit_engine.training.tiny.side_by_side import side_by_side

log = logging.getLogger(__name__)

# the steps in their order, and what each is made from
NEEDS: dict[str, tuple[str, ...]] = {
    "corpus": (),
    "audio": ("corpus",),
    "vae": ("audio",),
    "chinmu": ("audio",),
    "latents": ("vae", "chinmu"),
    "pretrain": ("latents",),
    "finetune": ("pretrain",),
    # whose latents are those of the VAE before
    "decoder": ("vae",),
    "model": ("decoder", "chinmu", "finetune"),
    "fewstep": ("model",),
    "finetune-mudit": ("model",),
    "recogniser": ("model",),
    "evaluate": ("fewstep", "finetune-mudit", "recogniser"),
}
STEPS = tuple(NEEDS)
TOLD_EVERY = 20  # songs, of steps that take one after the other
LEAST_JUDGED = 60  # songs of a corpus, of which one in eight is held out
RECIPES = {
    "vae": "tiny-vae",
    "decoder": "tiny-vae-decoder",
    "chinmu": "tiny-chinmu",
    "pretrain": "tiny-dit-pretrain",
    "finetune": "tiny-dit-finetune",
    "fewstep": "tiny-dit-fewstep",
    "finetune-mudit": "tiny-dit-finetune-mudit",
}


@dataclass(frozen=True)
class Plan:
    """Where everything lies and how much of it there is. `precision` is that of training, and
    `overrides` are `--set` values by step.
    """

    work: Path
    songs: int = 1000
    seed: int = 0
    workers: int = 1
    recogniser_epochs: int | None = None
    precision: str = "fp32"
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def corpus(self) -> Path:
        return self.work / "corpus"

    @property
    def codec(self) -> Path:
        """Model folder with the first VAE and ChinMu: what latents are made with."""
        return self.work / "codec"

    def run_folder(self, step: str) -> Path:
        return self.work / "runs" / step

    @property
    def model(self) -> Path:
        """Model folder of the song model, with its student."""
        return self.work / "models" / "tiny"


def check(plan: Plan, steps: tuple[str, ...]) -> None:
    """Raises InputError for an unknown step, and for a corpus too small for the last one."""
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise InputError(f"unknown step(s) {', '.join(unknown)}: known are {', '.join(STEPS)}")
    if "evaluate" in steps and plan.songs < LEAST_JUDGED:
        raise InputError(
            f"--songs {plan.songs}: too few are held out to be judged. Make {LEAST_JUDGED} at "
            f"least, or leave evaluate out of --only"
        )


def run(plan: Plan, steps: tuple[str, ...] = STEPS) -> dict[str, float]:
    """Runs `steps` in the order of STEPS; returns their seconds. Raises InputError for what `check`
    refuses, before any is run.
    """
    check(plan, steps)
    actions: dict[str, Callable[[], None]] = {
        "corpus": lambda: _corpus(plan),
        "audio": lambda: _audio(plan),
        "latents": lambda: _latents(plan),
        "model": lambda: _model(plan, "tiny", "finetune"),
        "recogniser": lambda: _recogniser(plan),
        "evaluate": lambda: _evaluate(plan),
    }
    seconds = {}
    for step in (one for one in STEPS if one in steps):
        start = time.monotonic()
        log.info("step %s", step)
        actions.get(step, lambda step=step: _train(plan, step))()
        seconds[step] = round(time.monotonic() - start, 1)
    return seconds


def counted(songs: int) -> Callable[[object, float], None]:
    """What is called after each song of a step, and tells now and then how far it is.

    Args:
        songs: of the corpus; what was there before is not counted.
    """
    begun, done = time.monotonic(), 0

    def on_song(song: object, seconds: float) -> None:
        nonlocal done
        done += 1
        if done % TOLD_EVERY == 0:
            rate = 60 * done / max(time.monotonic() - begun, 1e-9)
            log.info(
                "%d songs of at most %d, %.0f a minute, at most %.0f minutes left",
                done,
                songs,
                rate,
                (songs - done) / rate,
            )

    return on_song


def _corpus(plan: Plan) -> None:
    from mudit_engine.training.corpus.synth import Request, make_corpus

    request = Request(out=plan.corpus, songs=plan.songs, seed=plan.seed)
    make_corpus(request, workers=plan.workers, on_song=counted(plan.songs))


def _audio(plan: Plan) -> None:
    from mudit_engine.config import load_config
    from mudit_engine.training.dataset.encode import encode_audio
    from mudit_engine.training.dataset.sources import open_source

    vae = load_config("tiny").vae
    done = encode_audio(
        open_source(plan.corpus),
        plan.work / "audio",
        sample_rate=vae.sample_rate,
        channels=vae.channels,
        on_song=counted(plan.songs),
    )
    log.info(
        "%d songs, %.1f minutes encoded, %d were there, %d refused",
        done.songs,
        done.seconds / 60,
        done.skipped,
        len(done.refused),
    )


def _latents(plan: Plan) -> None:
    from mudit_engine.training.checkpoints.export_part import export_part
    from mudit_engine.training.dataset.encode import encode_latents
    from mudit_engine.training.dataset.encoded_with import read_encoder
    from mudit_engine.training.dataset.sources import open_source

    # of the weights that ship, or the student could not begin from both
    for step in ("vae", "chinmu"):
        export_part(plan.run_folder(step), plan.codec, dtype="float16")
    out, encoder = plan.work / "latents", read_encoder(plan.work / "latents")
    codec = {part: sha256_of(plan.codec / f"{part}.safetensors") for part in ("vae", "chinmu")}
    if out.is_dir() and (encoder is None or encoder.sha256 != codec):
        log.info("the codec has changed: encoding all latents again")
        shutil.rmtree(out)
    done = encode_latents(
        open_source(plan.corpus), out, model=plan.codec, on_song=counted(plan.songs)
    )
    log.info(
        "%d songs, %.1f minutes encoded, %d were there, %d refused",
        done.songs,
        done.seconds / 60,
        done.skipped,
        len(done.refused),
    )


def _train(plan: Plan, step: str) -> None:
    from mudit_engine.training.checkpoints.export_part import export_part
    from mudit_engine.training.recipe import load_recipe
    from mudit_engine.training.trainer import Trainer

    data = "audio" if step in ("vae", "decoder", "chinmu") else "latents"
    begun_from = {
        "decoder": plan.run_folder("vae") / "model",
        "finetune": plan.run_folder("pretrain") / "model",
        "fewstep": plan.model,
        "finetune-mudit": plan.model,
    }
    overrides = [f"data.folder={plan.work / data}", f"precision={plan.precision}"]
    if step in begun_from:
        overrides.append(f"init={begun_from[step]}")
    recipe = load_recipe(RECIPES[step], overrides=[*overrides, *plan.overrides.get(step, ())])
    folder = plan.run_folder(step)
    Trainer(recipe, folder).run()
    if step not in ("decoder", "chinmu"):  # from which nothing begins
        export_part(folder, folder / "model", dtype="float16" if step == "fewstep" else "float32")
    if step == "fewstep":
        # tied to the weights in half precision, which it was trained on
        shutil.copytree(folder / "model" / "lora", plan.model / STUDENT, dirs_exist_ok=True)
    elif step == "finetune-mudit":
        _model(plan, "tiny-mudit", step)


def _model(plan: Plan, name: str, song_model: str) -> None:
    """The whole model: its three parts as they were used together, in half precision."""
    from mudit_engine.training.checkpoints.export_part import export_part

    for step in ("decoder", "chinmu", song_model):
        export_part(plan.run_folder(step), plan.model.with_name(name), dtype="float16")


def _recogniser(plan: Plan) -> None:
    from mudit_engine.evaluation.codec import Codec
    from mudit_engine.training.tiny.recogniser import EPOCHS, train
    from mudit_engine.training.tiny.recogniser_songs import read_songs

    out = plan.work / "models" / "phonemes.safetensors"
    if out.is_file():
        return
    songs = read_songs([plan.corpus], codec=Codec.load(plan.model), copies=min(100, plan.songs))
    epochs = plan.recogniser_epochs or EPOCHS
    train(
        songs,
        epochs=epochs,
        on_epoch=lambda epoch, frames, ctc: log.info(
            "epoch %d of %d: %.3f a frame, %.3f a phoneme", epoch + 1, epochs, frames, ctc
        ),
    ).save(out)


def _evaluate(plan: Plan) -> None:
    """The figures of what was made, as `mudit eval tiny` gives them, of every way to sing."""
    for name, options in {
        "tiny": [str(plan.model)],
        "fewstep": [str(plan.model), "--fast"],
        "tiny-mudit": [str(plan.model.with_name("tiny-mudit"))],
    }.items():
        out = plan.work / "figures" / f"{name}.json"
        if out.is_file():
            continue
        command = [sys.executable, "-m", "mudit_engine", "eval", "tiny", "--model", *options]
        command += ["--corpus", str(plan.corpus), "--work", str(plan.work / "eval"), "--json"]
        command += ["--songs", str(max(4, min(48, plan.songs // 12)))]
        command += ["--training-songs", str(min(400, plan.songs // 2))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise InputError(f"'{' '.join(command[1:])}' ended with {done.returncode}, see above")
        with atomic_path(out) as aside:
            aside.write_text(done.stdout)


@click.command()
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("data/tiny"),
    show_default=True,
    help="Folder of everything.",
)
@click.option("--songs", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that make the corpus.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Steps at a time, where one does not need the other.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPU threads of torch in a step.  [default: with --jobs the cores' share, else torch's]",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of training; auto is what this processor multiplies fastest in, by a measurement.",
)
@click.option(
    "--recogniser-epochs",
    type=click.IntRange(1),
    help="Of the phoneme recogniser.  [default: as embedded]",
)
@click.option("--only", default=",".join(STEPS), help="Steps to run, separated by commas.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="STEP:KEY=VALUE",
    help="Change a recipe's field, for example vae:steps=500. Repeatable.",
)
def main(
    work: Path,
    songs: int,
    seed: int,
    workers: int,
    jobs: int,
    threads: int | None,
    precision: str,
    recogniser_epochs: int | None,
    only: str,
    overrides: tuple[str, ...],
) -> None:
    """Make the embedded models from nothing."""
    import torch

    from mudit_engine.runtime.precision import auto_dtype

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if threads is not None:
        torch.set_num_threads(threads)
    by_step: dict[str, tuple[str, ...]] = {}
    for override in overrides:
        step, colon, assignment = override.partition(":")
        if not colon or step not in RECIPES:
            raise click.UsageError(
                f"--set {override!r} must be STEP:KEY=VALUE with a step of {', '.join(RECIPES)}"
            )
        by_step[step] = (*by_step.get(step, ()), assignment)
    try:
        if precision == "auto":
            precision = "bf16" if auto_dtype() is torch.bfloat16 else "fp32"
            log.info("training in %s", precision)
        plan = Plan(
            work,
            songs=songs,
            seed=seed,
            workers=workers,
            recogniser_epochs=recogniser_epochs,
            precision=precision,
            overrides=by_step,
        )
        steps = tuple(only.split(","))
        if jobs == 1:
            seconds = run(plan, steps)
        else:
            share = threads or max(1, machine().cores // jobs)
            seconds = _side_by_side(plan, steps, jobs=jobs, threads=share)
        click.echo(json.dumps(seconds))
    except MuditError as error:
        click.echo(f"tiny: {error}", err=True)
        raise SystemExit(error.exit_code) from None


def _side_by_side(
    plan: Plan, steps: tuple[str, ...], *, jobs: int, threads: int
) -> dict[str, float]:
    check(plan, steps)
    command = [sys.executable, "-m", __spec__.name, "--work", str(plan.work)]
    command += ["--songs", str(plan.songs), "--seed", str(plan.seed)]
    command += ["--workers", str(plan.workers), "--threads", str(threads)]
    command += ["--precision", plan.precision]
    if plan.recogniser_epochs is not None:
        command += ["--recogniser-epochs", str(plan.recogniser_epochs)]
    for step, assignments in plan.overrides.items():
        for assignment in assignments:
            command += ["--set", f"{step}:{assignment}"]
    return side_by_side(
        {step: needed for step, needed in NEEDS.items() if step in steps},
        lambda step: [*command, "--only", step],
        jobs=jobs,
        logs=plan.work / "logs",
    )


if __name__ == "__main__":
    main()
