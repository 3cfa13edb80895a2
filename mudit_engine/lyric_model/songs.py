"""Training data of the lyric model: songs as JSON lines, a converter from tagged lyrics, and the
embedded grammar's own corpus.

One JSON object a line:

    {"theme": "夏夜，海边", "language": "zh", "rhyme": "AABA", "split": "train",
     "sections": [{"kind": "verse", "lines": ["晚风吹过旧时光", "..."]}, {"kind": "outro"}]}

`theme` and `sections` are needed. `language` is zh or en (told by the words when it is missing),
`rhyme` the scheme that the prompt names (free when missing; which line ends rhyme is always read
from the words), `split` train or validation (a hash of the words puts one song in twenty aside
when it is missing), `id` a name for messages.

    songs = read_songs("songs.jsonl")       songs = built_in_songs(2000, seed=0)
    song.prompt(), song.answer()
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.files import read_text, write_text
from mudit_engine.lyric_model import embedded
from mudit_engine.lyric_model.form import (
    LANGUAGES,
    Form,
    Language,
    SectionForm,
    parse_rhyme,
)
from mudit_engine.lyric_model.prompts import END, START, answer, prompt_text
from mudit_engine.lyric_model.rhymes import is_english, line_syllables, rhyme_of
from mudit_engine.text.lyrics import Lyrics, parse_lyrics
from mudit_engine.text.sections import KINDS

SPLITS = ("train", "validation")
VALIDATION_SHARE = 0.05
BUILT_IN, OWN = "builtin", "own_songs.jsonl"
OWN_EVERY = 12  # in the built-in corpus
_FIELDS = ("theme", "sections", "language", "rhyme", "split", "id")


@dataclass(frozen=True)
class LyricSong:
    """One song of a training set; `sections` are (kind, lines)."""

    theme: str
    sections: tuple[tuple[str, tuple[str, ...]], ...]
    language: Language = "zh"
    rhyme: str = "free"
    split: str = "train"
    id: str = ""

    @property
    def form(self) -> Form:
        """The form of its words."""
        sections = tuple(
            SectionForm(kind, tuple((n, n) for n in map(line_syllables, lines)))
            for kind, lines in self.sections
        )
        return Form(sections, self.rhyme, self.language)

    def notation(self) -> str:
        """The paper's notation, R at line ends that rhyme with another one of their section."""
        letter = "c" if self.language == "zh" else "s"
        blocks = []
        for kind, lines in self.sections:
            ends = [rhyme_of(line) for line in lines]
            counts = Counter(ends)
            rows = [
                letter * (line_syllables(line) - 1) + ("R" if end and counts[end] > 1 else letter)
                for line, end in zip(lines, ends, strict=True)
            ]
            blocks.append("\n".join([f"({kind})", *rows]))
        return "\n".join(blocks)

    def prompt(self) -> str:
        return prompt_text(self.theme, self.rhyme, self.notation(), self.language)

    def answer(self) -> str:
        return answer(self.sections)

    def to_json(self) -> dict[str, Any]:
        """The object of its line."""
        return {
            "id": self.id,
            "theme": self.theme,
            "language": self.language,
            "rhyme": self.rhyme,
            "split": self.split,
            "sections": [{"kind": kind, "lines": list(lines)} for kind, lines in self.sections],
        }


def split_of(text: str) -> str:
    """train or validation, by a hash of the words: a song's split is the same anywhere."""
    share = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    return "validation" if share < VALIDATION_SHARE else "train"


def read_songs(path: str | Path) -> list[LyricSong]:
    """Songs of a JSONL file. Raises InputError that names every broken line's number and field (the
    first ten).
    """
    songs, wrong = [], []
    for number, line in enumerate(read_text(Path(path), "lyric data").splitlines(), 1):
        if not line.strip():
            continue
        try:
            songs.append(parse_song(line, number))
        except InputError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        more = f" (and {len(wrong) - 10} more)" if len(wrong) > 10 else ""
        raise InputError(f"lyric data '{path}': " + "; ".join(wrong[:10]) + more)
    if not songs:
        raise InputError(
            f"lyric data '{path}' holds no song: write one JSON object a line, or convert tagged "
            f"lyrics with `mudit lyrics convert`"
        )
    return songs


def parse_song(text: str, number: int = 1) -> LyricSong:
    """A song from its line. Raises InputError."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(fields, dict):
        raise InputError(f"an object is needed, not {type(fields).__name__}")
    if unknown := sorted(fields.keys() - set(_FIELDS)):
        raise InputError(f"unknown field '{unknown[0]}': known are {', '.join(_FIELDS)}")
    theme = fields.get("theme")
    if not isinstance(theme, str) or not theme.strip():
        raise InputError("field 'theme' must be a text, such as \"夏夜，海边\"")
    sections = _sections(fields.get("sections"))
    words = "\n".join(line for _, lines in sections for line in lines)
    language = fields.get("language", "en" if is_english(words) else "zh")
    if language not in LANGUAGES:
        raise InputError(f"field 'language' is {language!r}: use zh or en")
    split = fields.get("split", split_of(words))
    if split not in SPLITS:
        raise InputError(f"field 'split' is {split!r}: use {' or '.join(SPLITS)}")
    rhyme = fields.get("rhyme") or "free"
    if not isinstance(rhyme, str):
        raise InputError(f"field 'rhyme' is {rhyme!r}: use letters, one or free")
    return LyricSong(
        theme.strip(),
        sections,
        cast(Language, language),
        parse_rhyme(rhyme),
        split,
        str(fields.get("id") or f"song-{number}"),
    )


def _sections(value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(value, list) or not value:
        raise InputError(
            'field \'sections\' must be a list such as [{"kind": "verse", "lines": ["..."]}]'
        )
    found = []
    for place, section in enumerate(value, 1):
        if not isinstance(section, dict) or section.get("kind") not in KINDS:
            raise InputError(
                f"section {place} needs a 'kind' of {', '.join(KINDS)}, not "
                f"{section.get('kind') if isinstance(section, dict) else section!r}"
            )
        lines = section.get("lines", [])
        if not isinstance(lines, list) or not all(isinstance(x, str) and x.strip() for x in lines):
            raise InputError(f"section {place}: 'lines' must be a list of texts, none empty")
        if any(mark in line for line in lines for mark in ("\n", START, END)):
            raise InputError(f"section {place}: a line holds a line break or one of ChatML's marks")
        found.append((section["kind"], tuple(" ".join(line.split()) for line in lines)))
    if not any(lines for _, lines in found):
        raise InputError("no section has a line to learn from")
    return tuple(found)


def write_songs(songs: Iterable[LyricSong], path: str | Path) -> None:
    """Writes a JSONL file atomically."""
    rows = [json.dumps(song.to_json(), ensure_ascii=False) for song in songs]
    write_text(path, "\n".join(rows) + "\n")


_THEME = re.compile(r"\s*(?:theme|主题|主題)\s*[:：]\s*(.+)", re.IGNORECASE)


def take_theme(text: str) -> tuple[str | None, str]:
    """(theme, the rest) of a text whose first line says its theme; (None, text) of any other."""
    first, _, rest = text.lstrip("\ufeff\r\n ").partition("\n")
    match = _THEME.fullmatch(first.rstrip())
    return (match[1].strip(), rest) if match else (None, text)


def song_of_lyrics(text: str, *, theme: str, source: str = "lyrics") -> LyricSong:
    """A training song from tagged lyrics as people write them. Raises InputError."""
    lyrics = parse_lyrics(text, source=source)
    if lyrics.instrumental:
        raise InputError(f"{source} has no words to learn from")
    sections = tuple(
        (section.kind, tuple(line.text for line in section.lines)) for section in lyrics.sections
    )
    words = "\n".join(line for _, lines in sections for line in lines)
    language: Language = "en" if is_english(words) else "zh"
    return LyricSong(theme, sections, language, scheme_of(lyrics), split_of(words), source)


def scheme_of(lyrics: Lyrics) -> str:
    """The scheme that most sections of four and more lines keep: one, AABA, AABB, ABAB, or free."""
    ends = [[rhyme_of(line.text) for line in section.lines] for section in lyrics.sections]
    every = [end for own in ends for end in own]
    if len(every) > 2 and len(set(every)) == 1:
        return "one"
    votes: Counter[str] = Counter()
    for own in (own[:4] for own in ends if len(own) >= 4):
        names = {end: "ABCD"[place] for place, end in enumerate(dict.fromkeys(own))}
        votes["".join(names[end] for end in own)] += 1
    for scheme, count in votes.most_common(1):
        if 2 * count > sum(votes.values()) and scheme in ("AABA", "AABB", "ABAB", "AAAA"):
            return scheme
    return "free"


_SKELETONS = (
    ("verse",), ("chorus",), ("verse", "chorus"), ("verse", "pre-chorus", "chorus"),
    ("verse", "chorus", "bridge"), ("verse", "verse", "chorus"), ("intro", "verse", "chorus"),
    ("verse", "chorus", "outro"), ("verse", "chorus", "bridge", "chorus"),
    ("verse", "chorus", "verse", "chorus"), ("intro", "verse", "pre-chorus", "chorus", "outro"),
    ("verse", "pre-chorus", "chorus", "bridge", "chorus"), ("bridge", "chorus"), ("rap", "hook"),
)  # fmt: skip
_SCHEMES = ("AABA", "AABA", "AABB", "ABAB", "AAAA", "one", "free")
_LENGTHS = {"zh": (4, 5, 6, 7, 7, 8, 9, 10), "en": (5, 6, 7, 7, 8, 8)}
_LINES = (1, 2, 2, 4, 4, 4)
_MOST_LINES = {"zh": 16, "en": 8}


def built_in_songs(
    count: int, *, seed: int = 0, languages: Sequence[str] = LANGUAGES
) -> list[LyricSong]:
    """The built-in corpus: songs of the embedded grammar in every form that it can write, and in
    every OWN_EVERY-th place one of the project's own songs, in turn. Song n is the same whatever
    the count.
    """
    own = [song for song in own_songs() if song.language in languages]
    return [
        own[n // OWN_EVERY % len(own)]
        if n % OWN_EVERY == OWN_EVERY - 1
        else _built_in(n, seed, languages[n % len(languages)])
        for n in range(count)
    ]


def own_songs() -> list[LyricSong]:
    """The project's own songs, each with its scheme as it is heard."""
    text = (files("mudit_engine") / "assets" / "lyrics" / OWN).read_text(encoding="utf-8")
    return [parse_song(line, number) for number, line in enumerate(text.splitlines(), 1)]


def _built_in(number: int, seed: int, language: str) -> LyricSong:
    from mudit_engine.lyric_model.fill import fill_by_grammar

    rng = np.random.default_rng([seed, number])
    while True:
        form = _draw_form(rng, cast(Language, language))
        try:
            sections = fill_by_grammar(form, rng)
        except InputError:  # a class that this many lines cannot share: another form
            continue
        break
    words = "\n".join(line for _, lines in sections for line in lines)
    return LyricSong(
        _draw_theme(rng, words, language),
        sections,
        cast(Language, language),
        form.rhyme,
        split_of(words),
        f"{BUILT_IN}-{seed}-{number}",
    )


def _draw_form(rng: np.random.Generator, language: Language) -> Form:
    while True:
        kinds = _SKELETONS[int(rng.integers(len(_SKELETONS)))]
        shapes: dict[str, SectionForm] = {
            "intro": SectionForm("intro"),
            "outro": SectionForm("outro"),
        }
        for kind in kinds:
            if kind in shapes:
                continue
            lengths = rng.choice(_LENGTHS[language], size=2)
            second = int(lengths[0] if rng.random() < 0.6 else lengths[1])
            pair = ((int(lengths[0]),) * 2, (second,) * 2)
            lines = int(rng.choice(_LINES))
            shapes[kind] = SectionForm(kind, tuple(pair[n % 2] for n in range(lines)))
        sections = tuple(shapes[kind] for kind in kinds)
        if sum(len(section.lines) for section in sections) <= _MOST_LINES[language]:
            return Form(sections, str(rng.choice(_SCHEMES)), language)


def _draw_theme(rng: np.random.Generator, words: str, language: str) -> str:
    known = embedded.theme_words(words, language) or ["歌" if language == "zh" else "a song"]
    count = min(len(known), int(rng.integers(1, 5)))
    chosen = [known[int(place)] for place in sorted(rng.choice(len(known), count, replace=False))]
    return ("，" if language == "zh" else ", ").join(chosen)
