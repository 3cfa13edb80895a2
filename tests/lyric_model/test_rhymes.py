"""Syllables and rhyme classes of lines."""

from __future__ import annotations

import pytest

from mudit_engine.lyric_model.rhymes import (
    HAN_CLASSES,
    HAN_NAMES,
    characters_of_class,
    common_characters,
    english_words,
    line_syllables,
    rhyme_of,
    usual_classes,
    words_of_class,
)
from mudit_engine.text.english import pronounce
from mudit_engine.text.mandarin import finals


def test_there_are_eighteen_classes_and_every_sung_final_is_in_one():
    assert len(HAN_NAMES) == 18
    assert {final for final in finals() if final not in HAN_CLASSES} <= {"m", "n", "ng"}


@pytest.mark.parametrize(
    ("line", "rhyme", "syllables"),
    [
        ("晚风吹过旧时光", "ang", 7),
        ("慢慢成长", "ang", 4),
        ("路途漫长", "ang", 4),
        ("我们的快乐", "e", 5),
        ("听着音乐", "ie", 4),
        ("一起去远行", "eng", 5),
        ("月儿", "er", 2),
        ("说不出的思", "zhi", 5),
        ("all the way", "EY", 3),
        ("every day", "EY", 4),
        ("the light of the night", "AY T", 5),
        ("一起 say goodbye", "AY", 5),
    ],
)
def test_a_line_is_heard(line, rhyme, syllables):
    assert rhyme_of(line) == rhyme
    assert line_syllables(line) == syllables


def test_nothing_sung_has_no_rhyme():
    assert rhyme_of("……") is None
    assert line_syllables("……") == 0


def test_line_ends_are_common_characters_of_one_class_each():
    assert len(common_characters()) == 3755
    ends = [char for chars in characters_of_class().values() for char in chars]
    assert len(ends) == len(set(ends)) > 3500
    assert not set("的了吗呢") & set(ends)


def test_every_english_word_is_known_and_usual_rhymes_have_words():
    assert [word for word in english_words() if pronounce(word).source != "dictionary"] == []
    assert {"AY T", "EY", "IY"} <= set(usual_classes("en"))
    known = words_of_class(english_words())
    assert all(len(known[name]) >= 8 for name in usual_classes("en"))
    assert not {"walking", "water", "garden"} & {word for own in known.values() for word in own}
    assert "er" not in usual_classes("zh")
