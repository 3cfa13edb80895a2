"""`mudit data annotations`: songs with professionals' and amateurs' words, from any file.

mudit data annotations muchin.json --fields map.json --audio audio/ --out songs.jsonl
"""

from __future__ import annotations

from pathlib import Path

import click

from mudit_engine.cli._console import emit_json, json_option, note

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("annotations")
@click.argument("source", type=FILE)
@click.option("--fields", type=FILE, help="A JSON map: where in a song's object things lie.")
@click.option(
    "--audio",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the songs.  [default: that of SOURCE]",
)
@click.option("--out", type=FILE, required=True, help="The manifest, for `mudit data encode`.")
@json_option
def command(
    source: Path, fields: Path | None, audio: Path | None, out: Path, as_json: bool
) -> None:
    """Turn SOURCE (.jsonl or .json, one object a song) into a manifest with descriptions at three
    levels: words, phrases, sentences.
    """
    import json

    from mudit_engine.files import write_text
    from mudit_engine.training.dataset.annotations import PLAIN, annotated, load_map

    found = load_map(fields) if fields else PLAIN
    rows = list(annotated(source, found, audio=audio or source.parent))
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    counts = {
        user: sum(any(d["user"] == user for d in row["descriptions"]) for row in rows)
        for user in found.users
    }
    if as_json:
        emit_json({"out": out, "songs": len(rows), "described_by": counts})
    else:
        told = ", ".join(f"{count} by {user}s" for user, count in counts.items())
        note(f"{len(rows)} songs in {out}, described: {told}")
