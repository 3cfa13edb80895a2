"""Misspelt English words, and words that only resemble ours."""

from __future__ import annotations

import pytest

from mudit_engine.text.misspelt import near_spellings
from mudit_engine.text.table_words import Near


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("drms", "drums"),
        ("gitar", "guitar"),
        ("gutiar", "guitar"),
        ("pianno", "piano"),
        ("femlae", "female"),
        ("Violn", "violin"),
        ("regae", "reggae"),
        ("instumental", "instrumental"),
        ("jaz", "jazz"),
        ("slwo", "slow"),
        ("electronc", "electronic"),
        ("instrmntal", "instrumental"),  # two slips, of ten letters
        ("synphonik", "symphonic"),
        ("ballard", "ballad"),  # a name, in small letters
        ("huitar", "guitar"),  # the first letter
        ("fmale", "female"),  # begins alike: not male
        ("siinging", "singing"),  # one added before one changed: swinging
        ("vocas", "vocals"),  # one left out before a changed one: vocal
    ],
)
def test_slips_are_put_right(typed: str, meant: str) -> None:
    assert near_spellings(f"with {typed}, please") == [Near(5, 5 + len(typed), meant)]


@pytest.mark.parametrize(
    "text",
    [
        "a mental note of the county",  # metal, country
        "the mail arrived, softly falling rain, rocky roads",
        "drums, synths and guitars",
        "a clavinet",  # once read as a clarinet
        "慢慢的钢琴，女声",
        "gtr rck",
        "fonk",  # folk and funk alike
        "bool",  # boom, of four letters with one changed
        "gitrr",  # two slips, of five letters
        "don't be such a fiddler's friend",
        "J. G. Ballard",
    ],
)
def test_other_words_stay(text: str) -> None:
    assert near_spellings(text) == []


def test_of_several_words_the_one_is_meant_that_is_read_where_it_stands() -> None:
    def meant(text: str) -> list[str]:
        return [one.word for one in near_spellings(text)]

    assert meant("I want dums") == ["drums"]
    assert meant("down in the dums") == ["dumps"]
    assert meant("down in the dumps, with dums") == ["drums"]
    assert meant("nobody sngs") == ["sings"]
    assert meant("kids sngs") == ["songs"]


def test_words_that_are_read_as_they_stand_are_left_alone() -> None:
    assert near_spellings("headbangg") == [Near(0, 9, "headbang")]
    assert near_spellings("headbangg", [(0, 9)]) == []
