"""English: a word -> ARPAbet phones with stress, and the syllable each phone belongs to.

The CMU Pronouncing Dictionary comes first (its first pronunciation, except for the homographs that
songs use otherwise; text/heteronyms.py tells those by their context). Then, in order: stretched and
repeated vocables (`sooooo`, `lalala`), letter names for initials (`KTV`), a further dictionary of
rarer words, names in pinyin (`Zhangsan`), endings on a known word (`lovin'`, `skylines`), two known
words in one (`moonglow`), and at last letter-to-sound rules, so that a name is still sung as a
word.

    pronounce("chorus")  Pronunciation(phones=('K', 'AO1', 'R', 'AH0', 'S'), source='dictionary')
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T",
    "TH", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
# How a word that no dictionary has is read, by Pronunciation.source.
GUESSES = {
    "letters": "spelled out",
    "rules": "read by the rules of spelling",
    "derived": "read from the words it is made of",
    "pinyin": "taken for a name in pinyin and read",
}
PHONES = frozenset(CONSONANTS) | {vowel + stress for vowel in VOWELS for stress in "012"}

_LETTERS = {
    letter: tuple(phones.split())
    for letter, phones in {
        "a": "EY1", "b": "B IY1", "c": "S IY1", "d": "D IY1", "e": "IY1", "f": "EH1 F",
        "g": "JH IY1", "h": "EY1 CH", "i": "AY1", "j": "JH EY1", "k": "K EY1", "l": "EH1 L",
        "m": "EH1 M", "n": "EH1 N", "o": "OW1", "p": "P IY1", "q": "K Y UW1", "r": "AA1 R",
        "s": "EH1 S", "t": "T IY1", "u": "Y UW1", "v": "V IY1", "w": "D AH1 B AH0 L Y UW0",
        "x": "EH1 K S", "y": "W AY1", "z": "Z IY1",
    }.items()
}  # fmt: skip
# Homographs whose first entry is not the one sung, and sounds of singers that dictionaries leave
# out.
_SUNG = {
    word: tuple(phones.split())
    for word, phones in {
        "live": "L IH1 V", "tear": "T IH1 R", "read": "R IY1 D", "wind": "W IH1 N D",
        "close": "K L OW1 S", "dove": "D AH1 V", "lead": "L IY1 D", "mm": "M", "mmm": "M",
        "hm": "HH M", "ah": "AA1", "ahh": "AA1", "oo": "UW1", "ay": "EY1", "ayy": "EY1", "sh": "SH",
        "woah": "W OW1", "da": "D AA1", "na": "N AA1", "la": "L AA1", "doo": "D UW1", "ba": "B AA1",
        "sha": "SH AA1", "ha": "HH AA1", "brr": "B ER1", "lived": "L IH1 V D", "used": "Y UW1 Z D",
        "bass": "B EY1 S",
        "wound": "W UW1 N D",
    }.items()
}  # fmt: skip
# consonants that may begin an English syllable together
_ONSETS = frozenset((
    "B L", "B R", "B Y", "D R", "D W", "D Y", "F L", "F R", "F Y", "G L", "G R", "G W", "G Y",
    "HH Y", "HH W", "K L", "K R", "K W", "K Y", "M Y", "N Y", "P L", "P R", "P Y", "S F", "S K",
    "S L", "S M", "S N", "S P", "S T", "S W", "SH R", "T R", "T W", "TH R", "TH W", "V Y", "S K R",
    "S K W", "S K Y", "S P L", "S P R", "S P Y", "S T R",
))  # fmt: skip


_ENDINGS = {
    ending: tuple(phones.split())
    for ending, phones in {
        "in'": "IH0 N", "in": "IH0 N", "ing": "IH0 NG", "ly": "L IY0", "ness": "N AH0 S",
        "less": "L AH0 S", "er": "ER0", "y": "IY0", "'ll": "AH0 L", "'d": "D", "'re": "ER0",
        "'ve": "V",
    }.items()
}  # fmt: skip


@dataclass(frozen=True)
class Pronunciation:
    """Phones of one word. `source`: dictionary, vocable, derived, letters (spelled out), rules
    (letter to sound) or pinyin, when `phones` are its syllables with a level tone.
    """

    phones: tuple[str, ...]
    source: str


@functools.cache
def dictionary() -> dict[str, str]:
    """Word in lower case -> phones joined by spaces, first pronunciation only (126 000 words)."""
    text = (files("mudit_engine") / "assets" / "vocabulary" / "cmudict.txt").read_text(
        encoding="utf-8"
    )
    entries: dict[str, str] = {}
    for line in text.splitlines():
        word, _, phones = line.partition(" ")
        if word[-1] != ")":
            entries[word] = phones
    return entries


@functools.cache
def further_dictionary() -> dict[str, str]:
    """52 000 rarer words that the first dictionary does not hold."""
    text = (files("mudit_engine") / "assets" / "vocabulary" / "more_en.txt").read_text(
        encoding="utf-8"
    )
    return dict(line.split(" ", 1) for line in text.splitlines())


def _look_up(word: str) -> tuple[str, ...] | None:
    if word in _SUNG:
        return _SUNG[word]
    # what is sung otherwise than its first entry is so with an ending too: tears, winds, lives
    for ending in ("'s", "s'", "s"):
        stem = word.removesuffix(ending)
        if stem != word and stem in _SUNG and stem != "close" and len(stem) > 2:
            return _SUNG[stem] + _plural(_SUNG[stem][-1])
    phones = dictionary().get(word)
    return tuple(phones.partition(" #")[0].split()) if phones else None


def is_vowel(phone: str) -> bool:
    return phone[-1].isdigit()


@functools.lru_cache(maxsize=16_384)
def pronounce(word: str) -> Pronunciation:
    """Phones of an ASCII word (letters, with apostrophes where it has them). Never empty for a word
    with a letter.
    """
    lower = word.lower().strip("-")
    bare = lower.strip("'")
    # lovin': the dictionary holds names spelled so
    if lower.endswith("in'") and (phones := _look_up(bare + "g")):
        return Pronunciation((*phones[:-1], "N"), "dictionary")
    for form in dict.fromkeys((lower, bare)):
        if phones := _look_up(form):
            return Pronunciation(phones, "dictionary")
    syllables = _name_in_pinyin(word.strip("'-"))
    if syllables and _CHINESE.search(lower):
        return Pronunciation(syllables, "pinyin")
    if phones := _vocable(bare):
        return Pronunciation(phones, "vocable")
    if _is_initials(word.strip("'")):
        return Pronunciation(spell(bare), "letters")
    if further := further_dictionary().get(bare):
        return Pronunciation(tuple(further.split()), "dictionary")
    if syllables:
        return Pronunciation(syllables, "pinyin")
    if phones := _derive(lower):
        return Pronunciation(phones, "derived")
    letters = bare.replace("'", "")
    if not re.search(r"[aeiouy]", letters):
        return Pronunciation(spell(letters), "letters")
    return Pronunciation(letter_to_sound(letters), "rules")


# what hardly any English word has
_CHINESE = re.compile(r"zh|x[iu]|q[iu](?!e|i|a)|ng(?=[bcdfhjklmnpqrtwxyz])")


def _name_in_pinyin(word: str) -> tuple[str, ...] | None:
    """Zhangsan -> zhang1 san1: words that are all pinyin and either look Chinese (zh, x, q) or are
    written as a name. A name does not say its tones, so all are level.
    """
    from mudit_engine.text.mandarin import syllables

    lower = word.lower()
    chinese = _CHINESE.search(lower)
    if not word.isascii() or not (word[:1].isupper() or chinese):
        return None
    found: list[str] = []
    for part in lower.split("'"):
        cut = _cut_pinyin(part, frozenset(syllables()))
        if cut is None:
            return None
        found += cut
    if len(found) < 2 and not chinese:
        return None
    return tuple(syllable + "1" for syllable in found)


def _cut_pinyin(text: str, known: frozenset[str]) -> list[str] | None:
    """The fewest syllables that make up a text; None where it is no pinyin."""
    best: list[list[str] | None] = [[]] + [None] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(max(0, end - 6), end):
            before = best[start]
            if before is not None and text[start:end] in known and len(text[start:end]) > 1:
                found = [*before, text[start:end]]
                now = best[end]
                if now is None or len(found) < len(now):
                    best[end] = found
    return best[-1] or None


def spell(letters: str) -> tuple[str, ...]:
    """Names of the letters: spell("dj") = D IY1 JH EY1."""
    return tuple(
        phone for letter in letters.lower() if letter in _LETTERS for phone in _LETTERS[letter]
    )


def _is_initials(word: str) -> bool:
    """KTV, BGM, EP: two to five capitals that are no word."""
    return word.isupper() and word.isalpha() and 1 <= len(word) <= 5


def _vocable(word: str) -> tuple[str, ...] | None:
    """sooooo -> so, yeahhh -> yeah, feeel -> feel, lalala -> la la la."""
    for kept in (r"\1", r"\1\1") if word.endswith("ooo") else (r"\1\1", r"\1"):
        stretched = re.sub(r"(.)\1{2,}", kept, word)
        if stretched != word and (phones := _look_up(stretched)):
            return phones
    repeated = re.fullmatch(r"([a-z]{2,4}?)\1+", word)
    if repeated and (phones := _look_up(repeated[1])):
        return phones * (len(word) // len(repeated[1]))
    return None


def _derive(word: str) -> tuple[str, ...] | None:
    """Phones of a known word plus an ending, or of two known words."""
    for ending, phones in _ENDINGS.items():
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            for stem in _stems(word[: -len(ending)], vowel_follows=ending[0] in "ieay"):
                if found := _look_up(stem) or _compound(stem):
                    return found + phones
    if (match := re.fullmatch(r"(.{2,}?)('s|s'|s|es)", word)) and (
        found := _look_up(match[1]) or _compound(match[1])
    ):
        return found + _plural(found[-1])
    if match := re.fullmatch(r"(.{2,})ed", word):
        for stem in _stems(match[1], vowel_follows=True):
            if found := _look_up(stem) or _compound(stem):
                return found + _past(found[-1])
    return _compound(word)


def _compound(word: str) -> tuple[str, ...] | None:
    """Phones of two known words written as one, cut as near to the middle as possible: moonglow."""
    if word.isalpha():
        for cut in sorted(range(3, len(word) - 2), key=lambda place: abs(place - len(word) / 2)):
            left, right = _look_up(word[:cut]), _look_up(word[cut:])
            if left and right and any(map(is_vowel, left)) and any(map(is_vowel, right)):
                return left + tuple(re.sub("1$", "2", phone) for phone in right)
    return None


def _stems(stem: str, *, vowel_follows: bool) -> tuple[str, ...]:
    """Spellings a stem can have had before its ending: lov -> lov, love; runn -> run; happi ->
    happy.
    """
    stems = [stem]
    if vowel_follows:
        stems.insert(0, stem + "e")
        if len(stem) > 2 and stem[-1] == stem[-2]:
            stems.append(stem[:-1])
    if stem.endswith("i"):
        stems.append(stem[:-1] + "y")
    return tuple(stems)


def _plural(last: str) -> tuple[str, ...]:
    if last in ("S", "Z", "SH", "ZH", "CH", "JH"):
        return ("AH0", "Z")
    return ("S",) if last in ("P", "T", "K", "F", "TH") else ("Z",)


def _past(last: str) -> tuple[str, ...]:
    if last in ("T", "D"):
        return ("AH0", "D")
    return ("T",) if last in ("P", "K", "F", "TH", "S", "SH", "CH") else ("D",)


def syllabify(phones: Sequence[str]) -> list[int]:
    """Syllable number (from 0) of every phone: each vowel is one nucleus, consonants between two go
    to the later one as far as English allows them at a beginning. A word with no vowel (hmm) is one
    syllable."""
    nuclei = [place for place, phone in enumerate(phones) if is_vowel(phone)]
    numbers = [0] * len(phones)
    for number, (left, right) in enumerate(itertools.pairwise(nuclei), start=1):
        start = right
        while start - 1 > left and (
            (start == right and phones[start - 1] != "NG")
            or " ".join(phones[start - 1 : right]) in _ONSETS
        ):
            start -= 1
        numbers[start:] = [number] * (len(phones) - start)
    return numbers


# Letter to sound: the first pattern that matches at a place wins; lookaround sees the whole word.
# Vowels get their stress later.
_RULES = [
    (re.compile(pattern), tuple(phones.split()))
    for pattern, phones in [
        (r"(?<=[bcdfgkptz])le(?=s?$)", "AH L"), (r"(?<=[td])e(?=d$)", "AH"), (r"sm$", "Z AH M"),
        (r"^mc", "M AH K"), (r"ie(?=[a-z]{2})", "IY"), (r"tch", "CH"), (r"sch", "SH"),
        (r"(?<![a-z])ch(?=[lr])", "K"), (r"chr", "K R"), (r"ch", "CH"), (r"(?<=c)k", ""),
        (r"ck", "K"), (r"sci(?=[aou])", "SH"), (r"sc(?=[eiy])", "S"), (r"c(?=[ei][ao])", "SH"),
        (r"cc(?=[eiy])", "K S"), (r"c(?=[eiy])", "S"), (r"cc?", "K"), (r"(?<![a-z])gn", "N"),
        (r"gn(?![a-z])", "N"), (r"gh(?=t)", ""), (r"(?<![a-z])gh", "G"), (r"gh", ""),
        (r"dge?(?=[eiy]|$)", "JH"), (r"ng(?=[aeiou])", "NG G"), (r"ng(?=e[sd]?$)", "N JH"),
        (r"ng", "NG"), (r"g(?=e|i[aou]|y$)", "JH"), (r"gg?u?(?=[ei]|g)", "G"), (r"g", "G"),
        (r"ph", "F"), (r"(?<![a-z])ps", "S"), (r"pp?", "P"), (r"(?<![a-z])kn", "N"),
        (r"kk?h?", "K"), (r"qu", "K W"), (r"q", "K"), (r"(?<=s)sion", "SH AH0 N"),
        (r"ssion", "SH AH0 N"), (r"sion", "ZH AH0 N"), (r"tion", "SH AH0 N"), (r"t(?=ure)", "CH"),
        (r"ture?$", "CH ER"), (r"th", "TH"), (r"tt?", "T"), (r"sh", "SH"), (r"ss", "S"),
        (r"(?<=[aeiouy])s(?=[aeiouy])", "Z"), (r"(?<=[bdgvlmnraeiouyw])s$", "Z"), (r"s", "S"),
        (r"(?<![a-z])wr", "R"), (r"wh", "W"), (r"(?<=[aeo])w", ""), (r"w", "W"),
        (r"(?<![a-z])x", "Z"), (r"x", "K S"), (r"zh", "ZH"), (r"zz?", "Z"), (r"bb?", "B"),
        (r"mb$", "M"), (r"mm?", "M"), (r"nn?", "N"), (r"ll?", "L"), (r"ff?", "F"), (r"vv?", "V"),
        (r"dd?", "D"), (r"jj?", "JH"), (r"(?<=[aeiou])h(?![aeiouy])", ""), (r"(?<=r)h", ""),
        (r"h", "HH"), (r"(?<![a-z])y(?=[aeiou])", "Y"), (r"augh|ough(?=t)", "AO"), (r"eigh", "EY"),
        (r"igh", "AY"), (r"ough", "OW"), (r"(?:ai|ay|ei(?!r)|ey(?!$))(?!r)", "EY"),
        (r"air|are$|eir", "EH R"), (r"au|aw", "AO"), (r"ar(?![aeiour])", "AA R"), (r"arr?", "EH R"),
        (r"a(?=ll|lk|lt)", "AO"), (r"(?<=w)a(?=[nts])", "AA"),
        (r"a(?=[bcdfgklmnpstvz]e[sd]?$|[bcdfgklmnptvz]i[nc]|ste$|nge)", "EY"), (r"a$", "AH"),
        (r"aa|a(?=h)", "AA"), (r"ae", "EY"), (r"a", "AE"), (r"ear(?=[nlt])", "ER"),
        (r"eer?(?=r)|ear$|eer", "IH R"), (r"ee|ea(?!u)|ie(?=[fldv])", "IY"), (r"eau", "OW"),
        (r"ew|eu", "UW"), (r"err?(?=[aeiouy])", "EH R"), (r"err?", "ER"),
        (r"(?<=[a-z][a-z])e(?=s$)(?<![sxzcgh]e)", ""), (r"(?<=[a-z][a-z])e$", ""),
        (r"(?<=[^td][a-z])e(?=d$)(?<![td])", ""), (r"ey$", "IY"),
        (r"e(?=[bcdfgklmnpstvz]e$)", "IY"), (r"(?<![aeiouy])e$", "IY"), (r"e(?=[ln]$)", "AH"),
        (r"e", "EH"), (r"ie$", "IY"), (r"ir(?![aeiouyr])", "ER"),
        (r"i(?=[bcdfgklmnpstvz]e[sd]?$|nd$|ld$|gn$)", "AY"), (r"i(?=on)", "IY"),
        (r"i(?=[ao])", "IY"), (r"i(?=u)", "IY"), (r"i$", "IY"), (r"i", "IH"),
        (r"oor|oar|our(?=[a-z])|orr?(?![aeiouy]r)", "AO R"), (r"oo(?=k)", "UH"), (r"oo", "UW"),
        (r"oa|oe$", "OW"), (r"oi|oy", "OY"), (r"ous$", "AH S"), (r"ou|ow(?=[nl])", "AW"),
        (r"ow", "OW"), (r"o(?=[bcdfgklmnpstvz]e[sd]?$|ld|lt|$|e)", "OW"), (r"on$", "AH N"),
        (r"o", "AA"), (r"urr?(?![aeiouy])", "ER"), (r"ur(?=[aeiouy])", "UH R"),
        (r"(?<=[gq])u(?=[aeiou])", "W"), (r"ui|ue$|ue", "UW"),
        (r"u(?=[bcdfgklmnpstvz][aeio])|u$", "UW"), (r"u(?=s$|m$)", "AH"), (r"u", "AH"),
        (r"(?<=[aeo])y", ""), (r"y(?=[bcdfgklmnpstvz]e$)", "AY"),
        (r"(?<=^[bcdfghklmnpstvw])y$", "AY"), (r"y$", "IY"), (r"y", "IH"), (r"rr?", "R"),
    ]
]  # fmt: skip


def letter_to_sound(word: str) -> tuple[str, ...]:
    """Phones of an unknown word by rules of English spelling. Primary stress falls on the first
    vowel, unstressed a e o u are reduced.
    """
    phones: list[str] = []
    place = 0
    while place < len(word):
        for pattern, output in _RULES:
            match = pattern.match(word, place)
            if match and match.end() > place:
                phones += output
                place = match.end()
                break
        else:
            place += 1
    if not any(phone.rstrip("012") in VOWELS for phone in phones):
        return spell(word)
    stressed, seen = [], 0
    for phone in phones:
        if phone in VOWELS:
            stressed.append(phone + ("1" if seen == 0 else "0"))
            seen += 1
        else:
            stressed.append(phone)
            seen += is_vowel(phone)
    return tuple(stressed)
