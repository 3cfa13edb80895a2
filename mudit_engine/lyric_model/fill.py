"""What every writer shares: which lines may stand where, and the embedded grammar filling a form.

rules = LineRules(form)                  draft = rules.empty()
rules.fault(draft, 0, 2, "晚风吹过旧时光")     None, or why the line may not stand there
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.lyric_model import embedded
from mudit_engine.lyric_model.form import Form
from mudit_engine.lyric_model.rhymes import line_syllables, rhyme_of
from mudit_engine.text.lyrics import parse_lyrics

# a character, a pair, ... that comes again at once: so often is a loop
_LOOP = re.compile(r"(.{1,4}?)\1{2,}")
_WORD_LOOP = re.compile(r"\b(\w+(?: \w+){0,2})(?: \1\b){2,}")

# sections -> lines, None where one is still to be written
Draft = list[list[str | None]]


@dataclass
class LineRules:
    """The rules of a form, held against a draft."""

    form: Form
    copies: tuple[int | None, ...] = field(init=False)
    groups: tuple[tuple[str | None, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        self.copies, self.groups = self.form.copies(), self.form.groups()

    def empty(self) -> Draft:
        """A draft with nothing written."""
        return [[None] * len(section.lines) for section in self.form.sections]

    def written(self, draft: Draft, *, but: tuple[int, int] | None = None) -> set[str]:
        """Lines that may not come again: all but copies and the one at `but`."""
        return {
            line
            for place, lines in enumerate(draft)
            if self.copies[place] is None
            for row, line in enumerate(lines)
            if line is not None and (place, row) != but
        }

    def classes(self, draft: Draft, section: int, line: int) -> tuple[str | None, set[str]]:
        """(class that the line has to end in, or None; classes that it must not end in)."""
        group = self.groups[section][line]
        if group is None:
            return None, set()
        wanted, others = None, set()
        for place, (names, lines) in enumerate(zip(self.groups, draft, strict=True)):
            if self.copies[place] is not None:
                continue
            for row, (name, text) in enumerate(zip(names, lines, strict=True)):
                if text is None or name is None or (place, row) == (section, line):
                    continue
                if name == group:
                    wanted = wanted or rhyme_of(text)
                elif place == section:
                    others.add(rhyme_of(text) or "")
        return wanted, others

    def fault(
        self, draft: Draft, section: int, line: int, text: str, *, rhyme: str | None = None
    ) -> str | None:
        """Why `text` may not stand at a place of the draft; None when it may. `rhyme` is a class
        that was asked for besides the group's.
        """
        low, high = self.form.sections[section].lines[line]
        count = line_syllables(text)
        if not low <= count <= high:
            asked = str(low) if low == high else f"{low} to {high}"
            return f"it has {count} syllables, not {asked}"
        if not reads_back(text):
            return "it does not read back as one line of words"
        if text in self.written(draft, but=(section, line)):
            return "the line is there already"
        if loops(text):
            return "it repeats itself"
        wanted, others = self.classes(draft, section, line)
        wanted = wanted or rhyme
        end = rhyme_of(text)
        if self.groups[section][line] is not None:
            if wanted is not None and end != wanted:
                return f"it ends in the rhyme class {end}, not {wanted}"
            if end is None or (end in others and end != wanted):
                return f"it ends in the rhyme class {end} of other lines"
        return None


def reads_back(text: str) -> bool:
    """Whether the parser of lyrics takes a line for exactly itself: no tag, no credit, no stamp."""
    try:
        lyrics = parse_lyrics(f"[verse]\n{text}\n")
    except InputError:
        return False
    [section, *more] = lyrics.sections
    return not more and not lyrics.notes and [line.text for line in section.lines] == [text]


def loops(text: str) -> bool:
    """Whether a line says the same thing three times on end."""
    pattern = _LOOP if not text.isascii() else _WORD_LOOP
    return pattern.search(text.lower()) is not None


def fill_by_grammar(
    form: Form, rng: np.random.Generator
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Sections written by the embedded grammar alone. Raises InputError where it cannot."""
    rules = LineRules(form)
    draft = rules.empty()
    for section, copy in enumerate(rules.copies):
        if copy is not None:
            draft[section] = list(draft[copy])
            continue
        for line in range(len(draft[section])):
            draft[section][line] = grammar_line(rules, draft, section, line, rng)
    return sections_of(form, draft)


def grammar_line(
    rules: LineRules,
    draft: Draft,
    section: int,
    line: int,
    rng: np.random.Generator,
    *,
    rhyme: str | None = None,
) -> str:
    """The embedded grammar's line for a place of a draft. Raises InputError."""
    language, part = rules.form.language, rules.form.sections[section]
    wanted, others = rules.classes(draft, section, line)
    wanted = wanted or rhyme
    known = [name for name in embedded.rhymes(language) if name not in others]
    if wanted is None and rules.groups[section][line] is not None:
        if not known:
            raise InputError(f"[{part.kind}] asks for more rhymes than the grammar has")
        wanted = known[int(rng.integers(len(known)))]
    low, high = part.lines[line]
    endings = (
        {text[-2:] for text in draft[section] if text}
        if language == "zh"
        else {text.split()[-1] for text in draft[section] if text}
    )

    def accept(text: str, *, strict: bool) -> bool:
        end = text[-2:] if language == "zh" else text.split()[-1]
        fresh = end not in endings or not strict
        return fresh and rules.fault(draft, section, line, text, rhyme=wanted) is None

    count = int(rng.integers(low, high + 1))
    draw = functools.partial(
        embedded.draw_line,
        rng,
        language=language,
        kind=part.kind,
        syllables=count,
        rhyme=wanted,
    )
    try:
        return draw(accept=functools.partial(accept, strict=True))
    except InputError:  # the same last word, rather than no line
        return draw(accept=functools.partial(accept, strict=False))


def sections_of(
    form: Form, draft: Sequence[Sequence[str | None]]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(kind, lines) of a finished draft."""
    return tuple(
        (section.kind, tuple(line for line in lines if line is not None))
        for section, lines in zip(form.sections, draft, strict=True)
    )
