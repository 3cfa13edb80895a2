"""The words that the tables of text/wish_tables.py know, written out, and what each is read as.

    table_words()["民谣"]        frozenset({("style", "folk")})

A pattern is taken apart as far as the tables go: alternatives, groups, optional parts and classes
of characters. What only looks around (a lookahead, a word boundary) adds no letters.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from mudit_engine.text import wish_tables as tables

Meaning = tuple[str, str]  # a property and its value


@dataclass(frozen=True)
class Near:
    """What stands at [start, end) of a text is no word of the tables, and nearly is `word`."""

    start: int
    end: int
    word: str


def _rows() -> list[tuple[str, str, str]]:
    """(property, value, pattern) of every row of every table."""
    rows = [("style", style, pattern) for style, pattern, _ in tables.STYLES]
    rows += [("style", style, pattern) for style, pattern in tables.SCENES]
    rows += [("voice", voice, pattern) for voice, pattern in tables.VOICES]
    rows += [("voice", "several", tables.SEVERAL_VOICES)]
    rows += [("tempo", f"{bpm:g}", pattern) for bpm, pattern in tables.TEMPO_NAMES]
    rows += [("tempo", "slow", tables.SLOW), ("tempo", "fast", tables.FAST)]
    rows += [("tempo", "medium", tables.MEDIUM)]
    rows += [("mood", mood, pattern) for mood, pattern in tables.MOODS]
    rows += [("drums", "on", tables.DRUMS), ("drums", "off", tables.NO_DRUMS)]
    rows += [("instruments", name, pattern) for name, pattern in tables.INSTRUMENTS]
    rows += [("metre", metre, pattern) for metre, pattern in tables.METRES]
    return rows


@functools.cache
def table_words() -> dict[str, frozenset[Meaning]]:
    """Every text that a row matches as a whole -> the (property, value) of those rows.

    Examples:
        >>> sorted(table_words()["electric guitar"])
        [('instruments', 'electric guitar')]
    """
    found: dict[str, set[Meaning]] = {}
    for name, value, pattern in _rows():
        for text in written_out(pattern):
            found.setdefault(text, set()).add((name, value))
    found.pop("", None)
    return {text: frozenset(meanings) for text, meanings in found.items()}


@functools.cache
def everyday_words() -> frozenset[str]:
    """Words of moods and scenes that no other table has: what everybody talks of, not only music.

    Examples:
        >>> "沙滩" in everyday_words(), "民谣" in everyday_words()
        (True, False)
    """
    everyday: set[str] = set()
    musical: set[str] = set()
    everyday_patterns = {pattern for _, pattern in (*tables.SCENES, *tables.MOODS)}
    for _, _, pattern in _rows():
        (everyday if pattern in everyday_patterns else musical).update(written_out(pattern))
    return frozenset(everyday - musical)


def written_out(pattern: str) -> set[str]:
    """The texts that a table's pattern matches; what repeats (`\\w*`) is left out.

    Examples:
        >>> sorted(written_out(r"慢(?:板|节?奏)?(?!车)|\\bcaf[eé]s?\\b"))
        ['cafe', 'cafes', 'café', 'cafés', '慢', '慢奏', '慢板', '慢节奏']
    """
    texts, place = _alternatives(pattern, 0)
    if place != len(pattern):
        raise ValueError(
            f"'{pattern[place:]}' closes a group that '{pattern[:place]}' does not open"
        )
    return texts


def _alternatives(pattern: str, place: int) -> tuple[set[str], int]:
    """(texts, place behind them) of alternatives, up to the end of their group."""
    texts, place = _sequence(pattern, place)
    while pattern[place : place + 1] == "|":
        more, place = _sequence(pattern, place + 1)
        texts |= more
    return texts, place


def _sequence(pattern: str, place: int) -> tuple[set[str], int]:
    texts = {""}
    while place < len(pattern) and pattern[place] not in "|)":
        part, place = _atom(pattern, place)
        after = pattern[place : place + 1]
        if after and after in "?*":
            part, place = ({*part, ""} if after == "?" else {""}), place + 1
        texts = {one + more for one in texts for more in part}
    return texts, place


def _atom(pattern: str, place: int) -> tuple[set[str], int]:
    start = pattern[place]
    if start == "\\":  # \b, \d and \w add no letter of their own
        return {" " if pattern[place + 1] == "s" else ""}, place + 2
    if start == "[":
        end = pattern.index("]", place)
        return set(pattern[place + 1 : end]), end + 1
    if start != "(":
        return {start}, place + 1
    kind = re.compile(r"\((?:\?(?::|<?[=!]))?").match(pattern, place)
    assert kind is not None
    texts, end = _alternatives(pattern, kind.end())
    return (texts if kind[0] in ("(", "(?:") else {""}), end + 1
