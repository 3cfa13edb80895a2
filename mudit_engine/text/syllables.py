"""The syllables of Mandarin in pinyin, and the tokens that a model reads of them.

A syllable is one or two tokens, `[initial] final+tone`. Syllables that pinyin spells with y or w
have no initial: the final is written out, so that `you` = iou, `wei` = uei, `yu` = v rhyme with
`liu` = l iou, `gui` = g uei, `ju` = j v. The vowel of zi ci si is `iz`, of zhi chi shi ri `ir`, ê
is `eh`; m, n and ng stand alone as in 呣 嗯; `r5` is the r-colouring of 儿化 and belongs to the
syllable before it.

    split_syllable("zhang3")        ('zh', 'ang3')
    parse_syllable("cháng")         'chang2'
"""

from __future__ import annotations

import functools
import re
import unicodedata

# initial -> what may follow, as pinyin spells it. Interjections and the few syllables of new words
# (biang, rua) are included.
_SPELLINGS = {
    "b": "a o ai ei ao an en ang eng ong i ie iao ian iang in ing u",
    "p": "a o ai ei ao ou an en ang eng i ie iao ian in ing u",
    "m": "a o e ai ei ao ou an en ang eng i ie iao iu ian in ing u",
    "f": "a o ei ou an en ang eng iao u",
    "d": "a e ai ei ao ou an en ang eng ong i ia ie iao iu ian in ing u uo ui uan un",
    "t": "a e ai ei ao ou an ang eng ong i ie iao ian ing u uo ui uan un",
    "n": "a e ai ei ao ou an en ang eng ong i ia ie iao iu ian iang in ing u uo uan un v ve",
    "l": "a o e ai ei ao ou an en ang eng ong i ia ie iao iu ian iang in ing u uo uan un v ve",
    "g": "a e ai ei ao ou an en ang eng ong u ua uo uai ui uan uang un",
    "k": "a e ai ei ao ou an en ang eng ong u ua uo uai ui uan uang un",
    "h": "a e ai ei ao ou an en ang eng ong u ua uo uai ui uan uang un m ng",
    "j": "i ia ie iao iu ian iang in ing iong u ue uan un",
    "q": "i ia ie iao iu ian iang in ing iong u ue uan un",
    "x": "i ia ie iao iu ian iang in ing iong u ue uan un",
    "zh": "i a e ai ei ao ou an en ang eng ong u ua uo uai ui uan uang un",
    "ch": "i a e ai ao ou an en ang eng ong u ua uo uai ui uan uang un",
    "sh": "i a e ai ei ao ou an en ang eng u ua uo uai ui uan uang un",
    "r": "i e ao ou an en ang eng ong u ua uo ui uan un",
    "z": "i a e ai ei ao ou an en ang eng ong u uo ui uan un",
    "c": "i a e ai ei ao ou an en ang eng ong u uo ui uan un",
    "s": "i a e ai ao ou an en ang eng ong u uo ui uan un",
    "": "a o e ê ai ei ao ou an en ang eng er m n ng"
    " yi ya yo ye yao you yan yin yang ying yong wu wa wo wai wei wan wen wang weng wong yu yue "
    "yuan yun",
}
# spelling -> final, where they differ; j q x, y and w are handled in _final
_FINALS = {
    "iu": "iou",
    "ui": "uei",
    "un": "uen",
    "ê": "eh",
    "yo": "io",
    "you": "iou",
    "wei": "uei",
    "wen": "uen",
    "wong": "ong",
}
_APICAL = dict.fromkeys(("z", "c", "s"), "iz") | dict.fromkeys(("zh", "ch", "sh", "r"), "ir")
INITIALS = tuple(initial for initial in _SPELLINGS if initial)
TONES = "12345"
ERHUA = "r5"
_SYLLABLE = re.compile(r"([a-zê]+)([1-5])")


def _final(initial: str, spelling: str) -> str:
    """The final token (without tone) of a spelled rime after an initial ("" for none)."""
    if spelling == "i" and initial in _APICAL:
        return _APICAL[initial]
    if spelling in _FINALS:
        return "vn" if initial in ("j", "q", "x") and spelling == "un" else _FINALS[spelling]
    if initial in ("j", "q", "x") and spelling.startswith("u"):
        return "v" + spelling[1:]
    if not initial and spelling.startswith("yu"):
        return "v" + spelling[2:]
    if not initial and spelling[0] in "yw":
        glide = "i" if spelling[0] == "y" else "u"
        return spelling[1:] if spelling[1] == glide else glide + spelling[1:]
    return spelling


@functools.cache
def syllables() -> dict[str, tuple[str, str]]:
    """Every legal toneless syllable -> (initial or "", final). 430 or so entries."""
    return {
        initial + rime: (initial, _final(initial, rime))
        for initial, rimes in _SPELLINGS.items()
        for rime in rimes.split()
    }


@functools.cache
def finals() -> tuple[str, ...]:
    """Every toneless final, in the order of the table above."""
    return tuple(dict.fromkeys(final for _, final in syllables().values()))


def split_syllable(syllable: str) -> tuple[str, ...]:
    """Tokens of a syllable with a tone digit: ('zh', 'ang3'), ('a1',) or, for 儿化, ('r5',). Raises
    KeyError for an illegal one.
    """
    if syllable == ERHUA:
        return (ERHUA,)
    initial, final = syllables()[syllable[:-1]]
    return (initial, final + syllable[-1]) if initial else (final + syllable[-1],)


def parse_syllable(text: str) -> str | None:
    """What a user wrote (`chang2`, `cháng`, `lv4`, `lü4`, `lu:4`, `r` for 儿化) as a syllable with
    tone digit; None if it is not one.
    """
    text = text.strip().lower()
    if text in ("r", "r5"):
        return ERHUA
    if not text.isascii():
        from pypinyin.contrib.tone_convert import to_tone3

        text = to_tone3(unicodedata.normalize("NFC", text), neutral_tone_with_five=False)
    text = text.replace("u:", "v").replace("ü", "v")
    match = _SYLLABLE.fullmatch(text)
    return text if match and match[1] in syllables() else None
