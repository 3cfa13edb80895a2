"""Mandarin: Han characters -> pinyin syllables -> initial and final tokens.

A syllable is one or two tokens, `[initial] final+tone`. Syllables that pinyin spells with y or w
have no initial: the final is written out, so that `you` = iou, `wei` = uei, `yu` = v rhyme with
`liu` = l iou, `gui` = g uei, `ju` = j v. The vowel of zi ci si is `iz`, of zhi chi shi ri `ir`, ê
is `eh`; m, n and ng stand alone as in 呣 嗯; `r5` is the r-colouring of 儿化 and belongs to the
syllable before it. Tones are the dictionary's (一 yi1, 不 bu4): sandhi is left to the singer, as
melody overrides it.

    read_han("长大了")        ['zhang3', 'da4', 'le5']
    split_syllable("zhang3")  ('zh', 'ang3')
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Any

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

_HAN_EXTRA = "〇々"
_SYLLABLE = re.compile(r"([a-zê]+)([1-5])")

# What the phrase dictionary of pypinyin 0.55 reads otherwise than singers do. One syllable a
# character; longest match first.
_SUNG_PHRASES = {
    "重来": "chong2 lai2",
    "重回": "chong2 hui2",
    "都会有": "dou1 hui4 you3",
    "都会在": "dou1 hui4 zai4",
    "都会是": "dou1 hui4 shi4",
    "都会变": "dou1 hui4 bian4",
    "都会记": "dou1 hui4 ji4",
    "我都会": "wo3 dou1 hui4",
    "教你": "jiao1 ni3",
    "教我": "jiao1 wo3",
    "教会我": "jiao1 hui4 wo3",
    "教会你": "jiao1 hui4 ni3",
    "我得走": "wo3 dei3 zou3",
    "还你": "huan2 ni3",
    "还我": "huan2 wo3",
    "数着": "shu3 zhe5",
    "数一数": "shu3 yi1 shu3",
    "数星星": "shu3 xing1 xing1",
    "一行行": "yi1 hang2 hang2",
    "着了迷": "zhao2 le5 mi2",
    "每一行": "mei3 yi1 hang2",
    "一行": "yi1 hang2",
    "两行": "liang3 hang2",
    "几行": "ji3 hang2",
    "轻轻晃": "qing1 qing1 huang4",
    "晃啊": "huang4 a5",
    "弹着": "tan2 zhe5",
    "弹起": "tan2 qi3",
    "打着转": "da3 zhe5 zhuan4",
    "唱得": "chang4 de5",
    "爱得": "ai4 de5",
    "那么长": "na4 me5 chang2",
    "好长": "hao3 chang2",
    "背起": "bei1 qi3",
    "背着你": "bei1 zhe5 ni3",
    "落下": "luo4 xia4",
    "别扭": "bie4 niu5",
    "薄荷": "bo4 he5",
    "系着": "ji4 zhe5",
    "铺满": "pu1 man3",
    "答应": "da1 ying5",
    "切开": "qie1 kai1",
    "应声": "ying4 sheng1",
    "奔向": "ben4 xiang4",
    "缘分": "yuan2 fen4",
    "头发": "tou2 fa5",
    "发丝": "fa4 si1",
}


def is_han(char: str) -> bool:
    """True for a Chinese character of any plane, 〇 and the repetition mark 々."""
    return char in _HAN_EXTRA or (
        char > "\u2e7f"
        and unicodedata.name(char, "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH"))
    )


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


def read_han(text: str) -> list[str | None]:
    """Syllables of a run of Han characters, one each, None where no reading is known. Polyphones
    are read in context.

    Readings come from pypinyin's phrase dictionary, corrected by a short list of what lyrics use
    and by rules for 地 and 得.
    """
    text = _expand_repetition(text)
    readings = _dictionary(text)
    _apply_phrases(text, readings)
    for place, char in enumerate(text):
        if char == "一":
            readings[place] = "yi1"
        elif char == "不":
            readings[place] = "bu4"
        elif _adverbial(text, place) or (readings[place] == "de2" and _complement(text, place)):
            readings[place] = "de5"
    return readings


def _expand_repetition(text: str) -> str:
    chars: list[str] = []
    for char in text:
        chars.append(chars[-1] if char == "々" and chars else char)
    return "".join(chars)


def _dictionary(text: str) -> list[str | None]:
    from pypinyin import Style, lazy_pinyin

    def unknown(
        chunk: str,
    ) -> Any:  # one entry a character; pypinyin's annotation knows only strings
        return ["?"] * len(chunk)

    def read(part: str) -> list[str]:
        return lazy_pinyin(part, style=Style.TONE3, neutral_tone_with_five=True, errors=unknown)

    raw = read(text)
    if len(raw) != len(text):
        raw = [(read(char) or ["?"])[0] for char in text]
    return [syllable if syllable[:-1] in syllables() else None for syllable in raw]


def _apply_phrases(text: str, readings: list[str | None]) -> None:
    place = 0
    while place < len(text):
        for size in range(4, 1, -1):
            phrase = _SUNG_PHRASES.get(text[place : place + size])
            if phrase:
                readings[place : place + size] = phrase.split()
                place += size - 1
                break
        place += 1


def _adverbial(text: str, place: int) -> bool:
    """地 is de5 after a doubled character with something to modify behind it.

    So it is in 静静地看 and 空荡荡地响.
    """
    return (
        text[place] == "地"
        and 2 <= place < len(text) - 1
        and text[place - 1] == text[place - 2]
        and not text.startswith("地方", place)
    )


def _complement(text: str, place: int) -> bool:
    """得 is de5 after a verb (跑得快).

    Not so where the dictionary knows the two as a word (获得, 得到).
    """
    from pypinyin.phrases_dict import phrases_dict

    if text[place] != "得" or place in (0, len(text) - 1) or text[place + 1] in "到了以意知":
        return False
    return (
        text[place - 1 : place + 1] not in phrases_dict
        and text[place : place + 2] not in phrases_dict
    )
