"""Chinese typed in other characters of the same sound, and words that only sound like ours."""

from __future__ import annotations

import random
from importlib.resources import files

import pytest
from pypinyin import lazy_pinyin

from mudit_engine.text.homophones import near_sounds
from mudit_engine.text.mandarin import is_han
from mudit_engine.text.table_words import Near, table_words

WORDS = [word for word in table_words() if len(word) > 1 and all(map(is_han, word))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("最好说昌", ["说唱"]),
        ("我想要漫歌，不要摇棍", ["慢歌", "摇滚"]),
        ("爵是吉塔", ["爵士", "吉他"]),
        ("轻因乐", ["轻音乐"]),  # 乐 alone is le, not yue
        ("女深", ["女声"]),  # shen and sheng
        ("小题琴独奏", ["小提琴"]),
        ("没有人昌歌", ["没有人唱歌"]),
        ("股点", ["鼓点"]),  # sounds like 古典 as well, and shares nothing with it
    ],
)
def test_read_by_their_sound(text: str, words: list[str]) -> None:
    assert [one.word for one in near_sounds(text)] == words


@pytest.mark.parametrize(
    "text",
    [
        "流星，女神，人生，寒流，访客，点子",  # 流行 女声 人声 韩流 放克 电子
        "要滚了，请个假，忙个不停，快了",  # 摇滚 情歌 慢歌 快乐
        "好像村里的人，写一点字",  # 像村 and 点字, across two words: 乡村 电子
        "人生没有彩排",  # 人声没有, of two words
        "那时是冬天",  # 时是, a scene's 史诗
        "六星酒店",  # 六星, a numeral's 流行
        "那声",  # na, not nan
        "古点",  # 古典 and 鼓点 alike
        "漫，股，昌",  # no single character
        "悲桑",  # a mood's sound is to be the same
        "摇滚，慢歌，钢琴，女声",
        "流",
        "",
    ],
)
def test_what_chinese_has_stays(text: str) -> None:
    assert near_sounds(text) == []


def test_places_are_those_of_the_text() -> None:
    assert near_sounds("ok，不要股点 or 纲琴") == [Near(5, 7, "鼓点"), Near(11, 13, "钢琴")]


def test_no_character_that_is_read_is_changed() -> None:
    assert near_sounds("鼓凤") == [Near(0, 2, "古风")]
    assert near_sounds("鼓凤", [(0, 1)]) == []
    assert near_sounds("漫慢的", [(1, 2)]) == [Near(0, 3, "慢慢的")]
    assert near_sounds("漫慢的", [(0, 1)]) == []


def test_no_word_of_the_tables_is_taken_for_another() -> None:
    assert [word for word in WORDS if near_sounds(word)] == []


def test_every_word_of_the_tables_is_read_with_another_character_of_its_sound() -> None:
    """Whatever table a word stands in: one character of it is typed wrong, in several ways."""
    text = (files("mudit_engine") / "assets/vocabulary/words_zh.txt").read_text("utf-8")
    by_sound: dict[str, list[str]] = {}
    for char in sorted(set(text) - {"\n"}):
        by_sound.setdefault(lazy_pinyin(char)[0], []).append(char)
    rng = random.Random(3)
    missed, misread = [], []
    for word in WORDS:
        syllables, right = lazy_pinyin(word), 0
        for _ in range(12):
            place = rng.randrange(len(word))
            typed = word[:place] + rng.choice(by_sound[syllables[place]]) + word[place + 1 :]
            found = near_sounds(typed)
            if [(one.start, one.end) for one in found] == [(0, len(word))]:
                right += table_words()[found[0].word] == table_words()[word]
                if table_words()[found[0].word] != table_words()[word]:
                    misread.append((typed, found[0].word))
        if not right:
            missed.append(word)
    assert (missed, misread) == ([], [])
