"""mudit align: a model learns from preferences, and is judged on requests that it did not see.

mudit align --out mine --judge judge                     # songs of its own, ranked by a reward
mudit align --out mine --originals latents --judge judge # a data set's songs beside its own
mudit align --out mine --preferences survey/preferences.jsonl --system ours --system theirs \\
    --requests requests.jsonl
mudit generate --model mine --description "..." --lyrics song.txt
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import (
    emit_json,
    json_option,
    note,
    print_table,
    refuse_idle,
    stop_on_sigterm,
    tracked,
)
from mudit_engine.cli._numbers import FiniteRange

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
WANTED = 0.65  # share of pairs won, below which an alignment has not shown that it helps


@click.command()
@click.option(
    "--out",
    required=True,
    type=FOLDER,
    help="Model folder; what is finished in it is kept, so the same command resumes.",
)
@click.option("--model", default="tiny", show_default=True, metavar="NAME|FOLDER|ORG/NAME")
@click.option(
    "--requests",
    default="builtin:64",
    show_default=True,
    metavar="FILE|builtin:N",
    help="What is asked: JSON Lines as of `mudit eval songs`, or N composed ones.",
)
@click.option(
    "--held-out",
    type=click.IntRange(2),
    default=24,
    show_default=True,
    help="Requests to judge on.",
)
@click.option(
    "--reward",
    type=click.Choice(["similarity", "adherence", "both"]),
    default="both",
    show_default=True,
    help="What ranks songs: nearness to the description, doing what it asks, or both.",
)
@click.option(
    "--reward-model",
    metavar="NAME|FOLDER",
    help="Whose ChinMu says what is near.  [default: --model]",
)
@click.option(
    "--judge",
    metavar="NAME|FOLDER",
    help="Whose ChinMu judges; one of another training.  [default: that of the reward]",
)
@click.option(
    "--user-type",
    type=click.Choice(["all", "professional", "amateur"]),
    default="all",
    show_default=True,
    help="Whose requests, or whose answers of a survey, are learned from.",
)
@click.option(
    "--held-out-songs",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="By each model of each request to judge on.",
)
@click.option(
    "--songs", type=click.IntRange(2), default=8, show_default=True, help="Made of each request."
)
@click.option(
    "--guidance",
    type=FiniteRange(0.0),
    multiple=True,
    help="Of songs to learn from, which have them in turn. Repeatable.  [default: the model's]",
)
@click.option(
    "--mismatched",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of --songs, so many are made from the same plan in words for another style. With "
    "--originals: of --pairs-each, so many are an own song and such a one.",
)
@click.option(
    "--pairs-each",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Pairs of a request: best and worst, second best and second worst, ...",
)
@click.option(
    "--least-gap",
    type=FiniteRange(0.0),
    default=1.0,
    show_default=True,
    help="Between a pair's songs, in spreads of the reward; nearer ones are left out.",
)
@click.option(
    "--seconds", type=FiniteRange(2.0), default=10.0, show_default=True, help="Of each song."
)
@click.option(
    "--sampler-steps",
    type=click.IntRange(1),
    help="Of songs to learn from.  [default: the model's]",
)
@click.option(
    "--judged-steps",
    type=click.IntRange(1),
    help="Sampler steps of songs that are judged.  [default: the model's]",
)
@click.option("--preferences", type=FILE, help="Of `mudit eval survey read`, instead of a reward.")
@click.option(
    "--system",
    "systems",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="With --preferences: a folder of the songs that were heard. Repeatable.",
)
@click.option(
    "--originals",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="An encoded data set, instead of a reward: its songs are preferred to the model's own of "
    "the same words and plan.",
)
@click.option(
    "--most",
    type=click.IntRange(2),
    default=96,
    show_default=True,
    help="With --originals: of its training songs, the shortest first.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder of real songs, for FAD and KAD.",
)
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True)
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Of the LoRA.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a field of the recipe (align.beta, guard.patience, ...). Repeatable.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of torch.")
@json_option
def command(
    out: Path,
    model: str,
    requests: str,
    held_out: int,
    reward: Any,
    reward_model: str | None,
    judge: str | None,
    user_type: str,
    held_out_songs: int,
    songs: int,
    guidance: tuple[float, ...],
    mismatched: int,
    pairs_each: int,
    least_gap: float,
    seconds: float,
    sampler_steps: int | None,
    judged_steps: int | None,
    preferences: Path | None,
    systems: tuple[Path, ...],
    originals: Path | None,
    most: int,
    reference: Path | None,
    steps: int,
    rank: int,
    seed: int,
    device: str,
    overrides: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Learn from preferences (Diffusion-DPO, as a LoRA), and judge on held-out requests.

    Makes songs of each request from one plan, takes the best and the worst by a reward (or pairs
    that listeners compared, or a data set's songs beside its own), trains until the held-out pairs
    say stop, writes a whole model folder, and compares songs before and after: wins by a ChinMu of
    another training and by adherence, and what changed although it should not. Ctrl-C or SIGTERM
    save; the same command goes on.
    """
    import dataclasses

    import torch

    from mudit_engine.errors import InputError
    from mudit_engine.evaluation.listening import Listener
    from mudit_engine.files import sha256_of, write_json
    from mudit_engine.hardware import environment
    from mudit_engine.models.folder import model_folder
    from mudit_engine.models.parts import part_file
    from mudit_engine.pipeline import SongPipeline
    from mudit_engine.training.align import report as reports
    from mudit_engine.training.align import run as align
    from mudit_engine.training.trainer import Trainer

    if bool(preferences) != bool(systems):
        raise InputError(
            "--preferences and --system belong together: the answers, and the folders of the songs "
            "that were heard"
        )
    if preferences and originals:
        raise InputError("--preferences and --originals are two ways to say which song is better")
    if preferences:
        made = ("songs", "guidance", "mismatched", "pairs_each", "sampler_steps", "most")
        refuse_idle(
            (*made, "reward", "least_gap"), "with --preferences, for which no songs are made"
        )
    elif originals:
        ranked = ("reward", "songs", "guidance", "least_gap")
        refuse_idle(ranked, "with --originals, whose songs none ranks")
    else:
        refuse_idle(("most",), "without --originals")
    most_mismatched, of = (pairs_each, "--pairs-each") if originals else (songs, "--songs")
    if mismatched >= most_mismatched:
        raise InputError(
            f"--mismatched {mismatched} of {of} {most_mismatched}: leave at least one in its own "
            "words"
        )
    logging.getLogger("mudit_engine.training").setLevel(logging.INFO)
    if threads is not None:
        torch.set_num_threads(threads)
    plan = align.AlignPlan(
        out,
        model,
        requests,
        held_out,
        reward,
        user_type,
        songs,
        seconds,
        sampler_steps,
        guidance,
        mismatched,
        pairs_each,
        least_gap,
        held_out_songs,
        judged_steps,
        preferences,
        systems,
        originals,
        most,
        steps,
        rank,
        seed,
        device,
        overrides,
    )

    track = tracked(quiet=as_json)

    train, held = align.requests_of(plan)
    rewarding, judging = reward_model or model, judge or reward_model or model
    rewarded = align.open_chinmu(rewarding)
    with stop_on_sigterm():
        pipeline = SongPipeline.from_pretrained(model)
        pairs = align.make_pairs(plan, train, pipeline, chinmu=rewarded, track=track)
    trainer = Trainer(align.make_recipe(plan), plan.run, quiet=as_json)
    trained = trainer.run(resume="auto")
    trainer.strategy.close()
    best = align.assemble(plan, trained)
    keys = [sha256_of(part_file(model_folder(one), "chinmu")) for one in (judging, rewarding)]
    with stop_on_sigterm():
        found = reports.judge(
            plan,
            held,
            chinmu=align.open_chinmu(judging),
            rewarded=rewarded,
            keys=(keys[0], keys[1]),
            listener=Listener(plan.work),
            reference=reference,
            track=track,
        )
    results = {
        "model": str(out),
        "base": model,
        "pairs": pairs,
        "steps": trained["steps"],
        "best_step": best,
        "stopped": (trained.get("held_out") or {}).get("stopped"),
        "judge_is_reward": keys[0] == keys[1],
        **dataclasses.asdict(found),
    }
    write_json(out / "align.json", {"env": environment(), "results": results})
    if as_json:
        emit_json(results)
        return
    _show(results, found)


def _show(results: dict[str, Any], found: Any) -> None:
    note(
        f"{results['pairs']} pairs, {results['steps']} steps; step {results['best_step']} is taken"
        + (f" ({results['stopped']})" if results["stopped"] else "")
    )
    if results["judge_is_reward"]:
        note("the judge is the ChinMu that rewarded: give --judge a model of another training")
    print_table(
        "After against before, on held-out requests",
        ["measure", "user", "wins", "losses", "draws", "share", "95 %", "p"],
        [
            [
                one.measure,
                one.user,
                one.wins,
                one.losses,
                one.draws,
                str(one.share),
                "-" if one.share.low is None else f"{one.share.low:.2f}..{one.share.high:.2f}",
                "-" if one.p is None else f"{one.p:.2g}",
            ]
            for one in found.wins
        ],
        numeric=["wins", "losses", "draws", "share", "p"],
    )
    columns = [
        name
        for name in found.comparison.rows[0].figures
        if any(row.figures[name].value is not None for row in found.comparison.rows)
    ]
    print_table(
        "The songs",
        ["model", "user", *columns],
        [
            [
                row.system,
                row.user,
                *("-" if (v := row.figures[n].value) is None else f"{v:.3g}" for n in columns),
            ]
            for row in found.comparison.rows
        ],
        numeric=columns,
    )
    for line in found.suspects:
        note(f"look at this: {line}")
    [share] = [
        one.share.value
        for one in found.wins
        if one.measure == "chinmu and adherence" and one.user == "all"
    ]
    if share is None or share < WANTED:
        note(f"the aligned model does not win {WANTED:.0%} of the held-out pairs")
    note(f"play it: mudit generate --model {results['model']} --description '...'")
