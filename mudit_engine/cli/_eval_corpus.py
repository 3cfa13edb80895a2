"""Songs of a corpus as the evaluation reads them.

held_out, training = songs_of(corpus, 48, 240)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mudit_engine.cli._console import note

if TYPE_CHECKING:
    from mudit_engine.evaluation.songs import EvalSong
    from mudit_engine.pipeline import SongPipeline
    from mudit_engine.training.corpus.labels import Song


F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


fast_option = click.option(
    "--fast", is_flag=True, help="Judge the model's few-step student, in its own few steps."
)


def judged_pipeline(model: str, *, fast: bool) -> SongPipeline:
    """The model that sings, or its few-step student, which is then said. Raises what
    SongPipeline.from_pretrained raises.
    """
    from mudit_engine.models.fewstep import steps_of
    from mudit_engine.pipeline import SongPipeline

    pipeline = SongPipeline.from_pretrained(model, fast=fast)
    if pipeline.student is not None:
        note(f"few-step student of '{model}': {steps_of(pipeline.student.sampler)}")
    return pipeline


def sung_options(*, least: int = 2, songs: int = 24, stems: str = "") -> Callable[[F], F]:
    """--model, --fast, --corpus, --songs and --seed of the commands that sing held-out requests."""

    def add(function: F) -> F:
        for option in reversed(
            (
                click.option("--model", default="tiny", show_default=True, metavar="NAME|FOLDER"),
                fast_option,
                click.option(
                    "--corpus",
                    default="data/tiny-corpus",
                    show_default=True,
                    type=click.Path(path_type=Path, file_okay=False),
                    help=f"A folder made by `mudit data synth`{stems}.",
                ),
                click.option(
                    "--songs",
                    type=click.IntRange(least),
                    default=songs,
                    show_default=True,
                    help="Held-out songs that are sung, at most.",
                ),
                click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
            )
        ):
            function = option(function)
        return function

    return add


def drawn_songs(
    corpus: Path, count: int, read: Callable[[Song, Path], T | None], *, lacking: str
) -> list[T]:
    """What `read` makes of held-out songs of a corpus, `count` at most, drawn evenly; it leaves a
    song out by None. Raises InputError, which ends in `lacking`, for fewer than two.
    """
    from mudit_engine.errors import InputError
    from mudit_engine.evaluation.songs import evenly
    from mudit_engine.training.corpus.labels import Song, song_folders

    songs = ((Song.load(folder), folder) for folder in song_folders(corpus))
    found = [
        one for song, folder in songs if song.held_out and (one := read(song, folder)) is not None
    ]
    if len(found) < 2:
        raise InputError(f"'{corpus}' has {len(found)} held-out songs {lacking}")
    return evenly(found, count)


def songs_of(
    corpus: Path, held_out: int, training: int, *, unseen: bool = False
) -> tuple[list[EvalSong], list[EvalSong]]:
    """(held-out, training) songs of a corpus. Raises InputError when it holds too few, or when the
    held-out ones have no descriptions in `unseen` words and those are asked for.
    """
    from mudit_engine.errors import InputError
    from mudit_engine.evaluation.songs import parted
    from mudit_engine.training.corpus.labels import Song, song_folders

    songs = [eval_song(Song.load(folder), folder, unseen=unseen) for folder in song_folders(corpus)]
    test, train = parted(songs, held_out=held_out, training=training)
    if without := [song.id for song in test if not song.prompts]:
        raise InputError(
            f"song {without[0]} of '{corpus}' has no description in unseen words: make a corpus "
            "with this version of `mudit data synth`"
        )
    return test, train


def eval_song(song: Song, folder: Path, *, unseen: bool = False) -> EvalSong:
    """A song's labels as the metrics read them. Prompts alternate between the languages and
    wordings from song to song. With `unseen`, a held-out song is asked for in words that no
    training song is described by.
    """
    from mudit_engine.evaluation.songs import LEVELS, USERS, EvalSong
    from mudit_engine.metrics.ctc import SungSyllable, syllable_phonemes

    described = [d for d in song.descriptions if d.unseen == (unseen and song.held_out)]
    by_user = {user: [d.text for d in described if d.user == user] for user in USERS}
    return EvalSong(
        id=song.id,
        audio=folder / "mix.flac",
        held_out=song.held_out,
        seconds=song.seconds,
        style=song.style,
        bpm=song.bpm,
        key=song.key_name,
        drums=song.drums,
        voice=song.voice,
        language=song.language,
        lyrics=song.lyrics,
        syllables=tuple(
            SungSyllable(syllable_phonemes(s.phonemes), s.start, s.end, s.line)
            for s in song.syllables
        ),
        prompts={user: texts[song.index % len(texts)] for user, texts in by_user.items() if texts},
        fragments={
            level: tuple(dict.fromkeys(text for d in described for text in getattr(d, f"{level}s")))
            for level in LEVELS
        },
    )
