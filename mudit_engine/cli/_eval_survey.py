"""`mudit eval survey`: a listening test as a static page, and what its answers say.

mudit eval survey make A/ B/ --requests requests.jsonl --out survey
mudit eval survey read survey/key.json answers/ --out report
mudit eval survey listeners --difference 0.3 --spread 0.8
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, tracked
from mudit_engine.cli._numbers import FiniteRange

if TYPE_CHECKING:
    from mudit_engine.evaluation.survey.answers import Key
    from mudit_engine.evaluation.survey.tables import SurveyReport

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def command() -> None:
    """Ask listeners: make a blind questionnaire, read its answers, plan how many are needed."""


@command.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--requests",
    required=True,
    type=FILE,
    help="JSON Lines: the id of each song and what was asked for (description, lyrics).",
)
@click.option("--out", required=True, type=FOLDER, help="A new folder for the page and its key.")
@click.option(
    "--mode",
    type=click.Choice(["rating", "pairs"]),
    default="rating",
    show_default=True,
    help="Rate one song at a time, or choose between two systems' songs.",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=12,
    show_default=True,
    help="Songs or pairs a listener hears, without checks.",
)
@click.option(
    "--forms",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="Different forms; as many as listeners, best.",
)
@click.option(
    "--checks",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Attention checks in a form.",
)
@click.option(
    "--repeats",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Songs of a form that come a second time, to see whether listeners agree with themselves.",
)
@click.option(
    "--listen-seconds",
    type=FiniteRange(0.0),
    default=15.0,
    show_default=True,
    help="Seconds of each song that must be played before an answer counts.",
)
@click.option(
    "--loudness",
    type=float,
    default=-20.0,
    show_default=True,
    help="LUFS that every song is brought to.",
)
@click.option("--keep-loudness", is_flag=True, help="Leave songs as loud as they are.")
@click.option(
    "--format",
    "suffix",
    type=click.Choice(["flac", "wav", "mp3", "ogg"]),
    default="flac",
    show_default=True,
    help="Of the songs on the page.",
)
@click.option(
    "--questions", type=FILE, help="A JSON list of {id, en, zh} instead of the eight criteria."
)
@click.option(
    "--submit", default="", metavar="URL", help="Send answers there too (POST, JSON), at the end."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
def make(
    folders: tuple[Path, ...],
    requests: Path,
    out: Path,
    mode: Any,
    trials: int,
    forms: int,
    checks: int,
    repeats: int,
    listen_seconds: float,
    loudness: float,
    keep_loudness: bool,
    suffix: str,
    questions: Path | None,
    submit: str,
    seed: int,
    as_json: bool,
) -> None:
    """Write a listening test of FOLDERS of songs, one a system: OUT/page is a static web page,
    OUT/key.json says whose songs they are and stays with you.
    """
    from mudit_engine.evaluation.survey.design import load_questions
    from mudit_engine.evaluation.survey.make import Options, make_survey
    from mudit_engine.evaluation.systems import System, load_requests

    options = Options(
        mode=mode,
        trials=trials,
        forms=forms,
        checks=checks,
        repeats=repeats,
        listen_seconds=listen_seconds,
        loudness=None if keep_loudness else loudness,
        suffix=f".{suffix}",
        submit=submit,
        questions=load_questions(questions) if questions else (),
        seed=seed,
    )

    track = tracked(quiet=as_json)

    made = make_survey(
        [System.of(folder) for folder in folders],
        load_requests(requests),
        out,
        options,
        track=track,
    )
    if as_json:
        emit_json(made)
        return
    low, high = made.heard
    note(f"the page: {made.page} (put its folder on any web server, or open it from the disk)")
    note(f"links for {forms} listeners: {out / 'links.csv'}")
    note(f"the key, which they must not see: {made.key}")
    note(
        f"{made.songs} songs; each is heard {low} to {high} times when every form is answered once"
    )


@command.command()
@click.argument("key", type=FILE)
@click.argument("answers", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, help="A folder for survey.json, .csv, .tex, preferences.jsonl.")
@click.option(
    "--difference",
    type=FiniteRange(0.0, min_open=True),
    default=0.5,
    show_default=True,
    help="Points of the scale that listeners should be able to find: how many would that need?",
)
@click.option("--keep-failed", is_flag=True, help="Count listeners who failed attention checks.")
@click.option("--partial", is_flag=True, help="Count listeners who stopped before the end.")
@json_option
def read(
    key: Path,
    answers: tuple[Path, ...],
    out: Path | None,
    difference: float,
    keep_failed: bool,
    partial: bool,
    as_json: bool,
) -> None:
    """Read ANSWERS (files or folders) of the test of KEY: means, tests, agreement."""
    import dataclasses

    from mudit_engine.evaluation.survey.answers import answer_files, load_key, read_answers
    from mudit_engine.evaluation.survey.files import write_csv, write_preferences, write_table
    from mudit_engine.evaluation.survey.tables import judge
    from mudit_engine.files import write_json
    from mudit_engine.hardware import environment

    opened = load_key(key)
    heard = read_answers(opened, answer_files(answers), keep_failed=keep_failed, partial=partial)
    report = judge(opened, heard, difference=difference)
    if out is not None:
        if report.mode == "rating":
            write_table(report, opened, out / "survey.tex")
        write_csv(report, out / "survey.csv")
        write_preferences(opened, heard, out / "preferences.jsonl")
        write_json(out / "survey.json", {"env": environment(), **dataclasses.asdict(report)})
    if as_json:
        emit_json(report)
        return
    _show(opened, report)


@command.command()
@click.option(
    "--difference",
    required=True,
    type=FiniteRange(0.0, min_open=True),
    help="Points of the scale to be found.",
)
@click.option(
    "--spread",
    type=FiniteRange(0.0, min_open=True),
    default=0.8,
    show_default=True,
    help="Standard deviation of the listeners' own differences; a pilot's `read` tells it.",
)
@click.option(
    "--power",
    type=FiniteRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.8,
    show_default=True,
)
@json_option
def listeners(difference: float, spread: float, power: float, as_json: bool) -> None:
    """How many listeners does it take to find a difference (paired t-test, 5 %, two-sided)?"""
    from mudit_engine.metrics.ratings import listeners_needed

    needed = listeners_needed(difference, spread, power=power)
    if as_json:
        emit_json({"listeners": needed, "difference": difference, "spread": spread, "power": power})
    else:
        click.echo(f"{needed} listeners")


def _show(key: Key, report: SurveyReport) -> None:
    people = report.facts
    note(f"{people['listeners']} listeners count: {people['by_user_type']}")
    for who, why in people["left_out"].items():
        note(f"left out: {who} {why}")
    if report.mode == "rating":
        cells = {(one.user, one.system, one.question): one for one in report.rows}
        rows = []
        for user, system in dict.fromkeys((one.user, one.system) for one in report.rows):
            held = [cells.get((user, system, name)) for name in key.questions]
            rows.append(
                [system, user, *("-" if c is None else f"{c.mean:.2f} ({c.sd:.2f})" for c in held)]
            )
        print_table(
            "Mean (standard deviation)",
            ["system", "user", *key.questions],
            rows,
            numeric=key.questions,
        )
        print_table(
            "Differences (p: Student's t as papers do, paired t, signed rank, mixed, Holm)",
            ["a - b", "question", "difference", "p t", "p paired", "p rank", "p mixed", "Holm"]
            + ["d", "needed"],
            [
                [
                    f"{one.a} - {one.b}",
                    one.question,
                    f"{one.difference:+.2f}",
                    *map(_p, (one.p_paper, one.p_paired, one.p_rank, one.p_mixed, one.adjusted_p)),
                    "-" if one.effect is None else f"{one.effect:+.2f}",
                    one.needed,
                ]
                for one in report.differences
            ],
        )
    else:
        print_table(
            "Preferences",
            [
                "a over b",
                "user",
                "question",
                "wins",
                "losses",
                "draws",
                "share",
                "95 %",
                "p",
                "Holm",
            ],
            [
                [
                    f"{one.a} over {one.b}",
                    one.user,
                    one.question,
                    one.wins,
                    one.losses,
                    one.draws,
                    str(one.share),
                    _interval(one.share),
                    _p(one.p),
                    _p(one.adjusted_p),
                ]
                for one in report.wins
            ],
        )
    agreement = [
        [name, "-" if value is None else f"{value:.2f}"] for name, value in report.agreement.items()
    ]
    print_table("Agreement (Krippendorff's alpha, ordinal)", ["question", "alpha"], agreement)
    if report.repeat_error is not None:
        note(f"a second answer to the same song is {report.repeat_error:.2f} points off the first")


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _interval(one: Any) -> str:
    return "-" if one.low is None else f"{one.low:.2f}..{one.high:.2f}"
