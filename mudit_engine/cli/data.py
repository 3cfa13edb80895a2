"""`mudit data`: make and describe the labelled corpus.

    mudit data synth --out corpus --songs 500 --workers 2
    mudit data stats corpus
"""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group(name="data")
def command() -> None:
    """Make the labelled song corpus and look at it."""


@command.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the corpus; finished songs in it are kept.")
@click.option("--songs", type=int, default=500, show_default=True, help="How many songs (22 s each on average).")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same songs.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes. They change nothing but the speed.")
@click.option("--sample-rate", type=int, default=22050, show_default=True, help="Of all audio, Hz.")
@click.option("--stems/--no-stems", default=True, show_default=True, help="Keep vocals, drums, bass and chords beside the mix.")
@click.option("--soundfont", type=click.Path(path_type=Path), default=None, help="General MIDI .sf2/.sf3 [default: $MUDIT_SOUNDFONT or FluidR3].")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table.")
def synth(
    out: Path, songs: int, seed: int, workers: int, sample_rate: int, stems: bool, soundfont: Path | None, as_json: bool
) -> None:
    """Generate labelled songs: lyrics, sung vocals, band, stems, mix and descriptions.

    Needs espeak-ng, fluidsynth and an MIT soundfont: apt-get install espeak-ng fluidsynth fluid-soundfont-gm, and the packages of
    pip install 'mudit-engine[corpus]'. Stop it with Ctrl-C and run it again: it goes on where it was.
    """
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from mudit_engine.training.corpus.statistics import summarise
    from mudit_engine.training.corpus.synth import Request, make_corpus, missing_songs

    request = Request(out=out, songs=songs, seed=seed, sample_rate=sample_rate, stems=stems, soundfont=soundfont)
    request.check()
    console = Console(stderr=True)
    todo = len(missing_songs(request))
    started = time.monotonic()
    minutes = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    try:
        with Progress(*columns, TextColumn("{task.fields[minutes]:.1f} min of audio"), console=console) as progress:
            task = progress.add_task("songs", total=songs, completed=songs - todo, minutes=minutes)

            def on_song(index: int, seconds: float) -> None:
                nonlocal minutes
                minutes += seconds / 60
                progress.update(task, advance=1, minutes=minutes)

            made = make_corpus(request, workers=workers, on_song=on_song)
    except KeyboardInterrupt:
        left = len(missing_songs(request))
        console.print(f"Stopped. {songs - left} of {songs} songs are finished in '{out}'; run the same command to go on.")
        raise click.exceptions.Exit(130) from None
    result = {"out": str(out), "made": made, "skipped": songs - made, "wall_seconds": round(time.monotonic() - started, 2)}
    _report({**result, "statistics": summarise(out)}, as_json=as_json)


@command.command()
@click.argument("corpus", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table.")
def stats(corpus: Path, as_json: bool) -> None:
    """Count songs and minutes of CORPUS by every label."""
    from mudit_engine.training.corpus.statistics import summarise

    _report({"out": str(corpus), "statistics": summarise(corpus)}, as_json=as_json)


def _report(result: dict, *, as_json: bool) -> None:  # type: ignore[type-arg]
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "env": _environment(), "results": result}, ensure_ascii=False, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("label", "value", "songs", "minutes", title=f"corpus {result['out']}")
    for group, values in result["statistics"].items():
        for value, counts in values.items():
            table.add_row(group, value, str(counts["songs"]), f"{counts['minutes']:.1f}")
        table.add_section()
    Console().print(table)
    if "made" in result:
        click.echo(f"{result['made']} songs made, {result['skipped']} already there, {result['wall_seconds']} s")


def _environment() -> dict[str, str | None]:
    import platform

    from mudit_engine import __version__, availability

    versions = {name: availability.version(name) for name in ("numpy", "scipy", "pyworld", "soundfile")}
    return {"mudit_engine": __version__, "python": platform.python_version(), **versions}
