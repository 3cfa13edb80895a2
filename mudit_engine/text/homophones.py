"""Chinese words of a description that are typed in other characters of the same sound.

    near_sounds("最好说昌")      [Near(2, 4, "说唱")]

Chinese is typed by its sound (pinyin), and the wrong one of several characters is easily picked.
Two or more characters that sound, tones apart, like a word of the tables are read as that word,
unless Chinese has what was typed. Two things decide that:

- Whatever stands in a dictionary is an ordinary word: assets/vocabulary/words_zh.txt, pypinyin's
  phrases and the tables' own words. 流星 (a meteor) is never 流行.
- The text around is cut into as few words as it can be, each word of the dictionary for 1, a
  single character for 1 or 1.5 (one of grammar, another one) and a near word for 1.6. It is read
  only where that is the cheapest cut: in 最好|说昌, not in 好像|村|里 (像村, 乡村).

Sounds that many speakers do not tell apart (zh z, ch c, sh s; -ng and -n behind a, e, i), so that
their keyboards offer both, count as one for the words of music themselves; for moods and scenes,
which are of everyday language, the sound is to be the same.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from importlib.resources import files

from mudit_engine.text.descriptions import FUNCTION_WORDS, chinese_terms
from mudit_engine.text.mandarin import is_han
from mudit_engine.text.table_words import Near, everyday_words, table_words

_WORD, _GRAMMAR, _SINGLE, _NEAR = 1.0, 1.0, 1.5, 1.6
_LONGEST_WORD = 6
# With these a phrase begins, or ends; what stands beside them is a word of its own: 要|滚, 请|个.
_BEGINS = frozenset(
    "要想不没有很太最就都也又在用让给把被和跟与请会能可是的了这那一我你他她它们来去个到从比为之只而因"
)
_ENDS = frozenset("的了着过吗呢吧啊得地们么个不")
_NUMERALS = frozenset("一二两三四五六七八九十百千半")
# which words are these typed for? 时|是 is never 史诗, and 爵是 is 爵士
_NEVER_FOR_EVERYDAY = _NUMERALS | _BEGINS | _ENDS


def near_sounds(text: str, read: Sequence[tuple[int, int]] = ()) -> list[Near]:
    """The words of the tables that a text holds in other characters of the same sound.

    Args:
        text: of a description, in simplified characters.
        read: the places whose words are read as they stand: no character of theirs is changed.

    Returns:
        In their order, without overlap.

    Examples:
        >>> near_sounds("摇棍，不要股点")
        [Near(start=0, end=2, word='摇滚'), Near(start=5, end=7, word='鼓点')]
        >>> near_sounds("要滚了，流星，女神")
        []
    """
    fixed = {place for start, end in read for place in range(start, end)}
    found: list[Near] = []
    place = 0
    for han, run in itertools.groupby(text, is_han):
        piece = "".join(run)
        if han and len(piece) > 1:
            candidates = _candidates(piece, frozenset(at - place for at in fixed if at >= place))
            if candidates:
                found += [
                    Near(place + one.start, place + one.end, one.word)
                    for one in _cheapest_cut(piece, candidates)
                ]
        place += len(piece)
    return found


def _candidates(piece: str, fixed: frozenset[int]) -> list[Near]:
    """Everywhere that a run of Han characters sounds like a word of ours and is no word itself."""
    sounds = [_sounds(char) for char in piece]
    index = _index()
    found = []
    for start in range(len(piece) - 1):
        words = {
            word: syllables
            for pair in itertools.product(sounds[start], sounds[start + 1])
            for word, syllables in index.get((_folded(pair[0]), _folded(pair[1])), ())
        }
        typed: dict[int, list[str]] = {}
        for word, syllables in words.items():
            end = start + len(word)
            if end > len(piece):
                continue
            changed = {at for at in range(start, end) if piece[at] != word[at - start]}
            if not changed or changed & fixed:
                continue
            everyday = word in everyday_words()
            if any(piece[at] in (_NEVER_FOR_EVERYDAY if everyday else _NUMERALS) for at in changed):
                continue
            if all(_same(piece[at], syllables[at - start], folded=not everyday) for at in changed):
                typed.setdefault(len(word), []).append(word)
        for size, near in typed.items():
            run = piece[start : start + size]
            if not _is_phrase(run) and (meant := _one_of(near, run)) is not None:
                found.append(Near(start, start + size, meant))
    return found


def _same(char: str, syllable: str, *, folded: bool) -> bool:
    usual = _usual(char)
    return usual == syllable or (folded and _folded(usual) == _folded(syllable))


def _one_of(near: list[str], run: str) -> str | None:
    """The word that shares most with what was typed; None if several do that are read otherwise."""

    def shared(word: str) -> tuple[int, int]:
        heard = sum(_usual(a) == b for a, b in zip(run, _syllables(word), strict=True))
        return heard, sum(a == b for a, b in zip(word, run, strict=True))

    most = max(map(shared, near))
    best = sorted(word for word in near if shared(word) == most)
    return best[0] if len({table_words()[word] for word in best}) == 1 else None


def _is_phrase(run: str) -> bool:
    """Whether Chinese has what was typed: as a word, or as words beside each other."""
    if _is_word(run):
        return True
    if len(run) == 2:
        return run[0] in _BEGINS or run[1] in _ENDS
    # 人生|没有 sounds like 人声没有, and holds no character that is left alone
    return all(len(part) > 1 or part in FUNCTION_WORDS for part in _cut(run, ()))


def _cheapest_cut(piece: str, candidates: Sequence[Near]) -> list[Near]:
    """The candidates that stand in the cheapest cut."""
    place, near = 0, []
    words = {(one.start, one.end): one for one in candidates}
    for part in _cut(piece, candidates):
        if one := words.get((place, place + len(part))):
            near.append(one)
        place += len(part)
    return near


def _cut(piece: str, candidates: Sequence[Near]) -> list[str]:
    """A run of Han characters in words, near ones among them, at the least cost."""
    ends: dict[int, list[int]] = {}
    for one in candidates:
        ends.setdefault(one.start, []).append(one.end)
    costs = [0.0] + [float("inf")] * len(piece)
    before = [0] * (len(piece) + 1)

    def offer(start: int, end: int, cost: float) -> None:
        if costs[start] + cost < costs[end] - 1e-9:
            costs[end], before[end] = costs[start] + cost, start

    for start, char in enumerate(piece):
        for end in range(start + 2, min(len(piece), start + _LONGEST_WORD) + 1):
            if _is_word(piece[start:end]):
                offer(start, end, _WORD)
        offer(start, start + 1, _GRAMMAR if char in FUNCTION_WORDS else _SINGLE)
        for end in ends.get(start, ()):
            offer(start, end, _NEAR)
    parts: list[str] = []
    end = len(piece)
    while end:
        parts.append(piece[before[end] : end])
        end = before[end]
    return parts[::-1]


def _is_word(text: str) -> bool:
    from pypinyin.phrases_dict import phrases_dict

    return (
        text in _ordinary()
        or text in phrases_dict
        or text in table_words()
        or text in chinese_terms()
        or text in FUNCTION_WORDS
    )


@functools.cache
def _ordinary() -> frozenset[str]:
    folder = files("mudit_engine") / "assets" / "vocabulary"
    return frozenset((folder / "words_zh.txt").read_text(encoding="utf-8").split())


@functools.lru_cache(maxsize=512)
def _folded(syllable: str) -> str:
    """The syllable, alike for those that many speakers do not tell apart: shen, sheng, sen."""
    return re.sub("(?<=[aei])ng$", "n", re.sub("^([zcs])h", r"\1", syllable))


def _sounds(char: str) -> tuple[str, ...]:
    """How a character may begin a word of ours: as it usually sounds, or as it does in one."""
    return tuple(dict.fromkeys([_usual(char), *_own_readings().get(char, ())]))


@functools.lru_cache(maxsize=8192)
def _usual(char: str) -> str:
    """The usual reading of a character, without its tone."""
    from pypinyin import lazy_pinyin

    return lazy_pinyin(char)[0]


@functools.lru_cache(maxsize=1024)
def _syllables(word: str) -> tuple[str, ...]:
    from pypinyin import lazy_pinyin

    return tuple(lazy_pinyin(word))


@functools.cache
def _chinese_words() -> tuple[str, ...]:
    return tuple(word for word in table_words() if len(word) > 1 and all(map(is_han, word)))


@functools.cache
def _own_readings() -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for word in _chinese_words():
        for char, syllable in zip(word, _syllables(word), strict=True):
            found.setdefault(char, set()).add(syllable)
    return {char: tuple(sorted(syllables)) for char, syllables in found.items()}


@functools.cache
def _index() -> dict[tuple[str, str], list[tuple[str, tuple[str, ...]]]]:
    """Words of ours with their syllables, by the sound of their first two."""
    index: dict[tuple[str, str], list[tuple[str, tuple[str, ...]]]] = {}
    for word in _chinese_words():
        syllables = _syllables(word)
        key = (_folded(syllables[0]), _folded(syllables[1]))
        index.setdefault(key, []).append((word, syllables))
    return index
