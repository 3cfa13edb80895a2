"""Names of song sections: what people write in a tag -> the canonical kind, and what else the tag
said.

read_tag("Verse 2: Anna")   Tag(kind='verse', index=2, extras=('Anna',))
read_tag("副歌")             Tag(kind='chorus', index=None, extras=())
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from dataclasses import dataclass

# canonical kind -> usual spellings, in lower case, simplified and traditional; blanks, hyphens and
# underscores are equal
_SPELLINGS: dict[str, str] = {
    "intro": (
        "intro, introduction, opening, start, prelude, 前奏, 序曲, 引子, 序, 开头, 開頭, 开场, 開場"
    ),
    "verse": "verse, vers, v, strophe, 主歌, 正歌, 主歌部分, a段, 诗节, 詩節, 段落",
    "pre-chorus": "pre chorus, prechorus, pre, pre hook, prehook, lift, build, build up, buildup, "
    "rise, channel,"
    " 导歌, 導歌, 预副歌, 預副歌, 副歌前, 前副歌, 过渡, 過渡",
    "chorus": "chorus, refrain, ref, c, 副歌, 副歌部分, b段, 高潮, 合唱, 叠歌, 疊歌",
    "post-chorus": "post chorus, postchorus, post hook, 后副歌, 後副歌, 副歌后, 副歌後",
    "hook": "hook, 记忆点, 記憶點, 洗脑段, 洗腦段",
    "bridge": (
        "bridge, middle eight, middle 8, mid 8, c段, 桥段, 橋段, 桥, 橋, 桥接, 橋接, 过桥, 過橋, "
        "过渡段, 過渡段, 连接段, 連接段"
    ),
    "rap": "rap, rap verse, 说唱, 說唱, 饶舌, 饒舌",
    "solo": "solo, 独奏, 獨奏",
    "interlude": "interlude, 间奏, 間奏, 过门, 過門, 间奏曲, 間奏曲",
    "inst": (
        "inst, instr, instrumental, music, 纯音乐, 純音樂, 音乐, 音樂, 器乐, 器樂, 伴奏, 无人声, "
        "無人聲"
    ),
    "break": "break, breakdown, pause, silence, 停顿, 停頓, 静默, 靜默",
    "drop": "drop, 爆点, 爆點",
    "outro": "outro, coda, end, ending, finale, close, closing, tag, fade, fade out, fadeout, "
    "postlude,"
    " 尾奏, 结尾, 結尾, 尾声, 尾聲, 尾歌, 结束, 結束, 收尾, 终曲, 終曲",
    "others": "others, other, misc, spoken, spoken word, 其他, 其它, 念白, 独白, 獨白, 旁白",
}
KINDS = tuple(_SPELLINGS)
INSTRUMENTAL_KINDS = frozenset(("intro", "solo", "interlude", "inst", "break", "drop", "outro"))


def _bag(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


_QUALIFIERS = _bag(
    "final last first second third short medium long double half big main repeat repeated reprise "
    "reprised alt alternate quiet extended",
    "the 最后 最後 第一 最终 最終 重复 重複 反复 反複 再次 部分 段 section part",
)
_INSTRUMENTS = _bag(
    "guitar piano sax saxophone violin cello drum drums bass synth harmonica flute string strings "
    "organ keys horn horns brass trumpet",
    "erhu guzheng pipa dizi electric acoustic instrumental vocal music musical 吉他 钢琴 鋼琴 "
    "萨克斯 薩克斯 "
    "小提琴 大提琴 鼓 贝斯 貝斯",
    "口琴 笛子 长笛 長笛 二胡 古筝 古箏 琵琶 弦乐 弦樂 电吉他 電吉他 木吉他 音乐 音樂",
)
_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6, "vii": 7, "viii": 8}
_WORDS = {
    word: number
    for number, word in enumerate(("one", "two", "three", "four", "five", "six"), start=1)
}
_WORDS |= {word: number for number, word in enumerate("一二三四五六七八九十", start=1)}
_ORDINAL = {"first": 1, "second": 2, "third": 3, "第一": 1}
# Sung too often to be a tag in round brackets or without any.
_SUNG_WORDS = _bag(
    "v c pre ref rise lift channel build close closing tag start opening other end fade 音乐 音樂 "
    "高潮 "
    "合唱 序 桥 橋",
)
# Names that need a number to be a tag without brackets.
_BRACKETS_ONLY = _bag(
    "music pause silence drop break spoken ending hook solo rap others misc 段落 开头 開頭 结束 "
    "結束 过渡 過渡 "
    "其他 其它 停顿 停頓 伴奏",
)

# Words in brackets that look like a tag and are none.
_DIRECTIONS = frozenset(("fade in", "fades", "fades out", "ended", "rising", "started", "tags"))


@dataclass(frozen=True)
class Tag:
    """`extras`: words of the tag that are neither its name nor its number (a singer, an instrument,
    'x2').
    """

    kind: str
    index: int | None = None
    extras: tuple[str, ...] = ()


@functools.cache
def _kinds() -> dict[str, str]:
    return {name.strip(): kind for kind, names in _SPELLINGS.items() for name in names.split(",")}


def normalise(text: str) -> str:
    """NFKC, lower case, one blank for every run of blanks, hyphens and underscores."""
    return re.sub(
        r"[\s_\-\u2010-\u2015]+", " ", unicodedata.normalize("NFKC", text).casefold()
    ).strip()


def read_tag(text: str) -> Tag | None:
    """The tag inside a pair of brackets, or None when it names no section."""
    plain = unicodedata.normalize("NFKC", text).strip(" \t*#:=~.\u2010\u2011\u2012\u2013\u2014-")
    name, colon, rest = plain.partition(":")
    if not colon:
        name, _, rest = (plain + " ").partition(" - ")
    tag = _read_name(name)
    if tag is None:
        return None
    rest = rest.strip()
    return Tag(tag.kind, tag.index, tag.extras + (rest,)) if rest else tag


def read_described(text: str) -> Tag | None:
    """A tag with a description around its name: `energetic chorus`, `verse with strings`.

    The name is the first or the last word and one that nobody takes for anything else; what
    describes it is an extra.
    """
    words = normalise(text).replace(",", " ").split()
    if not 2 <= len(words) <= 6:
        return None
    for size in (2, 1):
        for name, rest in ((words[:size], words[size:]), (words[-size:], words[:-size])):
            spelled = " ".join(name)
            if rest and spelled in _kinds() and spelled not in _SUNG_WORDS | _BRACKETS_ONLY:
                return Tag(_kinds()[spelled], None, (" ".join(rest),))
    return None


def read_soft(text: str) -> Tag | None:
    """A tag in round brackets or quotation marks, where backing vocals stand too: single letters
    and sung words like (rise) are none.
    """
    tag = read_tag(text)
    return None if tag is None or normalise(text).strip(" :") in _SUNG_WORDS else tag


def read_bare(text: str, *, announced: bool = False) -> Tag | None:
    """A tag written without brackets (`Verse 2`, `副歌`): only names that nobody sings by accident.

    `announced`: a colon closes the line, which lets more names pass.
    """
    tag = read_tag(text)
    name = re.sub(r"\s*[0-9]+$", "", normalise(text))
    if (
        tag is None
        or tag.extras
        or name in _SUNG_WORDS
        or (name in _BRACKETS_ONLY and tag.index is None and not announced)
    ):
        return None
    return None if name.isascii() and len(name) < 3 else tag


def _read_name(text: str) -> Tag | None:
    """`verse 2`, `主歌A`, `final chorus`, `guitar solo`, `chorus 副歌`, `verse (softly)`; None when
    no part is a section.
    """
    text = normalise(text)
    extras = [inner for inner in re.findall(r"\(([^()]*)\)", text) if inner]
    text = re.sub(r"\([^()]*\)", " ", text)
    text = re.sub(
        r"(?<=[\u3400-\u9fff])(?=[a-z0-9])|(?<=[a-z0-9])(?=[\u3400-\u9fff])",
        " ",
        text.replace("段 ", "段"),
    ).strip()
    text = re.sub(r"\b([abc]) 段", r"\1段", text)
    words = [word for word in re.split(r"[\s/|,、&+]+", text) if word]
    if not words or len(words) > 6:
        return None
    kind, index, unknown = None, None, []
    place = 0
    while place < len(words):
        size = next(
            (
                n
                for n in (3, 2, 1)
                if place + n <= len(words) and " ".join(words[place : place + n]) in _kinds()
            ),
            0,
        )
        found = _kinds()[" ".join(words[place : place + size])] if size else None
        number = _index(words[place], after_name=kind is not None) if size <= 1 else None
        if number is not None and (kind is not None or size == 0):
            index, place = number, place + 1
        elif found is not None and _can_follow(kind, found):
            kind = found if kind in (None, "inst") else kind
            place += size
        else:
            glued = None if size else _glued(words[place])
            if glued is not None and kind is None:
                kind, index = glued
            elif words[place] in _QUALIFIERS:
                index = index or _ORDINAL.get(words[place])
            elif re.fullmatch(r"[x×]\d|\d[x×]", words[place]) or words[place] in _INSTRUMENTS:
                extras.insert(0, words[place])
            else:
                unknown.append(words[place])
            place += 1
    return None if kind is None or unknown else Tag(kind, index, tuple(extras))


def _can_follow(kind: str | None, found: str) -> bool:
    """`chorus 副歌` names one kind twice; `instrumental break` and `间奏 solo` are both played."""
    return kind in (None, found) or (kind in INSTRUMENTAL_KINDS and found in INSTRUMENTAL_KINDS)


def _index(word: str, *, after_name: bool) -> int | None:
    if re.fullmatch(r"#?[0-9]{1,2}\.?", word):
        return int(word.strip("#."))
    if not after_name:
        return None
    if re.fullmatch(r"[a-e][0-9]?", word):
        return int(word[1]) if len(word) == 2 else "abcde".index(word) + 1
    return _WORDS.get(word) or _ROMAN.get(word)


def _glued(word: str) -> tuple[str, int | None] | None:
    """`verse2`, `v1`, `主歌一`, `第一段主歌`, `最后副歌`, `吉他独奏`."""
    if match := re.fullmatch(r"([a-z]+)([0-9]{1,2})", word):
        return (_kinds()[match[1]], int(match[2])) if match[1] in _kinds() else None
    if (match := re.fullmatch(r"(.+?)([一二三四五六七八九十])", word)) and match[1] in _kinds():
        return _kinds()[match[1]], _WORDS[match[2]]
    if match := re.fullmatch(r"第([一二三四五六七八九十])(?:段|节|節|遍|次)?(.*)", word):
        if not match[2] and word[-1] in "段节節":
            return "verse", _WORDS[match[1]]
        return (_kinds()[match[2]], _WORDS[match[1]]) if match[2] in _kinds() else None
    for length in range(len(word) - 1, 1, -1):
        before, after = word[: len(word) - length], word[len(word) - length :]
        if after in _kinds() and (before in _QUALIFIERS or before in _INSTRUMENTS):
            return _kinds()[after], None
    return None


def accepted() -> str:
    """The accepted tags in one line, for messages."""
    return (
        ", ".join(f"[{kind}]" for kind in KINDS)
        + ", numbered or not, also in Chinese (【主歌】, 【副歌】, ...)"
    )


def near_miss(text: str) -> str | None:
    """The canonical tag a misspelled one probably meant, None for other words (whispered)."""
    plain = re.sub(r"[\s\d:]+$", "", normalise(text))
    names = [name for name in _kinds() if len(name) > 1 and name[0] == plain[:1]]
    if not plain.isascii():
        names = [name for name in names if len(name) == len(plain) <= 3]
    elif plain in _DIRECTIONS:
        return None
    cutoff = 0.78 if plain.isascii() else 0.5
    found = difflib.get_close_matches(plain, names, n=1, cutoff=cutoff)
    return f"[{_kinds()[found[0]]}]" if found else None
