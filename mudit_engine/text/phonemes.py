"""Lyrics -> the phoneme tokens a model sings, and how long they take.

Tokens of a song: for each section its tag (`<verse>`), then for each sung line its phones and
`<line>`. Inside a line `<space>` parts words that are written apart, `<breath>` stands for
punctuation. Mandarin characters are one syllable each (`啊啊啊啊` is four), English words come from
the pronouncing dictionary; numbers are read in the language around them. A reading can be given in
braces behind the word: `长{chang2}`, `点儿{r}` (r-coloured, no syllable of its own), `live{L AY1
V}`. What cannot be sung is reported in `notes`.

    phonemize(parse_lyrics("[verse]\\n月亮")).tokens   ('<verse>', 've4', 'l', 'iang4', '<line>')
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from dataclasses import dataclass, field

from mudit_engine.errors import InputError
from mudit_engine.text import english, mandarin, numbers
from mudit_engine.text.lyrics import LyricLine, Lyrics
from mudit_engine.text.vocabulary import Vocabulary

# Pace of singing, in syllables a second while a line lasts: what is comfortable for pop songs, and
# what still can be understood.
COMFORTABLE_RATE, FASTEST_RATE = 2.6, 4.5
COMFORTABLE_RAP_RATE, FASTEST_RAP_RATE = 4.5, 7.0
LINE_REST_SECONDS, SHORTEST_LINE_REST_SECONDS = 0.6, 0.2  # behind every line
SHORTEST_LINE_SECONDS = 2.0  # a comfortable line, its rest included: one bar of a slow song
SECTION_REST_SECONDS = 1.5  # before every sung section but the first
EDGE_SECONDS = 4.0  # before and after the words where no intro or outro asks for more
PLAYED_SECONDS = {
    "intro": 8.0,
    "interlude": 8.0,
    "inst": 16.0,
    "solo": 12.0,
    "break": 4.0,
    "drop": 8.0,
    "outro": 8.0,
}
PLAYED_SECONDS_OTHERWISE = 8.0  # a verse or chorus with no words
INSTRUMENTAL_SECONDS = 30.0  # the least for a song with no words at all

_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u0060\u00b4\u2032"), "'")
_LATIN = str.maketrans(
    {
        "ß": "ss",
        "æ": "ae",
        "Æ": "Ae",
        "œ": "oe",
        "Œ": "Oe",
        "ø": "o",
        "Ø": "O",
        "đ": "d",
        "Đ": "D",
        "ł": "l",
        "Ł": "L",
        "ı": "i",
    }
)
_BREATHS = frozenset(",;:.!?、。，；：！？…—–·|/")
_MUTE = frozenset("~^_*=<>+\\")
_SYMBOLS = {"&": ("和", "and"), "@": ("", "at"), "%": ("百分号", "percent"), "#": ("", "number")}
_WORD = re.compile(r"'?[A-Za-z]+(?:'[A-Za-z]+)*'?(?:-[A-Za-z]+(?:'[A-Za-z]+)*'?)*")
_OVERRIDE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class PhonemeSequence:
    """What a model reads of a song's lyrics. `ids`, `tokens` and `syllable_of` have one entry a
    token.

    `syllable_of` is the index of the token's syllable in the song, -1 for section, line, space and
    breath tokens. `notes` name line numbers of the source; `unsung` counts the letters that cannot
    be sung, by script.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    syllables: int
    syllable_of: tuple[int, ...]
    notes: tuple[str, ...] = ()
    unsung: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


def phonemize(lyrics: Lyrics, *, vocabulary: Vocabulary | None = None) -> PhonemeSequence:
    """Tokens of all sections in order. Raises InputError, naming the line, for an override in
    braces that is no pinyin or ARPAbet.
    """
    vocabulary = vocabulary or Vocabulary.load()
    song = _Song(
        han=any(
            map(
                mandarin.is_han,
                "".join(line.text for section in lyrics.sections for line in section.lines),
            )
        )
    )
    for section in lyrics.sections:
        song.mark(f"<{section.kind}>")
        for line in section.lines:
            _Line(line, song).read()
    ids = tuple(map(vocabulary.id, song.tokens))
    return PhonemeSequence(
        ids,
        tuple(song.tokens),
        song.syllables,
        tuple(song.syllable_of),
        tuple(song.all_notes()),
        tuple(song.unsung.items()),
    )


@dataclass
class _Song:
    """Tokens so far. `han`: the song holds Chinese, so numbers with nothing beside them are read in
    Mandarin.
    """

    han: bool
    tokens: list[str] = field(default_factory=list)
    syllable_of: list[int] = field(default_factory=list)
    syllables: int = 0
    notes: list[str] = field(default_factory=list)
    unsung: dict[str, int] = field(default_factory=dict)
    guessed: dict[str, tuple[int, english.Pronunciation]] = field(default_factory=dict)

    def mark(self, token: str) -> None:
        self.tokens.append(token)
        self.syllable_of.append(-1)

    def sing_mandarin(self, syllable: str) -> None:
        if syllable == mandarin.ERHUA:
            number = self.syllables - 1
        else:
            number, self.syllables = self.syllables, self.syllables + 1
        for token in mandarin.split_syllable(syllable):
            self.tokens.append(token)
            self.syllable_of.append(number)

    def sing_english(self, phones: tuple[str, ...]) -> None:
        places = english.syllabify(phones)
        for phone, place in zip(phones, places, strict=True):
            self.tokens.append(f"en:{phone}")
            self.syllable_of.append(self.syllables + place)
        self.syllables += places[-1] + 1

    def all_notes(self) -> list[str]:
        ways = {
            "letters": "spelled out",
            "rules": "read by the rules of spelling",
            "derived": "read from the words it is made of",
        }
        for word, (number, said) in self.guessed.items():
            phones = " ".join(said.phones)
            self.notes.append(
                f"line {number}: '{word}' is not in the dictionary and is {ways[said.source]} as "
                f"{phones}; to change that, write the "
                f"phones behind it: {word}{{{phones}}}"
            )
        return self.notes


class _Line:
    """Reads one line, left to right, into the song."""

    def __init__(self, line: LyricLine, song: _Song) -> None:
        self.song = song
        self.number = line.number
        self.text = _fold(line.text)
        self.place = 0
        self.gap: str | None = None  # a mark to set before the next phone
        self.sung = False
        self.unsung: dict[str, list[str]] = {}  # script -> what was left out

    def read(self) -> None:
        while self.place < len(self.text):
            char = self.text[self.place]
            if mandarin.is_han(char):
                self.han()
            elif match := _WORD.match(self.text, self.place):
                self.word(match)
            elif match := numbers.NUMBER.match(self.text, self.place):
                self.place = match.end()
                self.spoken(*self.in_words(match))
            elif char in _SYMBOLS and (
                words := _SYMBOLS[char][0 if self.mandarin_here(self.place, self.place + 1) else 1]
            ):
                self.place += 1
                self.spoken(words, chinese=mandarin.is_han(words[0]))
            elif char in "{}":
                raise InputError(
                    f"line {self.number}: {self.text[self.place :][:20]!r} has a brace with no "
                    f"word before it or no end: write a "
                    "reading right behind its word, as in 长{chang2} or live{L AY1 V}"
                )
            else:
                self.other(char)
                self.place += 1
        if self.sung:
            self.song.mark("<line>")
        self.report()

    def before(self) -> None:
        if self.gap and self.sung:
            self.song.mark(self.gap)
        self.gap, self.sung = None, True

    def han(self) -> None:
        """A run of Han characters, read as a whole so that overrides do not cut the context of
        polyphones.
        """
        chars: list[str] = []
        given: dict[int, str] = {}
        while self.place < len(self.text):
            if mandarin.is_han(self.text[self.place]):
                chars.append(self.text[self.place])
                self.place += 1
            elif match := _OVERRIDE.match(self.text, self.place):
                syllables = [self.pinyin(part, match[0]) for part in match[1].split()]
                if not 1 <= len(syllables) <= len(chars):
                    counts = f"{len(syllables)} syllables for the {len(chars)} characters before it"
                    raise InputError(
                        f"line {self.number}: {match[0]} has {counts}: write one for each, at "
                        f"least one and no more"
                    )
                given |= dict(enumerate(syllables, start=len(chars) - len(syllables)))
                self.place = match.end()
            else:
                break
        self.sing_han("".join(chars), given)

    def pinyin(self, text: str, where: str) -> str:
        syllable = mandarin.parse_syllable(text)
        if syllable is None:
            raise InputError(
                f"line {self.number}: {text!r} in {where} is no pinyin syllable: write letters and "
                f"a tone from 1 to 5, as in "
                "长{chang2}, 绿{lv4}, 了{le5}"
            )
        return syllable

    def sing_han(self, text: str, given: dict[int, str]) -> None:
        for place, reading in enumerate(mandarin.read_han(text)):
            syllable = given.get(place, reading.syllable)
            if syllable == mandarin.ERHUA and (text[place] not in "儿兒" or not self.sung):
                raise InputError(
                    f"line {self.number}: {{r}} is for a 儿 that colours the syllable before it on "
                    f"its line, as in 点儿{{r}}"
                )
            if syllable is None:
                self.unsung.setdefault("characters with no known reading", []).append(text[place])
                continue
            self.before()
            self.song.sing_mandarin(syllable)

    def word(self, match: re.Match[str]) -> None:
        self.place = match.end()
        if override := _OVERRIDE.match(self.text, self.place):
            self.place = override.end()
            phones = tuple(override[1].upper().split())
            wrong = [phone for phone in phones if phone not in english.PHONES]
            if wrong or not phones:
                raise InputError(
                    f"line {self.number}: {' '.join(wrong) or 'nothing'!r} in {override[0]} is no "
                    f"ARPAbet phone: write phones as the CMU "
                    "dictionary does, vowels with a stress of 0, 1 or 2, as in live{L AY1 V}"
                )
            self.before()
            self.song.sing_english(phones)
            return
        self.say(match[0])

    def say(self, text: str) -> None:
        """An English word; parts joined by hyphens are words of their own unless the dictionary has
        the whole.
        """
        whole = "-" in text and english.pronounce(text).source == "dictionary"
        parts = [text] if whole else [part for part in text.split("-") if part.strip("'")]
        for number, part in enumerate(parts):
            if number:
                self.gap = self.gap or "<space>"
            said = english.pronounce(part)
            if len(part) == 1 and part == "A" and self.mandarin_here(self.place - 1, self.place):
                said = english.Pronunciation(english.spell(part), "dictionary")
            if said.source not in ("dictionary", "vocable"):
                self.song.guessed.setdefault(part.strip("'"), (self.number, said))
            self.before()
            self.song.sing_english(said.phones)

    def in_words(self, match: re.Match[str]) -> tuple[str, bool]:
        chinese = self.mandarin_here(match.start(), match.end())
        following = self.text[match.end() : match.end() + 1]
        return (
            numbers.in_mandarin(match[0], following=following)
            if chinese
            else numbers.in_english(match[0])
        ), chinese

    def spoken(self, text: str, chinese: bool) -> None:
        if chinese:
            self.sing_han(text, {})
            return
        for word in re.findall(r"[a-z']+", text, re.IGNORECASE):
            self.say(word)
            self.gap = "<space>"

    def mandarin_here(self, start: int, end: int) -> bool:
        """Whether what stands at start..end is read in Mandarin: by its neighbour, then by the
        nearest word, then by the song.
        """
        after, ahead = self.text[end : end + 1], self.text[start - 1 : start]
        for char in (after, ahead):
            if char and (mandarin.is_han(char) or (char.isascii() and char.isalpha())):
                return mandarin.is_han(char)
        for char in (*self.text[end:], *reversed(self.text[:start])):
            if mandarin.is_han(char) or (char.isascii() and char.isalpha()):
                return mandarin.is_han(char)
        return self.song.han

    def other(self, char: str) -> None:
        category = unicodedata.category(char)
        if char in _BREATHS:
            self.gap = "<breath>"
        elif char.isspace():
            self.gap = self.gap or "<space>"
        elif category[0] == "P" or char in _MUTE or category in ("Cf", "Mn", "Me", "Sk"):
            return
        else:
            self.unsung.setdefault(_script(char), []).append(char)
            self.gap = self.gap or "<space>"

    def report(self) -> None:
        for script, chars in self.unsung.items():
            self.song.unsung[script] = self.song.unsung.get(script, 0) + len(chars)
            shown = "".join(chars[:12]) + ("..." if len(chars) > 12 else "")
            self.song.notes.append(
                f"line {self.number}: '{shown}' ({script}) cannot be sung: Mandarin and English can"
            )
        if not self.sung:
            what = "nothing else is left" if self.unsung else f"'{self.text[:20]}' has no words"
            self.song.notes.append(f"line {self.number}: {what}, so this line is not sung")
        elif "hiragana" in self.unsung or "katakana" in self.unsung:
            self.song.notes.append(
                f"line {self.number}: its Chinese characters are read in Mandarin, not in Japanese"
            )


@functools.lru_cache(maxsize=4096)
def _fold(text: str) -> str:
    """NFKC with plain apostrophes; Latin letters lose their accents, but not inside braces, where ü
    and tone marks count.
    """
    text = (
        unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
        .translate(_LATIN)
        .translate(_APOSTROPHES)
    )
    folded, in_braces = [], False
    for char in text:
        in_braces = char == "{" or (in_braces and char != "}")
        base = char if char.isascii() or in_braces else unicodedata.normalize("NFD", char)[0]
        folded.append(base if base.isascii() and base.isalpha() else char)
    return "".join(folded)


def _script(char: str) -> str:
    """Name of the script of a character, for messages: hiragana, cyrillic, hangul, ...
    or symbols.
    """
    if unicodedata.category(char)[0] not in "LNM":
        return "symbols"
    return unicodedata.name(char, "unknown script").split(" ")[0].split("-")[0].lower()


@dataclass(frozen=True)
class LyricBudget:
    """Whether lyrics fit a length. `rate`: syllables a second over the whole song; `message`: what
    to tell the user, if anything.
    """

    syllables: int
    seconds: float
    rate: float
    fits: bool
    suggested_seconds: float
    message: str | None


def budget(lyrics: Lyrics | PhonemeSequence, seconds: float) -> LyricBudget:
    """Holds lyrics against a requested length: `fits` is False when singing them all would be
    faster than FASTEST_RATE.

    Raises InputError for a length that is no positive number.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"a song cannot last {seconds} seconds: give a positive number")
    song = lyrics if isinstance(lyrics, PhonemeSequence) else phonemize(lyrics)
    suggested, least = seconds_for(song), _shortest_seconds(song)
    rate, message = song.syllables / seconds, None
    if seconds < least:
        message = (
            f"{song.syllables} syllables do not fit into {seconds:g} s ({rate:.1f} a second): "
            f"lines would be skipped or swallowed. "
            f"They need at least {math.ceil(least)} s; comfortable are {suggested:g} s. Ask for "
            f"more seconds or shorten the lyrics"
        )
    elif seconds < 0.75 * suggested and song.syllables:
        message = (
            f"{song.syllables} syllables in {seconds:g} s will sound hurried ({rate:.1f} a "
            f"second): comfortable are {suggested:g} s"
        )
    elif seconds > 2 * suggested + 30 and song.syllables:
        message = (
            f"the lyrics fill about {suggested:g} s of {seconds:g} s: the rest is played without a "
            "voice"
        )
    return LyricBudget(song.syllables, float(seconds), rate, seconds >= least, suggested, message)


def seconds_for(lyrics: Lyrics | PhonemeSequence) -> float:
    """Seconds that lyrics need at a comfortable pace, whole seconds: lines, rests between sections,
    intro, interludes and outro.

    A line lasts max(SHORTEST_LINE_SECONDS, syllables / COMFORTABLE_RATE + LINE_REST_SECONDS).
    """
    song = lyrics if isinstance(lyrics, PhonemeSequence) else phonemize(lyrics)
    parts = lines_of_sections(song)
    if not song.syllables:
        return max(
            INSTRUMENTAL_SECONDS,
            sum(PLAYED_SECONDS.get(kind, PLAYED_SECONDS_OTHERWISE) for kind, _ in parts),
        )
    total, sung_before = 0.0, False
    for kind, lines in parts:
        if not lines:
            total += PLAYED_SECONDS.get(kind, PLAYED_SECONDS_OTHERWISE)
            continue
        total += SECTION_REST_SECONDS if sung_before else 0.0
        rate = COMFORTABLE_RAP_RATE if kind == "rap" else COMFORTABLE_RATE
        total += sum(
            max(SHORTEST_LINE_SECONDS, count / rate + LINE_REST_SECONDS) for count in lines
        )
        sung_before = True
    total += sum(EDGE_SECONDS for _, lines in (parts[0], parts[-1]) if lines)
    return float(math.ceil(total))


def _shortest_seconds(song: PhonemeSequence) -> float:
    """Seconds below which lines are lost: nothing but words at the fastest rate."""
    total = 0.0
    for kind, lines in lines_of_sections(song):
        rate = FASTEST_RAP_RATE if kind == "rap" else FASTEST_RATE
        total += sum(count / rate + SHORTEST_LINE_REST_SECONDS for count in lines)
    return total


def lines_of_sections(song: PhonemeSequence) -> list[tuple[str, list[int]]]:
    """(kind, syllables of each line) of every section."""
    parts: list[tuple[str, list[int]]] = []
    before, last = 0, -1
    for token, syllable in zip(song.tokens, song.syllable_of, strict=True):
        last = max(last, syllable)
        if token == "<line>":
            parts[-1][1].append(last + 1 - before)
            before = last + 1
        elif syllable < 0 and token not in ("<space>", "<breath>"):
            parts.append((token.strip("<>"), []))
    return parts
