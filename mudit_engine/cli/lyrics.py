"""`mudit lyrics`: what the engine makes of a lyric file, before a song is made of it
(_lyrics_check.py), and lyrics written by a model (_lyrics_write.py), scored (_lyrics_score.py), and
its training (_lyrics_train.py).

    mudit lyrics check song.txt --seconds 30
    mudit lyrics write --description "夏夜，海边" --seconds 60
"""

from __future__ import annotations

import click

from mudit_engine.cli._lyrics_check import check
from mudit_engine.cli._lyrics_score import score
from mudit_engine.cli._lyrics_train import convert, train
from mudit_engine.cli._lyrics_write import write


@click.group()
def command() -> None:
    """Look at lyrics, write them, score them, and train the model that writes them."""


for _command in (check, write, score, convert, train):
    command.add_command(_command)
