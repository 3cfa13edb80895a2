"""`mudit lyrics train` and `mudit lyrics convert`: the lyric model's own training.

mudit lyrics train builtin --base Qwen/Qwen3-8B --out runs/lyrics
mudit lyrics train songs.jsonl --base folder --launch local --gpus-per-node 8
mudit lyrics train builtin:5000 --base scratch --out runs/small     the small model that ships
mudit lyrics convert lyrics/ --theme "夏夜，海边" --out songs.jsonl
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mudit_engine.cli import train as trainer
from mudit_engine.cli._console import emit_json, json_option, note, progress
from mudit_engine.errors import InputError

_PARAMETERS: list[click.Parameter] = [
    click.Argument(["data"], metavar="DATA"),
    click.Option(
        ["--base"],
        default="scratch",
        show_default=True,
        metavar="FOLDER|ID|scratch",
        help="The model to tune, or scratch for a small one on characters.",
    ),
    click.Option(
        ["--method"],
        type=click.Choice(["auto", "qlora", "lora", "full"]),
        default="auto",
        show_default=True,
        help="auto: QLoRA (NF4) where bitsandbytes runs, else LoRA; from scratch every weight.",
    ),
    click.Option(
        ["--recipe"],
        metavar="NAME|FILE",
        help="A recipe of task lyrics.  [default: lyrics-qlora; from scratch lyrics-small]",
    ),
    click.Option(["--steps"], type=click.IntRange(1), help="Steps in place of the recipe's."),
    *(option for option in trainer.command.params if option.name != "recipe"),
]


def _train(
    data: str,
    base: str,
    method: str,
    recipe: str | None,
    steps: int | None,
    **options: Any,
) -> None:
    """Tune a language model on lyrics (QLoRA), or train the small one.

    DATA is a JSONL file (`mudit lyrics convert` makes one; the format is in the docstring of
    mudit_engine/lyric_model/songs.py), or builtin[:COUNT[:SEED]] for the embedded grammar's corpus.
    """
    from mudit_engine.lyric_model.base import refuse_by_name

    refuse_by_name(base)
    if not data.startswith("builtin") and not Path(data).is_file():
        raise InputError(
            f"no lyric data '{data}': give a JSONL file (`mudit lyrics convert` makes one), or "
            f"builtin for the embedded grammar's corpus"
        )
    name = recipe or ("lyrics-small" if base == "scratch" else "lyrics-qlora")
    asked = [f"data.folder={json.dumps(data)}", f"lyrics.base={json.dumps(base)}"]
    asked += [f"lyrics.method={method}"] if method != "auto" else []
    asked += [f"steps={steps}"] if steps else []
    options["overrides"] = (*asked, *options["overrides"])
    callback = trainer.command.callback
    assert callback is not None
    callback(recipe=name, **options)


train = click.Command("train", params=_PARAMETERS, callback=_train, help=_train.__doc__)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE|FOLDER...")
@click.option("--out", required=True, metavar="FILE.jsonl", help="The training data to write.")
@click.option("--theme", metavar="TEXT", help="The theme of every song.")
@click.option(
    "--themes-by",
    metavar="FOLDER|ID|URL",
    help="A model that says each song's theme in a few words.",
)
@json_option
def convert(
    paths: tuple[str, ...], out: str, theme: str | None, themes_by: str | None, as_json: bool
) -> None:
    """Turn tagged lyrics (.txt, .lrc) into training data.

    A first line `theme: ...` (or 主题：...) gives a file its own theme. A file that cannot be read
    costs no other: it is named, and the exit code is 1.
    """
    from mudit_engine.cli._lyrics_score import _files
    from mudit_engine.files import read_text
    from mudit_engine.lyric_model.songs import song_of_lyrics, take_theme, write_songs

    if theme and themes_by:
        raise InputError("--theme and --themes-by both say the theme: give one of them")
    teller = _teller(themes_by) if themes_by else None
    files = [file for file in _files(paths) if file.suffix != ".jsonl"]
    songs, failed = [], []
    with progress("reading", total=len(files), quiet=as_json) as step:
        for file in files:
            try:
                own, text = take_theme(read_text(file, "lyrics"))
                said = own or theme or (teller(text) if teller else None)
                if not said:
                    raise InputError(
                        f"'{file}' says no theme: put `theme: ...` into its first line, or give "
                        f"--theme or --themes-by"
                    )
                songs.append(song_of_lyrics(text, theme=said, source=str(file)))
            except InputError as error:
                failed.append(str(error))
            step()
    if not songs:
        raise InputError("; ".join(failed[:5]) or f"no lyrics in {', '.join(paths)}")
    write_songs(songs, out)
    if as_json:
        emit_json({"file": out, "songs": len(songs), "failed": failed})
    else:
        for message in failed:
            note(message)
        note(f"written: {out} ({len(songs)} songs)")
    if failed:
        raise click.exceptions.Exit(1)


def _teller(source: str) -> Any:
    """What asks a model for a theme."""
    from mudit_engine.lyric_model.prompts import theme_messages, theme_prompt

    if source.startswith(("http://", "https://")):
        from mudit_engine.lyric_model.server import Server

        server = Server(source, temperature=0.2)
        return lambda text: _first_line(
            server.chat(theme_messages(text), grammar=None, tokens=64, seed=0)
        )
    from mudit_engine.lyric_model.author import Sampling, write_freely
    from mudit_engine.lyric_model.writer import open_writer

    model = open_writer(source)
    if model is None:
        raise InputError("--themes-by needs a model: a folder, an id of the hub, or a URL")
    return lambda text: _first_line(
        write_freely(model, theme_prompt(text), seed=0, sampling=Sampling(0.2), most_tokens=48)
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
