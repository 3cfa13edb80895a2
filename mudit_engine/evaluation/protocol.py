"""The paper's protocol: 50 songs that professionals and amateurs have both described, prompts of
120 characters cut at random, one song a prompt and system, 1,000 reference songs, and figures that
are the mean of both kinds of prompts.

    wishes = paper_prompts(songs, count=50, seed=0)
    make_songs(baseline, wishes, Path("work/ours"), english=False)

Half of the prompts are of each kind, so that the row of all songs is the mean of both. Systems that
know no Chinese get the translation of the same words, cut from the description's English text; a
song that has none is refused by name, and nothing is translated here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mudit_engine.audio import save_audio
from mudit_engine.errors import InputError
from mudit_engine.evaluation.baselines import Baseline, Prompt
from mudit_engine.evaluation.songs import Track, silent_track
from mudit_engine.evaluation.systems import Asked, System
from mudit_engine.files import read_text, write_json
from mudit_engine.text.descriptions import requested_bpm, requested_key

SONGS, CHARACTERS, REFERENCES = 50, 120, 1000
USERS = ("professional", "amateur")


@dataclass(frozen=True)
class DescribedSong:
    """A song with texts by (user type, language), its lyrics and its audio."""

    id: str
    audio: Path
    texts: dict[tuple[str, str], str] = field(default_factory=dict)
    lyrics: str = ""


@dataclass(frozen=True)
class Wish:
    """A prompt: its id, who wrote it, its text in Chinese and (empty: none) in English."""

    id: str
    user: str
    text: str
    english: str
    lyrics: str
    target: Path

    def asked(self) -> Asked:
        """As `mudit eval songs` holds songs against it."""
        bpm, key = requested_bpm(self.text), requested_key(self.text)
        return Asked(self.id, self.text, self.user, bpm, key, self.target, self.lyrics)


def cut(text: str, characters: int, rng: random.Random) -> str:
    """A piece of so many characters from a random place; the whole text where it is shorter."""
    text = " ".join(text.split())
    if len(text) <= characters:
        return text
    start = rng.randint(0, len(text) - characters)
    return text[start : start + characters].strip()


def paper_prompts(
    songs: Sequence[DescribedSong],
    *,
    count: int = SONGS,
    characters: int = CHARACTERS,
    language: str = "zh",
    seed: int = 0,
) -> list[Wish]:
    """Two prompts for each of `count` songs, drawn with the seed.

    Raises InputError when too few songs have both descriptions in `language`.
    """
    both = [song for song in songs if all((user, language) in song.texts for user in USERS)]
    if len(both) < count:
        raise InputError(
            f"{len(both)} of {len(songs)} songs have a professional's and an amateur's description "
            f"in '{language}', and {count} are asked for: describe more, or ask for fewer (--songs)"
        )
    rng = random.Random(seed)
    wishes = []
    for song in sorted(rng.sample(sorted(both, key=lambda one: one.id), count), key=lambda s: s.id):
        for user in USERS:
            english = song.texts.get((user, "en"), "")
            wishes.append(
                Wish(
                    f"{song.id.replace('/', '-')}-{user}",
                    user,
                    cut(song.texts[user, language], characters, rng),
                    cut(english, characters, rng) if english else "",
                    song.lyrics,
                    song.audio,
                )
            )
    return wishes


def make_songs(
    baseline: Baseline,
    wishes: Sequence[Wish],
    folder: Path,
    *,
    seconds: float,
    seed: int = 0,
    english: bool = False,
    lyrics: bool = True,
    track: Track = silent_track,
) -> System:
    """The system's song of every wish, as files in `folder`; those that are there are kept, so that
    a run which was stopped goes on. A folder's songs are taken as they are.

    Raises InputError for wishes without English text where it is needed, and for a folder that
    holds songs of other settings.
    """
    if baseline.make is None:
        found = System.of(baseline.folder, name=baseline.name)
        chosen = {wish.id for wish in wishes}
        songs = {name: path for name, path in found.songs.items() if name in chosen}
        return System(baseline.name, songs)
    lacking = [wish.id for wish in wishes if english and not wish.english]
    if lacking:
        raise InputError(
            f"system '{baseline.name}' is asked in English, and {len(lacking)} prompts have no "
            f"English text ({', '.join(lacking[:3])}): give the songs a description of the same "
            "user type with language 'en'"
        )
    settings = {
        "kind": baseline.kind,
        "source": baseline.source,
        "seconds": seconds,
        "seed": seed,
        "english": english,
        "lyrics": lyrics,
        "prompts": {wish.id: wish.english if english else wish.text for wish in wishes},
    }
    told = folder / "settings.json"
    if told.exists() and json.loads(read_text(told, "settings")) != settings:
        raise InputError(
            f"'{folder}' holds songs of other settings (settings.json): choose another --work"
        )
    write_json(told, settings)
    songs = {}
    for number, wish in enumerate(track(list(wishes), f"{baseline.name} makes songs")):
        path = folder / f"{wish.id}.flac"
        if not path.exists():
            text = wish.english if english else wish.text
            words = wish.lyrics if lyrics else ""
            audio, rate = baseline(Prompt(text, words, seconds, seed + number, wish.user))
            save_audio(path, audio.clamp(-1, 1), rate)
        songs[wish.id] = path
    return System(baseline.name, songs)
