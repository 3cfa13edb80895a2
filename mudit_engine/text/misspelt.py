"""English words of a description that are misspelt: what they were meant to be.

    near_spellings("no drms")      [Near(3, 7, "drums")]

A word that no dictionary has is read as the one word of the tables that is nearest to it: one slip
away (a letter left out, added, changed, or swapped with its neighbour); from eight letters on two,
if it begins alike. A word that English has stays what it is, whatever it resembles.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from mudit_engine.text import wish_tables as tables
from mudit_engine.text.english import dictionary, further_dictionary
from mudit_engine.text.table_words import Meaning, Near, table_words

# Shorter words resemble too much: of four letters none is read in which one is changed, and of
# three only one that lacks a double one (jaz).
_SHORTEST, _CHANGED_FROM, _TWO_SLIPS_FROM = 4, 5, 8
# Names of people that the first dictionary holds. In small letters they are slips.
_NAMES = {
    "ballard": "ballad", "ballards": "ballads", "celo": "cello", "drumm": "drum",
    "happe": "happy", "loney": "lonely", "metall": "metal", "paino": "piano", "piana": "piano",
    "volin": "violin",
}  # fmt: skip
_WORD = re.compile(r"(?<![A-Za-z'])[A-Za-z]{3,}(?![A-Za-z'])")  # beside Chinese letters as well


def near_spellings(text: str, read: Sequence[tuple[int, int]] = ()) -> list[Near]:
    """The words of the tables that a text holds misspelt.

    Args:
        text: of a description, in any script; only words of Latin letters are looked at.
        read: the places whose words are read as they stand.

    Examples:
        >>> near_spellings("a sad violn")
        [Near(start=6, end=11, word='violin')]
        >>> near_spellings("a mental note")
        []
    """
    found = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        if any(a < end and start < b for a, b in read):
            continue
        name = _NAMES.get(match[0])
        nearest = (name,) if name else _nearest(match[0].lower())
        word = nearest[0] if len(nearest) == 1 else _of_several(nearest, text[:start], text[end:])
        if word is not None:
            found.append(Near(start, end, word))
    return found


def _of_several(nearest: Sequence[str], before: str, after: str) -> str | None:
    """Of words that are equally near, the one that reads most where it stands.

    "dums" is drums, and dumps in "down in the dums". None where several are read otherwise.
    """
    read: dict[str, int] = {}
    for word in nearest:
        around = f"{before}{word}{after}".lower()
        read[word] = max(
            (
                len(text)
                for text in _texts_with(word)
                for part in re.finditer(rf"\b{word}\b", text)
                if around.startswith(text, max(0, len(before) - part.start()))
            ),
            default=0,
        )
    most = max(read.values(), default=0)
    best = [word for word in nearest if read[word] == most > 0]
    if not best or not frozenset.intersection(*(_words()[word] for word in best)):
        return None
    return best[0]


@functools.lru_cache(maxsize=4096)
def _nearest(word: str) -> tuple[str, ...]:
    """The words of ours that are the fewest slips away from one that English does not have."""
    words = _words()
    if word in words:
        return ()
    slips = {
        one: weight
        for size in range(len(word) - 2, len(word) + 3)
        for one in _of_size(size)
        if (weight := _slips(word, one)) is not None
    }
    if not slips or word in dictionary() or word in further_dictionary():
        return ()
    # a slip is seldom in the first letter
    slips = {one: weight for one, weight in slips.items() if one[0] == word[0]} or slips
    nearest = [one for one, weight in slips.items() if weight == min(slips.values())]
    return tuple(sorted(nearest, key=lambda one: (abs(len(one) - len(word)), one)))


def _slips(word: str, known: str) -> int | None:
    """How unlikely the slips are that make `word` of a known one; None for what may not be."""
    if len(word) < _SHORTEST:
        return 1 if re.sub(r"(.)\1", r"\1", known) == word else None
    weight = _one_slip(word, known)
    if weight == 2 and len(word) < _CHANGED_FROM:
        return None
    if weight is None and len(word) >= _TWO_SLIPS_FROM and word[0] == known[0]:
        return 3 if _distance(word, known) == 2 else None
    return weight


def _one_slip(word: str, known: str) -> int | None:
    """1 for a letter left out, added, or swapped with its neighbour, 2 for one that is changed;
    None for more than one slip.
    """
    same = 0
    while same < min(len(word), len(known)) and word[same] == known[same]:
        same += 1
    rest, meant = word[same:], known[same:]
    swapped = rest[:2] == meant[:2][::-1] and rest[2:] == meant[2:]
    if swapped or rest[1:] == meant or rest == meant[1:]:
        return 1
    return 2 if rest[1:] == meant[1:] else None


def _distance(a: str, b: str) -> int:
    """Damerau-Levenshtein distance in which no letter is edited twice."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        last, row, before = before, [i], row
        for j, other in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]


@functools.cache
def _of_size(size: int) -> tuple[str, ...]:
    return tuple(word for word in _words() if len(word) == size)


@functools.lru_cache(maxsize=512)
def _texts_with(word: str) -> tuple[str, ...]:
    """Every text of the tables that holds a word of theirs, itself among them if it is one."""
    return tuple(text for text in _texts() if word in re.findall("[a-z]+", text))


@functools.cache
def _words() -> dict[str, frozenset[Meaning]]:
    """Every English word of the tables -> what it tells of."""
    found: dict[str, set[Meaning]] = {}
    for text, meanings in _texts().items():
        for word in re.findall("[a-z]+", text):
            if len(word) >= _SHORTEST:
                found.setdefault(word, set()).update(meanings)
    return {word: frozenset(meanings) for word, meanings in found.items()}


@functools.cache
def _texts() -> dict[str, frozenset[Meaning]]:
    """The texts of the tables and the words that are read beside them."""
    texts = dict(table_words())
    for word in re.findall("[a-z]+", tables.NEGATIONS + " " + tables.BETWEEN):
        texts.setdefault(word, frozenset({("negation", "")}))
    for word in ("tempo", "major", "minor", "sharp", "flat", "minutes", "minute", "seconds"):
        texts.setdefault(word, frozenset({("number", word.removesuffix("s"))}))
    return texts
