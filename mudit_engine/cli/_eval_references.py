"""`mudit eval references`: do songs follow a drum, bass or chord reference, and what do edits keep?

mudit eval references --corpus data/tiny-corpus --songs 12
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, tracked
from mudit_engine.cli._eval_corpus import drawn_songs, eval_song, judged_pipeline, sung_options

if TYPE_CHECKING:
    from mudit_engine.evaluation.references import Stems
    from mudit_engine.metrics.figures import Figure
    from mudit_engine.training.corpus.labels import Song

KINDS = ("drums", "bass", "chords")


@click.command()
@sung_options(songs=12, stems=", with stems")
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
    fast: bool,
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

    pipeline = judged_pipeline(model, fast=fast)
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
    """Held-out songs of a corpus with their stems."""
    from mudit_engine.evaluation.references import Stems

    def read(song: Song, folder: Path) -> Stems | None:
        files = {kind: file for kind in KINDS if (file := folder / f"{kind}.flac").is_file()}
        return Stems(eval_song(song, folder), files) if files else None

    lacking = "with stems: at least 2 are needed, make more (without --no-stems)"
    return drawn_songs(corpus, count, read, lacking=lacking)
