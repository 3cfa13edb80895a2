"""`mudit lyrics write`: lyrics from a description, in a form that always holds.

mudit lyrics write --description "夏夜，海边的思念" --structure verse:4x7,chorus:4x5 --rhyme AABA
mudit lyrics write --description "a long road home" --seconds 90 --candidates 3 --out song.txt
mudit lyrics write --description "夏夜" --from song.txt --again chorus --again 1.3
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import emit_json, json_option, note
from mudit_engine.cli._numbers import FiniteRange
from mudit_engine.errors import InputError

if TYPE_CHECKING:
    from mudit_engine.lyric_model.form import Form, Language
    from mudit_engine.lyric_model.writer import Written

WITHOUT_A_MODEL = (
    "written by the embedded grammar, from templates and without a model: --model small is the "
    "language model that ships, --model FOLDER or an id of the hub a larger one"
)


@click.command()
@click.option(
    "--description",
    required=True,
    metavar="TEXT|@FILE",
    help="What the song is about, in your own words.",
)
@click.option(
    "--structure",
    metavar="PARTS",
    help="Sections as NAME:LINESxSYLLABLES, such as verse:4x7,chorus:4x7/5,bridge:2x8-9,outro. "
    "Default: what --seconds has room for.",
)
@click.option(
    "--seconds",
    type=FiniteRange(min=0, min_open=True),
    help="The length that the structure should fill.  [default: 60]",
)
@click.option(
    "--rhyme",
    default=None,
    metavar="AABA|one|free",
    help="Letters for the lines of a section, one rhyme for the song, or none.  [default: AABA]",
)
@click.option(
    "--rhyme-class",
    metavar="CLASS",
    help="The rhyme of the A lines (zh: a final such as ang; en: phones such as AY T). Default: "
    "chosen while writing.",
)
@click.option(
    "--language",
    type=click.Choice(["zh", "en"]),
    help="Default: zh for a description with Chinese characters, else en.",
)
@click.option(
    "--model",
    default="auto",
    show_default=True,
    metavar="auto|small|grammar|FOLDER|ID|URL",
    help="Who writes: small is the model that ships, grammar no model; a folder (model or "
    "adapter), an id of the Hugging Face hub, or the URL of an OpenAI-compatible server.",
)
@click.option("--base", metavar="FOLDER|ID", help="The base of an adapter, when it has moved.")
@click.option("--served-model", metavar="NAME", help="With a URL: the model's name on the server.")
@click.option(
    "--guided",
    type=click.Choice(["auto", "vllm", "sglang", "llama.cpp", "none"]),
    default="auto",
    show_default=True,
    help="With a URL: how the server takes a grammar. Lines are checked in any case.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--candidates",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Whole lyrics to write; the best by score comes first.",
)
@click.option(
    "--tries",
    type=click.IntRange(1, 64),
    default=6,
    show_default=True,
    help="Lines sampled for each line, of which the best stands.",
)
@click.option("--temperature", type=FiniteRange(0.05, 5), default=0.9, show_default=True)
@click.option("--top-p", type=FiniteRange(0.05, 1), default=0.95, show_default=True)
@click.option(
    "--from",
    "source",
    metavar="FILE",
    help="Lyrics to keep, all but the places named by --again.",
)
@click.option(
    "--again",
    multiple=True,
    metavar="PLACE",
    help="With --from: a section (2, chorus) or a line of it (2.3) to write anew. Repeatable.",
)
@click.option(
    "--out",
    metavar="FILE",
    help="Write the lyrics there; further candidates into FILE-2, FILE-3, ...",
)
@json_option
def write(**options: Any) -> None:
    """Write lyrics: sections, syllables of every line and rhymes come out as asked."""
    from mudit_engine.lyric_model.author import Sampling
    from mudit_engine.lyric_model.writer import draft_of, write_candidates

    theme = read_description(options["description"])
    form, kept = _form(theme, options)
    model = writer_of(
        options["model"],
        base=options["base"],
        served_model=options["served_model"],
        guided=options["guided"],
        temperature=options["temperature"],
        top_p=options["top_p"],
    )
    streams = options["candidates"] == 1 and not options["as_json"] and not options["out"]
    found = write_candidates(
        theme,
        form,
        count=options["candidates"],
        seed=options["seed"],
        model=model,
        draft=None if kept is None else draft_of(kept, form, options["again"]),
        rhyme_class=options["rhyme_class"],
        sampling=Sampling(options["temperature"], options["top_p"], options["tries"]),
        on_line=_streamer(form) if streams else None,
    )
    files = _save(found, Path(options["out"])) if options["out"] else []
    if options["as_json"]:
        emit_json(
            {
                "theme": theme,
                "structure": form.structure,
                "rhyme": form.rhyme,
                "language": form.language,
                "candidates": [describe(one) for one in found],
                "files": [str(file) for file in files],
            }
        )
        return
    if not streams and not files:
        for place, one in enumerate(found, 1):
            if len(found) > 1:
                note(f"candidate {place}: score {one.score.total:g}, seed {one.seed}")
            click.echo(one.text)
    for message in dict.fromkeys(message for one in found for message in one.notes):
        note(message)
    if model is None:
        note(WITHOUT_A_MODEL)
    for file in files:
        note(f"written: {file}")
    best = found[0]
    note(
        f"{best.author}: {form.structure}, rhyme {form.rhyme}, score {best.score.total:g} of 110 "
        f"(form, rhyme and bonus; it says nothing about beauty)"
    )


def describe(one: Written) -> dict[str, Any]:
    """A result for --json."""
    return {
        "text": one.text,
        "author": one.author,
        "seed": one.seed,
        "score": one.score,
        "log_probability": one.log_probability,
        "notes": list(one.notes),
    }


def read_description(text: str) -> str:
    """A description's words, from the command line or a file. Raises InputError."""
    from mudit_engine.files import read_text

    text = read_text(Path(text[1:]), "description") if text.startswith("@") else text
    if not text.strip():
        raise InputError("--description is empty: say what the song is about")
    return " ".join(text.split())


def language_of(text: str) -> Language:
    """zh for a text with a Chinese character, else en."""
    from mudit_engine.text.mandarin import is_han

    return "zh" if any(map(is_han, text)) else "en"


def asked_form(
    theme: str,
    *,
    structure: str | None,
    seconds: float | None,
    rhyme: str | None,
    language: Language | None = None,
) -> Form:
    """The form that options ask for. Raises InputError."""
    from mudit_engine.lyric_model.form import (
        DEFAULT_RHYME,
        DEFAULT_SECONDS,
        default_form,
        parse_form,
    )

    language = language or language_of(theme)
    scheme = rhyme or DEFAULT_RHYME
    if structure:
        return parse_form(structure, rhyme=scheme, language=language)
    return default_form(seconds or DEFAULT_SECONDS, rhyme=scheme, language=language)


def _form(theme: str, options: dict[str, Any]) -> tuple[Form, Any]:
    """The form, and the lyrics that are kept (None without --from)."""
    if options["structure"] and options["seconds"]:
        raise InputError("--structure says the length already: leave out --seconds, or --structure")
    if options["source"] is None:
        if options["again"]:
            raise InputError("--again names places in lyrics that are kept: give them with --from")
        return (
            asked_form(
                theme,
                structure=options["structure"],
                seconds=options["seconds"],
                rhyme=options["rhyme"],
                language=options["language"],
            ),
            None,
        )
    from mudit_engine.files import read_text
    from mudit_engine.lyric_model.form import form_of
    from mudit_engine.lyric_model.songs import scheme_of
    from mudit_engine.text.lyrics import parse_lyrics

    if options["structure"] or options["seconds"] or options["candidates"] > 1:
        raise InputError(
            "--from keeps the lyrics' own structure and gives one result: leave out --structure, "
            "--seconds and --candidates"
        )
    if not options["again"]:
        raise InputError("--from keeps every line: name what to write anew with --again")
    text = read_text(Path(options["source"]), "lyrics")
    lyrics = parse_lyrics(text, source=options["source"])
    words = "".join(line.text for section in lyrics.sections for line in section.lines)
    language = options["language"] or language_of(words)
    rhyme = options["rhyme"] or scheme_of(lyrics)
    return form_of(lyrics, rhyme=rhyme, language=language), lyrics


def _streamer(form: Form) -> Any:
    """Prints lines as they are written."""
    opened: set[int] = set()

    def show(section: int, line: int, text: str) -> None:
        for place in range(section + 1):
            if place not in opened:
                click.echo(f"{chr(10) if opened else ''}[{form.sections[place].kind}]")
                opened.add(place)
        click.echo(text)
        last = max(n for n, one in enumerate(form.sections) if one.lines)
        if (section, line) == (last, len(form.sections[last].lines) - 1):
            for one in form.sections[last + 1 :]:
                click.echo(f"\n[{one.kind}]")

    return show


def _save(found: list[Written], path: Path) -> list[Path]:
    from mudit_engine.files import write_text

    files = []
    for place, one in enumerate(found, 1):
        file = path if place == 1 else path.with_name(f"{path.stem}-{place}{path.suffix}")
        write_text(file, one.text)
        files.append(file)
    return files


def writer_of(
    source: str,
    *,
    base: str | None = None,
    served_model: str | None = None,
    guided: str = "auto",
    temperature: float = 0.9,
    top_p: float = 0.95,
) -> Any:
    """The model that a name stands for; None for the embedded grammar. Raises InputError."""
    if source.startswith(("http://", "https://")):
        from mudit_engine.lyric_model.server import Server

        return Server(
            source, model=served_model, guided=guided, temperature=temperature, top_p=top_p
        )
    if served_model is not None or guided != "auto":
        raise InputError("--served-model and --guided are of a server: give --model its URL")
    from mudit_engine.lyric_model.writer import open_writer

    return open_writer(source, base=base)
