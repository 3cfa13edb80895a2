"""`mudit lyrics`: what the engine makes of a lyric file, before a song is made of it.

mudit lyrics check song.txt --seconds 30
"""

from __future__ import annotations

import click

from mudit_engine.cli._lyrics_check import check


@click.group()
def command() -> None:
    """Look at lyrics: sections, phonemes, length."""


command.add_command(check)
