"""`mudit eval references`: do songs follow a drum, bass or chord reference, and what do edits keep?

mudit eval references --corpus data/tiny-corpus --songs 12
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, tracked

if TYPE_CHECKING:
    from mudit_engine.evaluation.references import Stems
    from mudit_engine.metrics.figures import Figure

KINDS = ("drums", "bass", "chords")


@click.command()
@click.option("--model", default="tiny", show_default=True, metavar="NAME|FOLDER")
@click.option(
    "--corpus",
    default="data/tiny-corpus",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder made by `mudit data synth`, with stems.",
)
@click.option(
    "--songs",
    type=click.IntRange(2),
    default=12,
    show_default=True,
    help="Held-out songs, at most.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    help="Of the references. Repeatable.  [default: all]",
)
@click.option("--edits/--no-edits", default=True, help="Repaint and extend songs, too.")
@json_option
def command(
    model: str,
    corpus: Path,
    songs: int,
    seed: int,
    kinds: tuple[str, ...],
    edits: bool,
    as_json: bool,
) -> None:
    """Sing held-out requests with a stem as reference, without one and with another song's, and
    hear what is followed: onsets of drums, pitch classes of bass and chords. Then repaint songs and
    let them go on.
    """
    from mudit_engine.evaluation.references import judge_edits, judge_references
    from mudit_engine.pipeline import SongPipeline

    pipeline = SongPipeline.from_pretrained(model)
    test, track = _with_stems(corpus, songs), tracked(quiet=as_json)
    rows = judge_references(pipeline, test, kinds=kinds or KINDS, seed=seed, track=track)
    edited = None
    if edits and pipeline.config.dit.edits:
        edited = judge_edits(pipeline, [one.song for one in test], seed=seed, track=track)
    if as_json:
        emit_json({"references": rows, "edits": edited})
        return
    columns = ("own", "without", "another", "above_without", "above_another")
    print_table(
        "Correlation with the reference",
        ["reference", *(name.replace("_", " ") for name in columns)],
        [[kind, *(_cell(getattr(row, name)) for name in columns)] for kind, row in rows.items()],
        numeric=[],
    )
    if edited is not None:
        note(
            f"repainted songs: latents outside differ by {edited.outside:g} at most, "
            f"{_cell(edited.seams)} of the seams are no more abrupt than the song; longer songs: "
            f"tempo kept in {_cell(edited.tempo)}, key in {_cell(edited.key)}"
        )


def _cell(one: Figure) -> str:
    return str(one) if one.low is None else f"{one} ({one.low:.2f} to {one.high:.2f})"


def _with_stems(corpus: Path, count: int) -> list[Stems]:
    """Held-out songs of a corpus with their stems, drawn evenly."""
    from mudit_engine.cli._eval_corpus import eval_song
    from mudit_engine.errors import InputError
    from mudit_engine.evaluation.references import Stems
    from mudit_engine.training.corpus.labels import Song, song_folders

    found: list[Any] = []
    for folder in song_folders(corpus):
        song = Song.load(folder)
        files = {kind: folder / f"{kind}.flac" for kind in KINDS}
        files = {kind: file for kind, file in files.items() if file.is_file()}
        if song.held_out and files:
            found.append(Stems(eval_song(song, folder), files))
    if len(found) < 2:
        raise InputError(
            f"'{corpus}' has {len(found)} held-out songs with stems: at least 2 are needed, make "
            "more (without --no-stems)"
        )
    count = min(count, len(found))
    return [found[number * len(found) // count] for number in range(count)]
