"""`mudit eval melody`: are songs sung on the melody that was planned, and do choruses return?

mudit eval melody --corpus data/tiny-corpus --songs 24
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, tracked
from mudit_engine.cli._eval_corpus import eval_song, judged_pipeline, sung_options

if TYPE_CHECKING:
    from mudit_engine.evaluation.melodies import Tune
    from mudit_engine.metrics.figures import Figure


@click.command()
@sung_options()
@click.option(
    "--training-songs",
    type=click.IntRange(2),
    default=160,
    show_default=True,
    help="Songs that the listening probe learns pitches from, at most.",
)
@json_option
def command(
    model: str,
    fast: bool,
    corpus: Path,
    songs: int,
    training_songs: int,
    seed: int,
    as_json: bool,
) -> None:
    """Sing held-out requests on planned melodies, and hear which notes are sung: on the plan,
    without one, on another song's; from chorus to chorus; and with another seed.
    """
    from mudit_engine.evaluation.codec import Codec
    from mudit_engine.evaluation.melodies import judge_melodies
    from mudit_engine.models.folder import model_folder

    pipeline = judged_pipeline(model, fast=fast)
    held_out, training = _tunes(corpus, songs, training_songs)

    track = tracked(quiet=as_json)

    codec = Codec.load(model_folder(model))
    report = judge_melodies(pipeline, codec, held_out, training, seed=seed, track=track)
    if as_json:
        emit_json(report)
        return
    print_table(
        "Syllables on the planned pitch", ["row", "share", "95 %"], _cells(report.rows), numeric=[]
    )
    print_table("Equal notes", ["sections", "share", "95 %"], _cells(report.returns), numeric=[])
    note(
        f"two seeds sing the same pitch class on {report.seeds} of the syllables, where chance is "
        f"{report.chance}; {report.songs} songs, {report.syllables} syllables"
    )


def _cells(rows: dict[str, Figure]) -> list[list[Any]]:
    return [
        [name, str(one), "" if one.low is None else f"{one.low:.2f} to {one.high:.2f}"]
        for name, one in rows.items()
    ]


def _tunes(corpus: Path, held_out: int, training: int) -> tuple[list[Tune], list[Tune]]:
    """Sung songs of the corpus, held out and for training, drawn evenly."""
    from mudit_engine.evaluation.melodies import SHORTEST, Tune
    from mudit_engine.evaluation.songs import parted
    from mudit_engine.training.corpus.labels import Song, song_folders

    tunes = {}
    for folder in song_folders(corpus):
        song = Song.load(folder)
        if song.voice == "none":
            continue
        sung = [one for one in song.syllables if one.end - one.start >= SHORTEST]
        tunes[song.id] = Tune(
            eval_song(song, folder),
            tuple((one.start, one.end, one.midi) for one in sung),
            tuple(
                (song.form[number].name, number)
                for number in (song.lines[one.line].section for one in sung)
            ),
        )
    parts = parted([one.song for one in tunes.values()], held_out=held_out, training=training)
    test, train = ([tunes[song.id] for song in part] for part in parts)
    return test, train
