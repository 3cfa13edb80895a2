"""`mudit eval whole`: are long songs composed from end to end?

mudit eval whole --corpus data/tiny-corpus --songs 24 --shortest 60
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mudit_engine.cli._console import emit_json, json_option, print_table, tracked
from mudit_engine.cli._eval_corpus import drawn_songs, eval_song, judged_pipeline, sung_options
from mudit_engine.cli._numbers import FiniteRange

if TYPE_CHECKING:
    from mudit_engine.evaluation.whole_songs import WholeSong
    from mudit_engine.training.corpus.labels import Song

MEASURES = ("tempo", "key", "sections", "ends", "end_level")


@click.command()
@sung_options()
@click.option(
    "--shortest",
    type=FiniteRange(1.0),
    default=60.0,
    show_default=True,
    help="Seconds: shorter songs of the corpus are left out.",
)
@json_option
def command(
    model: str,
    fast: bool,
    corpus: Path,
    songs: int,
    seed: int,
    shortest: float,
    as_json: bool,
) -> None:
    """Make long songs for held-out requests, and hear whether tempo and key hold in windows of
    30 s, sections begin where they are planned, and the end ends: beside originals and codec.
    """
    from mudit_engine.evaluation.codec import Codec
    from mudit_engine.evaluation.whole_songs import judge_whole_songs
    from mudit_engine.models.folder import model_folder

    test = _long_songs(corpus, songs, shortest)
    rows = judge_whole_songs(
        judged_pipeline(model, fast=fast),
        Codec.load(model_folder(model)),
        test,
        seed=seed,
        track=tracked(quiet=as_json),
    )
    if as_json:
        emit_json({"rows": rows, "songs": len(test)})
        return
    print_table(
        "Whole songs",
        ["row", *(name.replace("_", " ") for name in MEASURES)],
        [[name, *(str(figures[one]) for one in MEASURES)] for name, figures in rows.items()],
        numeric=MEASURES,
    )


def _long_songs(corpus: Path, count: int, shortest: float) -> list[WholeSong]:
    """Held-out songs of a corpus that last `shortest` seconds and longer."""
    from mudit_engine.evaluation.whole_songs import WholeSong

    def read(song: Song, folder: Path) -> WholeSong | None:
        if song.seconds < shortest:
            return None
        return WholeSong(eval_song(song, folder), tuple(part.start for part in song.form))

    lacking = f"of {shortest:g} s and longer: at least 2 are needed, make more (--longest 240)"
    return drawn_songs(corpus, count, read, lacking=lacking)
