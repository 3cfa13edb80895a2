"""A line's characters as the readers see them: NFKC, one apostrophe, Latin letters without accents.

fold(line.tracked()).text        "Ｃａｆé’s" -> "Cafe's"
"""

from __future__ import annotations

import unicodedata

from mudit_engine.text.tracked import Tracked

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


def fold(line: Tracked) -> Tracked:
    """NFKC with plain apostrophes; Latin letters lose their accents, but not inside braces and
    brackets, where ü and tone marks count.
    """
    plain = line.mapped(lambda char: _plain(char.translate(_APOSTROPHES))).normalised(
        "NFKC", shared=True
    )
    plain = plain.mapped(lambda char: _plain(char.translate(_APOSTROPHES)))
    closing = ""
    chars: list[str] = []
    for char in plain.text:
        if closing:
            closing = "" if char == closing else closing
            chars.append(char)
            continue
        closing = {"{": "}", "[": "]"}.get(char, "")
        base = char if char.isascii() else unicodedata.normalize("NFD", char)[0]
        chars.append(base if base.isascii() and base.isalpha() else char)
    return Tracked("".join(chars), plain.spans)


def _plain(char: str) -> str:
    return char.translate(_LATIN)
