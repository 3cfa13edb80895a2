"""Chinese in traditional characters -> the simplified ones it is read through, one for one.

Dictionaries of readings know words in simplified characters only. The tables of OpenCC map single
characters and those words in which a character is kept (乾坤). A character that holds more than its
simplified form says so: 髮 is fa4, 發 fa1, and both become 发.

    to_simplified("看著你的頭髮")        '看着你的头发'
"""

from __future__ import annotations

import functools
from importlib.resources import files

# Words in which 著 is zhu4; everywhere else it stands for 着.
_ZHU = (
    "著名 著作 著称 著稱 著书 著書 著述 著者 著录 著錄 名著 专著 專著 巨著 原著 论著 論著 译著 "
    "譯著 编著 編著 显著 顯著 卓著 昭著 土著 合著 遗著 遺著 拙著 所著 新著 旧著 舊著"
)
# What lyrics write that the tables keep or take for another word.
_ALSO = {"妳": "你", "祂": "他", "牠": "它", "裏": "里", "喫": "吃", "佔": "占", "嚐": "尝"}
_ALSO |= {"濛": "蒙", "矇": "蒙", "懞": "蒙", "嘆": "叹", "菸": "烟"}
# Characters that are read in one way although their simplified form has several: simplified ->
# readings that stay open for the traditional character.
SAYS_MORE = {
    char: tuple(readings.split())
    for char, readings in {
        "髮": "fa4 fa5", "發": "fa1", "隻": "zhi1", "祇": "zhi3", "儘": "jin3", "盡": "jin4",
        "幹": "gan4", "臟": "zang4", "髒": "zang1", "係": "xi4", "捲": "juan3", "噁": "e3",
        "鬥": "dou4", "鬨": "hong4", "麼": "me5", "鬱": "yu4", "籲": "yu4", "纖": "xian1",
        "縴": "qian4", "擔": "dan1 dan4", "樸": "pu3", "闢": "pi4", "僕": "pu2", "濛": "meng2",
        "彆": "bie4", "嚮": "xiang4", "稱": "cheng1 chen4", "蔔": "bo5 bo2", "穀": "gu3",
        "暈": "yun1 yun4",
    }.items()
}  # fmt: skip

_LONGEST_WORD = 4  # of those that the tables keep


@functools.cache
def _tables() -> tuple[dict[str, str], dict[str, str]]:
    """(characters, words that are not read character by character), as shipped."""
    characters: dict[str, str] = {}
    words: dict[str, str] = {}
    text = (files("mudit_engine") / "assets" / "vocabulary" / "traditional.txt").read_text(
        encoding="utf-8"
    )
    for line in text.splitlines():
        written, _, simplified = line.partition("\t")
        (characters if len(written) == 1 else words)[written] = simplified
    return characters | _ALSO, words


def to_simplified(text: str) -> str:
    """The text in simplified characters, exactly as long as it was."""
    characters, words = _tables()
    simplified = "".join(characters.get(char, char) for char in text)
    if simplified == text and "著" not in text:
        return text
    chars = list(simplified)
    for place, char in enumerate(text):
        if char in _word_starts():
            for size in range(_LONGEST_WORD, 1, -1):
                if word := words.get(text[place : place + size]):
                    chars[place : place + size] = word
                    break
        if char == "著" and not (
            text[place : place + 2] in _zhu() or text[max(0, place - 1) : place + 1] in _zhu()
        ):
            chars[place] = "着"
    return "".join(chars)


@functools.cache
def _word_starts() -> frozenset[str]:
    return frozenset(word[0] for word in _tables()[1])


@functools.cache
def _zhu() -> frozenset[str]:
    return frozenset(_ZHU.split())
