"""`mudit eval paper`: the paper's protocol and Table 1 for any systems.

mudit eval paper --songs songs.jsonl --reference music \\
    --system ours=mudit:tiny --system sao=stable-audio:weights --english sao \\
    --system melodist=folder:melodist
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import json_option, note, tracked
from mudit_engine.cli._eval_songs import asoa_by, show_comparison, sst_by
from mudit_engine.cli._numbers import FiniteRange
from mudit_engine.errors import InputError

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option(
    "--songs",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="A manifest, corpus or folder of songs with professionals' and amateurs' descriptions.",
)
@click.option("--reference", required=True, type=FOLDER, help="Real songs; 1,000 of them are used.")
@click.option(
    "--system",
    "systems",
    multiple=True,
    required=True,
    metavar="NAME=KIND:SOURCE",
    help="mudit, stable-audio, audioldm, audioldm2, musicgen, ace-step (SOURCE: a folder or hub "
    "id), or folder (songs made elsewhere, named ID-professional and ID-amateur). Repeatable.",
)
@click.option(
    "--english",
    multiple=True,
    metavar="NAME",
    help="This system gets the description's English text instead. Repeatable.",
)
@click.option("--count", type=click.IntRange(1), default=50, show_default=True, help="Songs.")
@click.option(
    "--characters", type=click.IntRange(1), default=120, show_default=True, help="Of a prompt."
)
@click.option(
    "--references", type=click.IntRange(2), default=1000, show_default=True, help="Songs."
)
@click.option(
    "--language",
    type=click.Choice(["zh", "en"]),
    default="zh",
    show_default=True,
    help="Of the descriptions that prompts are cut from.",
)
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Length of each song; shorter where a system makes no more.",
)
@click.option(
    "--steps", type=click.IntRange(1), help="Of every sampler.  [default: each one's own]"
)
@click.option("--no-lyrics", is_flag=True, help="Ask for instrumentals of every system.")
@click.option("--device", default="cpu", show_default=True, help="Where baselines run.")
@click.option(
    "--features",
    multiple=True,
    default=("musicnn",),
    show_default=True,
    metavar="KIND[:SOURCE]",
    help="Of FAD and KAD: musicnn, clap:SOURCE, encodec:SOURCE, mert:SOURCE; may be repeated.",
)
@click.option("--sst", metavar="SOURCE", help="Measure SST with this CLAP model.")
@click.option("--asoa", metavar="SOURCE", help="Measure ASOA with this MERT model.")
@click.option(
    "--asoa-variant",
    type=click.Choice(["fixed", "paper"]),
    default="paper",
    show_default=True,
    help="paper: as its published script. fixed: whole songs, resampled, layer by layer.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with weights (MERT).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--work", default="runs/paper", show_default=True, type=FOLDER, help="Songs made.")
@click.option("--out", type=FOLDER, help="A folder for the page, CSV, LaTeX and JSON.")
@json_option
def command(
    source: Path,
    reference: Path,
    systems: tuple[str, ...],
    english: tuple[str, ...],
    count: int,
    characters: int,
    references: int,
    language: str,
    seconds: float,
    steps: int | None,
    no_lyrics: bool,
    device: str,
    features: tuple[str, ...],
    sst: str | None,
    asoa: str | None,
    asoa_variant: str,
    trust_remote_code: bool,
    seed: int,
    work: Path,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make the paper's prompts, let every system make its songs, and compare them: 50 songs, 120
    characters cut at random, professionals' and amateurs' prompts and their mean, 1,000 reference
    songs. A stopped run goes on.
    """
    import random

    from mudit_engine.evaluation.baselines import KINDS, open_baseline, parse_system
    from mudit_engine.evaluation.listening import Listener
    from mudit_engine.evaluation.protocol import DescribedSong, make_songs, paper_prompts
    from mudit_engine.evaluation.systems import System, compare
    from mudit_engine.metrics.embeddings import open_embedder
    from mudit_engine.training.dataset.sources import open_source

    parsed = [parse_system(text) for text in systems]
    names = [name for name, _, _ in parsed]
    if len(set(names)) < len(names):
        raise InputError(f"two systems are named alike ({', '.join(names)}): rename one")
    for name in english:
        if name not in names:
            raise InputError(f"--english {name} is no system: name one of {', '.join(names)}")

    track = tracked(quiet=as_json)

    described = [
        DescribedSong(
            song.id,
            song.audio,
            {(one.user, one.language): one.text for one in reversed(song.descriptions)},
            song.lyrics,
        )
        for song in open_source(source)
    ]
    wishes = paper_prompts(
        described, count=count, characters=characters, language=language, seed=seed
    )
    held_to = System.of(reference, name="reference")
    if len(held_to.songs) < references:
        note(f"{len(held_to.songs)} reference songs: the paper's distances are to {references}")
    else:
        kept = random.Random(seed).sample(sorted(held_to.songs), references)
        held_to = System("reference", {name: held_to.songs[name] for name in sorted(kept)})
    made = []
    for name, kind, weights in parsed:
        baseline = open_baseline(kind, weights, name=name, steps=steps, device=device)
        if wants_lyrics(kind, KINDS) and not no_lyrics and not any(w.lyrics for w in wishes):
            note(f"no song has lyrics: {name} makes instrumentals")
        made.append(
            make_songs(
                baseline,
                wishes,
                work / name,
                seconds=seconds,
                seed=seed,
                english=name in english,
                lyrics=not no_lyrics,
                track=track,
            )
        )
    similarities = [sst_by(sst)] if sst else []
    similarities += [asoa_by(asoa, asoa_variant, trust_remote_code)] if asoa else []
    asked = {wish.id: wish.asked() for wish in wishes}
    comparison = compare(
        made,
        held_to,
        asked,
        Listener(work),
        embedders=[open_embedder(one, trust_remote_code=trust_remote_code) for one in features],
        similarities=similarities,
        track=track,
    )
    show_comparison(comparison, made, asked, out, copy_audio=False, as_json=as_json)


def wants_lyrics(kind: str, kinds: Any) -> bool:
    """Whether a kind of system sings what it is given."""
    return kind in kinds and bool(kinds[kind].lyrics)
