"""A description, Chinese, English or mixed -> fragments of three sizes: sentences, phrases and
words.

Sentences end at 。！？.!?;； or a new line (not inside 92.5 or R.E.M.); phrases at ，、,: brackets,
dashes and coordinating words (和, 以及, and, with, ...). English words are split at blanks. Chinese
has none: words are found by maximum matching from both ends over the project's own terms of music
and mood (assets/vocabulary/terms_zh.txt) and pypinyin's phrase dictionary; the split with fewer
words, then fewer single characters, wins. So 和弦 stays whole while 钢琴和鼓 is cut at 和. Function
words are no word fragments.

    description_fragments("温暖的女声，钢琴和弦乐。BPM 92", 8)
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from importlib.resources import files

from mudit_engine.errors import InputError
from mudit_engine.text.mandarin import is_han
from mudit_engine.text.numbers import chinese_value

LEVELS = ("word", "phrase", "sentence")
_SENTENCE_END = re.compile(
    r"[。！？!?;；\r\n]+|(?<![A-Z])\.+(?=\s|$|[\u3400-\u9fff])|(?<=[A-Z]{2})\.+(?=\s|$)"
)
_PHRASE_END = re.compile(
    r"[，、,:：()（）\[\]【】\"“”|/]+(?=\D|$)|[，、：（）【】“”()]+|(?<=\s)[-\u2013]+(?=\s)|[\u2014…]+"
)
# a tempo, a key or a decade is one word
_TERM = re.compile(
    r"bpm\s*\d+(?:\.\d+)?|\d+(?:\.\d+)?\s*bpm(?![a-z])|\d+年代"
    r"|[降升]?(?-i:[A-G][#b♯♭]?|[b#♭♯][A-G])(?:[大小]?[调調]|[\s-]*(?:flat[\s-]+|sharp[\s-]+)?(?:major|minor)(?![A-Za-z]))",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[A-Za-z]+(?:[-'’&.][A-Za-z]+)*[#♯♭]?|\d+(?:[.:]\d+)?%?|[^\sA-Za-z\d]")


def _bag(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


_COORDINATING = _bag(
    "和 与 與 及 以及 并 並 并且 並且 而且 但 但是 或 或者 同时 同時 加上 and or but plus with "
    "while yet",
)
FUNCTION_WORDS = _COORDINATING | _bag(
    "的 地 得 了 着 过 是 在 有 个 一 首 一首 段 一段 这 那 这种 那种 一个 之后 之前 时候 可以 听 "
    "起来 听起来 太 不 没 我 你 他 她 它 很",
    "也 都 就 又 让 把 被 给 从 到 为 以 用 里 上 中 下 要 想 想要 带 带有 带着 请 吧 呢 吗 啊 像 "
    "等 种 一种 点 一点 一些 非常 比较 十分",
    "特别 有点 偏 略带 稍微 更加 这首歌 首歌 歌 為 個 這 讓 給 從 裡 帶 帶有 請 嗎 a an the of in "
    "on at to for by from as is "
    "are be it",
    "its it's this that these those i me my you your we our some very quite rather really so like "
    "has have having into over under then",
    "than",
)
_LONGEST_WORD = 6


@dataclass(frozen=True)
class Fragment:
    """A piece of a description; `level` is one of LEVELS."""

    text: str
    level: str


def fragments(description: str) -> tuple[Fragment, ...]:
    """All fragments in reading order: each sentence, then its phrases, then their words.

    A text met before is dropped, or counts as the larger fragment if it is met as that: a one-word
    description is one sentence. Empty for a description with no letter, digit or symbol.
    """
    found: dict[str, Fragment] = {}

    def add(text: str, level: str) -> None:
        before = found.get(text.casefold())
        if before is None or LEVELS.index(level) > LEVELS.index(before.level):
            found[text.casefold()] = Fragment(text if before is None else before.text, level)

    for sentence in sentences(description):
        add(sentence, "sentence")
        for phrase in phrases(sentence):
            add(phrase, "phrase")
            for word in words(phrase):
                if word.casefold() not in FUNCTION_WORDS:
                    add(word, "word")
    return tuple(found.values())


def description_fragments(description: str, max_fragments: int) -> tuple[str, ...]:
    """What a model is conditioned on: all sentences of a description in order, then their phrases.

    Args:
        description: free text in Chinese, English or both.
        max_fragments: how many texts at most.

    Returns:
        The texts, without repetition.

    Raises:
        InputError: for a description that is only blanks and for max_fragments < 1.

    Examples:
        >>> description_fragments("温暖的女声，钢琴和弦乐。BPM 92", 4)
        ('温暖的女声，钢琴和弦乐', 'BPM 92', '温暖的女声', '钢琴')
    """
    if max_fragments < 1:
        raise InputError(
            f"max_fragments={max_fragments} leaves nothing of a description: ask for 1 or more"
        )
    if not description.strip():
        raise InputError(
            "the description is empty: say what the song should sound like, e.g. 'warm female "
            "voice, piano, 92 bpm'"
        )
    parts = fragments(description)
    ordered = [
        part.text for level in ("sentence", "phrase") for part in parts if part.level == level
    ]
    return tuple(ordered[:max_fragments]) or (" ".join(description.split()),)


def sentences(text: str) -> list[str]:
    """Sentences without their closing mark, blanks tidied, NFC."""
    return _tidy(_SENTENCE_END.split(unicodedata.normalize("NFC", text)))


def phrases(sentence: str) -> list[str]:
    """Phrases of one sentence."""
    found = []
    for part in _PHRASE_END.split(sentence):
        start = 0
        for word, place in _words_at(part):
            if word.casefold() in _COORDINATING:
                found.append(part[start:place])
                start = place + len(word)
        found.append(part[start:])
    return _tidy(found)


def words(text: str) -> list[str]:
    """All words in order, Chinese ones by maximum matching; punctuation is left out."""
    return [word for word, _ in _words_at(text)]


def _tidy(parts: list[str]) -> list[str]:
    cleaned = (
        " ".join(part.split()).strip(" .,，、-–—:：;；\"'“”‘’()（）[]【】") for part in parts
    )
    return [
        part for part in cleaned if any(unicodedata.category(char)[0] in "LNS" for char in part)
    ]


def content_words(text: str) -> list[tuple[str, int]]:
    """(word, place in the text) of every word that says something: no function words."""
    return [
        (word, place) for word, place in _words_at(text) if word.casefold() not in FUNCTION_WORDS
    ]


def _words_at(text: str) -> list[tuple[str, int]]:
    found = []
    place = 0
    while place < len(text):
        if match := _TERM.match(text, place):
            found.append((match[0], place))
            place = match.end()
            continue
        end = place
        while (
            end < len(text) and is_han(text[end]) and not (end > place and _TERM.match(text, end))
        ):
            end += 1
        if end > place:
            for word in _segment(text[place:end]):
                found.append((word, place))
                place += len(word)
        elif match := _TOKEN.match(text, place):
            if unicodedata.category(match[0][0])[0] in "LNS":
                found.append((match[0], place))
            place = match.end()
        else:
            place += 1
    return found


@functools.cache
def chinese_terms() -> frozenset[str]:
    """The project's own words of music and mood (assets/vocabulary/terms_zh.txt)."""
    text = (files("mudit_engine") / "assets" / "vocabulary" / "terms_zh.txt").read_text(
        encoding="utf-8"
    )
    return frozenset(text.split())


@functools.lru_cache(maxsize=4096)
def _segment(text: str) -> tuple[str, ...]:
    """Words of a run of Han characters. Neighbouring single characters that are no function words
    stay together as one unknown word.
    """
    from pypinyin.phrases_dict import phrases_dict

    def known(word: str) -> bool:
        return word in chinese_terms() or word in phrases_dict or word in FUNCTION_WORDS

    forward: list[str] = []
    place = 0
    while place < len(text):
        size = next(
            (
                n
                for n in range(min(_LONGEST_WORD, len(text) - place), 1, -1)
                if known(text[place : place + n])
            ),
            1,
        )
        forward.append(text[place : place + size])
        place += size
    backward: list[str] = []
    place = len(text)
    while place > 0:
        size = next(
            (n for n in range(min(_LONGEST_WORD, place), 1, -1) if known(text[place - n : place])),
            1,
        )
        backward.insert(0, text[place - size : place])
        place -= size
    best = min(
        (backward, forward), key=lambda split: (len(split), sum(len(word) == 1 for word in split))
    )
    merged: list[str] = []
    for word in best:
        if (
            merged
            and not known(word)
            and len(word) == 1
            and merged[-1]
            and not known(merged[-1])
            and len(merged[-1]) < 3
        ):
            merged[-1] += word
        else:
            merged.append(word)
    return tuple(merged)


_NUMBER = r"(\d{2,3}(?:\.\d+)?)(?!\d)(?:\s*(?:-|~|\u2013|to|到|至)\s*(\d{2,3}(?:\.\d+)?)(?!\d))?"
_BPM = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?<![\d.]){_NUMBER}\s*-?(?:bpm(?![a-z])|beats?\s+(?:per|a)\s+minute|拍\s*(?:/|每|一)?\s*(?:分|min))",
        rf"bpm\s*(?:is|of|at|around|about|约为|大约|约|为|是|在)?\s*[:=]?\s*{_NUMBER}",
        rf"每分钟\s*(?:约|大约)?\s*{_NUMBER}\s*(?:个)?(?:节?拍|下)",
        rf"(?:tempo|速度)\s*(?:is|of|at|around|about|约为|大约|约|为|是|在)?\s*[:=]?\s*{_NUMBER}",
        rf"[♩♪]\s*=\s*{_NUMBER}",
    )
]
_CHINESE_BPM = re.compile(
    r"(?:每分钟|bpm|速度)\s*(?:约|大约|为|是)?\s*([一二两三四五六七八九十百零]{2,7})(?:个?节?拍)?",
    re.IGNORECASE,
)
SLOWEST_BPM, FASTEST_BPM = 20.0, 400.0


def requested_bpm(description: str) -> float | None:
    """The tempo that a description names.

    Args:
        description: read are "BPM 92", "92 bpm", "每分钟92拍", "tempo of 120"; a range such as
            "90-100 bpm" gives its middle.

    Returns:
        Beats a minute; None if no tempo is named.

    Examples:
        >>> requested_bpm("一首 BPM 92 的民谣"), requested_bpm("90-100 bpm"), requested_bpm("慢歌")
        (92.0, 95.0, None)
    """
    text = unicodedata.normalize("NFKC", description).replace("每分鐘", "每分钟")
    for pattern in _BPM:
        if match := pattern.search(text):
            low, high = float(match[1]), float(match[2] or match[1])
            return _tempo((low + high) / 2)
    match = _CHINESE_BPM.search(text)
    return _tempo(chinese_value(match[1])) if match else None


def _tempo(bpm: float | None) -> float | None:
    return bpm if bpm is not None and SLOWEST_BPM <= bpm <= FASTEST_BPM else None


_ACCIDENTAL = {
    "": "",
    "#": "#",
    "♯": "#",
    "b": "b",
    "♭": "b",
    "升": "#",
    "降": "b",
    "sharp": "#",
    "flat": "b",
}
_CHINESE_KEY = re.compile(
    r"(?<![A-Za-z])([降升#♯♭b]?)\s?([A-Ga-g])([#♯♭b]?)\s?(自然|和声|旋律)?([大小]?)[调調](?!性)"
)
_NUMBERED_KEY = re.compile(r"(?<!\d)1\s?=\s?([#♯♭b]?)([A-G])([#♯♭b]?)(?![A-Za-z])")
_ENGLISH_KEY = re.compile(
    r"(?<![A-Za-z0-9'#♯♭])((?-i:[#♯♭b]?))([A-G])(?:\s?((?-i:[#♯♭]|b(?![a-z])))|[\s-]+(flat|sharp)\b)?[\s-]*(major|minor|maj|min|m)(?![a-z0-9])",
    re.IGNORECASE,
)
_KEY_OF = re.compile(
    r"\bkey\s*(?:of|is|:|=)\s*([A-G])(?:\s?((?-i:[#♯♭]|b(?![a-z])))|[\s-]+(flat|sharp)\b)?(?![A-Za-z])",
    re.IGNORECASE,
)
# "a major hit" names no key; after a lone a or A, only these may follow
_AFTER_ARTICLE = re.compile(
    r"\s*(?:$|[^\sA-Za-z]|(?:and|with|at|for|or|key|scale|chords?|ballad|song|tune|piece|progression)\b)",
    re.IGNORECASE,
)


def requested_key(description: str) -> str | None:
    """The key that a description names.

    Args:
        description: read are "C大调", "降E大调", "#F小调", "D调" and "1=D" (major), "F# minor",
            "bB major", "E-flat major", "Am", "key of G" (major).

    Returns:
        Tonic and mode, as "C major", "A minor", "Eb major"; None if no key is named.

    Examples:
        >>> requested_key("降E大调的慢歌"), requested_key("a song in Am"), requested_key("慢歌")
        ('Eb major', 'A minor', None)
    """
    text = unicodedata.normalize("NFKC", description)
    if match := _CHINESE_KEY.search(text):
        return _key(match[2], match[1] or match[3], "minor" if match[5] == "小" else "major")
    if match := _NUMBERED_KEY.search(text):
        return _key(match[2], match[1] or match[3], "major")
    for match in _ENGLISH_KEY.finditer(text):
        sign, letter, after, spelled, mode = match.groups()
        if len(mode) == 1 and (not letter.isupper() or mode != "m" or spelled or " " in match[0]):
            continue  # only Am, F#m: a capital, a small m, nothing between
        if letter in "aA" and not (sign or after or spelled) and not _is_key_a(text, match):
            continue
        return _key(
            letter,
            sign or after or (spelled or "").lower(),
            "minor" if mode.lower().startswith("mi") or mode == "m" else "major",
        )
    if match := _KEY_OF.search(text):
        return _key(match[1], match[2] or (match[3] or "").lower(), "major")
    return None


def _is_key_a(text: str, match: re.Match[str]) -> bool:
    """Whether "a major"/"A minor" is a key: a small a only behind in, of, key or a colon (or
    alone), and no noun after it.
    """
    before = text[: match.start()].rstrip()
    announced = (
        not before
        or re.search(r"(?:\b(?:in|of|key)|[:=,，;；。.(])$", before, re.IGNORECASE) is not None
    )
    follows = _AFTER_ARTICLE.match(text, match.end()) is not None
    if match[2] == "A" and before and before[-1] not in ".!?。！？\n":
        return True
    in_a_key = match[2] == "a" and re.match(r"\s*key\b", text[match.end() :], re.IGNORECASE)
    return announced and follows and not in_a_key


def _key(letter: str, accidental: str, mode: str) -> str:
    return f"{letter.upper()}{_ACCIDENTAL[accidental]} {mode}"
