"""Lyrics -> the phoneme tokens a model sings, and what became of every character.

Tokens of a song: for each section its tag (`<verse>`), then for each sung line its phones and
`<line>`. Inside a line `<space>` parts words that are written apart, `<breath>` stands for
punctuation. Mandarin characters are one syllable each (`啊啊啊啊` is four), also where blanks part
them one by one (`长 大`); English words come from a pronouncing dictionary; numbers are read in the
language around them. A reading can be given in braces or brackets behind the word: `长{chang2}`,
`点儿{r}` (r-coloured, no syllable of its own), `live[L AY1 V]`. What stands in ( ) is sung by
backing voices. What cannot be sung is reported in `notes`.

    read = read_lyrics("[verse]\\n月亮")
    read.phonemes.tokens            ('<verse>', 've4', 'l', 'iang4', '<line>')
    counts(read.fates)              what became of the text's characters (text/accounting.py)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mudit_engine.errors import InputError
from mudit_engine.text import english, mandarin, numbers
from mudit_engine.text.accounting import Fate, LineMarks, Mark, in_order
from mudit_engine.text.folding import fold
from mudit_engine.text.heteronyms import pronounce_here
from mudit_engine.text.languages import refuse_other_languages, script_of
from mudit_engine.text.lyrics import LyricLine, Lyrics, raise_errors, scan_lyrics
from mudit_engine.text.vocabulary import Vocabulary

_BREATHS = frozenset(",;:.!?、。，；：！？…—–·|/")
_MUTE = frozenset("~^_*=<>+\\")
_SYMBOLS = {"&": ("和", "and"), "@": ("", "at"), "%": ("百分号", "percent"), "#": ("", "number")}
_WORD = re.compile(r"'?[A-Za-z]+(?:'[A-Za-z]+)*'?(?:-[A-Za-z]+(?:'[A-Za-z]+)*'?)*")
# A reading behind its character or word, in braces or, where it has a tone or a stress, brackets.
GIVEN_READING = re.compile(r"\{([^{}]*)\}|\[([^\[\]]*[0-5\u00e0-\u01dc][^\[\]]*)\]")
_GRADE = re.compile(r"[A-Z]{1,2}(?![A-Za-z])")
_HAN = "[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇々]"
_ONE_BY_ONE = re.compile(f"(?<!{_HAN}){_HAN}(?: {_HAN})+(?!{_HAN})")


@dataclass(frozen=True)
class Unsure:
    """A character whose reading is a guess, where it stands, and what else it can be."""

    line: int
    column: int
    character: str
    within: str
    syllable: str
    others: tuple[str, ...]
    confidence: float

    def __str__(self) -> str:
        others = " or ".join(self.others)
        return (
            f"line {self.line}: {self.character} in '{self.within}' is read {self.syllable} and "
            f"may be {others}; to change that, write {self.character}{{{self.others[0]}}}"
        )


@dataclass(frozen=True)
class PhonemeSequence:
    """What a model reads of a song's lyrics.

    ids, tokens, syllable_of and backing have one entry a token.

    Args:
        ids: rows of the vocabulary.
        tokens: the same as text, such as "iang4", "en:AA1" or "<line>".
        syllables: how many syllables are sung.
        syllable_of: the index of the token's syllable in the song, -1 for section, line, space and
            breath tokens.
        notes: what was read otherwise than written; they name lines of the source.
        unsung: how many letters cannot be sung, by script.
        backing: whether the token stands in round brackets.
        starts: seconds at which each sung line begins, None where the lyrics do not say.
        unsure: readings that are guesses.
        fates: what became of the characters of the lines.

    Examples:
        >>> from mudit_engine.text.lyrics import parse_lyrics
        >>> phonemize(parse_lyrics("[verse]\\n月亮")).syllable_of
        (-1, 0, 1, 1, -1)
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    syllables: int
    syllable_of: tuple[int, ...]
    notes: tuple[str, ...] = ()
    unsung: tuple[tuple[str, int], ...] = ()
    backing: tuple[bool, ...] = ()
    starts: tuple[float | None, ...] = ()
    unsure: tuple[Unsure, ...] = ()
    fates: tuple[Fate, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def timed(self) -> bool:
        """True when a line says when it starts."""
        return any(start is not None for start in self.starts)


@dataclass(frozen=True)
class ReadLyrics:
    """A text as it will be sung. `fates` account for all of its characters, in order."""

    lyrics: Lyrics
    phonemes: PhonemeSequence
    fates: tuple[Fate, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, in the words of both readers."""
        return (*self.lyrics.notes, *self.phonemes.notes)


def read_lyrics(
    text: str,
    *,
    source: str = "lyrics",
    vocabulary: Vocabulary | None = None,
    ignore_times: bool = False,
) -> ReadLyrics:
    """Sections, phonemes and the account of all characters of a text: the one way to read lyrics.

    Args:
        text: lyrics as people write them (text/lyrics.py).
        source: names the text in messages.
        vocabulary: of the model; None is the newest.
        ignore_times: drop LRC time stamps.

    Raises InputError that names every line that is wrong, and for a language that is not sung.

    Example:
        >>> read_lyrics("[verse]\\n重[chong2]来").phonemes.syllables
        2
    """
    read, errors = examine_lyrics(
        text, source=source, vocabulary=vocabulary, ignore_times=ignore_times
    )
    raise_errors(errors)
    refuse_other_languages(read.lyrics, source=source)
    return read


def examine_lyrics(
    text: str,
    *,
    source: str = "lyrics",
    vocabulary: Vocabulary | None = None,
    ignore_times: bool = False,
) -> tuple[ReadLyrics, list[str]]:
    """As `read_lyrics`, with what is wrong beside what could be read. The fates are whole in either
    case. Raises InputError for what is no text of a song at all.
    """
    lyrics, errors = scan_lyrics(text, source=source, ignore_times=ignore_times)
    song = _sing(lyrics, vocabulary)
    errors += [f"{source}, {error}" for error in song.errors]
    sequence = song.sequence()
    return ReadLyrics(lyrics, sequence, in_order(lyrics.fates, sequence.fates)), errors


def phonemize(lyrics: Lyrics, *, vocabulary: Vocabulary | None = None) -> PhonemeSequence:
    """The phoneme tokens of lyrics, section after section.

    Args:
        lyrics: what `parse_lyrics` gives.
        vocabulary: the tokens and their ids; None is the one that ships with the package.

    Returns:
        Tokens, their ids, the syllable of each, and notes on what cannot be sung.

    Raises:
        InputError: naming the line, for a reading in braces that is no pinyin or ARPAbet.

    Examples:
        >>> from mudit_engine.text.lyrics import parse_lyrics
        >>> song = phonemize(parse_lyrics("[verse]\\n月亮"))
        >>> song.tokens, song.syllables
        (('<verse>', 've4', 'l', 'iang4', '<line>'), 2)
    """
    song = _sing(lyrics, vocabulary)
    raise_errors(song.errors)
    return song.sequence()


def _sing(lyrics: Lyrics, vocabulary: Vocabulary | None) -> _Song:
    lines = [line for section in lyrics.sections for line in section.lines]
    song = _Song(
        vocabulary or Vocabulary.load(),
        han=any(mandarin.is_han(char) for line in lines for char in line.text),
    )
    for section in lyrics.sections:
        song.mark(f"<{section.kind}>")
        for line in section.lines:
            _Line(line, song).read()
    return song


@dataclass
class _Song:
    """Tokens so far. `han`: the song holds Chinese, so numbers with nothing beside them are read in
    Mandarin.
    """

    vocabulary: Vocabulary
    han: bool
    tokens: list[str] = field(default_factory=list)
    syllable_of: list[int] = field(default_factory=list)
    backing: list[bool] = field(default_factory=list)
    starts: list[float | None] = field(default_factory=list)
    syllables: int = 0
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    unsung: dict[str, int] = field(default_factory=dict)
    unsure: list[Unsure] = field(default_factory=list)
    fates: list[Fate] = field(default_factory=list)
    accounted: set[tuple[int, int]] = field(default_factory=set)  # lines that are sung again
    guessed: dict[str, tuple[int, english.Pronunciation]] = field(default_factory=dict)
    in_brackets: bool = False

    def add(self, token: str, syllable: int) -> None:
        self.tokens.append(token)
        self.syllable_of.append(syllable)
        self.backing.append(self.in_brackets)

    def mark(self, token: str) -> None:
        self.add(token, -1)

    def sing_mandarin(self, syllable: str) -> None:
        if syllable == mandarin.ERHUA:
            number = self.syllables - 1
        else:
            number, self.syllables = self.syllables, self.syllables + 1
        for token in mandarin.split_syllable(syllable):
            self.add(token, number)

    def sing_english(self, phones: tuple[str, ...]) -> None:
        places = english.syllabify(phones)
        for phone, place in zip(phones, places, strict=True):
            self.add(f"en:{phone}", self.syllables + place)
        self.syllables += places[-1] + 1

    def sequence(self) -> PhonemeSequence:
        return PhonemeSequence(
            tuple(map(self.vocabulary.id, self.tokens)),
            tuple(self.tokens),
            self.syllables,
            tuple(self.syllable_of),
            tuple(self.all_notes()),
            tuple(self.unsung.items()),
            tuple(self.backing),
            tuple(self.starts),
            tuple(self.unsure),
            tuple(self.fates),
        )

    def all_notes(self) -> list[str]:
        notes = list(self.notes)
        for word, (number, said) in self.guessed.items():
            phones = " ".join(said.phones)
            notes.append(
                f"line {number}: '{word}' is not in the dictionary and is "
                f"{english.GUESSES[said.source]} as {phones}; to change that, write the phones "
                f"behind it: {word}{{{phones}}}"
            )
        return notes


class _Line:
    """Reads one line, left to right, into the song."""

    def __init__(self, line: LyricLine, song: _Song) -> None:
        self.song = song
        self.line = line
        self.number = line.number
        self.folded = fold(line.tracked())
        self.text = self.folded.text
        self.marks = LineMarks(line.source or line.text, line.number)
        self.joined = {
            match.start() + place
            for match in _ONE_BY_ONE.finditer(self.text)
            for place, char in enumerate(match[0])
            if char == " "
        }
        self.brackets = _pairs_of_brackets(self.text)
        self.place = 0
        self.gap: str | None = None  # a mark to set before the next phone
        self.gap_places: list[int] = []  # the characters that stand for it
        self.sung = False
        self.unsung: dict[str, list[str]] = {}  # script -> what was left out

    def read(self) -> None:
        try:
            while self.place < len(self.text):
                self.next()
        except InputError as error:
            self.song.errors.append(str(error))
            self.settle(range(len(self.text)), "dropped", "an error in the line")
        self.song.in_brackets = False
        self.settle(self.gap_places, "dropped", "a pause where nothing is sung")
        if self.sung:
            self.song.mark("<line>")
            self.song.starts.append(self.line.start)
        self.report()
        place = (self.number, next(self.folded.columns(), 0))
        if place not in self.song.accounted:  # a line that is sung again was accounted for
            self.song.accounted.add(place)
            self.song.fates += self.marks.fates()

    def next(self) -> None:
        char = self.text[self.place]
        if mandarin.is_han(char):
            self.han()
        elif match := _WORD.match(self.text, self.place):
            self.word(match)
        elif match := numbers.NUMBER.match(self.text, self.place):
            self.place = match.end()
            self.spoken(match.start(), match.end(), *self.in_words(match))
        elif char in _SYMBOLS and (
            words := _SYMBOLS[char][0 if self.mandarin_here(self.place, self.place + 1) else 1]
        ):
            self.place += 1
            self.spoken(self.place - 1, self.place, words, chinese=mandarin.is_han(words[0]))
        elif char in "{}":
            raise InputError(
                f"line {self.number}: {self.text[self.place :][:20]!r} has a brace with no "
                f"word before it or no end: write a "
                "reading right behind its word, as in 长{chang2} or live{L AY1 V}"
            )
        elif self.place in self.brackets:
            self.song.in_brackets = self.brackets[self.place]
            self.settle([self.place], "layer", "backing vocals")
            self.place += 1
        else:
            self.other(char)
            self.place += 1

    def settle(self, places: Iterable[int], became: str, detail: str, first: int = -1) -> None:
        """Gives characters of the folded text their mark; `first` is the first token they made."""
        tokens = (first, len(self.song.tokens)) if first >= 0 else None
        layer = "backing" if self.song.in_brackets and became == "phonemes" else None
        mark = Mark(became, detail, tokens, layer)
        for place in places:
            self.marks.set(self.folded.columns(place, place + 1), mark)

    def before(self) -> None:
        if self.gap and self.sung:
            first = len(self.song.tokens)
            self.song.mark(self.gap)
            self.settle(self.gap_places, "pause", self.gap, first)
        else:
            self.settle(self.gap_places, "dropped", "a pause where nothing is sung")
        self.gap, self.gap_places, self.sung = None, [], True

    def han(self) -> None:
        """A run of Han characters, read as a whole so that neither readings given nor blanks
        between single characters cut the context of polyphones.
        """
        chars: list[str] = []
        places: list[int] = []
        given: dict[int, str] = {}
        while self.place < len(self.text):
            if mandarin.is_han(self.text[self.place]):
                chars.append(self.text[self.place])
                places.append(self.place)
                self.place += 1
            elif self.place in self.joined:
                detail = "a blank between characters that are spaced one by one"
                self.settle([self.place], "dropped", detail)
                self.place += 1
            elif match := GIVEN_READING.match(self.text, self.place):
                parts = given_in(match).split()
                syllables = [self.pinyin(part, match[0]) for part in parts]
                if not 1 <= len(syllables) <= len(chars):
                    counts = f"{len(syllables)} syllables for the {len(chars)} characters before it"
                    raise InputError(
                        f"line {self.number}: {match[0]} has {counts}: write one for each, at "
                        f"least one and no more"
                    )
                given |= dict(enumerate(syllables, start=len(chars) - len(syllables)))
                self.settle(range(match.start(), match.end()), "reading", " ".join(syllables))
                self.place = match.end()
            else:
                break
        self.sing_han("".join(chars), given, places)

    def pinyin(self, text: str, where: str) -> str:
        syllable = mandarin.parse_syllable(text)
        if syllable is None:
            raise InputError(
                f"line {self.number}: {text!r} in {where} is no pinyin syllable: write letters and "
                f"a tone from 1 to 5, as in "
                "长{chang2}, 绿{lv4}, 了{le5}"
            )
        return syllable

    def sing_han(self, text: str, given: dict[int, str], places: Sequence[int | None]) -> None:
        for number, (reading, place) in enumerate(
            zip(mandarin.read_han(text), places, strict=True)
        ):
            syllable = given.get(number, reading.syllable)
            if syllable == mandarin.ERHUA and (text[number] not in "儿兒" or not self.sung):
                if number in given:
                    raise InputError(
                        f"line {self.number}: {{r}} is for a 儿 that colours the syllable before "
                        f"it on its line, as in 点儿{{r}}"
                    )
                syllable = "er2"
            if syllable is None:
                self.unsung.setdefault("characters with no known reading", []).append(text[number])
                if place is not None:
                    self.settle([place], "dropped", "a character with no known reading")
                continue
            doubtful = reading.confidence < mandarin.SURE and bool(reading.others)
            if doubtful and number not in given and place is not None:
                within = text[max(0, number - 4) : number + 5]
                column = next(self.folded.columns(place), 0) + 1
                self.song.unsure.append(
                    Unsure(
                        self.number,
                        column,
                        text[number],
                        within,
                        syllable,
                        reading.others,
                        reading.confidence,
                    )
                )
            self.before()
            first = len(self.song.tokens)
            self.song.sing_mandarin(syllable)
            if place is not None:
                self.settle([place], "phonemes", syllable, first)

    def word(self, match: re.Match[str]) -> None:
        self.place = match.end()
        self.before()
        first = len(self.song.tokens)
        if override := GIVEN_READING.match(self.text, self.place):
            self.place = override.end()
            given = given_in(override)
            phones = tuple(given.upper().split())
            wrong = [phone for phone in phones if phone not in english.PHONES]
            pinyin = [mandarin.parse_syllable(part) for part in given.split()]
            if wrong and None not in pinyin and mandarin.ERHUA not in pinyin:
                for syllable in pinyin:
                    self.song.sing_mandarin(str(syllable))
            elif wrong or not phones:
                raise InputError(
                    f"line {self.number}: {' '.join(wrong) or 'nothing'!r} in {override[0]} is no "
                    f"ARPAbet phone: write phones as the CMU "
                    "dictionary does, vowels with a stress of 0, 1 or 2, as in live{L AY1 V}, or "
                    "pinyin with tones, as in Zhangsan{zhang1 san1}"
                )
            else:
                self.song.sing_english(phones)
            self.settle(range(override.start(), override.end()), "reading", given)
        else:
            here = pronounce_here(
                match[0], before=self.text[: match.start()], after=self.text[match.end() :]
            )
            if here:
                self.song.sing_english(here)
            else:
                self.say(match[0])
        self.settle(range(match.start(), match.end()), "phonemes", match[0], first)

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
            if said.source in english.GUESSES:
                self.song.guessed.setdefault(part.strip("'"), (self.number, said))
            self.before()
            if said.source == "pinyin":
                for syllable in said.phones:
                    self.song.sing_mandarin(syllable)
            else:
                self.song.sing_english(said.phones)

    def in_words(self, match: re.Match[str]) -> tuple[str, bool]:
        grade = _GRADE.match(self.text, match.end())  # the G of 5G says nothing of the language
        chinese = self.mandarin_here(match.start(), grade.end() if grade else match.end())
        following = self.text[match.end() : match.end() + 1]
        if chinese:
            return numbers.in_mandarin(match[0], following=following), True
        return numbers.in_english(match[0]), False

    def spoken(self, start: int, end: int, text: str, chinese: bool) -> None:
        """Sings words that stand for the characters start..end."""
        self.before()
        first = len(self.song.tokens)
        if chinese:
            self.sing_han(text, {}, [None] * len(text))
        else:
            for word in re.findall(r"[a-z']+", text, re.IGNORECASE):
                self.say(word)
                self.gap = "<space>"
        self.settle(range(start, end), "phonemes", text, first)

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
            self.gap_places.append(self.place)
        elif char.isspace():
            self.gap = self.gap or "<space>"
            self.gap_places.append(self.place)
        elif category[0] == "P" or char in _MUTE or category in ("Cf", "Mn", "Me", "Sk"):
            self.settle([self.place], "dropped", "a mark that has no sound")
        else:
            script = script_of(char)
            self.unsung.setdefault(script, []).append(char)
            self.settle([self.place], "dropped", f"{script} cannot be sung")
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


def given_in(match: re.Match[str]) -> str:
    """What stands between the braces or brackets of a match of GIVEN_READING."""
    return str(match[1] if match[1] is not None else match[2])


def _pairs_of_brackets(text: str) -> dict[int, bool]:
    """Places of ( and ) that belong together -> whether backing voices sing behind them."""
    found: dict[int, bool] = {}
    open_places: list[int] = []
    for place, char in enumerate(text):
        if char == "(":
            open_places.append(place)
        elif char == ")" and open_places:
            found[open_places.pop()] = True
            found[place] = bool(open_places)
    return found


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
