"""What a model is asked while it learns from preferences, and what is held out from it.

    train, held_out = read_requests("builtin:64", held_out=24, seed=0, seconds=10.0, out=folder)
    train, held_out = read_requests("requests.jsonl", held_out=24, ...)

`builtin:N` draws N descriptions and lyrics as the synthetic corpus does (no sound is made), every
second one a professional's; the held-out ones come from another seed. Of a file, so many requests
as are held out are those whose ids' hashes come first, whatever else the file holds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError
from mudit_engine.evaluation.systems import Asked, load_requests
from mudit_engine.files import write_text
from mudit_engine.training.corpus.compose import compose
from mudit_engine.training.corpus.labels import Song

BUILTIN = "builtin:"
HELD_OUT_SEED = 1_000_003  # added to a run's seed
LAST_SECONDS = 1.0  # of a song that no line is sung in

Requests = dict[str, Asked]


def read_requests(
    source: str, *, held_out: int, seed: int, seconds: float, out: Path, user_type: str = "all"
) -> tuple[Requests, Requests]:
    """(requests to learn from, held-out requests), by id; both also as files in `out`.

    user_type: take those of professionals, or of amateurs, alone. Raises InputError for a file that
    cannot be read or that leaves too few.
    """
    if source.startswith(BUILTIN):
        number = source.removeprefix(BUILTIN)
        if not number.isdecimal() or not int(number):
            raise InputError(f"requests '{source}': write builtin:N with a number, or give a file")
        kinds = {"train": (int(number), seed), "held_out": (held_out, seed + HELD_OUT_SEED)}
        for name, (count, own) in kinds.items():
            lines = composed(count, seed=own, seconds=seconds, user_type=user_type)
            text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)
            write_text(out / f"{name}.jsonl", text)
        return load_requests(out / "train.jsonl"), load_requests(out / "held_out.jsonl")
    asked = {
        name: one
        for name, one in load_requests(Path(source)).items()
        if user_type in ("all", one.user_type)
    }
    if len(asked) < held_out + 1:
        raise InputError(
            f"requests '{source}' hold {len(asked)} of user type '{user_type}', of which "
            f"{held_out} would be held out: give more, or hold out fewer"
        )
    ordered = sorted(asked, key=lambda one: hashlib.sha256(one.encode()).digest())
    return (
        {name: asked[name] for name in asked if name not in ordered[:held_out]},
        {name: asked[name] for name in asked if name in ordered[:held_out]},
    )


def composed(count: int, *, seed: int, seconds: float, user_type: str = "all") -> list[Any]:
    """Requests in the form of `mudit eval songs --requests`, of songs that the corpus could hold.

    Examples:
        >>> [one] = composed(1, seed=0, seconds=10.0)
        >>> sorted(one)
        ['description', 'id', 'lyrics', 'user_type']
    """
    users = ("professional", "amateur") if user_type == "all" else (user_type,)
    found = []
    for index in range(count):
        song, user = (
            compose(seed=seed, index=index, sample_rate=22050).song,
            users[index % len(users)],
        )
        described = [one for one in song.descriptions if one.user == user]
        found.append(
            {
                "id": f"{seed}-{index:04d}",
                "description": described[index % len(described)].text,
                "user_type": user,
                "lyrics": lyrics_until(song, seconds - LAST_SECONDS),
            }
        )
    return found


def lyrics_until(song: Song, seconds: float) -> str:
    """The lines that are over by then, under their sections' tags; at least the first."""
    lines = [line for number, line in enumerate(song.lines) if not number or line.end <= seconds]
    text: list[str] = []
    for number, line in enumerate(lines):
        if not number or line.section != lines[number - 1].section:
            text += ([""] if text else []) + [f"[{song.form[line.section].name}]"]
        text.append(line.text)
    return "\n".join(text)


__all__ = ["composed", "read_requests"]
