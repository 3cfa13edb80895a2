"""`mudit lyrics score`: the paper's objective score of lyrics, for files, folders and training
runs.

mudit lyrics score song.txt --structure verse:4x7,chorus:4x5 --rhyme AABA
mudit lyrics score songs/                        every .txt and .lrc below, and .jsonl training data
mudit lyrics score --run runs/lyrics --songs 20  what the run's model writes for held-out prompts
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table, progress
from mudit_engine.errors import InputError

if TYPE_CHECKING:
    from mudit_engine.lyric_model.form import Form
    from mudit_engine.lyric_model.scoring import Score

SUFFIXES = (".txt", ".lrc")


@click.command()
@click.argument("paths", nargs=-1, metavar="[FILE|FOLDER]...")
@click.option("--structure", metavar="PARTS", help="The form that was asked for, as for `write`.")
@click.option(
    "--rhyme", default=None, metavar="AABA|one|free", help="The scheme, with --structure."
)
@click.option("--run", "run_folder", metavar="FOLDER", help="A run of `mudit lyrics train`.")
@click.option(
    "--songs",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="With --run: held-out prompts to write for.",
)
@click.option(
    "--constrained",
    is_flag=True,
    help="With --run: write under the constraint, as `write` does, not freely.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_option
def score(
    paths: tuple[str, ...],
    structure: str | None,
    rhyme: str | None,
    run_folder: str | None,
    songs: int,
    constrained: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Score lyrics by structure, line counts, characters per line and rhyme (100, and 10 for a
    rhyme ratio of .6 to .8).
    """
    from mudit_engine.lyric_model.form import DEFAULT_RHYME, parse_form

    if bool(paths) == bool(run_folder):
        raise InputError("give files or folders to score, or a training run with --run")
    if rhyme and not structure:
        raise InputError("--rhyme is the scheme of a --structure: give both, or neither")
    failed: list[str] = []
    if run_folder:
        if structure:
            raise InputError("--run goes by the forms of the held-out songs: leave out --structure")
        rows = _score_run(
            Path(run_folder), songs, constrained=constrained, seed=seed, quiet=as_json
        )
    else:
        form = parse_form(structure, rhyme=rhyme or DEFAULT_RHYME) if structure else None
        rows = _score_files(paths, form, failed)
    if not rows and not failed:
        raise InputError(f"no lyrics ({', '.join(SUFFIXES)}, .jsonl) in {', '.join(paths)}")
    mean = _mean([one for _, one in rows])
    if as_json:
        emit_json(
            {
                "scores": [{"source": name, "score": one} for name, one in rows],
                "mean": mean,
                "failed": failed,
            }
        )
    else:
        _print(rows, mean)
        for _, one in rows:
            if one.fault:
                note(one.fault)
        for message in failed:
            note(message)
    if failed:
        raise click.exceptions.Exit(1)


def _score_files(
    paths: tuple[str, ...], form: Form | None, failed: list[str]
) -> list[tuple[str, Score]]:
    from mudit_engine.files import read_text
    from mudit_engine.lyric_model.scoring import score_text
    from mudit_engine.lyric_model.songs import read_songs

    rows: list[tuple[str, Score]] = []
    for file in _files(paths):
        try:
            if file.suffix == ".jsonl":
                rows += [
                    (f"{file}:{song.id}", score_text(song.answer(), form=form or song.form))
                    for song in read_songs(file)
                ]
            else:
                text = read_text(file, "lyrics")
                rows.append((str(file), score_text(text, form=form, source=str(file))))
        except InputError as error:
            failed.append(str(error))
    return rows


def _files(paths: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found += sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and file.suffix in (*SUFFIXES, ".jsonl")
            )
        else:
            found.append(path)
    return found


def _score_run(
    run: Path, count: int, *, constrained: bool, seed: int, quiet: bool
) -> list[tuple[str, Score]]:
    import json

    from mudit_engine.files import read_text
    from mudit_engine.lyric_model.author import write_freely
    from mudit_engine.lyric_model.scoring import score_text
    from mudit_engine.lyric_model.writer import open_writer, write_lyrics
    from mudit_engine.training.dataset.lyric_set import open_songs

    recipe = json.loads(read_text(run / "recipe.json", "recipe of the run"))
    if recipe.get("task") != "lyrics":
        raise InputError(f"'{run}' trained '{recipe.get('task')}', not lyrics")
    if not (run / "model").is_dir():
        raise InputError(f"'{run}' has no model yet: let `mudit lyrics train` end, or resume it")
    held_out = [
        song for song in open_songs(recipe["data"]["folder"]) if song.split == "validation"
    ][:count]
    if not held_out:
        raise InputError(f"the data of '{run}' holds no song of the split 'validation'")
    model = open_writer(str(run / "model"))
    rows = []
    with progress("writing", total=len(held_out), quiet=quiet) as step:
        for number, song in enumerate(held_out):
            if constrained:
                text = write_lyrics(song.theme, song.form, model=model, seed=seed + number).text
            else:
                text = write_freely(model, song.prompt(), seed=seed + number)
            rows.append((song.id, score_text(text, form=song.form)))
            step()
    return rows


def _mean(scores: list[Score]) -> dict[str, float | None]:
    """Mean points of each part over the songs where it was judged."""
    if not scores:
        return {}
    found: dict[str, float | None] = {}
    for part in scores[0].parts:
        values = [points for one in scores if (points := one.parts[part]) is not None]
        found[part] = round(sum(values) / len(values), 3) if values else None
    found["bonus"] = round(sum(one.bonus for one in scores) / len(scores), 3)
    found["total"] = round(sum(one.total for one in scores) / len(scores), 3)
    return found


def _print(rows: list[tuple[str, Score]], mean: dict[str, float | None]) -> None:
    columns = ["lyrics", "structure", "sequence", "lines", "characters", "rhyme", "bonus", "total"]

    def cells(name: str, parts: list[float | None]) -> list[Any]:
        return [name, *("-" if value is None else f"{value:.1f}" for value in parts)]

    table = [cells(name, [*one.parts.values(), one.bonus, one.total]) for name, one in rows]
    if len(rows) > 1:
        table.append(cells("mean", list(mean.values())))
    print_table("Scores", columns, table, numeric=columns[1:])
    if any(None in one.parts.values() for _, one in rows):
        note("- is not judged without --structure; the total is scaled to what is")
