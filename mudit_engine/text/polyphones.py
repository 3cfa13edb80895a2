"""Which reading a Chinese character has where it stands, and how sure that is.

Sources, asked in turn for every character: idioms of pypinyin's phrase dictionary; rules on what
stands beside it (the table polyphones_zh.txt, written for lyrics: words, and grammar where words do
not decide, as for 地 得 着 了); shorter words of that dictionary; and the reading that the
character usually has. benchmarks/readings.py holds the confidence of a reading against how often
such readings are right.

    [one.syllable for one in read("我得去找你")]        ['wo3', 'dei3', 'qu4', 'zhao3', 'ni3']
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mudit_engine.text.syllables import syllables

# Confidence of readings that no table states: the only one there is, an idiom and a word of the
# dictionary, a rule, and the first of several that a dictionary lists for a character which lyrics
# hardly ever read otherwise. On lines that had not been seen before, words were right in 364 of 371
# cases, rules in 738 of 770 (benchmarks/readings.py).
ONLY, IDIOM, WORD, RULE, FIRST = 1.0, 0.99, 0.98, 0.96, 0.9


@dataclass(frozen=True)
class Reading:
    """One character's syllable with its tone digit, None where no dictionary knows one.

    `source`: only, rule, word, usual or none. `confidence` in 0..1; `others`: what else the
    character can be.
    """

    syllable: str | None
    confidence: float
    source: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rule:
    """What is read where a pattern around the character matches."""

    pattern: re.Pattern[str]
    syllable: str
    confidence: float


@dataclass(frozen=True)
class _Entry:
    """A character of the table. `asks_words`: the dictionary's words decide where no rule does."""

    usual: str
    confidence: float
    rules: tuple[_Rule, ...]
    asks_words: bool

    @property
    def syllables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.usual, *(rule.syllable for rule in self.rules)]))


def read(text: str) -> list[Reading]:
    """Readings of a run of simplified Han characters, one each."""
    words, idioms = _dictionary_words(text)
    table = _table()
    places: dict[str, list[int]] = {}
    for place, char in enumerate(text):
        if char in table:
            places.setdefault(char, []).append(place)
    readings = [_without_table(char, words[place]) for place, char in enumerate(text)]
    for char, where in places.items():
        for place in where:
            if idiom := idioms[place]:
                readings[place] = _reading(idiom, IDIOM, "word", table[char])
        where = [place for place in where if not idioms[place]]
        for place, reading in _by_table(table[char], text, where, words):
            readings[place] = reading
    return readings


def _by_table(
    entry: _Entry, text: str, places: list[int], words: list[str | None]
) -> Iterator[tuple[int, Reading]]:
    open_places = set(places)
    for rule in entry.rules:
        matched = open_places & _found(rule.pattern, text)
        for place in matched:
            yield place, _reading(rule.syllable, rule.confidence, "rule", entry)
        open_places -= matched
        if not open_places:
            return
    for place in open_places:
        word = words[place] if entry.asks_words else None
        if word:
            yield place, _reading(word, WORD, "word", entry)
        else:
            yield place, _reading(entry.usual, entry.confidence, "usual", entry)


def _reading(syllable: str, confidence: float, source: str, entry: _Entry) -> Reading:
    others = tuple(other for other in entry.syllables if other != syllable)
    return Reading(syllable, confidence, source, others)


def _found(pattern: re.Pattern[str], text: str) -> set[int]:
    """Places of the character that a pattern marks, overlapping matches included."""
    places, start = set(), 0
    while match := pattern.search(text, start):
        places.add(match.start("here"))
        start = match.start() + 1
    return places


def _without_table(char: str, word: str | None) -> Reading:
    known = _character_readings(char)
    if not known:
        return Reading(None, 0.0, "none")
    if len(known) == 1:
        return Reading(word or known[0], ONLY, "only")
    if word:
        return Reading(word, WORD, "word", tuple(r for r in known if r != word))
    return Reading(known[0], FIRST, "usual", known[1:])


@functools.lru_cache(maxsize=8192)
def _character_readings(char: str) -> tuple[str, ...]:
    """What the dictionary lists for a character, the usual one first."""
    return tuple(one for one in _pinyin(char, heteronym=True)[0] if one[:-1] in syllables())


def _pinyin(text: str, *, heteronym: bool = False) -> list[list[str]]:
    """What pypinyin says, a list of readings a character; "" for one it does not know."""
    from pypinyin import Style, pinyin

    def unknown(chunk: str) -> Any:  # one entry a character; pypinyin's annotation says one string
        return [""] * len(chunk)

    return pinyin(
        text,
        style=Style.TONE3,
        heteronym=heteronym,
        neutral_tone_with_five=True,
        errors=unknown,
    )


# Idioms that the dictionary has with a reading which nobody sings.
_MISREAD = frozenset(("灾难深重", "摸不着边", "解铃系铃", "解铃还须系铃人", "解铃还需系铃人"))
_IDIOM_LENGTH = 4  # characters from which on a word of the dictionary decides before any rule


def _dictionary_words(text: str) -> tuple[list[str | None], list[str | None]]:
    """For every character its syllable in the word of two and more that pypinyin finds there, and
    the same for idioms alone; None where it finds none.
    """
    from pypinyin.seg.mmseg import seg

    found: list[str | None] = []
    idioms: list[str | None] = []
    for word in seg.cut(text):
        said: list[str | None] = [None] * len(word)
        if len(word) > 1:
            read_out = [one[0] for one in _pinyin(word)]
            if len(read_out) == len(word):
                said = [one if one[:-1] in syllables() else None for one in read_out]
        found += said
        idiom = len(word) >= _IDIOM_LENGTH and word not in _MISREAD
        idioms += said if idiom else [None] * len(word)
    if len(found) != len(text):
        return [None] * len(text), [None] * len(text)
    return found, idioms


@functools.cache
def _table() -> dict[str, _Entry]:
    """The table of rules; its head describes the format."""
    text = (files("mudit_engine") / "assets" / "vocabulary" / "polyphones_zh.txt").read_text(
        encoding="utf-8"
    )
    classes: dict[str, str] = {}
    entries: dict[str, _Entry] = {}
    head: list[str] = []
    rules: list[_Rule] = []
    asks_words = True

    def close() -> None:
        if head:
            entries[head[0]] = _Entry(head[1], float(head[2]), tuple(rules), asks_words)

    for line in text.splitlines():
        if line.startswith("@"):
            name, _, members = line.partition(" ")
            classes[name] = members
        elif line.strip() == "!":
            asks_words = False
        elif line.startswith("  "):
            rules += _rules(line.strip(), head[0], classes)
        elif line and not line.startswith("#"):
            close()
            head, rules, asks_words = line.split(), [], True
            if len(head) == 2:
                head.append(str(RULE))
    close()
    return entries


def _rules(line: str, char: str, classes: dict[str, str]) -> Iterator[_Rule]:
    said, _, patterns = line.partition(":")
    syllable, _, confidence = said.partition(" ")
    for pattern in patterns.split():
        for name, members in classes.items():
            pattern = pattern.replace(name, members)
        before, _, after = pattern.partition("~")
        after = after.replace("~", char)
        expression = (
            f"{before}(?P<here>{char})(?={after})" if after else f"{before}(?P<here>{char})"
        )
        yield _Rule(re.compile(expression), syllable, float(confidence or RULE))
