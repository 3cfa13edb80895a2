"""Lyrics as people write them -> sections of lines.

Tags: a whole line in [ ] < > { } or 【 】 is a tag, or a stage direction, which is dropped with a
note ([soft harmonica at dawn]); what nearly is a tag is an error. A line in ( ), 《 》, ** ** or
with no brackets is a tag only when it names a section: `(ooh yeah)` is sung. A tag may be followed
by words on its own line. LRC time stamps are kept: a line starts at its time. Dropped, and told in
`notes`: LRC headers, credits (作词：...), singer labels (男：...), names inside a tag. `(x2)`
behind a line writes it twice. Every character of the text is accounted for (text/accounting.py).

    parse_lyrics("[verse]\\n月亮落在海面上").sections[0].lines[0].text
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mudit_engine.errors import InputError
from mudit_engine.text import lrc
from mudit_engine.text.accounting import Fate, LineMarks, Mark
from mudit_engine.text.sections import (
    INSTRUMENTAL_KINDS,
    KINDS,
    Tag,
    accepted,
    near_miss,
    read_bare,
    read_described,
    read_soft,
    read_tag,
)
from mudit_engine.text.tracked import Span, Tracked

# More is no song: the longest of rap songs have some 10,000 characters.
MOST_CHARACTERS, MOST_CHARACTERS_OF_A_LINE = 50_000, 2_000
MOST_ERRORS = 20  # named at once

_STRICT = {"[": "]", "<": ">", "{": "}", "【": "】", "〔": "〕", "〖": "〗"}
_SOFT = {"(": ")", "《": "》", "〈": "〉", "「": "」", "『": "』"}
_FULL_WIDTH = str.maketrans("［］＜＞｛｝（）：", "[]<>{}():")
_ORNAMENT = "*#=~_ \t-\u2013\u2014"
_CREDIT = re.compile(
    r"(?:作?词|作?曲|作?詞|编曲|編曲|词曲|詞曲|作词作曲|制作人?|製作人?|监制|監製|混音|母带|母帶|录音|錄音|原唱|演唱|歌手|专辑|"
    r"專輯|出品|发行|發行|歌名|标题|"
    r"lyrics(?: by)?|music(?: by)?|written by|composed by|produced by|arranged "
    r"by|composer|lyricist|producer|arranger|artist|title|album|"
    r"singer)"
    r"\s*[:：](?!//).*",
    re.IGNORECASE,
)
_SINGER = re.compile(
    r"(?:男女?|女男?|合唱?|齐|齊|全体|全體|童声|童聲|男声|男聲|女声|女聲|和声|和聲|male|female|both|all|duet|boy|girl)\d?\s*[:：]\s*",
    re.IGNORECASE,
)
_REPEAT = re.compile(
    r"\s*(?:[(（\[【]\s*(?:[x×*]\s*([2-8])|([2-8])\s*[x×])\s*[)）\]】]|\s[x×]\s?([2-8])|×\s?([2-8]))\s*$",
    re.IGNORECASE,
)


# Behind a character or word: its reading (text/phonemes.py), which has a tone or a stress.
_READING = re.compile(r"(?<=[^\W\d_])\[(?=[^\[\]]*[0-5\u00e0-\u01dc])[\w\s:]+\]")
_BRACKETS = re.compile(r"[\[【［]([^\[\]【】［］]*)[\]】］]")


@dataclass(frozen=True)
class LyricLine:
    """One sung line. `start`: seconds at which it begins, if the lyrics say so.

    Not compared: `number` is its line in the source, from 1, `source` that line as it stands there,
    and `spans` the columns of each character of `text` in it.
    """

    text: str
    number: int = field(default=0, compare=False)
    start: float | None = None
    source: str = field(default="", compare=False, repr=False)
    spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)

    def tracked(self) -> Tracked:
        """The text with its columns in the source."""
        return Tracked(self.text, self.spans) if self.spans else Tracked.of(self.text)


@dataclass(frozen=True)
class Section:
    """A part of the song. `kind` is one of sections.KINDS; a section with no line is played, not
    sung.
    """

    kind: str
    index: int | None = None
    lines: tuple[LyricLine, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"section kind {self.kind!r} is unknown: use one of {', '.join(KINDS)}"
            )


@dataclass(frozen=True)
class Lyrics:
    """A song's sections. Not compared: `notes` tell the user what was read otherwise than written,
    `fates` what became of the characters that are not in a line (text/accounting.py).
    """

    sections: tuple[Section, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)
    fates: tuple[Fate, ...] = field(default=(), compare=False, repr=False)

    @property
    def instrumental(self) -> bool:
        """True when no section has a line."""
        return not any(section.lines for section in self.sections)

    @property
    def timed(self) -> bool:
        """True when a line says when it starts."""
        return any(line.start is not None for section in self.sections for line in section.lines)


def parse_lyrics(text: str, *, source: str = "lyrics", ignore_times: bool = False) -> Lyrics:
    """Sections and sung lines of lyrics as people write them.

    Args:
        text: lyrics with a tag above each section (mudit_engine/text/sections.py knows the names).
        source: names the text in messages.
        ignore_times: drops LRC time stamps; otherwise a line is sung at its stamp.

    Returns:
        The sections in order, with `notes` on what was read otherwise than written.

    Raises:
        InputError: naming every line with an unknown or unclosed tag; for text with neither a line
            nor a section, or too long to be a song; for binary data.

    Examples:
        >>> song = parse_lyrics("[verse]\\n月亮升起来\\n[Chorus 2]\\nhome tonight")
        >>> [(section.kind, section.index) for section in song.sections]
        [('verse', None), ('chorus', 2)]
        >>> song.sections[1].lines[0].text
        'home tonight'
    """
    lyrics, errors = scan_lyrics(text, source=source, ignore_times=ignore_times)
    raise_errors(errors)
    return lyrics


def scan_lyrics(
    text: str, *, source: str = "lyrics", ignore_times: bool = False
) -> tuple[Lyrics, list[str]]:
    """As `parse_lyrics`, with what is wrong beside what could be read. Raises InputError for what
    is no text of a song at all.
    """
    if "\0" in text:
        raise InputError(
            f"{source} holds NUL characters, so it is no plain text: save the lyrics as a UTF-8 "
            f"text file"
        )
    if len(text) > MOST_CHARACTERS:
        raise InputError(
            f"{source} holds {len(text):,} characters: at most {MOST_CHARACTERS:,} are read as one "
            f"song. Give each song a file of its own"
        )
    reader = _Reader(source, ignore_times)
    for number, line in enumerate(_lines_of(text), start=1):
        reader.line(line, number)
    return reader.lyrics(), reader.errors


def raise_errors(errors: Iterable[str]) -> None:
    """Raises one InputError that holds all messages, the first MOST_ERRORS in full."""
    errors = list(errors)
    if len(errors) > MOST_ERRORS:
        more = len(errors) - MOST_ERRORS
        errors = [*errors[:MOST_ERRORS], f"and {more} more such {'line' if more == 1 else 'lines'}"]
    if errors:
        raise InputError("\n".join(errors))


def _lines_of(text: str) -> list[str]:
    """Lines with their endings; a text that ends with one has an empty line behind it."""
    pieces = re.split(r"(\r\n|\r|\n)", text)
    ends = [*pieces[1::2], ""]
    return [line + end for line, end in zip(pieces[::2], ends, strict=True)]


def format_lyrics(lyrics: Lyrics) -> str:
    """Canonical text: one tag a section, a blank line between sections, time stamps where a line
    has its start. `parse_lyrics(format_lyrics(x)) == x` for a parsed x.
    """
    blocks = []
    for section in lyrics.sections:
        tag = section.kind if section.index is None else f"{section.kind} {section.index}"
        lines = (lrc.stamp(line.start) + line.text for line in section.lines)
        blocks.append("\n".join([f"[{tag}]", *lines]))
    return "\n\n".join(blocks) + "\n"


@dataclass
class _Part:
    """A section while it is read. `number`: the line of its tag."""

    tag: Tag
    number: int
    lines: list[LyricLine]


class _Reader:
    """State of one parse: the sections so far and what is to be told about them."""

    def __init__(self, source: str, ignore_times: bool) -> None:
        self.source = source
        self.ignore_times = ignore_times
        self.offset = 0.0  # seconds that an LRC header takes off every stamp
        self.parts: list[_Part] = []
        self.notes: list[str] = []
        self.errors: list[str] = []
        self.dropped: dict[str, list[int]] = {}
        self.fates: list[Fate] = []
        self.repeats: list[LyricLine] = []  # at further times

    def line(self, source: str, number: int) -> None:
        """Takes one source line apart until only words are left; what remains reads the same when
        it is parsed again.
        """
        self.number, self.marks = number, LineMarks(source, number)
        self.starts: list[float] = []  # stamps before the words
        text = source.rstrip("\r\n")
        self.marks.set(range(len(text), len(source)), Mark("line break", "line break"))
        if len(text) > MOST_CHARACTERS_OF_A_LINE:
            self.error(
                f"{text[:20]!r}... has {len(text):,} characters: a line to sing has at most "
                f"{MOST_CHARACTERS_OF_A_LINE:,}. Break it into lines"
            )
            self.marks.set(range(len(text)), Mark("dropped", "an error: the line is too long"))
        elif text:
            self.take_apart(Tracked.of(text))
        self.fates += self.marks.fates()

    def take_apart(self, line: Tracked) -> None:
        times, started = 1, len(self.parts)
        line = self.clean(line)
        while line.text:
            before = line
            if repeat := _REPEAT.search(line.text):
                count = int(next(group for group in repeat.groups() if group))
                times = min(times * count, 8)
                line = self.cut(line, repeat.start(), len(line), "repeat", f"sung {times} times")
                if not line.text:
                    self.note(
                        f"'{repeat[0].strip()}' stands alone and is dropped: write out what is "
                        f"sung again"
                    )
            elif (tagged := self.leading(line)) is not None:
                line = tagged
            elif _CREDIT.fullmatch(line.text):
                self.drop("credits")
                self.cut(line, 0, len(line), "dropped", "credits")
                return
            elif label := _SINGER.match(line.text):
                self.drop("singer labels")
                line = self.cut(line, 0, label.end(), "dropped", "singer label")
            elif (inside := self.inside(line)) is not None:
                line = inside
            else:
                break
            line = self.clean(line)
            assert line.text != before.text
        if line.text:
            self.sing(line, times=times)
            return
        if self.starts:
            self.drop("time stamps without words")
            self.marks.reword("time", Mark("dropped", "time stamp without words"))
        if times > 1 and len(self.parts) > started:
            self.note("a section is not repeated by its tag: write it again to have it sung again")

    def sing(self, line: Tracked, *, times: int) -> None:
        if times > 1:
            self.note(f"the repeat mark is read as: sing this line {times} times")
        if not self.parts:
            self.note("words before any tag are sung as a [verse]")
            self.parts.append(_Part(Tag("verse"), self.number, []))
        start = self.starts[0] if self.starts else None
        later, self.starts = self.starts[1:], []
        sung = LyricLine(line.text, self.number, start, self.marks.text, line.spans)
        again = replace(sung, start=None)
        self.parts[-1].lines.extend([sung, *[again] * (times - 1)])
        self.repeats += [replace(sung, start=time) for time in later]

    def clean(self, line: Tracked) -> Tracked:
        """Without time stamps, LRC headers, control characters and doubled blanks, in NFC."""
        before = None
        while line != before:
            before = line
            kept = line.kept(
                lambda char: char.isspace() or unicodedata.category(char) not in ("Cc", "Cf")
            )
            self.left_out(line, kept, "an invisible character")
            line = kept.normalised("NFC").collapsed()
            self.left_out(kept, line, "a blank too many")
            while match := lrc.HEADER.search(line.text):
                self.offset = lrc.offset(match[0], self.offset)
                self.drop("LRC headers")
                line = self.cut(line, match.start(), match.end(), "dropped", "LRC header")
            if self.ignore_times and lrc.asks_for_repeats(line.text):
                self.note(
                    "several time stamps ask for repeats, but it is sung once, where it stands"
                )
            while match := lrc.STAMP.search(line.text):
                line = self.stamp(line, match)
        return line

    def stamp(self, line: Tracked, match: re.Match[str]) -> Tracked:
        """Takes a time stamp out; one before the words is the line's start."""
        start = lrc.seconds(match[0], self.offset)
        words_before = lrc.STAMP.sub("", line.text[: match.start()]).strip()
        if self.ignore_times or start is None or words_before:
            inner = start is None or bool(words_before)
            self.drop("times of words" if inner and not self.ignore_times else "time stamps")
            return self.cut(line, match.start(), match.end(), "dropped", "time stamp")
        self.starts.append(start)
        return self.cut(line, match.start(), match.end(), "time", f"starts at {start:g} s")

    def leading(self, line: Tracked) -> Tracked | None:
        """The line behind a tag or a direction that it begins with; None for a line of words."""
        found = _leading_tag(line.text)
        if found is None:
            return None
        tag, written, end = found
        if tag is not None:
            return self.open(tag, line, 0, end)
        if written is None:
            self.error(
                f"{line.text[:40]!r} opens a tag and does not close it: add "
                f"{_STRICT[line.text.translate(_FULL_WIDTH).lstrip(_ORNAMENT)[0]]!r}"
            )
            return self.cut(line, 0, len(line), "dropped", "an error: a tag that is not closed")
        return self.direction(written, line, 0, end)

    def inside(self, line: Tracked) -> Tracked | None:
        """What is left of a line with a tag or a direction among its words.

        What stands before a tag is a line of its own, in the section before it.
        """
        readings = {match.start() for match in _READING.finditer(line.text)}
        directions = []
        for match in _BRACKETS.finditer(line.text):
            if match.start() in readings or match.start() == 0:
                continue
            tag = read_tag(match[1])
            if tag is None and not near_miss(match[1]):
                tag = read_described(match[1])
            if tag is None:
                directions.append(match)
                continue
            if directions:  # first these, then the tag
                break
            before = line[: match.start()].stripped()
            self.left_out(line[: match.start()], before, "a blank too many")
            self.take_apart(before)
            return self.open(tag, line[match.start() :], 0, match.end() - match.start())
        left = line
        for match in reversed(directions):
            left = self.direction(match[0], left, match.start(), match.end())
        return left if directions else None

    def open(self, tag: Tag, line: Tracked, start: int, end: int) -> Tracked:
        for extra in tag.extras:
            advice = "singers, instruments and moods belong in the description"
            self.note(f"'{extra}' in the tag [{tag.kind}] is dropped: {advice}")
        self.parts.append(_Part(tag, self.number, []))
        return self.cut(line, start, end, "tag", tag.kind)

    def direction(self, written: str, line: Tracked, start: int, end: int) -> Tracked:
        """Words in brackets that are no tag: dropped, unless a tag was nearly written."""
        meant = near_miss(written[1:-1])
        if meant is None and (tag := read_described(written[1:-1])):
            return self.open(tag, line, start, end)
        if meant is None:
            self.note(f"'{written}' is taken for a stage direction and is not sung")
            return self.cut(line, start, end, "dropped", "stage direction")
        self.error(
            f"unknown section tag {written!r}: did you mean {meant}? Accepted are {accepted()}. "
            f"Backing vocals go in ( )"
        )
        return self.cut(line, start, end, "dropped", "an error: a tag that is unknown")

    def cut(self, line: Tracked, start: int, end: int, became: str, detail: str) -> Tracked:
        """The line without what now has this mark."""
        self.marks.set(line.columns(start, end), Mark(became, detail))
        return line.without(start, end)

    def left_out(self, before: Tracked, after: Tracked, detail: str) -> None:
        if before.spans != after.spans:
            left = set(before.columns()) - set(after.columns())
            self.marks.set(left, Mark("dropped", detail))

    def note(self, what: str) -> None:
        self.notes.append(f"line {self.number}: {what}")

    def error(self, what: str) -> None:
        self.errors.append(f"{self.source}, line {self.number}: {what}")

    def drop(self, what: str) -> None:
        lines = self.dropped.setdefault(what, [])
        if self.number not in lines:
            lines.append(self.number)

    def place_repeats(self) -> None:
        """Lines with several stamps are sung at each, behind what is sung before it."""
        for line in sorted(self.repeats, key=lambda repeat: repeat.start or 0.0):
            places = [
                (part, place)
                for part in self.parts
                for place, other in enumerate(part.lines)
                if other.start is not None and other.start <= (line.start or 0.0)
            ]
            part, place = places[-1]
            part.lines.insert(place + 1, line)

    def lyrics(self) -> Lyrics:
        fates = tuple(self.fates)
        if not self.parts:
            if self.errors:
                return Lyrics((), tuple(self.notes), fates)
            what = (
                f"holds nothing to sing besides {' and '.join(self.dropped)}"
                if self.dropped
                else "holds nothing to sing besides stage directions"
                if self.notes
                else "is empty"
            )
            raise InputError(
                f"{self.source} {what}: write at least one line, or ask for an instrumental with "
                f"the single tag [inst]"
            )
        self.place_repeats()
        notes = [
            f"{what} are dropped ({_lines(numbers)})" for what, numbers in self.dropped.items()
        ] + self.notes
        sections = tuple(
            Section(part.tag.kind, part.tag.index, tuple(part.lines)) for part in self.parts
        )
        if any(part.lines for part in self.parts):
            notes += [
                f"line {part.number}: [{part.tag.kind}] has no words, so it is played, not sung: "
                f"write them out if they should be sung"
                for part in self.parts
                if not part.lines and part.tag.kind not in INSTRUMENTAL_KINDS
            ]
        return Lyrics(sections, tuple(notes), fates)


def _leading_tag(text: str) -> tuple[Tag | None, str | None, int] | None:
    """(tag, what was written, where it ends) of a line that begins with a tag.

    The tag is None for words in brackets that name no section; then what was written is None too
    for brackets that are never closed. None in all for a line of words.
    """
    plain = text.translate(_FULL_WIDTH)
    start = len(plain) - len(plain.lstrip(_ORNAMENT))
    opening = plain[start : start + 1]
    if opening in _STRICT:
        end = plain.find(_STRICT[opening], start)
        if end > 0:
            tag = read_tag(plain[start + 1 : end])
            rest = text[end + 1 :]
            behind = len(rest) - len(rest.lstrip(_ORNAMENT + ":："))
            return tag, plain[start : end + 1], end + 1 + (behind if tag else 0)
        return (None, None, len(text)) if opening in "[【" else None
    trimmed = plain[start:].rstrip(_ORNAMENT + ":")
    if opening in _SOFT and trimmed.endswith(_SOFT[opening]):
        tag = read_soft(trimmed[1:-1])
        return (tag, trimmed, len(text)) if tag else None
    if start > 1 or plain.startswith("#"):
        tag = read_tag(trimmed)
        return (tag, trimmed, len(text)) if tag else None
    name, colon, words = plain.partition(":")
    tag = read_bare(name, announced=bool(colon) and not words.strip())
    return (tag, name, len(name) + 1 if colon else len(text)) if tag else None


def _lines(numbers: list[int]) -> str:
    if len(numbers) > 4:
        return f"{len(numbers)} lines from line {numbers[0]} on"
    return ("line " if len(numbers) == 1 else "lines ") + ", ".join(map(str, numbers))
