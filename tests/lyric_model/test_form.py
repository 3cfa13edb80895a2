"""Forms: what a structure says, which lines rhyme, which sections repeat, what fits a length."""

from __future__ import annotations

import pytest

from mudit_engine.errors import InputError
from mudit_engine.lyric_model.form import default_form, parse_form, sung_seconds


def test_a_structure_is_read_and_written_back():
    text = "verse:4x7/5,chorus:4x5-6,bridge:2x9,outro"
    form = parse_form(text)
    assert form.structure == text
    assert [len(section.lines) for section in form.sections] == [4, 4, 2, 0]
    assert form.sections[0].lines == ((7, 7), (5, 5), (7, 7), (5, 5))
    assert form.sections[1].lines[0] == (5, 6)


def test_chinese_names_of_sections_are_known():
    assert parse_form("主歌:2x7，副歌:2x5").structure == "verse:2x7,chorus:2x5"


def test_letters_rhyme_within_a_section_and_a_chorus_comes_again():
    form = parse_form("verse:4x7,chorus:4x5,chorus:4x5", rhyme="aaba")
    assert form.rhyming()[0] == (True, True, False, True)
    assert form.copies() == (None, None, 1)
    assert form.groups()[1] == form.groups()[2]
    assert set(form.groups()[0]).isdisjoint(form.groups()[1])


def test_one_rhyme_and_none():
    assert {
        name for own in parse_form("verse:2x7,bridge:2x5", rhyme="one").groups() for name in own
    } == {"one"}
    assert parse_form("verse:2x7", rhyme="free").rhyming() == ((False, False),)


def test_the_papers_notation():
    form = parse_form("verse:2x6,outro", rhyme="AA")
    assert form.notation() == "(verse)\ncccccR\ncccccR\n(outro)"
    english = parse_form("verse:3x2", rhyme="ABA", language="en")
    assert english.notation() == "(verse)\nsR\nss\nsR"


@pytest.mark.parametrize(
    ("text", "rhyme", "said"),
    [
        ("vers:4x", "AABA", "vers:4x"),
        ("werse:4x7", "AABA", "unknown section .werse"),
        ("verse", "AABA", "verse:4x7"),
        ("verse:0x7", "AABA", "1 to 32 lines"),
        ("verse:2x99", "AABA", "1 to 24"),
        ("verse:2x8-6", "AABA", "8-6"),
        ("intro,outro", "AABA", "no line to sing"),
        ("verse:2x7", "A1", "no scheme"),
    ],
)
def test_what_cannot_be_asked_is_named(text, rhyme, said):
    with pytest.raises(InputError, match=said):
        parse_form(text, rhyme=rhyme)


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("seconds", [20, 30, 45, 60, 90, 120, 180, 240])
def test_the_usual_form_fits_its_length(seconds, language):
    form = default_form(seconds, language=language)
    assert sung_seconds(form) <= seconds
    assert sung_seconds(form) >= 0.6 * seconds


def test_longer_songs_have_more_to_sing():
    lines = [
        sum(len(section.lines) for section in default_form(seconds).sections)
        for seconds in (10, 20, 40, 60, 120, 200)
    ]
    assert lines == sorted(lines)
    assert lines[0] < lines[-1]
