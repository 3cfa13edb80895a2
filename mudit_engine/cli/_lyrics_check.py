"""`mudit lyrics check`: how lyrics will be sung, what became of every character, and whether they
fit.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table
from mudit_engine.cli._numbers import FiniteRange

if TYPE_CHECKING:
    from mudit_engine.text.phonemes import ReadLyrics

SHOWN = 12  # guesses, and reasons for leaving something out, that are named one by one


@dataclass(frozen=True)
class SectionRow:
    section: str
    index: int | None
    lines: int
    syllables: int
    phonemes: tuple[str, ...]


@click.command()
@click.argument("file")
@click.option(
    "--seconds",
    type=FiniteRange(min=0, min_open=True),
    help="The length the song should have. Default: as long as the lyrics need.",
)
@click.option(
    "--description",
    default="",
    help="The song's description: its tempo decides how long lines last.",
)
@click.option("--bpm", type=FiniteRange(20, 400), help="The tempo, if not as described.")
@click.option("--seed", default=0, show_default=True, help="Draws a tempo that nothing names.")
@click.option(
    "--ignore-times", is_flag=True, help="Drop LRC time stamps: lines follow one another."
)
@click.option(
    "--phonemes", "show_phonemes", is_flag=True, help="Also print the phonemes of every line."
)
@json_option
def check(
    file: str,
    seconds: float | None,
    description: str,
    bpm: float | None,
    seed: int,
    ignore_times: bool,
    show_phonemes: bool,
    as_json: bool,
) -> None:
    """Read lyrics (FILE, or - for standard input): how they will be sung and whether they fit.

    A reading that is wrong is set right behind its character or word: 长{chang2}, 重[chong2]来,
    live{L AY1 V}, Zhangsan{zhang1 san1}. With --json every character of the file is accounted for.
    """
    from mudit_engine.files import read_text
    from mudit_engine.text.length import fit
    from mudit_engine.text.outline import plan_song, planned_tempo
    from mudit_engine.text.phonemes import read_lyrics
    from mudit_engine.text.wishes import read_description

    text = sys.stdin.read() if file == "-" else read_text(Path(file), "lyrics")
    name = "standard input" if file == "-" else file
    read = read_lyrics(text.removeprefix("\ufeff"), source=name, ignore_times=ignore_times)
    song = read.phonemes
    wishes = read_description(description)
    tempo = bpm or planned_tempo(wishes, seed=seed)[0]
    plan = plan_song(
        wishes, song, longest=math.inf, seed=seed, outlined=False, seconds=seconds, bpm=tempo
    )
    found = fit(song, bpm=tempo, seconds=plan.seconds)
    rows = section_rows(read)
    notes = [*read.notes, *plan.notes]
    if as_json:
        from mudit_engine.text.accounting import counts

        emit_json(
            {
                "sections": rows,
                "tokens": len(song.ids),
                "syllables": song.syllables,
                "seconds": plan.seconds,
                "bpm": tempo,
                "syllables_per_second": found.rate,
                "fits": found.fits,
                "unsure": [asdict(guess) for guess in song.unsure],
                "characters": counts(read.fates),
                "accounting": [fate.row() for fate in read.fates],
                "notes": notes,
            }
        )
        return
    print_table(
        "Lyrics",
        ["section", "lines", "syllables", "phonemes"],
        [[r.section, r.lines, r.syllables, len(r.phonemes)] for r in rows],
        numeric=["lines", "syllables", "phonemes"],
    )
    if show_phonemes:
        for line in spoken_lines(read):
            click.echo(line)
    pace = f", {found.rate:.1f} a second while a line lasts" if song.syllables else ""
    click.echo(f"{song.syllables} syllables in {plan.seconds:.0f} s at {tempo:g} BPM{pace}")
    click.echo(summary(read))
    for message in notes:
        note(message)
    for guess in song.unsure[:SHOWN]:
        note(str(guess))
    if len(song.unsure) > SHOWN:
        note(f"{len(song.unsure) - SHOWN} more readings are guesses: --json names all")


def section_rows(read: ReadLyrics) -> list[SectionRow]:
    """One row a section with its own tokens."""
    song = read.phonemes
    starts = [n for n, token in enumerate(song.tokens) if song.syllable_of[n] < 0 and _tag(token)]
    rows = []
    for section, (start, end) in zip(
        read.lyrics.sections, pairwise([*starts, len(song)]), strict=True
    ):
        sung = {number for number in song.syllable_of[start:end] if number >= 0}
        tokens = song.tokens[start:end]
        rows.append(SectionRow(section.kind, section.index, len(section.lines), len(sung), tokens))
    return rows


def _tag(token: str) -> bool:
    return token[0] == "<" and token not in ("<line>", "<space>", "<breath>")


def spoken_lines(read: ReadLyrics) -> list[str]:
    """Every line with what is sung of it, word by word."""
    lines: dict[int, list[str]] = {}
    for fate in read.fates:
        if fate.became == "phonemes" and fate.tokens:
            said = " ".join(
                token.removeprefix("en:")
                for token in read.phonemes.tokens[slice(*fate.tokens)]
                if not token.startswith("<")
            )
            lines.setdefault(fate.line, []).append(f"{fate.text}/{said}")
    return [f"{number:4d}  {'  '.join(words)}" for number, words in lines.items()]


def summary(read: ReadLyrics) -> str:
    """What became of the characters, in a sentence."""
    from mudit_engine.text.accounting import counts

    found: dict[str, Any] = counts(read.fates)
    total = found.pop("characters")
    left_out = Counter[str]()
    for fate in read.fates:
        if fate.became == "dropped":
            left_out[fate.detail] += len(fate.text)
    names = {"phonemes": "sung", "tag": "in tags", "pause": "pauses", "reading": "in readings"}
    names |= {"time": "in time stamps", "repeat": "in repeat marks", "layer": "brackets of backing"}
    parts = [f"{n} {names.get(kind, kind + 's')}" for kind, n in found.items() if kind != "dropped"]
    if left_out:
        why = ", ".join(f"{detail}: {n}" for detail, n in left_out.most_common(SHOWN))
        parts.append(f"{sum(left_out.values())} left out ({why})")
    return f"{total} characters: {'; '.join(parts)}"
