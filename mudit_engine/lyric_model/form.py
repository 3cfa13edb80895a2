"""What a writer of lyrics is asked for: sections in order, lines of a section, syllables of a line,
and which line ends rhyme.

    verse:4x7       four lines of seven syllables       chorus:4x7/5   seven and five in turn
    verse:4x6-8     six to eight syllables              intro          played, no words

    AABA    letters name the lines of a section that rhyme (repeated over longer sections)
    one     all lines of the song rhyme                         free           none has to

A section that comes again with the same name and the same lines is the same words again when it is
a chorus or a hook. The paper writes a form as one letter a character, R where a line end rhymes:
`(verse)\\ncccccR`; `notation` does.

    form = parse_form("verse:4x7,chorus:4x5", rhyme="AABA", language="zh")
    form.notation()         "(verse)\\nccccccR\\n..."
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mudit_engine.errors import InputError
from mudit_engine.text.lyrics import Lyrics
from mudit_engine.text.sections import INSTRUMENTAL_KINDS, KINDS, near_miss, read_tag

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
REPEATED_KINDS = frozenset(("chorus", "post-chorus", "hook"))
MOST_LINES, MOST_SYLLABLES = 32, 24  # of a section; of a line
DEFAULT_RHYME = "AABA"
_PART = re.compile(r"\s*([^:]+?)\s*(?::\s*(\d+)\s*[x×*]\s*([\d\-/\s]+))?\s*")
_LENGTH = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class SectionForm:
    """One section: `lines` has the least and the most syllables of each sung line; none: it is
    played.
    """

    kind: str
    lines: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        if not self.lines:
            return self.kind
        texts = [str(low) if low == high else f"{low}-{high}" for low, high in self.lines]
        for period in range(1, len(texts) + 1):
            if all(text == texts[place % period] for place, text in enumerate(texts)):
                break
        return f"{self.kind}:{len(texts)}x{'/'.join(texts[:period])}"


@dataclass(frozen=True)
class Form:
    """A whole song's form. `rhyme` is letters, `one` or `free`."""

    sections: tuple[SectionForm, ...]
    rhyme: str = DEFAULT_RHYME
    language: Language = "zh"

    def __str__(self) -> str:
        return ",".join(map(str, self.sections))

    @property
    def structure(self) -> str:
        """The text that `parse_form` takes back."""
        return str(self)

    def copies(self) -> tuple[int | None, ...]:
        """For each section the earlier one whose words it repeats, or None."""
        first: dict[SectionForm, int] = {}
        found: list[int | None] = []
        for place, section in enumerate(self.sections):
            repeats = section.kind in REPEATED_KINDS and section in first and bool(section.lines)
            found.append(first[section] if repeats else None)
            first.setdefault(section, place)
        return tuple(found)

    def groups(self) -> tuple[tuple[str | None, ...], ...]:
        """For each line of each section the name of its rhyme group, None where it is free.

        Lines of one group share a rhyme class; groups of one section have different ones.
        """
        return tuple(
            tuple(self._group(place, line) for line in range(len(section.lines)))
            for place, section in enumerate(self.sections)
        )

    def _group(self, section: int, line: int) -> str | None:
        if self.rhyme == "free":
            return None
        if self.rhyme == "one":
            return "one"
        earlier = self.copies()[section]
        letter = self.rhyme[line % len(self.rhyme)]
        return f"{section if earlier is None else earlier}{letter}"

    def rhyming(self) -> tuple[tuple[bool, ...], ...]:
        """For each line whether another line has to rhyme with it (R in the paper's notation)."""
        sizes = Counter(
            name
            for own, copy in zip(self.groups(), self.copies(), strict=True)
            if copy is None
            for name in own
            if name is not None
        )
        return tuple(
            tuple(name is not None and sizes[name] > 1 for name in own) for own in self.groups()
        )

    def notation(self) -> str:
        """The paper's notation: a letter a syllable (c: a character, s: an English syllable), R for
        a line end that rhymes.
        """
        letter = "c" if self.language == "zh" else "s"
        blocks = []
        for section, rhyming in zip(self.sections, self.rhyming(), strict=True):
            rows = [
                letter * (high - 1) + ("R" if rhymes else letter)
                for (_, high), rhymes in zip(section.lines, rhyming, strict=True)
            ]
            blocks.append("\n".join([f"({section.kind})", *rows]))
        return "\n".join(blocks)


def parse_rhyme(text: str) -> str:
    """A rhyme scheme in its canonical spelling. Raises InputError."""
    plain = text.strip()
    if plain.lower() in ("one", "free"):
        return plain.lower()
    if plain and plain.isascii() and plain.isalpha() and len(plain) <= MOST_LINES:
        return plain.upper()
    raise InputError(
        f"rhyme {text!r} is no scheme: give letters for the lines of a section (AABA, ABAB, AABB), "
        f"'one' for one rhyme through the song, or 'free'"
    )


def parse_form(text: str, *, rhyme: str = DEFAULT_RHYME, language: Language = "zh") -> Form:
    """A form of lyrics as it is written on the command line.

    Args:
        text: parts such as "verse:4x7" (four lines of seven syllables), "chorus:4x7/5" (lengths in
            turn), "bridge:2x8-9" (a range), or "outro" alone for a section that is played.
        rhyme: letters for the lines of a section, "one" for the song, or "free".
        language: "zh" or "en".

    Returns:
        The form.

    Raises:
        InputError: naming the part that cannot be read.

    Examples:
        >>> form = parse_form("verse:4x7,chorus:2x5,outro")
        >>> [section.kind for section in form.sections]
        ['verse', 'chorus', 'outro']
    """
    sections = []
    for part in filter(None, (piece.strip() for piece in re.split(r"[,，;]", text))):
        match = _PART.fullmatch(part)
        if match is None:
            raise InputError(
                f"structure part {part!r}: write NAME:LINESxSYLLABLES, as in verse:4x7, "
                f"chorus:4x7/5 or bridge:2x8-9; a played section has its name alone"
            )
        tag = read_tag(match[1])
        if tag is None:
            meant = near_miss(match[1])
            hint = f", did you mean {meant.strip('[]')}?" if meant else ""
            raise InputError(
                f"structure part {part!r}: unknown section {match[1]!r}{hint} Known are "
                f"{', '.join(KINDS)}"
            )
        if match[2] is None:
            if tag.kind not in INSTRUMENTAL_KINDS:
                raise InputError(
                    f"structure part {part!r}: say how many lines of how many syllables it has, "
                    f"as in {tag.kind}:4x7"
                )
            sections.append(SectionForm(tag.kind))
            continue
        sections.append(SectionForm(tag.kind, _lines(part, int(match[2]), match[3])))
    if not any(section.lines for section in sections):
        raise InputError(
            f"structure {text!r} has no line to sing: write at least one part such as verse:4x7"
        )
    return Form(tuple(sections), parse_rhyme(rhyme), language)


def _lines(part: str, count: int, lengths: str) -> tuple[tuple[int, int], ...]:
    if not 1 <= count <= MOST_LINES:
        raise InputError(
            f"structure part {part!r}: a section has 1 to {MOST_LINES} lines, not {count}"
        )
    found = []
    for piece in lengths.replace(" ", "").split("/"):
        match = _LENGTH.fullmatch(piece)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high <= MOST_SYLLABLES:
            raise InputError(
                f"structure part {part!r}: {piece!r} is no length of a line: 1 to "
                f"{MOST_SYLLABLES} syllables, or a range as 6-8"
            )
        found.append((low, high))
    return tuple(found[place % len(found)] for place in range(count))


# Sections and line counts from short to long; the longest that fits the seconds is taken.
_LADDER: tuple[tuple[tuple[str, int], ...], ...] = (
    (("chorus", 2),),
    (("verse", 2), ("chorus", 2)),
    (("verse", 4), ("chorus", 2)),
    (("verse", 4), ("chorus", 4)),
    (("verse", 4), ("pre-chorus", 2), ("chorus", 4)),
    (("verse", 4), ("chorus", 4), ("verse", 4)),
    (("verse", 4), ("chorus", 4), ("bridge", 2), ("chorus", 4)),
    (("verse", 4), ("chorus", 4), ("verse", 4), ("chorus", 4)),
    (("verse", 4), ("chorus", 4), ("verse", 4), ("bridge", 2), ("chorus", 4)),
    (("verse", 4), ("chorus", 4), ("verse", 4), ("chorus", 4), ("bridge", 2), ("chorus", 4)),
    (
        ("intro", 0), ("verse", 4), ("pre-chorus", 2), ("chorus", 4), ("verse", 4),
        ("chorus", 4), ("bridge", 2), ("chorus", 4), ("outro", 0),
    ),
    (
        ("intro", 0), ("verse", 4), ("verse", 4), ("pre-chorus", 2), ("chorus", 4),
        ("interlude", 0), ("verse", 4), ("pre-chorus", 2), ("chorus", 4), ("bridge", 4),
        ("chorus", 4), ("outro", 0),
    ),
    (
        ("intro", 0), ("verse", 8), ("pre-chorus", 4), ("chorus", 4), ("interlude", 0),
        ("verse", 8), ("pre-chorus", 4), ("chorus", 4), ("bridge", 4), ("chorus", 4),
        ("outro", 0),
    ),
    (
        ("intro", 0), ("verse", 8), ("pre-chorus", 4), ("chorus", 8), ("interlude", 0),
        ("verse", 8), ("pre-chorus", 4), ("chorus", 8), ("solo", 0), ("bridge", 4),
        ("chorus", 8), ("outro", 0),
    ),
)  # fmt: skip
_USUAL = {"zh": {"verse": 7, "chorus": 7, "bridge": 7}, "en": {"verse": 8, "chorus": 7}}
DEFAULT_SECONDS = 60.0
USUAL_BPM = 100.0  # where a request says no tempo


def default_form(
    seconds: float = DEFAULT_SECONDS,
    *,
    rhyme: str = DEFAULT_RHYME,
    language: Language = "zh",
    bpm: float = USUAL_BPM,
) -> Form:
    """The longest usual form that is sung comfortably in `seconds`; shorter lines where even the
    shortest one is too long. Raises InputError for a length that is no positive number.
    """
    if not 0 < seconds < float("inf"):
        raise InputError(f"a song cannot last {seconds} seconds: give a positive number")
    best = _usual_form(_LADDER[0], 4, rhyme, language)
    for syllables in (None, 6, 5):
        for ladder in _LADDER:
            form = _usual_form(ladder, syllables, rhyme, language)
            if sung_seconds(form, bpm=bpm) <= seconds:
                best = form
        if sung_seconds(best, bpm=bpm) <= seconds:
            break
    return best


def _usual_form(
    ladder: Sequence[tuple[str, int]], syllables: int | None, rhyme: str, language: Language
) -> Form:
    usual = _USUAL[language]
    return Form(
        tuple(
            SectionForm(kind, ((length, length),) * lines)
            for kind, lines in ladder
            for length in (syllables or usual.get(kind, 7),)
        ),
        parse_rhyme(rhyme),
        language,
    )


def sung_seconds(form: Form, *, bpm: float = USUAL_BPM) -> float:
    """Seconds that the form's longest lines take at a tempo, as the engine plans them."""
    from mudit_engine.text.length import planned_seconds
    from mudit_engine.text.lyrics import LyricLine, Section
    from mudit_engine.text.phonemes import phonemize

    placeholder = tuple(
        Section(section.kind, None, tuple(LyricLine("啦" * high) for _, high in section.lines))
        for section in form.sections
    )
    return planned_seconds(phonemize(Lyrics(placeholder)), bpm=bpm)


def form_of(lyrics: Lyrics, *, rhyme: str = DEFAULT_RHYME, language: Language = "zh") -> Form:
    """The form that written lyrics have, line by line."""
    from mudit_engine.lyric_model.rhymes import line_syllables

    sections = []
    for section in lyrics.sections:
        counts = [line_syllables(line.text) for line in section.lines]
        sections.append(SectionForm(section.kind, tuple((count, count) for count in counts)))
    return Form(tuple(sections), parse_rhyme(rhyme), language)
