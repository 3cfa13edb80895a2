"""The tables' patterns, written out as the words that they match."""

from __future__ import annotations

import re

import pytest

from mudit_engine.text import table_words as module
from mudit_engine.text.table_words import everyday_words, table_words, written_out


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"摇滚|\brock\b(?!ing)", {"摇滚", "rock"}),
        (r"慢(?:慢的?|板)?", {"慢", "慢慢", "慢慢的", "慢板"}),
        (r"(?<!电)(?:钢|竖)琴", {"钢琴", "竖琴"}),
        (r"\bhip[- ]?hop\b", {"hiphop", "hip hop", "hip-hop"}),
        (r"headbang\w*|r ?& ?b", {"headbang", "r&b", "r &b", "r& b", "r & b"}),
    ],
)
def test_written_out(pattern: str, texts: set[str]) -> None:
    assert written_out(pattern) == texts


def test_a_pattern_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="does not open"):
        written_out("摇滚)|民谣")


def test_every_text_is_matched_by_the_row_that_it_was_written_out_of() -> None:
    rows = [(pattern, text) for _, _, pattern in module._rows() for text in written_out(pattern)]
    assert len(rows) > 700
    assert [row for row in rows if not re.search(*row)] == []


def test_words_say_what_they_are_read_as() -> None:
    words = table_words()
    assert words["民谣"] == {("style", "folk")}
    assert words["慢板"] == {("tempo", "slow"), ("tempo", "66")}
    assert {name for meanings in words.values() for name, _ in meanings} == {
        "style", "voice", "tempo", "mood", "drums", "instruments", "metre"
    }  # fmt: skip


def test_moods_and_scenes_are_of_everyday_language() -> None:
    everyday = everyday_words()
    assert {"沙滩", "孤独", "happy"} <= everyday
    assert not {"民谣", "钢琴", "女声", "鼓点", "慢板"} & everyday
    assert "欢快" not in everyday  # a mood that is a tempo too
