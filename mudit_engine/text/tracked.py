"""Text that remembers where in the source each of its characters stood, through cutting, joining
and Unicode normalisation.

    line = Tracked.of("cafe\\u0301  noir").normalised("NFC").collapsed()
    line.text, line.spans[3]        ('café noir', (3, 4))
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Span = tuple[int, ...]  # columns of the source, from 0


@dataclass(frozen=True)
class Tracked:
    """`spans[i]` are the columns of the source that made `text[i]`; several characters can come
    from one (½) and one from several (e and its accent).
    """

    text: str
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, text: str) -> Tracked:
        """A source line as it is."""
        return cls(text, tuple((place,) for place in range(len(text))))

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, part: slice) -> Tracked:
        return Tracked(self.text[part], self.spans[part])

    def __add__(self, other: Tracked) -> Tracked:
        return Tracked(self.text + other.text, self.spans + other.spans)

    def columns(self, start: int = 0, end: int | None = None) -> Iterator[int]:
        """Source columns of text[start:end], each once for every character that it made."""
        for span in self.spans[start:end]:
            yield from span

    def without(self, start: int, end: int) -> Tracked:
        """The text with text[start:end] taken out."""
        return self[:start] + self[end:]

    def kept(self, keep: Callable[[str], bool]) -> Tracked:
        """Only the characters for which `keep` is true."""
        pairs = [pair for pair in zip(self.text, self.spans, strict=True) if keep(pair[0])]
        return Tracked("".join(char for char, _ in pairs), tuple(span for _, span in pairs))

    def mapped(self, replace: Callable[[str], str]) -> Tracked:
        """Every character replaced by none, one or several."""
        parts = [replace(char) for char in self.text]
        spans = [
            span for part, span in zip(parts, self.spans, strict=True) for _ in range(len(part))
        ]
        return Tracked("".join(parts), tuple(spans))

    def stripped(self, chars: str | None = None) -> Tracked:
        """Without blanks (or the given characters) at both ends."""
        start = len(self.text) - len(self.text.lstrip(chars))
        return self[start : max(start, len(self.text.rstrip(chars)))]

    def collapsed(self) -> Tracked:
        """Every run of blanks one space; none at the ends."""
        pieces = [self[match.start() : match.end()] for match in re.finditer(r"\S+", self.text)]
        starts = [match.start() for match in re.finditer(r"\S+", self.text)]
        text = " ".join(piece.text for piece in pieces)
        spans: list[Span] = []
        for piece, start in zip(pieces, starts, strict=True):
            if spans:
                spans.append(self.spans[start - 1])
            spans += piece.spans
        return Tracked(text, tuple(spans))

    def normalised(self, form: str, *, shared: bool = False) -> Tracked:
        """In a Unicode normal form.

        What was composed spans all that it is made of. Of several characters made of the same ones
        the first spans them, or with `shared` each.
        """
        if unicodedata.is_normalized(form, self.text):  # type: ignore[arg-type]
            return self
        text = _normal(form, self.text)
        clusters = list(_clusters(self.text))
        parts = [_normal(form, self.text[start:end]) for start, end in clusters]
        if "".join(parts) != text:  # marks that compose across letters: rare outside of India
            clusters, parts = [(0, len(self.text))], [text]
        spans: list[Span] = []
        for (start, end), part in zip(clusters, parts, strict=True):
            whole = tuple(self.columns(start, end))
            if part == self.text[start:end]:
                spans += self.spans[start:end]
            elif shared:
                spans += [whole] * len(part)
            elif part:
                spans += [whole, *[()] * (len(part) - 1)]
        return Tracked(text, tuple(spans))


def _normal(form: str, text: str) -> str:
    return unicodedata.normalize(form, text)  # type: ignore[arg-type]


def _clusters(text: str) -> Iterator[Span]:
    """Runs of a letter and what composes with it: marks, Korean vowels and finals."""
    start = 0
    for place in range(1, len(text) + 1):
        if place == len(text) or not (
            unicodedata.combining(text[place])
            or "\u1160" <= text[place] <= "\u11ff"
            or text[place] in "\uff9e\uff9f"
        ):
            yield start, place
            start = place
