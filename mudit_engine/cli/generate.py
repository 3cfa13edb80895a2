"""`mudit generate`: a description and lyrics become a song file, its sidecar JSON and, if asked, a
picture of its spectrum.

    mudit generate --description "流行抒情，钢琴，女声，BPM 84" --lyrics song.txt --out song.wav
    # a JSON object a line, the fields of `--help`
    mudit generate --manifest songs.jsonl --out songs/
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import json_option, loading, note, progress
from mudit_engine.cli._numbers import FiniteRange
from mudit_engine.cli._requests import Job, jobs_of, loudness_of
from mudit_engine.cli._songs_made import row_of, show_made
from mudit_engine.errors import InputError, MuditError
from mudit_engine.names import (
    EMBEDDED_MODELS,
    REFERENCE_KINDS,
    RUNTIMES,
    SAMPLERS,
    STYLES,
    USER_TYPES,
    VOICES,
)

if TYPE_CHECKING:
    from mudit_engine.pipeline import Song, SongPipeline
    from mudit_engine.reading import TextReader, Understood

PRECISIONS = {"auto": None, "fp32": "float32", "bf16": "bfloat16", "fp8": "float8_e4m3fn"}


class Seconds(click.ParamType):
    """A length, or 'auto': as long as the lyrics need."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        if value == "auto":
            return None
        try:
            return float(value)
        except ValueError:
            self.fail(f"'{value}' is neither a number nor 'auto'", param, ctx)


@click.command()
@click.option(
    "--description",
    default="",
    metavar="TEXT",
    help="The song in your own words, Chinese or English; or @FILE.",
)
@click.option(
    "--lyrics",
    metavar="FILE|-",
    help="Lyrics with section tags such as [verse]; - reads standard input. Without it: an "
    "instrumental.",
)
@click.option(
    "--write-lyrics",
    is_flag=False,
    flag_value="auto",
    metavar="[auto|small|grammar|FOLDER|ID|URL]",
    help="Write the lyrics from the description first, as `mudit lyrics write --model` does.",
)
@click.option("--structure", metavar="PARTS", help="With --write-lyrics: verse:4x7,chorus:4x5.")
@click.option("--rhyme", metavar="AABA|one|free", help="With --write-lyrics: the rhyme scheme.")
@click.option(
    "--seconds",
    type=Seconds(),
    default="auto",
    metavar="N|auto",
    show_default=True,
    help="Length; auto is as long as the lyrics need.",
)
@click.option(
    "--user-type",
    type=click.Choice(USER_TYPES),
    default="none",
    show_default=True,
    help="Who wrote the description.",
)
@click.option("--reference", metavar="FILE", help="Audio the song should follow.")
@click.option(
    "--reference-kind",
    type=click.Choice(REFERENCE_KINDS),
    default="mix",
    show_default=True,
    help="What the reference holds.",
)
@click.option(
    "--negative",
    default="",
    metavar="TEXT",
    help="What the song should not be; needs guidance above 1.",
)
@click.option(
    "--bpm",
    type=FiniteRange(20, 400),
    help="Beats a minute. Default: as the description says.",
)
@click.option(
    "--key",
    metavar="KEY",
    help="For example 'C minor' or 降E大调. Default: as the description says.",
)
@click.option(
    "--chords",
    metavar="CHORDS",
    help="A chord a bar, 'C G Am F', or bars with more, 'C | Am F | G7', repeated to the end. "
    "Default: planned in the key.",
)
@click.option(
    "--melody",
    metavar="NOTES|FILE",
    help="A note a syllable, 'C4 D4 E4 | G4 E4', or a .mid or .musicxml file with its rhythm. "
    "Default: planned, for a model that follows melodies.",
)
@click.option("--drums", type=click.Choice(["on", "off"]), help="Default: as the description says.")
@click.option("--voice", type=click.Choice(VOICES), help="Default: as the description says.")
@click.option("--style", type=click.Choice(STYLES), help="Default: as the description says.")
@click.option(
    "--unplanned",
    is_flag=True,
    help="Plan nothing but the length: the model hears description and lyrics alone.",
)
@click.option(
    "--midi",
    metavar="FILE.mid",
    help="Also write the plan as MIDI: melody, chords, sections. With --dry-run, only that.",
)
@click.option(
    "--edit",
    metavar="SONG",
    help="Change an earlier song (its audio or sidecar), or any audio: with --repaint or --extend.",
)
@click.option(
    "--repaint",
    metavar="30-45",
    help="With --edit: make these seconds anew; several with commas. What the song was made of is "
    "kept unless given anew, such as other --lyrics.",
)
@click.option("--extend", type=float, metavar="S", help="With --edit: play on for S seconds.")
@click.option(
    "--continue",
    "continue_",
    metavar="SONG",
    help="Begin with this song and go on to --seconds, or as long as --lyrics (all of them) need.",
)
@click.option(
    "--latents",
    is_flag=True,
    help="Also keep the latents beside the song: edits of it then change nothing else.",
)
@click.option(
    "--ignore-times", is_flag=True, help="Drop LRC time stamps: lines follow one another."
)
@click.option("--sampler", type=click.Choice(SAMPLERS), help="Default: the model's own.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Sampler steps.")
@click.option(
    "--guidance",
    type=FiniteRange(0, 100),
    help="Guidance weight; 1 is none and takes half the time.",
)
@click.option(
    "--guidance-interval",
    type=float,
    nargs=2,
    metavar="LOW HIGH",
    help="Noise levels (0 to 1) between which guidance acts.",
)
@click.option("--eta", type=FiniteRange(0, 1), help="ddim: 0 is deterministic, 1 ancestral.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other field of the sampler's configuration, e.g. shift=2.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="In one precision a seed gives one song. Default: drawn, and written to the sidecar.",
)
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    metavar="NAME|FOLDER",
    help=f"An embedded model ({', '.join(EMBEDDED_MODELS)}) or a model folder.",
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FOLDER[:SCALE]",
    help="A LoRA that is added to the model, how strongly (1 as it was trained). Repeatable.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Use the model's few-step student (its folder fewstep/): its few steps without guidance "
    "are then the default of --sampler, --steps and --guidance.",
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", *RUNTIMES]),
    default="auto",
    show_default=True,
    help="What runs the networks. auto: tensorrt where the model is a folder with engines for this "
    "GPU, else torch. onnxruntime and "
    "openvino export a model into the cache once; tensorrt needs a folder of `mudit export "
    "tensorrt` and its GPU.",
)
@click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    default="auto",
    show_default=True,
    help="Of torch's networks. auto: bf16 on a GPU, and on a CPU that multiplies it faster (half a "
    "second of measurement, once a machine), else fp32, which sounds the same on every CPU. fp8: "
    "the widest products, on a GPU from sm_89 on; the model is held to its bf16 songs first. No "
    "GPU has run it yet.",
)
@click.option(
    "--device", metavar="NAME", help="Of torch: cpu, cuda, cuda:1. Default: a GPU if any."
)
@click.option(
    "--manifest",
    metavar="FILE.jsonl",
    help="Many songs in one batch: a JSON object a line; --out is then a folder. Options given "
    "beside it are what a line that says nothing else takes.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="With --manifest: make every song that can be made, list the others and exit 1.",
)
@click.option(
    "--out",
    default="song.wav",
    show_default=True,
    metavar="FILE",
    help=".wav, .flac, .ogg or .mp3.",
)
@click.option(
    "--best-of",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Make N songs with seeds in a row and keep the one that does best what was asked for.",
)
@click.option("--spectrogram", is_flag=True, help="Also write a .png of the spectrum.")
@click.option(
    "--loudness",
    default="-16",
    show_default=True,
    metavar="LUFS|off",
    callback=loudness_of,
    help="Loudness of the written song; peaks are limited to -1 dB. off: as it was decoded.",
)
@click.option(
    "--skip-existing", is_flag=True, help="With --manifest: leave out songs whose file is there."
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="With --manifest: make the songs on the machines of a Ray cluster; 'local' starts one of "
    "this machine, 'auto' joins the running one. Songs whose files are there are left out.",
)
@click.option(
    "--ray-workers",
    type=click.IntRange(1),
    help="With --ray: how many at once.  [default: the cluster's GPUs, else its CPUs]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read everything, print the notes and warnings, generate nothing.",
)
@json_option
def command(**options: Any) -> None:
    """Generate a song, or a manifest of songs.

    A reading can be written into the lyrics, in braces or brackets behind a character or word:
    长{chang2}, 重[chong2]来, live{L AY1 V}, Zhangsan{zhang1 san1}.
    """
    # everything the user wrote is read before anything heavy is imported
    if options["midi"] is not None and options["manifest"] is not None:
        raise InputError("--midi is of one song: leave it out with --manifest")
    jobs, failures = jobs_of(options)
    model, runtime, precision = options["model"], options["runtime"], options["precision"]
    if precision != "auto" and runtime not in ("auto", "torch"):
        raise InputError(
            f"--precision {precision} is for --runtime torch: '{runtime}' runs in the precision it "
            "was exported in"
        )
    if options["fast"] and runtime not in ("auto", "torch"):
        raise InputError(
            f"--fast is for --runtime torch: for '{runtime}', take what `mudit export onnx {model} "
            "OUT --fast` writes"
        )
    if options["ray"] is not None:
        _on_ray(jobs, failures, options)
        return
    if options["ray_workers"] is not None:
        raise InputError("--ray-workers belongs to --ray")
    if options["skip_existing"]:
        jobs = [job for job in jobs if not job.path.exists()]
    start = time.perf_counter()
    pipeline = _pipeline(model, runtime, PRECISIONS[precision], options)
    loading_seconds = time.perf_counter() - start
    if (student := pipeline.student) is not None:
        from mudit_engine.models.fewstep import steps_of

        note(f"few-step student of '{model}': {steps_of(student.sampler)}")
    jobs, read, refused = _checked(
        pipeline.reader, jobs, keep_going=options["keep_going"], midi=options["midi"]
    )
    failures += refused
    rows: list[dict[str, Any]] = []
    if not options["dry_run"] and jobs:
        rows, failed = _generate(
            pipeline,
            jobs,
            spectrogram=options["spectrogram"],
            latents=options["latents"],
            loudness=options["loudness"],
            best_of=options["best_of"],
            keep_going=options["keep_going"],
            quiet=options["as_json"],
        )
        failures += failed
    made = len(jobs) if options["dry_run"] else len(rows)
    timed: dict[str, Any] = {"loading_seconds": round(loading_seconds, 3)}
    if student is not None:
        timed["fast"] = student.record
    show_made(options, rows=rows, read=read, failures=failures, made=made, timed=timed)


def _on_ray(jobs: list[Job], failures: list[dict[str, str]], options: dict[str, Any]) -> None:
    """The manifest's songs on a cluster."""
    from mudit_engine.availability import require

    for name in ("best_of", "device", "latents"):
        if options[name] not in (1, None, False):
            raise InputError(f"--{name.replace('_', '-')} is not for --ray")
    if options["manifest"] is None:
        raise InputError("--ray is for --manifest: one song is made on one machine")
    require("ray", "--ray")
    with loading():
        from mudit_engine.cli._deployed import deployed
        from mudit_engine.config import load_config
        from mudit_engine.models.fewstep import student_of
        from mudit_engine.models.folder import model_folder
        from mudit_engine.models.lora import parse_lora
        from mudit_engine.reading import TextReader
        from mudit_engine.serving.ray_songs import Order, SongMaker, is_there, make_on_ray

        folder = model_folder(options["model"])
        if options["runtime"] in ("onnxruntime", "openvino"):
            folder = deployed(folder, runtime=options["runtime"], quiet=options["as_json"])
        config = load_config(folder)
        if options["fast"]:
            config = student_of(folder).configured(config)
        reader = TextReader(config, fast=options["fast"])
        loras = [parse_lora(text) for text in options["loras"]]
    jobs = [job for job in jobs if not is_there(job.path)]
    jobs, read, refused = _checked(reader, jobs, keep_going=options["keep_going"], midi=None)
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    if jobs and not options["dry_run"]:
        maker = SongMaker(
            str(folder.resolve()),
            runtime=options["runtime"] if not (loras or options["fast"]) else "torch",
            precision=PRECISIONS[options["precision"]],
            loras=tuple(dataclasses.replace(one, folder=one.folder.resolve()) for one in loras),
            fast=options["fast"],
            spectrogram=options["spectrogram"],
            loudness=options["loudness"],
        )
        with progress("songs", total=len(jobs), quiet=options["as_json"]) as advance:
            made = make_on_ray(
                maker,
                [Order(job.request, job.path.absolute()) for job in jobs],
                address=options["ray"],
                workers=options["ray_workers"],
                on_song=lambda: advance(1, text="songs"),
            )
        for job, one in zip(jobs, made, strict=True):
            if one.error is not None:
                failed.append(job.failure(one.error))
            else:
                rows.append(row_of(one.info, one.seconds, one.rate, one.files))
    show_made(
        options,
        rows=rows,
        read=read,
        failures=[*failures, *refused, *failed],
        made=len(jobs) if options["dry_run"] else len(rows),
        timed={},
    )


def _pipeline(
    model: str, runtime: str, precision: str | None, options: dict[str, Any]
) -> SongPipeline:
    if options["loras"] and runtime == "auto":
        runtime = "torch"
    with loading():
        import torch

        from mudit_engine.cli._deployed import deployed
        from mudit_engine.models.lora import parse_lora
        from mudit_engine.pipeline import SongPipeline

        loras = [parse_lora(text) for text in options["loras"]]
        pipeline = SongPipeline.from_pretrained(
            model,
            runtime=runtime,
            device=options["device"],
            dtype=getattr(torch, precision) if precision else None,
            deploy=lambda folder, name: deployed(folder, runtime=name, quiet=options["as_json"]),
            fast=options["fast"],
        )
        if loras:
            pipeline.set_loras(loras)
        return pipeline


def _checked(
    reader: TextReader, jobs: list[Job], *, keep_going: bool, midi: str | None
) -> tuple[list[Job], list[dict[str, Any]], list[dict[str, str]]]:
    """The jobs that the model can take, their notes printed; what was understood of each; and why
    it cannot take the others.
    """
    good, read, failures = [], [], []
    for job in jobs:
        try:
            understood = reader.understand(job.request, compose=midi is not None)
        except MuditError as error:
            if not keep_going:
                raise
            failures.append(job.failure(error))
            continue
        for message in understood.notes:
            note(f"{job.path.name}: {message}")
        if midi is not None:
            _write_midi(midi, reader, understood)
        # a seed that was drawn stays: the song made is the one that was understood
        request = dataclasses.replace(job.request, seed=understood.seed)
        good.append(dataclasses.replace(job, request=request))
        read.append({"out": str(job.path), **understood.read, "notes": list(understood.notes)})
    return good, read, failures


def _write_midi(path: str, reader: TextReader, understood: Understood) -> None:
    """The plan as MIDI, and a word where the model is not told all of it."""
    from mudit_engine.text.composition.midi import write_plan

    if not understood.outline.melody:
        raise InputError(
            "--midi writes the plan, and no melody is planned: leave out --unplanned and a "
            "reference that decides it, or take a model with an outline"
        )
    write_plan(path, understood.outline)
    if not reader.config.dit.melody:
        note(
            f"{path}: model '{reader.config.name}' follows tempo, key and chords of it, and not "
            "the melody"
        )


def _best(pipeline: SongPipeline, job: Job, count: int, report: Any) -> Song:
    """The best of `count` songs with seeds in a row; its sidecar names them all."""
    import secrets

    from mudit_engine.evaluation.candidates import rank_candidates

    first = job.request.seed if job.request.seed is not None else secrets.randbelow(2**31)
    requests = [dataclasses.replace(job.request, seed=first + n) for n in range(count)]
    songs = pipeline.generate(requests, progress=report)
    ranked = rank_candidates(songs, chinmu=pipeline.chinmu, description=job.request.description)
    best = ranked[0].song
    best.info["candidates"] = [
        {"seed": one.seed, "score": one.score, "parts": one.parts} for one in ranked
    ]
    return best


def _generate(
    pipeline: SongPipeline,
    jobs: list[Job],
    *,
    spectrogram: bool,
    latents: bool,
    loudness: float | None,
    best_of: int,
    keep_going: bool,
    quiet: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of the songs that were made, and the failures of those that were not."""
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    kept: dict[str, Any] = {
        "spectrogram": spectrogram,
        "latents": latents,
        "loudness": loudness,
    }
    with progress("denoising", total=100, quiet=quiet) as advance:
        shares = {"denoise": 0.9, "decode": 0.1}  # of the bar: decoding is a small part of the time

        def report(stage: str, amount: int, total: int) -> None:
            advance(
                100 * shares[stage] * amount / total,
                text="denoising" if stage == "denoise" else "decoding",
            )

        def make(some: list[Job]) -> None:
            if best_of > 1:
                for job in some:
                    song = _best(pipeline, job, best_of, report)
                    rows.append(_row(song, song.save(job.path, **kept)))
                return
            songs = pipeline.stream([job.request for job in some], progress=report)
            for job, song in zip(some, songs, strict=True):
                rows.append(_row(song, song.save(job.path, **kept)))

        try:
            make(jobs)
        except MuditError:
            if not keep_going:
                raise
            # one song must not take the others down: those that are left, one by one
            for job in jobs[len(rows) :]:
                try:
                    make([job])
                except MuditError as error:
                    failures.append(job.failure(error))
    return rows, failures


def _row(song: Song, files: list[Path]) -> dict[str, Any]:
    return row_of(song.info, song.seconds, song.sample_rate, files)
