"""Lyrics for `mudit generate --write-lyrics`: written from the description before the song."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mudit_engine.cli._console import note
from mudit_engine.errors import InputError

AUTO_SECONDS = 30.0  # of lyrics for a song whose length is left open


def check_write_options(options: Mapping[str, Any]) -> None:
    """Raises InputError for options that do not go together."""
    asked = options["write_lyrics"] is not None
    for name in ("structure", "rhyme"):
        if options[name] is not None and not asked:
            raise InputError(f"--{name} is of lyrics that are written: add --write-lyrics")
    if asked and options["manifest"] is not None:
        raise InputError(
            "--write-lyrics is for one song: with --manifest, write the lyrics of each line with "
            "`mudit lyrics write` first"
        )
    if asked and options["lyrics"] is not None:
        raise InputError("--lyrics gives the words that --write-lyrics would write: keep one")


def written_lyrics(options: Mapping[str, Any], description: str) -> str:
    """The lyrics of a song that is described. They are printed, and stand in the song's sidecar."""
    from mudit_engine.cli._lyrics_write import (
        WITHOUT_A_MODEL,
        language_of,
        read_description,
        writer_of,
    )
    from mudit_engine.lyric_model.form import DEFAULT_RHYME, USUAL_BPM, default_form, parse_form
    from mudit_engine.lyric_model.writer import write_lyrics

    theme = read_description(description)
    language, rhyme = language_of(theme), options["rhyme"] or DEFAULT_RHYME
    if options["structure"]:
        form = parse_form(options["structure"], rhyme=rhyme, language=language)
    else:
        form = default_form(
            options["seconds"] or AUTO_SECONDS,
            rhyme=rhyme,
            language=language,
            bpm=options["bpm"] or USUAL_BPM,
        )
    model = writer_of(options["write_lyrics"])
    written = write_lyrics(theme, form, model=model, seed=options["seed"] or 0)
    for message in written.notes:
        note(message)
    note(f"lyrics by {written.author}:\n{written.text}")
    if model is None:
        note(WITHOUT_A_MODEL)
    return written.text
