"""Mandarin: Han characters -> pinyin syllables -> initial and final tokens.

Syllables and their tokens are those of text/syllables.py. Tones are the dictionary's (一 yi1, 不
bu4): sandhi is left to the singer, as melody overrides it.

    [reading.syllable for reading in read_han("长大了")]        ['zhang3', 'da4', 'le5']
"""

from __future__ import annotations

import re
import unicodedata

from mudit_engine.text.polyphones import FIRST, Reading, read
from mudit_engine.text.syllables import (
    ERHUA,
    INITIALS,
    TONES,
    finals,
    parse_syllable,
    split_syllable,
    syllables,
)
from mudit_engine.text.traditional import SAYS_MORE, to_simplified

# Readings whose confidence is below this are named to the writer of the lyrics.
SURE = 0.85

_HAN_EXTRA = "〇々"
# What is spoken with an r-coloured final before 儿. Nouns that songs sing in two syllables (月儿,
# 风儿, 心儿) are none of them.
_COLOURED = re.compile(
    r"(?:[哪这那今明昨前后玩花味劲事活伴份会待点慢好悠盹准趟块根片圈瓣嗝曲腔调门座缝眼罐样弯窝]"
    r"|压根|没事|一块|干活|(?<![女男])孩)儿(?![子童女时歌戏孙科媳])"
)


def is_han(char: str) -> bool:
    """True for a Chinese character of any plane, 〇 and the repetition mark 々."""
    return char in _HAN_EXTRA or (
        char > "\u2e7f"
        and unicodedata.name(char, "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH"))
    )


def read_han(text: str) -> list[Reading]:
    """Readings of a run of Han characters, simplified or traditional, one each. Polyphones are read
    in context (text/polyphones.py); 々 repeats what stands before it.
    """
    text = _expand_repetition(text)
    simplified = to_simplified(text)
    readings = read(simplified)
    for place, (char, plain) in enumerate(zip(text, simplified, strict=True)):
        if plain == "一":
            readings[place] = Reading("yi1", 1.0, "only")
        elif plain == "不":
            readings[place] = Reading("bu4", 1.0, "only")
        elif (left := SAYS_MORE.get(char)) and readings[place].syllable not in left:
            others = tuple(left[1:])
            readings[place] = Reading(left[0], 1.0 if not others else FIRST, "only", others)
    _colour_finals(simplified, readings)
    return readings


def _colour_finals(text: str, readings: list[Reading]) -> None:
    """儿 behind a word that is spoken with an r-coloured final is no syllable of its own.

    So it is in 玩儿, 哪儿 and 一点儿; nouns that songs sing in two syllables (月儿, 风儿) keep it.
    """
    for match in _COLOURED.finditer(text):
        readings[match.end() - 1] = Reading(ERHUA, 0.9, "rule", ("er2",))


def _expand_repetition(text: str) -> str:
    chars: list[str] = []
    for char in text:
        chars.append(chars[-1] if char == "々" and chars else char)
    return "".join(chars)


__all__ = [
    "ERHUA",
    "INITIALS",
    "SURE",
    "TONES",
    "finals",
    "is_han",
    "parse_syllable",
    "read_han",
    "split_syllable",
    "syllables",
]
