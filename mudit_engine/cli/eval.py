"""`mudit eval`: is the codec good enough, do generated songs sound and follow their words, does
ChinMu find songs by words?

    mudit eval codec --model runs/tiny-vae/export --corpus data/tiny-corpus --gate
    mudit eval tiny --corpus data/tiny-corpus --json > figures.json
    mudit eval retrieval
    mudit eval songs A/ B/ --reference REF/ --out report/
    mudit eval survey make A/ B/ --requests requests.jsonl --out survey/

Figures are of songs held out of training. With --gate the exit code is 4 when a bar of
mudit_engine/evaluation/bars.py is missed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mudit_engine.cli._console import (
    emit_json,
    json_option,
    note,
    print_table,
    refuse_idle,
    tracked,
)
from mudit_engine.cli._eval_corpus import fast_option, judged_pipeline, songs_of
from mudit_engine.cli._eval_melody import command as melody
from mudit_engine.cli._eval_paper import command as paper
from mudit_engine.cli._eval_references import command as references
from mudit_engine.cli._eval_retrieval import table, table_options
from mudit_engine.cli._eval_songs import command as songs_of_systems
from mudit_engine.cli._eval_survey import command as survey
from mudit_engine.cli._eval_users import command as users
from mudit_engine.cli._eval_whole import command as whole

if TYPE_CHECKING:
    from mudit_engine.evaluation.bars import Verdict
    from mudit_engine.evaluation.codec_gate import Report

F = TypeVar("F", bound=Callable[..., Any])


def _shared_options(function: F) -> F:
    for option in reversed(
        (
            click.option(
                "--model",
                default="tiny",
                show_default=True,
                metavar="NAME|FOLDER",
                help="An embedded model or a model folder.",
            ),
            click.option(
                "--corpus",
                default="data/tiny-corpus",
                show_default=True,
                type=click.Path(path_type=Path, file_okay=False),
                help="A folder made by `mudit data synth`.",
            ),
            click.option(
                "--songs",
                "held_out",
                type=click.IntRange(4),
                default=48,
                show_default=True,
                help="Held-out songs, at most.",
            ),
            click.option("--gate", is_flag=True, help="Exit with 4 when a bar is missed."),
            json_option,
        )
    ):
        function = option(function)
    return function


_work = click.option(
    "--work",
    default="runs/eval",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where measurements of audio are kept, so that the next run is quick, and generated songs "
    "are written.",
)
_unseen = click.option(
    "--unseen-words",
    is_flag=True,
    help="Ask for the held-out songs in words and sentences that no training song is described by.",
)
_training = click.option(
    "--training-songs",
    type=click.IntRange(8),
    default=240,
    show_default=True,
    help="Training songs for probes and the FAD reference, at most.",
)


@click.group()
def command() -> None:
    """Judge songs: a model against its corpus (codec, tiny, melody, references, whole, retrieval,
    users), or any systems (songs, paper, survey).
    """


command.add_command(songs_of_systems, "songs")
command.add_command(paper, "paper")
command.add_command(survey, "survey")
command.add_command(users, "users")
command.add_command(melody, "melody")
command.add_command(references, "references")
command.add_command(whole, "whole")


@command.command()
@_shared_options
@_work
@_training
@click.option(
    "--quality",
    is_flag=True,
    help="Judge instead what listeners lose: PESQ of the vocal stems, ViSQOL of the mixes (extra "
    "'quality').",
)
def codec(
    model: str,
    corpus: Path,
    held_out: int,
    gate: bool,
    as_json: bool,
    work: Path,
    training_songs: int,
    quality: bool,
) -> None:
    """Do songs keep key, notes, voice and drums through the VAE? Needs only the vae of the model
    folder.
    """
    from mudit_engine.evaluation.codec import Codec
    from mudit_engine.evaluation.codec_gate import Report, judge_codec
    from mudit_engine.evaluation.codec_quality import judge_quality
    from mudit_engine.evaluation.listening import Listener
    from mudit_engine.models.folder import model_folder

    loaded = Codec.load(model_folder(model))
    track = tracked(quiet=as_json)
    test, train = songs_of(corpus, held_out, training_songs)
    if quality:
        heard = judge_quality(loaded, test, track=track)
        report = Report([], heard.verdicts(), heard.facts())
    else:
        report = judge_codec(loaded, test, train, Listener(work), track=track)
    _show("Codec", report, as_json=as_json)
    _gate(report.verdicts, gate)


@command.command()
@_shared_options
@_work
@_training
@_unseen
@fast_option
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the first song; the others count up.",
)
@click.option(
    "--recogniser",
    "weights",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A phoneme recogniser trained on other voices by `python -m "
    "mudit_engine.training.tiny.recogniser` [default: the embedded one].",
)
def tiny(
    model: str,
    corpus: Path,
    held_out: int,
    gate: bool,
    as_json: bool,
    work: Path,
    training_songs: int,
    unseen_words: bool,
    fast: bool,
    seed: int,
    weights: Path | None,
) -> None:
    """Generate songs for held-out requests and judge sound, control, lyrics and speed."""
    from mudit_engine.evaluation.codec import Codec
    from mudit_engine.evaluation.listening import Listener
    from mudit_engine.evaluation.song_tables import judge_songs
    from mudit_engine.metrics.ctc import WEIGHTS, Recogniser
    from mudit_engine.models.folder import model_folder

    # what is missing or broken is told before an hour of work
    recogniser = Recogniser.load(weights or WEIGHTS)
    pipeline = judged_pipeline(model, fast=fast)
    test, train = songs_of(corpus, held_out, training_songs, unseen=unseen_words)
    codec, listener, track = Codec.load(model_folder(model)), Listener(work), tracked(quiet=as_json)
    report = judge_songs(
        pipeline,
        codec,
        test,
        train,
        listener,
        out=work / "songs",
        recogniser=recogniser,
        seed=seed,
        track=track,
    )
    _show("Songs", report, as_json=as_json)
    note(f"songs in {work / 'songs'}, spectrograms in {work / 'spectrograms.png'}")
    _gate(report.verdicts, gate)


@command.command()
@_shared_options
@_unseen
@table_options
def retrieval(
    model: str,
    corpus: Path,
    held_out: int,
    gate: bool,
    as_json: bool,
    unseen_words: bool,
    train: Path | None,
    **told: Any,
) -> None:
    """RA@5, 10, 15 of ChinMu between fragments of descriptions and held-out songs: of a model, or
    (--train) of ChinMus trained on texts of each length, as the paper's Table 3.
    """
    refuse_idle(
        ("model", "corpus", "gate", "unseen_words") if train else tuple(told),
        f"{'with' if train else 'without'} --train",
    )
    if train:
        track = tracked(quiet=as_json)
        table(train, songs=held_out, as_json=as_json, track=track, **told)
        return
    from mudit_engine.evaluation.retrieval import judge_retrieval
    from mudit_engine.models.chinmu import ChinMu
    from mudit_engine.models.folder import load_config, load_part, model_folder

    folder = model_folder(model)
    chinmu = load_part("chinmu", load_config(folder), folder)
    assert isinstance(chinmu, ChinMu)
    test, _ = songs_of(corpus, held_out, 8, unseen=unseen_words)
    rows, found = judge_retrieval(chinmu, test, track=tracked(quiet=as_json))
    if as_json:
        emit_json({"rows": rows, "verdicts": found})
    else:
        cells = [
            [
                r.direction,
                r.level,
                r.k,
                f"{r.accuracy.value:.2f}",
                _interval(r.accuracy),
                f"{r.chance:.2f}",
                r.songs,
            ]
            for r in rows
        ]
        columns = ["direction", "level", "K", "RA@K", "95 %", "chance", "songs"]
        print_table("Retrieval", columns, cells, numeric=["K", "RA@K", "chance", "songs"])
        _show_verdicts(found)
    _gate(found, gate)


def _show(title: str, report: Report, *, as_json: bool) -> None:
    from mudit_engine.evaluation.tables import COLUMNS

    if as_json:
        emit_json(dataclasses.asdict(report))
        return
    shown = [
        column for column in COLUMNS if any(row.value(column) is not None for row in report.rows)
    ]
    cells = []
    for row in report.rows:
        cells.append([row.name, row.songs, *(row.figures.get(column) for column in shown)])
        cells.append(["", "", *(_interval(row.figures.get(column)) for column in shown)])
    names = [COLUMNS[column] for column in shown]
    print_table(f"{title} (95 % intervals below)", ["row", "songs", *names], cells, numeric=names)
    facts = [
        [name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else value]
        for name, value in report.facts.items()
    ]
    print_table("Facts", ["", ""], facts)
    _show_verdicts(report.verdicts)


def _show_verdicts(found: Sequence[Verdict]) -> None:
    cells = []
    for v in found:
        verdict = ("passed", "green") if v.passed else ("MISSED", "red")
        cells.append(
            [v.text, v.limit, None if v.measured is None else f"{v.measured:.2f}", verdict, v.note]
        )
    print_table(
        "Bars", ["bar", "limit", "measured", "verdict", "beside it"], cells, numeric=["measured"]
    )


def _interval(figure: Any) -> str:
    return "" if figure is None or figure.low is None else f"{figure.low:.2f}..{figure.high:.2f}"


def _gate(found: list[Verdict], gate: bool) -> None:
    from mudit_engine.errors import GateError
    from mudit_engine.evaluation.bars import missed

    if gate and (names := missed(found)):
        raise GateError(f"{len(names)} of {len(found)} bars are missed: {', '.join(names)}")
