"""A labelled song for evaluations that look at one or two of its fields."""

from __future__ import annotations

from pathlib import Path

from mudit_engine.evaluation.songs import EvalSong


def labelled(file: Path, *, name: str, seconds: float) -> EvalSong:
    """An instrumental pop song at 120 BPM in C major, held out of training."""
    return EvalSong(
        id=name,
        audio=file,
        held_out=True,
        seconds=seconds,
        style="pop",
        bpm=120.0,
        key="C major",
        drums=True,
        voice="none",
        language="none",
        lyrics="",
        prompts={"professional": "pop, 120 BPM", "amateur": "pop"},
    )
