"""What a model is asked while it learns from preferences, and what is held out from it.

    train, held_out = read_requests("builtin:64", held_out=24, seed=0, seconds=10.0, out=folder)
    train, held_out = read_requests("requests.jsonl", held_out=24, ...)
    asked = as_understood(wish, reader.read(request))       # what adherence is measured against

`builtin:N` draws N descriptions and lyrics as the synthetic corpus does (no sound is made), every
second one a professional's; the held-out ones come from another seed, are in words that none of the
others has, and are sung to lines that none of the others may hold. Of a file, so many requests as
are held out are those whose ids' hashes come first, whatever else the file holds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mudit_engine.errors import InputError
from mudit_engine.evaluation.systems import Asked, load_requests
from mudit_engine.files import write_text
from mudit_engine.names import STYLES
from mudit_engine.reading import Understood
from mudit_engine.training.corpus.compose import compose, is_held_out
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
            unseen = name == "held_out"
            lines = composed(count, seed=own, seconds=seconds, user_type=user_type, unseen=unseen)
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


def composed(
    count: int, *, seed: int, seconds: float, user_type: str = "all", unseen: bool = False
) -> list[Any]:
    """Requests in the form of `mudit eval songs --requests`, of songs that the corpus could hold.

    Args:
        count: how many.
        seed: of the songs and of their words.
        seconds: that the lyrics of a request take at most.
        user_type: "all" alternates between professionals and amateurs.
        unseen: in the words and with the lines that the corpus keeps for held-out songs; if not,
            in those of its training songs.

    Examples:
        >>> [one] = composed(1, seed=0, seconds=10.0)
        >>> sorted(one)
        ['description', 'id', 'lyrics', 'user_type']
    """
    users = ("professional", "amateur") if user_type == "all" else (user_type,)
    indices = (index for index in itertools.count() if is_held_out(seed, index) == unseen)
    found = []
    for number, index in enumerate(itertools.islice(indices, count)):
        song = compose(seed=seed, index=index, sample_rate=22050).song
        user = users[number % len(users)]
        described = [one for one in song.descriptions if (one.user, one.unseen) == (user, unseen)]
        found.append(
            {
                "id": f"{seed}-{index:04d}",
                "description": described[(number // len(users)) % len(described)].text,
                "user_type": user,
                "lyrics": lyrics_until(song, seconds - LAST_SECONDS),
            }
        )
    return found


def as_understood(wish: Asked, understood: Understood) -> Asked:
    """A wish with everything that the reader understood of its words: an amateur who says "slow"
    asks for the tempo that this is planned as. What was drawn or planned was not asked for.

    Examples:
        >>> from mudit_engine.config import load_config
        >>> from mudit_engine.models.folder import model_folder
        >>> from mudit_engine.reading import TextReader
        >>> from mudit_engine.request import SongRequest
        >>> wish = Asked("s", "slow jazz, a woman sings", "amateur")
        >>> reader = TextReader(load_config(model_folder("tiny")))
        >>> request = SongRequest(description=wish.description, seconds=8, seed=1)
        >>> found = as_understood(wish, reader.read(request))
        >>> found.bpm, found.key, found.voice, found.style
        (76.0, None, 'female', 'jazz')
    """
    outline, wishes, source = understood.outline, understood.wishes, understood.source
    said = {name: getattr(outline, name) for name in ("bpm", "key") if source[name] == "words"}
    said |= {"drums": wishes.drums, "voice": wishes.voice}
    said["style"] = wishes.style if wishes.style in STYLES else None
    return replace(wish, **{n: value for n, value in said.items() if getattr(wish, n) is None})


def repeated(wishes: Mapping[str, Asked], songs: int) -> dict[str, Asked]:
    """Every wish `songs` times under ids of their own (`s1.0`, `s1.1`), which give their songs
    other plans and noise; one song keeps its id.

    Examples:
        >>> list(repeated({"s1": Asked("s1")}, 2))
        ['s1.0', 's1.1']
    """
    if songs == 1:
        return dict(wishes)
    named = [(f"{name}.{n}", wish) for name, wish in wishes.items() for n in range(songs)]
    return {name: replace(wish, id=name) for name, wish in named}


def lyrics_until(song: Song, seconds: float) -> str:
    """The lines that are over by then, under their sections' tags; at least the first."""
    lines = [line for number, line in enumerate(song.lines) if not number or line.end <= seconds]
    text: list[str] = []
    for number, line in enumerate(lines):
        if not number or line.section != lines[number - 1].section:
            text += ([""] if text else []) + [f"[{song.form[line.section].name}]"]
        text.append(line.text)
    return "\n".join(text)


__all__ = ["Requests", "as_understood", "composed", "read_requests", "repeated"]
