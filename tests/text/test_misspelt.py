"""Slips of the fingers in English words, and words that only resemble ours."""

from __future__ import annotations

import pytest

from mudit_engine.text.misspelt import WORDS, spelt
from mudit_engine.text.wishes import read_description


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
    ],
)
def test_one_slip_is_put_right(typed: str, meant: str) -> None:
    assert spelt(f"with {typed}, please") == (f"with {meant}, please", ((typed, meant),))


@pytest.mark.parametrize(
    "text",
    [
        "a mental note of the county",  # metal, country
        "the mail arrived, softly falling rain, rocky roads",
        "drums and guitars",
        "慢慢的钢琴，女声",
        "gtr rck",
        "don't be such a fiddler's friend",
    ],
)
def test_other_words_stay(text: str) -> None:
    assert spelt(text) == (text, ())


def test_no_word_of_ours_is_taken_for_another() -> None:
    assert all(spelt(word) == (word, ()) for word in WORDS)


def test_wishes_are_read_through_slips_and_say_so() -> None:
    wishes = read_description("sad jaz ballad, femlae voice, no drms")
    assert (wishes.voice, wishes.drums, wishes.style) == ("female", False, "ballad")
    assert "'femlae' is read as 'female'" in wishes.notes
    assert "'drms' is read as 'drums'" in wishes.notes
    assert read_description("带 gitar 的歌").instruments == ("guitar",)
