"""What a description asks for: one reader, driven by tables, for Chinese, English and both mixed.

    wishes = read_description("慢歌，不要鼓，女声，A小调，三分钟")
    wishes.tempo, wishes.drums, wishes.voice, wishes.key, wishes.seconds
    wishes.words["drums"]         '不要鼓', the words from which it was read
    wishes.notes                  wishes that cannot be followed, or that contradict each other
    wishes.unread                 words that no table knows; the text encoder reads them as well

Words behind a negation in the same phrase are taken back: "no drums", 不要太快, "not slow".

What no table knows is read once more as the word that it nearly is: 摇棍 sounds like 摇滚
(text/homophones.py), "violn" is one slip from violin (text/misspelt.py). What stands there exactly
goes before what nearly does, and a note names each near word that was read.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mudit_engine.text import wish_tables as tables
from mudit_engine.text.descriptions import (
    FASTEST_BPM,
    SLOWEST_BPM,
    content_words,
    requested_bpm,
    requested_key,
)
from mudit_engine.text.homophones import near_sounds
from mudit_engine.text.misspelt import near_spellings
from mudit_engine.text.numbers import chinese_value
from mudit_engine.text.table_words import Near
from mudit_engine.text.traditional import to_simplified

SLOW_BPM, MEDIUM_BPM, FAST_BPM = 76.0, 100.0, 128.0
_PHRASE_END = re.compile(r"[，,。.!！?？;；、\n:：]|\bbut\b|但是?|可以")
_HAN_NUMBER = r"[一二两三四五六七八九十百半]+"
_MINUTES = re.compile(
    rf"(?P<m>\d+(?:\.\d+)?|{_HAN_NUMBER})\s*(?:个)?(?P<unit>分钟|分(?=[\d半一二三四五六七八九十])"
    rf"|minutes?\b|mins?\b|分半)\s*(?P<half>半)?(?:\s*(?:and\s*)?(?P<s>\d+|{_HAN_NUMBER})\s*"
    r"(?:秒钟?|seconds?\b|secs?\b))?",
    re.IGNORECASE,
)
_SECONDS = re.compile(
    rf"(?P<s>\d+(?:\.\d+)?|{_HAN_NUMBER})\s*(?:-\s*)?(?:秒钟?|seconds?\b|secs?\b|s\b)",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"(?<![\d/])(?P<m>\d{1,2}):(?P<s>[0-5]\d)(?!\d)")
_NEAR_BPM = re.compile(r"(?<!\d)(\d{2,3})\s*-?\s*(bmp|pbm|bpn|mbp|bps)\b", re.IGNORECASE)
_HAN_BPM = re.compile(rf"({_HAN_NUMBER.replace('半', '零')})\s*拍\s*(?:每|一|/)\s*分钟?")
_ANY_BPM = re.compile(
    r"(?:bpm\s*[:=]?\s*(\d+(?:\.\d+)?))|(?:(?<![\d.])(\d+(?:\.\d+)?)\s*-?bpm\b)", re.IGNORECASE
)
_IN_KEY = re.compile(r"\bin (?:the key of )?([A-G])(?![A-Za-z#♯♭])(?!\s*(?:major|minor|maj|min))")
_NO_KEY = re.compile(r"\bkey of ([H-Z])\b|\b([H-Z]) (?:major|minor)\b|(?<![A-Za-z])([H-Z])[大小]调")

_Found = TypeVar("_Found", bound=tuple[Any, ...])


@dataclass(frozen=True)
class Wishes:
    """What was read of a description. None is what it does not say.

    Args:
        bpm: beats a minute, where a number names them.
        tempo: "slow", "medium" or "fast", where no number does.
        metre: such as "4/4".
        key: such as "A minor".
        mood: "major" or "minor", what the mood suggests.
        style: one of the styles that the tables know.
        voice: such as "female".
        drums: whether there should be some.
        instruments: that should play.
        without: instruments that should not.
        seconds: length of the song.
        words: the words from which each property was read, as they were typed.
        notes: wishes that cannot be followed or contradict each other.
        unread: words that no table knows.

    Examples:
        >>> read_description("no drums").drums
        False
    """

    bpm: float | None = None
    tempo: str | None = None  # "slow", "medium", "fast", where no number says it
    metre: str | None = None
    key: str | None = None
    mood: str | None = None  # "major" or "minor", what the mood suggests
    style: str | None = None
    voice: str | None = None
    drums: bool | None = None
    instruments: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    seconds: float | None = None
    words: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@functools.lru_cache(maxsize=1024)
def read_description(description: str) -> Wishes:
    """Everything that the tables find in a description, of any length and script.

    Args:
        description: free text in Chinese, English or both.

    Returns:
        What was asked for, the words behind each property, wishes that cannot be followed, and
        words that no table knows (the text encoder reads them as well).

    Examples:
        >>> wishes = read_description("慢歌，不要鼓，女声，A小调，三分钟")
        >>> wishes.tempo, wishes.drums, wishes.voice, wishes.key, wishes.seconds
        ('slow', False, 'female', 'A minor', 180.0)
    """
    typed = unicodedata.normalize("NFKC", description)
    text = to_simplified(typed)  # one for one
    exact = _Reader(text, typed)
    exact.read()
    near = near_sounds(text, exact.spans) + near_spellings(text, exact.spans)
    if not near:
        return exact.wishes()
    reader = _Reader(text, typed, sorted(near, key=lambda one: one.start))
    reader.read()
    return reader.wishes()


class _Reader:
    """Walks the tables over one text and remembers where each property was found."""

    def __init__(self, text: str, typed: str, near: Sequence[Near] = ()) -> None:
        """`typed` is as long as `text`; what is near is put right in the text, and remembered."""
        self.typed, self.near = typed, near
        self.text = ""
        self.typed_at: list[tuple[int, int]] = []  # of every character of the text
        place = 0
        for one in near:
            self._keep(text[place : one.start], place)
            self.text += one.word
            self.typed_at += [(one.start, one.end)] * len(one.word)
            place = one.end
        self._keep(text[place:], place)
        self.found: dict[str, Any] = {}
        self.words: dict[str, str] = {}
        self.notes: list[str] = []
        self.spans: list[tuple[int, int]] = []

    def _keep(self, text: str, place: int) -> None:
        self.text += text
        self.typed_at += [(at, at + 1) for at in range(place, place + len(text))]

    def read(self) -> None:
        self.tempo()
        self.metre()
        self.key()
        self.style()
        self.voice()
        self.drums()
        self.instruments()
        self.mood()
        self.length()

    def wishes(self) -> Wishes:
        read = self.typed_spans()
        said = [
            f"'{self.typed[one.start : one.end]}' is read as '{one.word}'"
            for one in self.near
            if any(start < one.end and one.start < end for start, end in read)
        ]
        return Wishes(
            **self.found,
            words=self.words,
            notes=(*said, *self.notes),
            unread=self.unread(read),
        )

    def as_typed(self, start: int, end: int) -> str:
        """A piece of the text in the words of the description."""
        if start >= end:
            return ""
        return self.typed[self.typed_at[start][0] : self.typed_at[end - 1][1]]

    def typed_spans(self) -> list[tuple[int, int]]:
        """The places of the description that were read."""
        return [
            (self.typed_at[start][0], self.typed_at[end - 1][1])
            for start, end in self.spans
            if start < end
        ]

    def is_near(self, start: int, end: int) -> bool:
        typed = self.typed_at[start:end]
        return any(
            place[0] < one.end and one.start < place[1] for place in typed for one in self.near
        )

    def exact_first(self, found: list[_Found]) -> list[_Found]:
        """Matches (start, end, ...) as they stand in the description; near ones where there are no
        others. Near ones that others go before are understood all the same.
        """
        exact = [one for one in found if not self.is_near(one[0], one[1])]
        if not exact:
            return found
        self.spans += [(one[0], one[1]) for one in found]
        return exact

    def set(self, name: str, value: object, start: int, end: int) -> None:
        self.found[name] = value
        more = self.as_typed(start, end).strip()
        self.words[name] = f"{self.words[name]}, {more}" if name in self.words else more
        self.spans.append((start, end))

    def matches(self, pattern: str) -> list[tuple[int, int, bool]]:
        """(start, end, taken back) of every match; the start of a negated one is its negation's."""
        found = []
        for match in re.finditer(pattern, self.text, re.IGNORECASE):
            negation = self.negation(match.start())
            start = match.start() if negation is None else negation
            found.append((start, match.end(), negation is not None))
        return found

    def negation(self, start: int) -> int | None:
        """Where the negation that takes back what begins at `start` begins; None if none does."""
        ends = [match.end() for match in _PHRASE_END.finditer(self.text, 0, start)]
        left = ends[-1] if ends else 0
        pattern = rf"(?:{tables.NEGATIONS}){tables.BETWEEN}$"
        match = re.search(pattern, self.text[left:start], re.IGNORECASE)
        return None if match is None else left + match.start()

    def tempo(self) -> None:
        bpm = requested_bpm(self.text)
        match = _ANY_BPM.search(self.text)
        if bpm is None and (han := _HAN_BPM.search(self.text)):
            bpm, match = chinese_value(han[1]), han
        if bpm is not None:
            span = match.span() if match else self._span_of_number(bpm)
            self.set("bpm", bpm, *span)
            return
        if match:
            named = match[1] or match[2]
            self.notes.append(
                f"{named} beats a minute cannot be played: ask for {SLOWEST_BPM:g} to "
                f"{FASTEST_BPM:g}. The tempo is left to the other words"
            )
            self.spans.append(match.span())
        if near := _NEAR_BPM.search(self.text):
            self.set("bpm", float(near[1]), *near.span())
            self.notes.append(f"'{near[0]}' is read as {near[1]} BPM")
            return
        said: list[tuple[int, int, str | float]] = [
            (start, end, bpm)
            for bpm, pattern in tables.TEMPO_NAMES
            for start, end, negated in self.matches(pattern)
            if not negated
        ]
        said += [(start, end, "walking") for start, end, _ in self.matches(tables.MEDIUM)]
        for name, pattern in (("slow", tables.SLOW), ("fast", tables.FAST)):
            said += [
                (start, end, "medium" if negated else name)
                for start, end, negated in self.matches(pattern)
            ]
        self._tempo_words(self.exact_first(said))

    def _tempo_words(self, said: list[tuple[int, int, str | float]]) -> None:
        """Reads what names a tempo, or a speed: slow, fast, between them, or one taken back."""
        for start, end, named in said:
            if isinstance(named, float | int):
                self.set("bpm", float(named), start, end)
                return
            if named == "walking":
                self.set("tempo", "medium", start, end)
                return
        if not said:
            return
        kinds = {name for _, _, name in said if name != "medium"}
        if kinds == {"slow", "fast"}:
            self.notes.append("slow and fast are both asked for: a medium tempo is taken")
        value = "medium" if len(kinds) != 1 else kinds.pop()
        for start, end, _ in said:
            self.set("tempo", value, start, end)

    def _span_of_number(self, bpm: float) -> tuple[int, int]:
        match = re.search(re.escape(f"{bpm:g}"), self.text)
        return match.span() if match else (0, 0)

    def metre(self) -> None:
        found = [
            (start, end, name)
            for name, pattern in tables.METRES
            for start, end, negated in self.matches(pattern)
            if not negated
        ]
        for start, end, name in self.exact_first(found)[:1]:
            self.set("metre", name, start, end)
            if name != "4/4":
                self.notes.append(f"the metre {name} is not played: songs are in 4/4")

    def key(self) -> None:
        key = requested_key(self.text)
        match = _IN_KEY.search(self.text)
        if key is None and match:
            key = f"{match[1]} major"
            self.set("key", key, *match.span())
            return
        if key is not None:
            self.set("key", key, *self._key_span(key))
        elif wrong := _NO_KEY.search(self.text):
            self.notes.append(f"'{wrong[0]}' is no key: keys are C to B, major or minor")
            self.spans.append(wrong.span())

    def _key_span(self, key: str) -> tuple[int, int]:
        """The shortest piece of the text that reads as the key."""
        tonic = re.compile(rf"[降升#b♯♭]?\s?{key[0]}[^，,。.;；、]{{0,16}}", re.IGNORECASE)
        for match in tonic.finditer(self.text):
            for end in range(match.start() + 1, match.end() + 1):
                if requested_key(self.text[match.start() : end]) == key:
                    return match.start(), end
        return 0, 0

    def style(self) -> None:
        found = []
        for name, pattern, itself in tables.STYLES:
            for start, end, negated in self.matches(pattern):
                self.spans.append((start, end))
                if not negated:
                    found.append((start, end, name, itself))
        if not found:
            self.scene()
            return
        # what names a style of ours goes before what only resembles it
        start, end, name, itself = min(
            self.exact_first(found), key=lambda one: (not one[3], one[0])
        )
        self.set("style", name, start, end)
        if not itself:
            self.notes.append(
                f"'{self.as_typed(start, end)}' is no style of this engine: it is planned as "
                f"{name}, the nearest"
            )

    def scene(self) -> None:
        found = [
            (start, end, name)
            for name, pattern in tables.SCENES
            for start, end, negated in self.matches(pattern)
            if not negated
        ]
        if found:
            start, end, name = min(self.exact_first(found))
            self.set("style", name, start, end)
            self.notes.append(
                f"'{self.as_typed(start, end)}' names no style: it suggests {name}, which is "
                "planned"
            )

    def voice(self) -> None:
        said: list[tuple[int, int, str]] = []
        for name, pattern in tables.VOICES:
            for match in re.finditer(pattern, self.text, re.IGNORECASE):
                start, end = match.span()
                if any(a <= start and end <= b for a, b, _ in said):
                    continue
                negation = None if name == "none" else self.negation(start)
                if negation is not None:
                    self.spans.append((negation, end))
                    continue
                said.append((start, end, name))
        found: dict[str, tuple[int, int]] = {}
        for start, end, name in self.exact_first(said):
            found.setdefault(name, (start, end))
        sung = [name for name in found if name != "none"]
        if "none" in found and sung:
            self.notes.append(
                f"'{self.as_typed(*found['none'])}' and '{self.as_typed(*found[sung[0]])}' "
                "contradict each other: nothing is sung"
            )
        elif len(sung) > 1:
            self.notes.append(
                f"more than one voice is asked for ({', '.join(sung)}): one sings the song"
            )
        elif several := re.search(tables.SEVERAL_VOICES, self.text, re.IGNORECASE):
            self.spans.append(several.span())
            self.notes.append(
                f"'{self.as_typed(*several.span())}': one voice sings the song, not several"
            )
        if found:
            name = "none" if "none" in found else sung[0]
            self.set("voice", name, *found[name])
            self.spans += found.values()

    def drums(self) -> None:
        none = [(start, end, False) for start, end, _ in self.matches(tables.NO_DRUMS)]
        some = [(start, end, not negated) for start, end, negated in self.matches(tables.DRUMS)]
        found = self.exact_first([*none, *some])
        if found and found[0] in none:
            del found[1:]
        for start, end, wanted in found:
            self.set("drums", wanted, start, end)

    def instruments(self) -> None:
        said: list[tuple[int, int, str, bool]] = []
        for name, pattern in tables.INSTRUMENTS:
            for start, end, negated in self.matches(pattern):
                if not any(a < end and start < b for a, b, _, _ in said):
                    said.append((start, end, name, negated))
        exact = {(name, no) for start, end, name, no in said if not self.is_near(start, end)}
        wanted: dict[str, None] = {}
        unwanted: dict[str, None] = {}
        for start, end, name, negated in said:
            if (name, not negated) in exact and (name, negated) not in exact:
                self.spans.append((start, end))
                continue
            (unwanted if negated else wanted)[name] = None
            self.set("without" if negated else "instruments", (), start, end)
        both = [name for name in wanted if name in unwanted]
        if both:
            self.notes.append(f"{', '.join(both)}: asked for and ruled out, so it is left out")
        self.found["instruments"] = tuple(name for name in wanted if name not in unwanted)
        self.found["without"] = tuple(unwanted)

    def mood(self) -> None:
        said = []
        for name, pattern in tables.MOODS:
            other = "minor" if name == "major" else "major"
            said += [
                (start, end, other if negated else name)
                for start, end, negated in self.matches(pattern)
            ]
        self.spans += [(start, end) for start, end, _ in said]
        # what is near decides where what is exact says as much for one mood as for the other
        for some in (self.exact_first(said), said):
            names = [name for _, _, name in some]
            if names.count("major") != names.count("minor"):
                value = max(set(names), key=names.count)
                for start, end, name in some:
                    if name == value:
                        self.set("mood", value, start, end)
                return

    def length(self) -> None:
        if match := _MINUTES.search(self.text):
            minutes = _value(match["m"])
            seconds = _value(match["s"]) if match["s"] else 0.0
            if minutes is None or seconds is None:
                return
            half = 30.0 if match["half"] or match["unit"] == "分半" else 0.0
            self.set("seconds", 60 * minutes + half + seconds, *match.span())
        elif match := _CLOCK.search(self.text):
            self.set("seconds", 60.0 * int(match["m"]) + int(match["s"]), *match.span())
        elif match := _SECONDS.search(self.text):
            value = _value(match["s"])
            if value:
                self.set("seconds", value, *match.span())

    def unread(self, read: list[tuple[int, int]]) -> tuple[str, ...]:
        """Words outside the places that were read, in their order, each once."""
        left = [
            word
            for word, start in content_words(self.typed)
            if not any(a < start + len(word) and start < b for a, b in read)
        ]
        return tuple(dict.fromkeys(left))


def _value(text: str) -> float | None:
    if text[0].isdigit():
        return float(text)
    if text == "半":
        return 0.5
    return chinese_value(text.replace("两", "二"))
