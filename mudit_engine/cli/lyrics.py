"""`mudit lyrics`: what the engine makes of a lyric file, before a song is made of it.

mudit lyrics check song.txt --seconds 30
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table


@dataclass(frozen=True)
class SectionRow:
    section: str
    index: int | None
    lines: int
    syllables: int
    phonemes: tuple[str, ...]


@click.group()
def command() -> None:
    """Look at lyrics: sections, phonemes, length."""


@command.command()
@click.argument("file")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="The length the song should have. Default: as long as the lyrics need.",
)
@click.option(
    "--phonemes", "show_phonemes", is_flag=True, help="Also print the phonemes of every section."
)
@json_option
def check(file: str, seconds: float | None, show_phonemes: bool, as_json: bool) -> None:
    """Read lyrics (FILE, or - for standard input) and say how they will be sung and whether they
    fit.
    """
    from mudit_engine.files import read_text
    from mudit_engine.text.lyrics import Lyrics, parse_lyrics
    from mudit_engine.text.phonemes import budget, phonemize, seconds_for

    text = sys.stdin.read() if file == "-" else read_text(Path(file), "lyrics")
    lyrics = parse_lyrics(text, source=file)
    sequence = phonemize(lyrics)
    plan = budget(sequence, seconds or seconds_for(lyrics))
    rows = []
    for section in lyrics.sections:
        sung = phonemize(Lyrics((section,), ()))
        rows.append(
            SectionRow(section.kind, section.index, len(section.lines), sung.syllables, sung.tokens)
        )
    notes = [*lyrics.notes, *sequence.notes, *([plan.message] if plan.message else [])]
    if as_json:
        emit_json(
            {
                "sections": rows,
                "tokens": len(sequence.ids),
                "syllables": sequence.syllables,
                "seconds": plan.seconds,
                "syllables_per_second": plan.rate,
                "fits": plan.fits,
                "notes": notes,
            }
        )
        return
    cells = [[r.section, r.lines, r.syllables, len(r.phonemes)] for r in rows]
    print_table(
        "Lyrics",
        ["section", "lines", "syllables", "phonemes"],
        cells,
        numeric=["lines", "syllables", "phonemes"],
    )
    if show_phonemes:
        for r in rows:
            click.echo(f"{r.section}: {' '.join(r.phonemes)}")
    click.echo(f"{sequence.syllables} syllables in {plan.seconds:.0f} s: {plan.rate:.1f} a second")
    for message in notes:
        note(message)
