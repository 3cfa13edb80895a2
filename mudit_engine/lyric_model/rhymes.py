"""Syllables and rhymes of a line, as they are sung.

Mandarin: one syllable a character; the eighteen rhymes (十八韵) by the final of the last one, read
in its context. English: syllables of the pronouncing dictionary; a rhyme is the last vowel and what
follows it, without stress (`away` and `every day`: EY).

    rhyme_of("晚风吹过旧时光")        "ang"
    line_syllables("down the lane")   3
"""

from __future__ import annotations

import functools
import re
from importlib.resources import files

from mudit_engine.lyric_model import grammar_en
from mudit_engine.text.english import is_vowel, pronounce, syllabify
from mudit_engine.text.mandarin import ERHUA, is_han, read_han, split_syllable

# final (mudit_engine.text.mandarin) -> class; the names are finals as pinyin spells them
_CLASSES = {
    "a": "a ia ua",
    "o": "o uo io",
    "e": "e",
    "ie": "ie ve eh",
    "i": "i",
    "zhi": "iz ir",
    "er": "er",
    "u": "u",
    "v": "v",
    "ai": "ai uai",
    "ei": "ei uei",
    "ao": "ao iao",
    "ou": "ou iou",
    "an": "an ian uan van",
    "en": "en in uen vn",
    "ang": "ang iang uang",
    "eng": "eng ing ueng",
    "ong": "ong iong",
}
HAN_CLASSES: dict[str, str] = {
    final: name for name, finals in _CLASSES.items() for final in finals.split()
}
HAN_NAMES = tuple(_CLASSES)
FEWEST_CHARACTERS = 40  # of a class that is chosen for the user; er has a dozen
FEWEST_WORDS = 8
_HAN_RUN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇々]+")
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
# unstressed last syllables that no singer rests on: walk-ing, wa-ter, gar-den
_WEAK = ("AH0", "ER0", "IH0")


def is_english(text: str) -> bool:
    """Whether a line has no Han character."""
    return not any(map(is_han, text))


@functools.lru_cache(maxsize=65_536)
def line_syllables(text: str) -> int:
    """Sung syllables of a line: characters (a 儿 that colours the one before it is none), and those
    of English words.
    """
    sung = sum(len(_syllables(run)) for run in _HAN_RUN.findall(text))
    return sung + sum(word_syllables(word) for word in _WORD.findall(text))


def _syllables(run: str) -> list[str]:
    """Sung syllables of a run of Han characters."""
    return [
        reading.syllable
        for reading in read_han(run)
        if reading.syllable is not None and reading.syllable != ERHUA
    ]


@functools.lru_cache(maxsize=65_536)
def word_syllables(word: str) -> int:
    """Sung syllables of an English word."""
    return syllabify(pronounce(word).phones)[-1] + 1


def rhyme_of(text: str) -> str | None:
    """The rhyme class of a line's end: one of HAN_NAMES, or the phones of an English rhyme. None
    where nothing can be sung.
    """
    words = _WORD.findall(text)
    last = next(
        (char for char in reversed(text) if is_han(char) or (char.isascii() and char.isalpha())), ""
    )
    if last and is_han(last):
        return _han_rhyme(text)
    return word_rhyme(words[-1]) if words else None


def _han_rhyme(text: str) -> str | None:
    sung = _syllables(_HAN_RUN.findall(text)[-1])
    return HAN_CLASSES.get(split_syllable(sung[-1])[-1][:-1]) if sung else None


@functools.lru_cache(maxsize=65_536)
def word_rhyme(word: str) -> str:
    """Phones of an English word from its last vowel on, without stress."""
    phones = pronounce(word).phones
    place = max((i for i, phone in enumerate(phones) if is_vowel(phone)), default=0)
    return " ".join(phone.rstrip("012") for phone in phones[place:])


@functools.cache
def common_characters() -> tuple[str, ...]:
    """The 3,755 everyday characters of GB 2312, level 1, in its order (by reading)."""
    rows = range(0xB0, 0xD8)
    codes = (bytes((row, cell)) for row in rows for cell in range(0xA1, 0xFF))
    return tuple(char for code in codes for char in code.decode("gb2312", errors="ignore"))


@functools.cache
def characters_of_class() -> dict[str, tuple[str, ...]]:
    """Common characters by the rhyme class of their usual reading. Particles, which are sung
    without a tone and rhyme badly (的, 了, 吗), are left out.
    """
    found: dict[str, list[str]] = {name: [] for name in HAN_NAMES}
    for char in common_characters():
        syllable = read_han(char)[0].syllable
        if syllable is None or syllable == ERHUA or syllable[-1] == "5" or char in "的了着地得么":
            continue
        name = HAN_CLASSES.get(split_syllable(syllable)[-1][:-1])
        if name is not None:
            found[name].append(char)
    return {name: tuple(chars) for name, chars in found.items()}


@functools.cache
def english_words() -> tuple[str, ...]:
    """Everyday words of English lyrics (this project's own list, and what its grammar says), each
    in the pronouncing dictionary.
    """
    text = (files("mudit_engine") / "assets" / "lyrics" / "words_en.txt").read_text("utf-8")
    phrases = [
        *(phrase for words in grammar_en.WORDS.values() for phrase in words),
        *(
            phrase
            for kinds in grammar_en.RHYMES.values()
            for own in kinds.values()
            for phrase in own
        ),
        *(re.sub(r"[{<]\w+[}>]", " ", t) for own in grammar_en.TEMPLATES.values() for t in own),
    ]
    return tuple(dict.fromkeys([*text.split(), *(w for phrase in phrases for w in phrase.split())]))


def words_of_class(words: tuple[str, ...], *, fewest: int = 1) -> dict[str, tuple[str, ...]]:
    """Words that may end a rhyming line, by rhyme; classes of `fewest` words and more."""
    found: dict[str, list[str]] = {}
    for word in words:
        phones = pronounce(word).phones
        vowels = [phone for phone in phones if is_vowel(phone)]
        if vowels and vowels[-1] not in _WEAK and len(word) > 1:
            found.setdefault(word_rhyme(word), []).append(word)
    return {name: tuple(own) for name, own in found.items() if len(own) >= fewest}


@functools.cache
def usual_classes(language: str) -> tuple[str, ...]:
    """Classes with enough endings to be chosen for a song."""
    if language == "zh":
        counts = characters_of_class()
        return tuple(name for name in HAN_NAMES if len(counts[name]) >= FEWEST_CHARACTERS)
    return tuple(sorted(words_of_class(english_words(), fewest=FEWEST_WORDS)))


@functools.lru_cache(maxsize=65_536)
def ends_in_word(text: str) -> bool:
    """Whether the last two characters are a word of the phrase dictionary, which reads better at a
    line end than two that met by chance.
    """
    from pypinyin.phrases_dict import phrases_dict

    return text[-2:] in phrases_dict or text[-3:] in phrases_dict
