"""What became of every character of a song's text: sung, a tag, a pause, or left out for a reason.

The fates of a text, put one behind the other, are the text: nothing is lost and nothing is counted
twice. `lyrics check --json`, the file beside a song and training data hold them.

    fate = read_lyrics("[verse]\\n月亮 🎸").fates[-1]
    fate.text, fate.became, fate.detail        ('🎸', 'dropped', 'symbols cannot be sung')
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# What a character can become, the strongest first: where one character of the source made several,
# the strongest of their fates is its own.
KINDS = ("phonemes", "reading", "tag", "time", "repeat", "pause", "layer", "dropped", "line break")


@dataclass(frozen=True)
class Mark:
    """The fate of some characters of one line. `tokens`: (first, behind last) in the song's phoneme
    sequence, where they made some.
    """

    became: str
    detail: str
    tokens: tuple[int, int] | None = None
    layer: str | None = None


@dataclass(frozen=True)
class Fate:
    """A run of characters that share a mark. `line` and `column` count from 1."""

    line: int
    column: int
    text: str
    became: str
    detail: str
    tokens: tuple[int, int] | None = None
    layer: str | None = None

    def row(self) -> dict[str, Any]:
        """For JSON: fields that say nothing are left out."""
        row: dict[str, Any] = {
            "line": self.line,
            "column": self.column,
            "text": self.text,
            "became": self.became,
            "detail": self.detail,
        }
        if self.tokens is not None:
            row["tokens"] = list(self.tokens)
        if self.layer is not None:
            row["layer"] = self.layer
        return row


@functools.lru_cache(maxsize=256)
def joined(first: Mark, second: Mark) -> Mark:
    """The mark of a character that made the tokens of both."""
    assert first.tokens and second.tokens
    tokens = (min(first.tokens[0], second.tokens[0]), max(first.tokens[1], second.tokens[1]))
    detail = first.detail if second.detail in first.detail else f"{first.detail} {second.detail}"
    return Mark(first.became, detail, tokens, first.layer)


class LineMarks:
    """Marks of the characters of one source line."""

    def __init__(self, text: str, number: int) -> None:
        self.text = text
        self.number = number
        self.marks: list[Mark | None] = [None] * len(text)

    def set(self, columns: Iterable[int], mark: Mark) -> None:
        """Gives columns a mark; one that a column has already yields only to a stronger one, and
        two that made tokens are joined.
        """
        for column in columns:
            known = self.marks[column]
            if known is None or KINDS.index(mark.became) < KINDS.index(known.became):
                self.marks[column] = mark
            elif known.became == mark.became and known.tokens and mark.tokens:
                self.marks[column] = joined(known, mark)

    def reword(self, became: str, mark: Mark) -> None:
        """Gives all characters of one kind another mark."""
        self.marks = [mark if m and m.became == became else m for m in self.marks]

    def fates(self) -> Iterator[Fate]:
        """Runs of characters with the same mark; those without are left out."""
        start = 0
        for column in range(1, len(self.marks) + 1):
            if column == len(self.marks) or self.marks[column] is not self.marks[start]:
                mark = self.marks[start]
                if mark is not None:
                    yield Fate(
                        self.number,
                        start + 1,
                        self.text[start:column],
                        mark.became,
                        mark.detail,
                        mark.tokens,
                        mark.layer,
                    )
                start = column


def in_order(*parts: Iterable[Fate]) -> tuple[Fate, ...]:
    """All fates in the order of the source."""
    fates = [fate for part in parts for fate in part]
    return tuple(sorted(fates, key=lambda fate: (fate.line, fate.column)))


def counts(fates: Sequence[Fate]) -> dict[str, int]:
    """Characters by what they became, `characters` being all of them."""
    found = {"characters": sum(len(fate.text) for fate in fates)}
    for kind in KINDS:
        if number := sum(len(fate.text) for fate in fates if fate.became == kind):
            found[kind] = number
    return found
