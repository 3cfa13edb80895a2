"""`mudit data encode` and `mudit data inspect`: songs into training shards, and a look at what is
in them.

    mudit data encode corpus --out data/latents --model models/mine
    mudit data encode songs/ --out data/latents --model tiny --leave-out dedupe/copies.jsonl
    mudit data encode songs/ --out data/latents --model models/mine --separate htdemucs \\
        --transcribe faster-whisper --device cuda
    mudit data encode corpus --out data/audio --audio-only --sample-rate 22050 --channels 1
    mudit data inspect data/latents --picture lengths.png --verify
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import (
    emit_json,
    json_option,
    note,
    print_table,
    progress,
    stop_on_sigterm,
)
from mudit_engine.cli._numbers import FiniteRange

SHOWN = 20  # songs named on a terminal


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the data set; songs in it are kept.",
)
@click.option(
    "--model",
    metavar="NAME|FOLDER",
    help="Model whose VAE and ChinMu make latents and description vectors, e.g. tiny.",
)
@click.option("--audio-only", is_flag=True, help="Write audio, for training a VAE or ChinMu.")
@click.option(
    "--sample-rate",
    type=click.IntRange(8000),
    default=44100,
    show_default=True,
    help="Of --audio-only, Hz.",
)
@click.option(
    "--channels", type=click.IntRange(1, 2), default=2, show_default=True, help="Of --audio-only."
)
@click.option(
    "--stems/--no-stems",
    default=True,
    show_default=True,
    help="Encode stems too, where the source has them.",
)
@click.option(
    "--descriptions/--no-descriptions",
    default=True,
    show_default=True,
    help="Encode descriptions (needs ChinMu in the model).",
)
@click.option(
    "--part",
    default="0/1",
    show_default=True,
    metavar="I/N",
    help="Every N-th song from the I-th: one part a process or machine.",
)
@click.option(
    "--separate",
    metavar="MODEL",
    help="Stems of songs that have none, by this model of demucs, e.g. htdemucs.",
)
@click.option(
    "--transcribe",
    metavar="faster-whisper|funasr[:MODEL]",
    help="Lyrics of songs that have none (in the vocals, with --separate).",
)
@click.option(
    "--max-seconds",
    type=FiniteRange(min=0, min_open=True),
    default=1200.0,
    show_default=True,
    help="Longer files are left out, by name.",
)
@click.option(
    "--leave-out",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Songs that are not encoded: copies.jsonl of `mudit data dedupe`, or lines with an id.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--ray",
    metavar="local|auto|ADDRESS",
    help="Encode on a Ray cluster: one started here, this machine's own, or another's address.",
)
@click.option(
    "--ray-parts",
    type=click.IntRange(1),
    help="Parts dealt out to the cluster.  [default: 4 a worker]",
)
@click.option(
    "--ray-workers",
    type=click.IntRange(1),
    help="Parts at a time.  [default: one a CPU, or one a GPU with --device cuda]",
)
@json_option
def encode(
    source: Path,
    out: Path,
    model: str | None,
    audio_only: bool,
    sample_rate: int,
    channels: int,
    stems: bool,
    descriptions: bool,
    part: str,
    separate: str | None,
    transcribe: str | None,
    max_seconds: float,
    leave_out: Path | None,
    device: str,
    ray: str | None,
    ray_parts: int | None,
    ray_workers: int | None,
    as_json: bool,
) -> None:
    """Encode SOURCE (a corpus, a .jsonl manifest, a folder of audio) into shards.

    In a folder, x.txt or x.lrc beside x.ogg are its lyrics and x.json is what else is known of it:
    {"descriptions": {"professional": "...", "amateur": "..."}, "metadata": {...}, "split": "test"}.
    A song that cannot be encoded is named, with the reason, and left out.

    Stop it with Ctrl-C or SIGTERM and run it again: it goes on where it was. Parts may run at the
    same time into one folder.
    """
    from mudit_engine.training.dataset.sources import open_source

    number, slash, parts = part.partition("/")
    if not (slash and number.isdigit() and parts.isdigit() and int(number) < int(parts)):
        raise click.BadParameter(
            f"'{part}' must be I/N with I from 0 to N - 1, for example 0/4", param_hint="--part"
        )
    if audio_only == (model is not None):
        raise click.UsageError("give either --model FOLDER (latents) or --audio-only")
    if audio_only and (separate or transcribe):
        raise click.UsageError(
            "--separate and --transcribe make stems and phonemes, which --audio-only has no place "
            "for"
        )
    if separate and not stems:
        raise click.UsageError("--separate makes the stems that --no-stems leaves out")
    if ray is None and (ray_parts or ray_workers):
        raise click.UsageError("--ray-parts and --ray-workers belong to --ray")
    if ray is not None and part != "0/1":
        raise click.UsageError("--ray makes parts of its own: leave --part out")
    from mudit_engine.training.dataset.encode import Encoded, encode_audio, encode_latents
    from mudit_engine.training.dataset.leave_out import read_leave_out

    share, skip = (int(number), int(parts)), read_leave_out(leave_out) if leave_out else None
    found = _look(source)
    common: dict[str, Any] = {"max_seconds": max_seconds, "leave_out": skip}
    with progress("encoding", total=found.get("songs"), quiet=as_json) as step, stop_on_sigterm():

        def on_song(song_id: str, seconds: float) -> None:
            step(text=f"encoding {song_id}")

        if ray is not None:
            from mudit_engine.training.dataset.encode_ray import RayJob, encode_on_ray

            job = RayJob(
                source.resolve(),
                out.resolve(),
                str(Path(model).resolve()) if model and Path(model).is_dir() else model,
                sample_rate,
                channels,
                stems,
                descriptions,
                device,
                separate,
                transcribe,
                **common,
            )
            done = encode_on_ray(
                job,
                address=ray,
                parts=ray_parts,
                workers=ray_workers,
                on_part=lambda text: step(text=text),
            )
        else:
            done = Encoded()
            songs = open_source(source, on_bad=done.refuse)
            common |= {"part": share, "done": done, "on_song": on_song}
            if model is None:
                encode_audio(songs, out, sample_rate=sample_rate, channels=channels, **common)
            else:
                encode_latents(
                    songs,
                    out,
                    model=model,
                    stems=stems,
                    descriptions=descriptions,
                    device=device,
                    separate=separate,
                    transcribe=transcribe,
                    **common,
                )
    if as_json:
        emit_json({"out": str(out), "beside": found, **dataclasses.asdict(done)})
        return
    rows: list[list[Any]] = [
        ["encoded", done.songs],
        ["minutes encoded", f"{done.seconds / 60:.1f}"],
        ["with lyrics", done.with_lyrics],
        ["with descriptions", done.with_descriptions],
        ["already there", done.skipped],
        ["left out", len(done.refused)],
        ["to look at", len(done.flagged)],
        *([f"letters that cannot be sung: {script}", n] for script, n in done.unsung.items()),
    ]
    print_table(f"Encoded into {out}", ["songs", "count"], rows, numeric=["count"])
    for what, songs_named in (("left out", done.refused), ("look at", done.flagged)):
        for song_id, reason in list(songs_named.items())[:SHOWN]:
            note(f"{what} {song_id}: {reason}")
        if len(songs_named) > SHOWN:
            note(f"... and {len(songs_named) - SHOWN} more (--json names all)")


def _look(source: Path) -> dict[str, int]:
    """Says what lies beside the songs of a folder; nothing for other sources."""
    if not source.is_dir() or (source / "corpus.json").is_file():
        return {}
    from mudit_engine.training.dataset.beside import summarise

    found = summarise(source)
    note(
        f"{found['songs']} songs in '{source}': {found['lyrics']} with lyrics (.txt, .lrc), "
        f"{found['json']} with .json, {found['stems']} with stems"
    )
    if not found["lyrics"] and not found["json"]:
        note(
            "nothing is known of any song: put x.txt (lyrics) and x.json (descriptions) beside "
            "x.ogg, or a model will learn music without words or wishes"
        )
    return found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--verify", is_flag=True, help="Read every byte: checksums, silent songs.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw lengths and lyric density into this PNG.",
)
@json_option
def inspect(folder: Path, verify: bool, picture: Path | None, as_json: bool) -> None:
    """Count songs, hours and lengths of a data set, and name what is wrong with it (exit 4 when
    something is).
    """
    from mudit_engine.training.dataset import inspect_shards
    from mudit_engine.training.dataset.shards import Shards

    report = inspect_shards.inspect(Shards(folder), verify=verify)
    if picture is not None:
        inspect_shards.draw(report, picture)
    fields = {
        f.name: getattr(report, f.name)
        for f in dataclasses.fields(report)
        if f.name not in ("seconds", "density")
    }
    if as_json:
        emit_json(fields)
    else:
        rows = [
            [name, value] for name, value in fields.items() if not isinstance(value, (dict, list))
        ]
        for name in ("splits", "percentiles", "rows"):
            rows += [[f"{name} {key}", value] for key, value in fields[name].items()]
        print_table(
            f"Data set {folder}",
            ["", "value"],
            [*rows, ["bad songs", len(report.bad)], ["damaged shards", len(report.damaged)]],
        )
        for song_id, reason in list(report.bad.items())[:20]:
            note(f"bad song {song_id}: {reason}")
        for name in report.damaged:
            note(f"damaged shard {name}: delete it with its .json and encode again")
    if report.bad or report.damaged:
        raise click.exceptions.Exit(4)
