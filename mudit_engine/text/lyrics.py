"""Lyrics as people write them -> sections of lines.

Tags: a whole line in [ ] < > { } or 【 】 is always a tag, and an unknown one is an error. A line
in ( ), 《 》, ** ** or with no brackets is a tag only when it names a section: `(ooh yeah)` is
sung. A tag may be followed by words on its own line. Dropped, and told in `notes`: LRC time stamps
and headers, credits (作词：...), singer labels (男：...), names inside a tag. `(x2)` behind a line
writes it twice.

    parse_lyrics("[verse]\\n月亮落在海面上").sections[0].lines[0].text
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from mudit_engine.errors import InputError
from mudit_engine.text.sections import (
    INSTRUMENTAL_KINDS,
    KINDS,
    Tag,
    accepted,
    near_miss,
    read_bare,
    read_soft,
    read_tag,
)

_STRICT = {"[": "]", "<": ">", "{": "}", "【": "】", "〔": "〕", "〖": "〗"}
_SOFT = {"(": ")", "《": "》", "〈": "〉", "「": "」", "『": "』"}
_FULL_WIDTH = str.maketrans("［］＜＞｛｝（）：", "[]<>{}():")
_ORNAMENT = "*#=~_ \t-\u2013\u2014"
_STAMP = re.compile(
    r"\[\d{1,3}:\d{1,2}(?:[.:,]\d{1,3}){0,2}\]|<\d{1,3}:\d{1,2}(?:[.:,]\d{1,3}){0,2}>|\[\d+,\d+\]|<\d+,\d+(?:,\d+)?>"
)
_LINE_STAMP = re.compile(r"\[\d{1,3}:\d{1,2}(?:[.:,]\d{1,3}){0,2}\]")
_LRC_HEADER = re.compile(
    r"\[(?:ti|ar|al|au|lr|by|offset|re|tool|ve|la|id|length|hash|sign|qq|total|language|encoding|kana|#)\s*:[^\[\]]*\]",
    re.IGNORECASE,
)
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


@dataclass(frozen=True)
class LyricLine:
    """One sung line. `number` is its line in the source, from 1 (not compared)."""

    text: str
    number: int = field(default=0, compare=False)


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
    """A song's sections. `notes` tell the user what was read otherwise than written (not
    compared).
    """

    sections: tuple[Section, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def instrumental(self) -> bool:
        """True when no section has a line."""
        return not any(section.lines for section in self.sections)


def parse_lyrics(text: str, *, source: str = "lyrics") -> Lyrics:
    """Sections and sung lines of a text. `source` names the text in messages.

    Raises InputError, naming the line, for an unknown or unclosed tag; for text with neither a line
    nor a section; for binary data.
    """
    if "\0" in text:
        raise InputError(
            f"{source} holds NUL characters, so it is no plain text: save the lyrics as a UTF-8 "
            f"text file"
        )
    reader = _Reader(source)
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        reader.line(line, number)
    return reader.lyrics()


def format_lyrics(lyrics: Lyrics) -> str:
    """Canonical text: one tag a section, a blank line between sections.
    `parse_lyrics(format_lyrics(x)) == x` for a parsed x.
    """
    blocks = []
    for section in lyrics.sections:
        tag = section.kind if section.index is None else f"{section.kind} {section.index}"
        blocks.append("\n".join([f"[{tag}]", *(line.text for line in section.lines)]))
    return "\n\n".join(blocks) + "\n"


class _Reader:
    """State of one parse: the sections so far and what is to be told about them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sections: list[tuple[Tag, int, list[LyricLine]]] = []
        self.notes: list[str] = []
        self.dropped: dict[str, list[int]] = {}

    def line(self, text: str, number: int) -> None:
        """Takes one source line apart until only words are left; what remains reads the same when
        it is parsed again.
        """
        times, started = 1, len(self.sections)
        text = self.clean(text, number)
        while text:
            if repeat := _REPEAT.search(text):
                times *= int(next(group for group in repeat.groups() if group))
                text = text[: repeat.start()]
                if not text:
                    self.notes.append(
                        f"line {number}: '{repeat[0].strip()}' stands alone and is dropped: write "
                        f"out what is sung again"
                    )
            elif tagged := _leading_tag(text, number, self.source):
                tag, text = tagged
                for extra in tag.extras:
                    advice = "singers, instruments and moods belong in the description"
                    self.notes.append(
                        f"line {number}: '{extra}' in the tag [{tag.kind}] is dropped: {advice}"
                    )
                self.sections.append((tag, number, []))
            elif _CREDIT.fullmatch(text):
                self.drop("credits", number)
                return
            elif label := _SINGER.match(text):
                self.drop("singer labels", number)
                text = text[label.end() :]
            else:
                break
            text = self.clean(text, number)
        if text:
            self.sing(text, number, times=min(times, 8))
        elif times > 1 and len(self.sections) > started:
            self.notes.append(
                f"line {number}: a section is not repeated by its tag: write it again to have it "
                f"sung again"
            )

    def sing(self, text: str, number: int, *, times: int) -> None:
        if times > 1:
            self.notes.append(
                f"line {number}: the repeat mark is read as: sing this line {times} times"
            )
        if not self.sections:
            self.notes.append(f"line {number}: words before any tag are sung as a [verse]")
            self.sections.append((Tag("verse"), number, []))
        self.sections[-1][2].extend([LyricLine(text, number)] * times)

    def clean(self, text: str, number: int) -> str:
        """Without time stamps, LRC headers, control characters and doubled blanks, in NFC."""
        before = None
        while text != before:
            before = text
            text = "".join(
                char
                for char in text
                if char.isspace() or unicodedata.category(char) not in ("Cc", "Cf")
            )
            text = " ".join(unicodedata.normalize("NFC", text).split())
            if len(_LINE_STAMP.findall(text)) > 1 and re.fullmatch(
                rf"(?:{_LINE_STAMP.pattern}\s*)+[^\[]+", text
            ):
                self.notes.append(
                    f"line {number}: several time stamps ask for repeats, but it is sung once, "
                    f"where it stands"
                )
            for what, pattern in (("time stamps", _STAMP), ("LRC headers", _LRC_HEADER)):
                text, count = pattern.subn("", text)
                if count:
                    self.drop(what, number)
        return text

    def drop(self, what: str, number: int) -> None:
        lines = self.dropped.setdefault(what, [])
        if number not in lines:
            lines.append(number)

    def lyrics(self) -> Lyrics:
        if not self.sections:
            what = (
                f"holds nothing to sing besides {' and '.join(self.dropped)}"
                if self.dropped
                else "is empty"
            )
            raise InputError(
                f"{self.source} {what}: write at least one line, or ask for an instrumental with "
                f"the single tag [inst]"
            )
        notes = [
            f"{what} are dropped ({_lines(numbers)})" for what, numbers in self.dropped.items()
        ] + self.notes
        sections = tuple(
            Section(tag.kind, tag.index, tuple(lines)) for tag, _, lines in self.sections
        )
        result = Lyrics(sections, tuple(notes))
        if result.instrumental:
            return result
        for tag, number, lines in self.sections:
            if not lines and tag.kind not in INSTRUMENTAL_KINDS:
                notes.append(
                    f"line {number}: [{tag.kind}] has no words, so it is played, not sung: write "
                    f"them out if they should be sung"
                )
        return Lyrics(sections, tuple(notes))


def _leading_tag(text: str, number: int, source: str) -> tuple[Tag, str] | None:
    """The tag a line begins with and what follows it, or None for a line of words. Raises
    InputError for a tag nobody knows.
    """
    plain = text.translate(_FULL_WIDTH)
    start = len(plain) - len(plain.lstrip(_ORNAMENT))
    opening = plain[start : start + 1]
    if opening in _STRICT:
        end = plain.find(_STRICT[opening], start)
        if end > 0:
            tag = read_tag(plain[start + 1 : end])
            if tag is None:
                raise _unknown(plain[start : end + 1], number, source)
            return tag, text[end + 1 :].lstrip(_ORNAMENT + ":：")
        if opening in "[【":
            raise InputError(
                f"{source}, line {number}: {text[:40]!r} opens a tag and does not close it: add "
                f"{_STRICT[opening]!r}"
            )
        return None
    trimmed = plain[start:].rstrip(_ORNAMENT + ":")
    if opening in _SOFT and trimmed.endswith(_SOFT[opening]):
        tag = read_soft(trimmed[1:-1])
        return (tag, "") if tag else None
    if start > 1 or plain.startswith("#"):
        tag = read_tag(trimmed)
        return (tag, "") if tag else None
    name, colon, words = plain.partition(":")
    tag = read_bare(name, announced=bool(colon) and not words.strip())
    return (tag, text[len(name) + 1 :] if colon else "") if tag else None


def _unknown(tag: str, number: int, source: str) -> InputError:
    meant = near_miss(tag[1:-1])
    hint = f"did you mean {meant}? " if meant else ""
    return InputError(
        f"{source}, line {number}: unknown section tag {tag!r}: {hint}Accepted are {accepted()}. "
        f"Backing vocals go in ( )"
    )


def _lines(numbers: list[int]) -> str:
    if len(numbers) > 4:
        return f"{len(numbers)} lines from line {numbers[0]} on"
    return ("line " if len(numbers) == 1 else "lines ") + ", ".join(map(str, numbers))
