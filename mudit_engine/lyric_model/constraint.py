"""Which tokens may come next in a line: a grammar counts syllables and holds the rhyme, on the
bytes of the vocabulary.

Mandarin: `[characters]{n-1}[characters of the class]\\n` as one expression of bytes, so that tokens
which hold several characters, or a part of one, are counted exactly. English: everyday words by
their syllables, the last one of the rhyme class. The masks are llguidance's.

    guide = Guide(model.tokenizer(), size=len(vocabulary))
    matchers = guide.matchers(LinePattern("zh", 7, 7, ("ang",)), count=4)
    allowed = guide.allowed(matchers)              bool [4, vocabulary]
    matchers[0].consume_token(token)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mudit_engine.errors import InputError
from mudit_engine.lyric_model.form import Language
from mudit_engine.lyric_model.rhymes import (
    characters_of_class,
    common_characters,
    english_words,
    word_syllables,
    words_of_class,
)

_MOST_WORD_SYLLABLES = 5
_KEPT = 64  # compiled patterns: a song has a few


@dataclass(frozen=True)
class LinePattern:
    """A line of low to high syllables that ends in one of `classes` (anything for None). `extra`
    are further characters or words, of the theme.
    """

    language: Language
    low: int
    high: int
    classes: tuple[str, ...] | None = None
    extra: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()  # phrases (Mandarin) or words to end with; none: any of the classes

    def possible(self) -> bool:
        """Whether any line is of this pattern."""
        if self.language == "zh":
            return True
        ways = reachable(self.high, lexicon(self.extra), _ends(self))
        return any(count in ways for count in range(self.low, self.high + 1))

    def lark(self) -> str:
        """The grammar in llguidance's Lark dialect."""
        return _han(self) if self.language == "zh" else _english(self)


def _han(pattern: LinePattern) -> str:
    body = "".join(dict.fromkeys((*common_characters(), *pattern.extra)))
    if pattern.classes is None:
        ends = body
    else:
        known = characters_of_class()
        ends = "".join(char for name in pattern.classes for char in known[name])
    ways = [f"[{body}]{{{pattern.low - 1},{pattern.high - 1}}}[{ends}]"]
    sizes = sorted({len(phrase) for phrase in pattern.ends if len(phrase) <= pattern.low})
    if sizes:
        ways = [
            f"[{body}]{{{pattern.low - size},{pattern.high - size}}}"
            f"({_either(phrase for phrase in pattern.ends if len(phrase) == size)})"
            for size in sizes
        ]
    return f"start: LINE\nLINE: /({'|'.join(ways)})\\n/\n"


@functools.lru_cache(maxsize=8)
def lexicon(extra: tuple[str, ...] = ()) -> dict[int, tuple[str, ...]]:
    """Syllables -> words that English lines are made of."""
    found: dict[int, list[str]] = {}
    for word in dict.fromkeys((*english_words(), *extra)):
        count = word_syllables(word)
        if count <= _MOST_WORD_SYLLABLES:
            found.setdefault(count, []).append(word)
    return {count: tuple(words) for count, words in sorted(found.items())}


def endings(classes: tuple[str, ...] | None, extra: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
    """Syllables -> words that may end an English line of these classes (any word for None)."""
    if classes is None:
        return lexicon(extra)
    known = words_of_class((*english_words(), *extra))
    found: dict[int, list[str]] = {}
    for word in dict.fromkeys(word for name in classes for word in known.get(name, ())):
        found.setdefault(word_syllables(word), []).append(word)
    return {count: tuple(words) for count, words in sorted(found.items())}


def reachable(most: int, words: Iterable[int], ends: Iterable[int]) -> dict[int, list[int]]:
    """Syllables left -> syllables of the words after which a line can still end; lengths that no
    line can have are missing.
    """
    ends, found = set(ends), {}
    for left in range(1, most + 1):
        ways = [count for count in words if left - count in found]
        if ways or left in ends:
            found[left] = ways
    return found


def _ends(pattern: LinePattern) -> dict[int, tuple[str, ...]]:
    """Syllables -> words that an English line of a pattern may end with."""
    ends = endings(pattern.classes, pattern.extra)
    if not pattern.ends:
        return ends
    left = {n: tuple(w for w in own if w in pattern.ends) for n, own in ends.items()}
    return {n: own for n, own in left.items() if own}


def _english(pattern: LinePattern) -> str:
    words, ends = lexicon(pattern.extra), _ends(pattern)
    ways = reachable(pattern.high, words, ends)
    starts = [f"l{count}" for count in range(pattern.low, pattern.high + 1) if count in ways]
    if not starts:
        raise InputError(
            f"no English line of {pattern.low} syllables ends in the rhyme "
            f"{', '.join(pattern.classes or ())}: choose another rhyme or length"
        )
    rules = [f"start: {' | '.join(starts)}"]
    for left, counts in ways.items():
        either = [f'W{count} " " l{left - count}' for count in counts]
        either += [f'E{left} "\\n"'] if left in ends else []
        rules.append(f"l{left}: {' | '.join(either)}")
    rules += [f"W{count}: /{_either(own)}/" for count, own in words.items()]
    rules += [f"E{count}: /{_either(own)}/" for count, own in ends.items() if count in ways]
    return "\n".join(rules) + "\n"


def _either(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in words)


def theme_extra(theme: str, language: Language) -> tuple[str, ...]:
    """What a theme adds to the characters or words of lines: its own, where they can be read."""
    if language == "zh":
        from mudit_engine.text.mandarin import is_han, read_han

        common = set(common_characters())
        chars = dict.fromkeys(char for char in theme if is_han(char) and char not in common)
        return tuple(char for char in chars if read_han(char)[0].syllable is not None)
    from mudit_engine.text.english import pronounce

    found = dict.fromkeys(re.findall(r"[a-z]+", theme.lower()))
    known = set(english_words())
    return tuple(w for w in found if w not in known and pronounce(w).source == "dictionary")


class Guide:
    """Masks over one vocabulary. `size` is the width of the model's logits."""

    def __init__(self, tokenizer: Any, *, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self._compiled: dict[LinePattern, Any] = {}

    def matchers(self, pattern: LinePattern, *, count: int) -> list[Any]:
        """Independent matchers at the start of a line."""
        import llguidance

        compiled = self._compiled.get(pattern)
        if compiled is None:
            grammar = llguidance.LLMatcher.grammar_from_lark(pattern.lark())
            compiled = llguidance.LLMatcher(self.tokenizer, grammar)
            if compiled.is_error():
                raise RuntimeError(f"{pattern}: {compiled.get_error()}")
            while len(self._compiled) >= _KEPT:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[pattern] = compiled
        return [compiled.deep_copy() for _ in range(count)]

    def allowed(self, matchers: Sequence[Any]) -> np.ndarray:
        """bool [len(matchers), size]: the tokens that may come next."""
        # (llguidance.torch compiles for ten seconds at its first call)
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        bits = allocate_token_bitmask(len(matchers), self.size)
        for row, matcher in enumerate(matchers):
            fill_next_token_bitmask(matcher, bits, row)
        unpacked = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        return unpacked[:, : self.size].astype(bool)
