"""The embedded grammar as a writer: lines of any asked length and rhyme class from the project's
own templates, without a model.

A line that is longer than a template is two of them; a shorter one is the end of one.

    draw_line(rng, language="zh", kind="verse", syllables=7, rhyme="ang", accept=lambda text: True)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.lyric_model import grammar_en, grammar_zh
from mudit_engine.lyric_model.rhymes import HAN_CLASSES, line_syllables, rhyme_of

# kinds that the templates know -> the others that are written like them
_LIKE = {
    "pre-chorus": "pre-chorus",
    "chorus": "chorus",
    "post-chorus": "chorus",
    "hook": "chorus",
    "bridge": "bridge",
    "outro": "bridge",
}
_THEME_SLOTS = {
    "zh": ("when2", "where2", "sky2", "land2", "thing2", "feel2"),
    "en": ("sky", "land", "thing", "feel"),
}
_TRIES = 12


def grammar(language: str) -> ModuleType:
    """The templates of a language."""
    return {"zh": grammar_zh, "en": grammar_en}[language]


@functools.cache
def rhymes(language: str) -> tuple[str, ...]:
    """Rhyme classes (lyric_model.rhymes) in which the templates find endings for every section."""
    if language == "en":
        return grammar_en.rhymes()
    counts: dict[str, int] = {}
    for phrases in grammar_zh.ENDINGS.values():
        for phrase in phrases:
            name = rhyme_of(phrase) or ""
            counts[name] = counts.get(name, 0) + 1
    return tuple(sorted(name for name, count in counts.items() if count >= 8))


@functools.cache
def line_ends(language: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """What the templates end lines with in these classes: phrases of two or three characters, or
    English words.
    """
    if language == "en":
        kinds = [grammar_en.RHYMES[name] for name in classes if name in grammar_en.RHYMES]
        phrases = [phrase for own in kinds for words in own.values() for phrase in words]
        return tuple(dict.fromkeys(phrase.split()[-1] for phrase in phrases))
    known = dict.fromkeys(p for phrases in grammar_zh.ENDINGS.values() for p in phrases)
    return tuple(p for p in known if len(p) > 1 and rhyme_of(p) in classes)


@functools.cache
def _tracks() -> dict[str, tuple[str, ...]]:
    """Rhyme class -> the grammar's own, wider classes that hold it."""
    found: dict[str, set[str]] = {}
    for final, track in grammar_zh.RHYME_CLASSES.items():
        if final in HAN_CLASSES:
            found.setdefault(HAN_CLASSES[final], set()).add(track)
    return {name: tuple(sorted(tracks)) for name, tracks in found.items()}


def draw_line(
    rng: np.random.Generator,
    *,
    language: str,
    kind: str,
    syllables: int,
    rhyme: str | None,
    accept: Callable[[str], bool],
) -> str:
    """A line of so many syllables that ends in a rhyme class (any for None) and that `accept`
    takes.

    Raises InputError where the templates have none.
    """
    rules, section = grammar(language), _LIKE.get(kind, "verse")
    known = rhymes(language)
    if rhyme is not None and rhyme not in known:
        raise InputError(
            f"the embedded grammar knows too few line ends that rhyme on {rhyme!r}: it has "
            f"{', '.join(known)}; leave the class open, or write with a model"
        )
    whole = min(rules.SYLLABLES) <= syllables <= max(rules.SYLLABLES)
    # the English templates try 4,000 lines of one rhyme before they give up
    for _ in range(2 if rhyme and whole and language == "en" else _TRIES):
        name = rhyme or known[int(rng.integers(len(known)))]
        try:
            text = _draw(rng, rules, language, section, syllables, name, accept)
        except ValueError:
            continue
        if text is not None:
            return text
    where = f" that rhymes on {rhyme!r}" if rhyme else ""
    raise InputError(
        f"the embedded grammar finds no further {language} line of {syllables} syllables for "
        f"{kind}{where}: ask for fewer lines or another length, or write with a model"
    )


def _draw(
    rng: np.random.Generator,
    rules: ModuleType,
    language: str,
    section: str,
    syllables: int,
    rhyme: str,
    accept: Callable[[str], bool],
) -> str | None:
    """One try: the line, or None when it came out otherwise than asked."""
    low, high = min(rules.SYLLABLES), max(rules.SYLLABLES)

    def line(count: int, name: str, taken: Callable[[str], bool]) -> str:
        tracks = _tracks()[name] if language == "zh" else (name,)
        track = tracks[int(rng.integers(len(tracks)))]
        drawn: str = rules.draw_line(
            rng, syllables=count, section=section, rhyme=track, accept=taken
        )
        return drawn

    def rhymes_as_asked(text: str) -> bool:
        return language == "en" or rhyme_of(text) == rhyme

    if low <= syllables <= high:
        return line(syllables, rhyme, lambda text: rhymes_as_asked(text) and accept(text))

    def of_length(count: int, name: str) -> str:
        """A line of any length: two halves where it is long, the end of one where it is short."""
        if low <= count <= high:
            return line(count, name, lambda text: language == "en" or rhyme_of(text) == name)
        if count < low:
            return _tail(of_length(low, name), count, language)
        known = rhymes(language)
        first = of_length(count // 2, known[int(rng.integers(len(known)))])
        return first + ("" if language == "zh" else " ") + of_length(count - count // 2, name)

    text = of_length(syllables, rhyme)
    fits = line_syllables(text) == syllables and rhyme_of(text) == rhyme and accept(text)
    return text if fits else None


def _tail(text: str, syllables: int, language: str) -> str:
    """The end of a line that has so many syllables; empty where no word begins there."""
    if language == "zh":
        return text[-syllables:]
    words = text.split()
    tails = (" ".join(words[cut:]) for cut in range(len(words)))
    return next((tail for tail in tails if line_syllables(tail) == syllables), "")


def theme_words(text: str, language: str) -> list[str]:
    """Words of the templates' pictures (sky, land, things, feelings) that a text holds, in their
    order.
    """
    rules = grammar(language)
    known = {word for slot in _THEME_SLOTS[language] for word in rules.WORDS[slot]}
    if language == "en":
        return list(dict.fromkeys(word for word in text.split() if word in known))
    found = sorted((text.index(word), word) for word in known if word in text)
    return [word for _, word in found]
