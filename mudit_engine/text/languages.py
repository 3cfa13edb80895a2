"""Which language lyrics are in, as far as their characters tell.

Mandarin and English are sung. A song in Japanese, Cantonese, Korean or another script is refused by
name; a few such characters among Mandarin or English are left out with a note (text/phonemes.py).

    refuse_other_languages(parse_lyrics("我唔知你嘅嘢喺邊度"))      InputError: ... Cantonese ...
"""

from __future__ import annotations

import unicodedata
from collections import Counter

from mudit_engine.errors import InputError
from mudit_engine.text.lyrics import Lyrics

# Characters that Cantonese writes and Mandarin does not.
CANTONESE = frozenset("嘅咗喺冇唔佢哋嚟啲嘢嗰咁睇攞揾嘥嗌噉瞓諗谂孭嬲嘞𠮶乜")
CANTONESE_SHARE = 0.04  # of the Han characters; one written Mandarin song has none
KANA_SHARE = 0.2  # of Han characters and kana
OTHER_SHARE = 0.5  # of all letters
_LANGUAGES = {
    "hangul": "Korean",
    "cyrillic": "Russian or another language in Cyrillic letters",
    "thai": "Thai",
    "arabic": "Arabic or another language in its letters",
    "hebrew": "Hebrew",
    "greek": "Greek",
    "devanagari": "Hindi or another language in Devanagari",
    "bopomofo": "Bopomofo, not in characters",
}


def script_of(char: str) -> str:
    """Name of the script of a character, for messages: hiragana, cyrillic, ... or symbols."""
    if unicodedata.category(char)[0] not in "LNM":
        return "symbols"
    name = unicodedata.name(char, "unknown script")
    return "han" if name.startswith("CJK") else name.split(" ")[0].split("-")[0].lower()


def refuse_other_languages(lyrics: Lyrics, *, source: str = "lyrics") -> None:
    """Raises InputError that names the language of lyrics which are mostly in one that is not
    sung.
    """
    found = _language(lyrics)
    if found is None:
        return
    language, chars, line = found
    raise InputError(
        f"{source}: the words are in {language} ('{chars}' on line {line}), which is not sung: "
        f"Mandarin and English are. Translate them, or leave the lyrics out for an instrumental"
    )


def _language(lyrics: Lyrics) -> tuple[str, str, int] | None:
    """(language, some characters that tell it, the line of the first)."""
    scripts: Counter[str] = Counter()
    first: dict[str, int] = {}
    told: dict[str, dict[str, None]] = {}
    for section in lyrics.sections:
        for line in section.lines:
            for char in line.text:
                if char.isascii() and not char.isalpha():
                    continue
                script = "cantonese" if char in CANTONESE else script_of(char)
                if script in ("hiragana", "katakana"):
                    script = "kana"
                scripts[script] += 1
                first.setdefault(script, line.number)
                told.setdefault(script, {})[char] = None

    def because(script: str, language: str) -> tuple[str, str, int]:
        return language, "".join(list(told[script])[:6]), first[script]

    kana, cantonese = scripts["kana"], scripts["cantonese"]
    han = scripts["han"] + cantonese
    if kana > 1 and kana >= KANA_SHARE * (kana + han) and 4 * (kana + han) > scripts["latin"]:
        return because("kana", "Japanese")
    if len(told.get("cantonese", ())) > 1 and cantonese >= CANTONESE_SHARE * han:
        return because("cantonese", "Cantonese")
    letters = sum(number for script, number in scripts.items() if script != "symbols")
    for script, number in scripts.most_common():
        if script not in ("latin", "han", "symbols", "digit") and number > OTHER_SHARE * letters:
            language = _LANGUAGES.get(script, f"a language in {script} letters")
            return because(script, language)
    return None
