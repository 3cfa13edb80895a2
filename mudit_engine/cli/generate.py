"""`mudit generate`: a description and lyrics become a song file, its sidecar JSON and, if asked, a
picture of its spectrum.

    mudit generate --description "流行抒情，钢琴，女声，BPM 84" --lyrics song.txt --out song.wav
    mudit generate --manifest songs.jsonl --out songs/

A manifest holds one JSON object a line, whose fields are those of `--help`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, progress
from mudit_engine.errors import InputError
from mudit_engine.files import read_text

if TYPE_CHECKING:
    from mudit_engine.pipeline import SongRequest

SAMPLERS = ("ddim", "ode-euler", "ode-heun", "sde-euler", "dpmpp-2m")
USER_TYPES = ("none", "amateur", "professional")
RUNTIMES = ("auto", "torch", "onnxruntime", "openvino", "tensorrt")
PRECISIONS = {"auto": None, "fp32": "float32", "bf16": "bfloat16"}
REFERENCE_KINDS = ("mix", "vocals", "drums", "chords", "bass")
# fields of a manifest's line; `sampler`, `steps`, ... are fields of the sampler's configuration
TEXT_FIELDS = (
    "description",
    "lyrics",
    "lyrics_file",
    "negative",
    "user_type",
    "bpm",
    "key",
    "chords",
)
REQUEST_FIELDS = (*TEXT_FIELDS, "seconds", "reference", "reference_kind", "seed", "out")
SAMPLER_FIELDS = {
    "sampler": "name",
    "steps": "steps",
    "guidance": "guidance",
    "guidance_interval": "guidance_interval",
    "eta": "eta",
}


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
    type=click.FloatRange(20, 400),
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
@click.option("--sampler", type=click.Choice(SAMPLERS), help="Default: the model's own.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Sampler steps.")
@click.option(
    "--guidance",
    type=click.FloatRange(0),
    help="Guidance weight; 1 is none and takes half the time.",
)
@click.option(
    "--guidance-interval",
    type=float,
    nargs=2,
    metavar="LOW HIGH",
    help="Noise levels (0 to 1) between which guidance acts.",
)
@click.option("--eta", type=click.FloatRange(0, 1), help="ddim: 0 is deterministic, 1 ancestral.")
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
    help="An embedded model or a model folder.",
)
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
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
    help="Of torch's networks. auto: bf16 on a GPU or a CPU with AMX, else fp32, which sounds the "
    "same on every CPU.",
)
@click.option(
    "--manifest",
    metavar="FILE.jsonl",
    help="Many songs in one batch: a JSON object a line; --out is then a folder.",
)
@click.option(
    "--out",
    default="song.wav",
    show_default=True,
    metavar="FILE",
    help=".wav, .flac, .ogg or .mp3.",
)
@click.option("--spectrogram", is_flag=True, help="Also write a .png of the spectrum.")
@click.option(
    "--skip-existing", is_flag=True, help="With --manifest: leave out songs whose file is there."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read everything, print the notes and warnings, generate nothing.",
)
@json_option
def command(**options: Any) -> None:
    """Generate a song, or a manifest of songs."""
    import torch

    from mudit_engine.audio import check_audio_path
    from mudit_engine.pipeline import SongPipeline

    manifest = options["manifest"]
    jobs = (
        _read_manifest(Path(manifest), options)
        if manifest
        else [(_request(options, Path()), Path(options["out"]))]
    )
    for _, path in jobs:
        check_audio_path(path)
    if options["skip_existing"]:
        jobs = [(request, path) for request, path in jobs if not path.exists()]
    start = time.perf_counter()
    model, runtime, precision = options["model"], options["runtime"], options["precision"]
    if precision != "auto" and runtime not in ("auto", "torch"):
        raise InputError(
            f"--precision {precision} is for --runtime torch: '{runtime}' runs in the precision it "
            f"was exported in"
        )
    if runtime == "auto":
        from mudit_engine.models.folder import model_folder
        from mudit_engine.runtime.load import usual_runtime

        runtime = usual_runtime(model_folder(model)) if precision == "auto" else "torch"
    if runtime not in ("torch", "tensorrt"):
        from mudit_engine.cli._deployed import deployed

        model = deployed(model, runtime=runtime, quiet=options["as_json"])
    name = PRECISIONS[precision]
    pipeline = SongPipeline.from_pretrained(
        model, runtime=runtime, dtype=getattr(torch, name) if name else None
    )
    loading = time.perf_counter() - start
    for request, path in jobs:
        for message in pipeline.check(request):
            note(f"{path.name}: {message}")
    rows: list[dict[str, Any]] = []
    if not options["dry_run"] and jobs:
        rows = _generate(
            pipeline, jobs, spectrogram=options["spectrogram"], quiet=options["as_json"]
        )
    if options["as_json"]:
        emit_json({"loading_seconds": round(loading, 3), "songs": rows})
    elif rows:
        stages = list(rows[0]["timings_seconds"])
        columns = ["file", "seconds", "seed", *(f"{stage} s" for stage in stages)]
        cells = [
            [
                r["files"][0],
                f"{r['seconds']:.1f}",
                r["seed"],
                *(f"{r['timings_seconds'][k]:.2f}" for k in stages),
            ]
            for r in rows
        ]
        print_table("Songs", columns, cells, numeric=columns[1:])


def _generate(
    pipeline: Any, jobs: list[tuple[SongRequest, Path]], *, spectrogram: bool, quiet: bool
) -> list[dict[str, Any]]:
    rows = []
    with progress("denoising", total=100, quiet=quiet) as advance:
        shares = {"denoise": 0.9, "decode": 0.1}  # of the bar: decoding is a small part of the time

        def report(stage: str, amount: int, total: int) -> None:
            advance(
                100 * shares[stage] * amount / total,
                text="denoising" if stage == "denoise" else "decoding",
            )

        for (_, path), song in zip(
            jobs, pipeline.stream([request for request, _ in jobs], progress=report), strict=True
        ):
            files = song.save(path, spectrogram=spectrogram)
            info = song.info
            rows.append(
                {
                    "files": [str(f) for f in files],
                    "seconds": song.seconds,
                    "sample_rate": song.sample_rate,
                    "frames": info["frames"],
                    "seed": info["request"]["seed"],
                    "notes": info["notes"],
                    "timings_seconds": info["timings_seconds"],
                }
            )
    return rows


def _request(fields: dict[str, Any], folder: Path) -> SongRequest:
    """A request from the command line's options or a manifest's line; relative paths start at
    `folder`.
    """
    from mudit_engine.pipeline import SongRequest

    sampler = {
        name: fields[key]
        for key, name in SAMPLER_FIELDS.items()
        if fields.get(key) not in (None, ())
    }
    sampler |= dict(_setting(text) for text in fields.get("settings", ()))
    description = fields.get("description") or ""
    if description.startswith("@"):
        description = read_text(folder / description[1:], "description")
    reference = fields.get("reference")
    return SongRequest(
        description=description,
        lyrics=_lyrics(fields, folder),
        seconds=fields.get("seconds"),
        user_type=fields.get("user_type") or "none",
        reference=folder / reference if reference else None,
        reference_kind=fields.get("reference_kind") or "mix",
        negative=fields.get("negative") or "",
        seed=fields.get("seed"),
        bpm=fields.get("bpm"),
        key=fields.get("key"),
        chords=fields.get("chords"),
        sampler=sampler,
    )


def _lyrics(fields: dict[str, Any], folder: Path) -> str | None:
    if "manifest_line" in fields:
        file, text = fields.get("lyrics_file"), fields.get("lyrics")
        return read_text(folder / file, "lyrics") if file else text
    if fields["lyrics"] is None:
        return None
    text = (
        sys.stdin.read() if fields["lyrics"] == "-" else read_text(Path(fields["lyrics"]), "lyrics")
    )
    if not text.strip():
        source = "standard input" if fields["lyrics"] == "-" else fields["lyrics"]
        raise InputError(
            f"the lyrics ({source}) are empty: write a line, or leave out --lyrics for an "
            f"instrumental"
        )
    return text


def _setting(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"--set {text}: write it as KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _read_manifest(path: Path, options: dict[str, Any]) -> list[tuple[SongRequest, Path]]:
    """Requests and output files of a manifest. The command line's values are the defaults of every
    line.
    """
    import difflib

    folder, known = Path(options["out"]), [*REQUEST_FIELDS, *SAMPLER_FIELDS]
    if folder.suffix:
        raise InputError(
            f"--out {folder}: with --manifest it is the folder of the songs, not a file"
        )
    jobs, names = [], set()
    for number, line in enumerate(read_text(path, "manifest").splitlines(), 1):
        if not line.strip():
            continue
        where = f"manifest '{path}' line {number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(fields, dict):
            raise InputError(
                f'{where}: an object such as {{"description": "..."}} is needed, not '
                f"{type(fields).__name__}"
            )
        for key in fields.keys() - set(known):
            near = difflib.get_close_matches(key, known, n=1)
            raise InputError(
                f"{where}: unknown field '{key}'"
                + (f", did you mean '{near[0]}'?" if near else f": known are {', '.join(known)}")
            )
        name = fields.get("out") or f"song-{number:04d}.wav"
        if name in names:
            raise InputError(
                f"{where}: the file '{name}' is written by an earlier line: give each song its own "
                f"'out'"
            )
        names.add(name)
        defaults = {k: v for k, v in options.items() if k not in ("lyrics", "reference", "seed")}
        if options["seed"] is not None:
            defaults["seed"] = options["seed"] + number - 1
        try:
            request = _request({**defaults, **fields, "manifest_line": number}, path.parent)
        except (InputError, TypeError) as error:
            raise InputError(f"{where}: {error}") from None
        jobs.append((request, folder / name))
    if not jobs:
        raise InputError(f"manifest '{path}' has no songs: write one JSON object a line")
    return jobs
