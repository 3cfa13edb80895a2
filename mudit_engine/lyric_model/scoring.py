"""The paper's objective score of lyrics: how far they keep the form that was asked for.

    structure           10      it parses, and nothing had to be dropped (half: with notes)
    section sequence    32.5    1 - edit distance between the kinds asked and written / the longer
    line counts         17.5    share of the sections with as many lines as asked
    characters per line 20      share of the lines asked whose syllables are in range
    rhyme               20      share of the rhyming line ends in their group's largest class
    bonus               10      the share of lines that rhyme in their section is .6 to .8

Without a form only what the words alone tell is judged (structure, rhyme against the scheme,
bonus); the total is then of those points, scaled to 100.

    score_text(text, form=form).total
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mudit_engine.errors import InputError
from mudit_engine.lyric_model.form import Form
from mudit_engine.lyric_model.rhymes import line_syllables, rhyme_of
from mudit_engine.text.lyrics import Lyrics, parse_lyrics

POINTS = {
    "structure": 10.0,
    "section_sequence": 32.5,
    "line_counts": 17.5,
    "characters_per_line": 20.0,
    "rhyme": 20.0,
}
BONUS, BONUS_FROM, BONUS_TO = 10.0, 0.6, 0.8


@dataclass(frozen=True)
class Score:
    """Points of each part (None: not judged), the bonus, and the total (110 at most)."""

    parts: dict[str, float | None]
    bonus: float
    total: float
    rhyme_ratio: float
    lines: int
    fault: str | None = None


def score_text(text: str, *, form: Form | None = None, source: str = "lyrics") -> Score:
    """The score of a text as a model gave it; one that does not parse has none of the points."""
    try:
        lyrics = parse_lyrics(text, source=source)
    except InputError as error:
        return Score(dict.fromkeys(POINTS, 0.0), 0.0, 0.0, 0.0, 0, str(error))
    return score_lyrics(lyrics, form=form)


def score_lyrics(lyrics: Lyrics, *, form: Form | None = None) -> Score:
    """The score of parsed lyrics."""
    lines = [[line.text for line in section.lines] for section in lyrics.sections]
    ends = [[rhyme_of(line) for line in own] for own in lines]
    shares: dict[str, float | None] = {"structure": 0.5 if lyrics.notes else 1.0}
    if form is None:
        shares |= {"section_sequence": None, "line_counts": None, "characters_per_line": None}
        groups: Sequence[Sequence[str | None]] = [
            [f"{place}" for _ in own] for place, own in enumerate(ends)
        ]
    else:
        shares["section_sequence"] = _sequence(
            [section.kind for section in form.sections],
            [section.kind for section in lyrics.sections],
        )
        shares["line_counts"] = _mean(
            [
                place < len(lines) and len(lines[place]) == len(section.lines)
                for place, section in enumerate(form.sections)
            ]
        )
        shares["characters_per_line"] = _mean(
            [
                place < len(lines)
                and row < len(lines[place])
                and low <= line_syllables(lines[place][row]) <= high
                for place, section in enumerate(form.sections)
                for row, (low, high) in enumerate(section.lines)
            ]
        )
        groups = form.groups()
    shares["rhyme"] = _rhyme(groups, ends)
    ratio = rhyme_ratio(ends)
    parts = {
        name: None if share is None else round(POINTS[name] * share, 3)
        for name, share in ((name, shares[name]) for name in POINTS)
    }
    bonus = BONUS if BONUS_FROM <= ratio <= BONUS_TO else 0.0
    judged = {name: points for name, points in parts.items() if points is not None}
    total = 100 * sum(judged.values()) / sum(POINTS[name] for name in judged) + bonus
    return Score(parts, bonus, round(total, 3), round(ratio, 4), sum(map(len, lines)))


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 1.0


def _sequence(asked: Sequence[str], written: Sequence[str]) -> float:
    row = list(range(len(written) + 1))
    for i, one in enumerate(asked, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(written, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return 1 - row[-1] / max(len(asked), len(written), 1)


def _rhyme(
    groups: Sequence[Sequence[str | None]], ends: Sequence[Sequence[str | None]]
) -> float | None:
    """Share of the line ends of groups of two and more that are in the group's largest class."""
    found: dict[str, list[str | None]] = {}
    for place, own in enumerate(groups):
        for row, name in enumerate(own):
            if name is not None:
                written = place < len(ends) and row < len(ends[place])
                found.setdefault(name, []).append(ends[place][row] if written else None)
    total = hits = 0
    for classes in found.values():
        if len(classes) > 1:
            counts = Counter(name for name in classes if name is not None)
            total += len(classes)
            most = max(counts.values(), default=0)
            hits += most if most > 1 else 0
    return hits / total if total else 1.0


def rhyme_ratio(ends: Sequence[Sequence[str | None]]) -> float:
    """Share of all lines whose end rhymes with another line of their section."""
    total = sum(map(len, ends))
    rhyming = 0
    for own in ends:
        counts = Counter(name for name in own if name is not None)
        rhyming += sum(count for count in counts.values() if count > 1)
    return rhyming / total if total else 0.0
