"""`mudit data`: make the labelled song corpus, count what it holds, render MIDI music beside it,
and encode songs for training.

    mudit data synth --out corpus --songs 560 --workers 2
    mudit data stats corpus
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, progress
from mudit_engine.cli._data_annotations import command as from_annotations
from mudit_engine.cli._data_dedupe import dedupe
from mudit_engine.cli._data_encode import encode, inspect

if TYPE_CHECKING:
    from mudit_engine.training.corpus.statistics import Statistics

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(name="data")
def command() -> None:
    """Make the labelled song corpus, encode songs for training, and look at both."""


command.add_command(from_annotations)
command.add_command(encode)
command.add_command(dedupe)
command.add_command(inspect)


@command.command()
@click.option(
    "--out",
    type=_FOLDER,
    required=True,
    help="Folder of the corpus; songs that are finished there are kept.",
)
@click.option(
    "--songs",
    type=int,
    default=560,
    show_default=True,
    help="How many songs (44 s each on average; 12 to 240 s).",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The same seed gives the same songs."
)
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    help="Processes. They change nothing but the speed.",
)
@click.option("--sample-rate", type=int, default=22050, show_default=True, help="Of all audio, Hz.")
@click.option(
    "--longest",
    type=float,
    default=240.0,
    show_default=True,
    help="No song is longer, seconds. At 40 or less all are short pieces.",
)
@click.option(
    "--shortest",
    type=float,
    default=0.0,
    show_default=True,
    help="Shorter songs of the seed are passed over, seconds.",
)
@click.option(
    "--held-out-only",
    is_flag=True,
    help="Songs that no training sees alone: what `mudit eval whole` asks for.",
)
@click.option(
    "--stems/--no-stems",
    default=True,
    show_default=True,
    help="Keep vocals, drums, bass and chords beside the mix.",
)
@click.option(
    "--soundfont",
    type=click.Path(path_type=Path),
    help="General MIDI .sf2 or .sf3  [default: $MUDIT_SOUNDFONT, else FluidR3]",
)
@json_option
def synth(
    out: Path,
    songs: int,
    seed: int,
    workers: int,
    sample_rate: int,
    longest: float,
    shortest: float,
    held_out_only: bool,
    stems: bool,
    soundfont: Path | None,
    as_json: bool,
) -> None:
    """Generate labelled songs: lyrics, sung vocals, band, stems, mix and descriptions.

    Needs programs and a soundfont (apt-get install espeak-ng fluidsynth fluid-soundfont-gm) and
    packages (pip install 'mudit-engine[corpus]'). Stop it with Ctrl-C and run it again: it goes on
    where it was.
    """
    import time

    from mudit_engine.training.corpus.statistics import summarise
    from mudit_engine.training.corpus.synth import Request, make_corpus, missing_songs, picked

    request = Request(
        out=out,
        songs=songs,
        seed=seed,
        sample_rate=sample_rate,
        stems=stems,
        soundfont=soundfont,
        longest=longest,
        held_out_only=held_out_only,
        shortest=shortest,
    )
    request.check()
    with progress("looking for such songs", total=songs, quiet=as_json) as advance:
        request = picked(
            request, on_song=lambda found: advance(text=f"{found} of {songs} such songs found")
        )
    started = time.monotonic()
    made = 0
    seconds_made = 0.0
    todo = len(missing_songs(request))
    try:
        with progress(f"{todo} songs", total=todo, quiet=as_json) as advance:

            def on_song(index: int, seconds: float) -> None:
                nonlocal made, seconds_made
                made += 1
                seconds_made += seconds
                advance(text=f"{made} of {todo} songs, {seconds_made / 60:.1f} min of audio")

            make_corpus(request, workers=workers, on_song=on_song)
    except KeyboardInterrupt:
        note(
            f"{songs - len(missing_songs(request))} of {songs} songs are finished in '{out}': the "
            f"same command goes on from there"
        )
        raise
    wall = time.monotonic() - started
    report = {
        "out": out,
        "made": made,
        "skipped": songs - made,
        "minutes_made": seconds_made / 60,
        "wall_seconds": wall,
    }
    _show(report, summarise(out), as_json=as_json)


@command.command()
@click.argument("corpus", type=_FOLDER)
@json_option
def stats(corpus: Path, as_json: bool) -> None:
    """Count songs and minutes of CORPUS by every label."""
    from mudit_engine.training.corpus.statistics import summarise

    _show({"out": corpus}, summarise(corpus), as_json=as_json)


@command.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=_FOLDER,
    required=True,
    help="Folder of the excerpts and their manifest.jsonl; finished pieces are kept.",
)
@click.option(
    "--excerpt", type=float, default=30.0, show_default=True, help="Seconds of an excerpt."
)
@click.option("--sample-rate", type=int, default=22050, show_default=True, help="Of all audio, Hz.")
@click.option(
    "--soundfont",
    type=click.Path(path_type=Path),
    help="General MIDI .sf2 or .sf3  [default: $MUDIT_SOUNDFONT, else FluidR3]",
)
@json_option
def midi(
    sources: tuple[Path, ...],
    out: Path,
    excerpt: float,
    sample_rate: int,
    soundfont: Path | None,
    as_json: bool,
) -> None:
    """Render the MIDI music of SOURCES (.mid files, folders, Doom WAD archives) to excerpts, for
    training the VAE.

    Debian's freedoom package holds 66 BSD-licensed pieces: apt-get download freedoom && dpkg -x
    freedoom_*.deb freedoom, then mudit data midi freedoom/usr/share/games/doom/*.wad --out midi.
    """
    from mudit_engine.training.corpus.band import find_soundfont
    from mudit_engine.training.corpus.midi_render import find_pieces, render_midi
    from mudit_engine.training.corpus.synth import check_sample_rate

    check_sample_rate(sample_rate)
    font = find_soundfont(soundfont)
    with progress("pieces", total=len(find_pieces(sources)), quiet=as_json) as advance:

        def on_piece(name: str, seconds: float) -> None:
            advance(text=name)

        made = render_midi(
            sources,
            out,
            soundfont=font,
            sample_rate=sample_rate,
            excerpt_seconds=excerpt,
            on_piece=on_piece,
        )
    if as_json:
        emit_json({"out": out, **made})
    else:
        row = [made["pieces"], made["excerpts"], f"{made['minutes']:.1f}"]
        print_table(f"MIDI music in {out}", ["pieces", "excerpts", "minutes"], [row])


def _show(report: dict[str, Any], statistics: Statistics, *, as_json: bool) -> None:
    if as_json:
        emit_json({**report, "statistics": statistics})
        return
    rows = [
        [group, value, counts["songs"], f"{counts['minutes']:.1f}"]
        for group, values in statistics.items()
        for value, counts in values.items()
    ]
    print_table(
        f"Corpus {report['out']}",
        ["label", "value", "songs", "minutes"],
        rows,
        numeric=["songs", "minutes"],
    )
    if "made" in report:
        note(
            f"{report['made']} songs made, {report['skipped']} were there already "
            f"({report['wall_seconds']:.0f} s)"
        )
