"""Every character of a text has one fate, whatever the text is."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mudit_engine.errors import InputError
from mudit_engine.text.accounting import Fate, counts
from mudit_engine.text.phonemes import ReadLyrics, examine_lyrics, read_lyrics


def account(text: str) -> ReadLyrics:
    """Reads a text and holds its account against it."""
    read, errors = examine_lyrics(text)
    assert "".join(fate.text for fate in read.fates) == text
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for fate in read.fates:
        assert fate.detail
        assert lines[fate.line - 1][fate.column - 1 :].startswith(fate.text.rstrip("\r\n"))
        if fate.tokens:
            first, last = fate.tokens
            assert 0 <= first < last <= len(read.phonemes)
    found = counts(read.fates)
    assert found.pop("characters") == len(text) == sum(found.values())
    song = read.phonemes
    assert len(song.tokens) == len(song.syllable_of) == len(song.backing)
    assert len(song.starts) == song.tokens.count("<line>")
    assert all(isinstance(error, str) and "line" in error for error in errors)
    if not errors:
        held = {token for fate in read.fates for token in range(*(fate.tokens or (0, 0)))}
        marks = {n for n, token in enumerate(song.tokens) if token[0] == "<"}
        again = sum(fate.became == "repeat" for fate in read.fates) or len(set(song.starts)) > 1
        made = set(range(len(song))) - marks
        assert again or "time" in {fate.became for fate in read.fates} or made <= held
    return read


PIECES = st.sampled_from(
    [
        "[verse]", "(chorus)", "【副歌】", "[chrous]", "[soft rain]", "[00:12.00]", "<00:13.5>",
        "[ti:x]", "[offset:-20]", "作词：某人", "男：", " (x2)", " ×3", "**Bridge**", "Verse 2: ",
        "月亮", "长 大", "重[chong2]来", "长{chang2}", "点儿", "花{r}", "live[L AY1 V]", "read{",
        "don't", "café", "e\u0301", "K-pop", "Zhangsan", "(ooh yeah)", "（啦啦）", "(", ")", "]",
        "{",
        "1998年", "3-5天", "-5°C", "1/2", "7:30", "5G", "½", "①", "㎞", "ﷺ", "ﬁ", "が", "ｶﾞ", "한국",
        "각", "Привет", "สวัสดี", "مرحبا", "שלום", "हिन्दी", "🎸", "👩‍👩‍👧", "🇨🇳", "\u200d", "\ufeff",
        "\u0301", "\u3000", "\t", "  ", "\n", "\r\n", "\r", "\u2028", "\x0b", "…", "~", "々", "𠮷",
    ]
)  # fmt: skip
ANY_CHARACTER = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
TEXTS = st.lists(PIECES | st.text(ANY_CHARACTER, max_size=6), max_size=24).map("".join)


def everything_has_a_fate(text: str) -> None:
    try:
        account(text)
    except InputError as error:
        assert "empty" in str(error) or "nothing to sing" in str(error)


@given(TEXTS)
@settings(max_examples=400)
def test_all_characters_of_any_text_are_accounted_for(text: str) -> None:
    everything_has_a_fate(text)


@pytest.mark.slow
@given(TEXTS)
@settings(max_examples=20_000)
def test_all_characters_of_twenty_thousand_texts_are_accounted_for(text: str) -> None:
    everything_has_a_fate(text)


def by_text(read: ReadLyrics) -> dict[str, Fate]:
    return {fate.text: fate for fate in read.fates}


def test_fates_say_what_was_made() -> None:
    text = (
        "[Verse 1: Anna]\n[00:01.00]长 大, love{L AH1 V} 🎸 (啦)\r\n"
        "男：我 (x2)\n作词：某人\n[soft rain]"
    )
    read = account(text)
    fates = by_text(read)
    tokens = read.phonemes.tokens
    assert (fates["[Verse 1: Anna]"].became, fates["[Verse 1: Anna]"].detail) == ("tag", "verse")
    assert fates["[00:01.00]"].detail == "starts at 1 s"
    assert tokens[slice(*(fates["长"].tokens or (0, 0)))] == ("zh", "ang3")
    assert (
        fates["love"].tokens == fates["{L AH1 V}"].tokens or fates["{L AH1 V}"].became == "reading"
    )
    assert fates["🎸"].detail == "symbols cannot be sung"
    assert fates["啦"].layer == "backing"
    assert [t for t, b in zip(tokens, read.phonemes.backing, strict=True) if b] == [
        "<space>",
        "l",
        "a5",
    ]
    assert fates["男："].detail == "singer label"
    assert fates[" (x2)"].became == "repeat"
    assert fates["作词：某人"].detail == "credits"
    assert fates["[soft rain]"].detail == "stage direction"
    assert fates["\r\n"].became == "line break"
    assert read.phonemes.starts == (1.0, None, None)
    assert {"line": 2, "column": 11, "text": "长"}.items() <= fates["长"].row().items()


def test_all_errors_of_a_file_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        read_lyrics("[chrous]\n长{foo1}\nla\n[verse\nlove{XX}", source="song.txt")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "song.txt, line 1",
        "song.txt, line 4",
        "song.txt, line 2",
        "song.txt, line 5",
    ] or sorted(line.split(":")[0] for line in lines) == [
        f"song.txt, line {number}" for number in (1, 2, 4, 5)
    ]
    with pytest.raises(InputError, match="and 10 more such lines"):
        read_lyrics("[chrous]\n" * 30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("わたしはあなたが好きです\n月が綺麗", "Japanese"),
        ("我唔知佢哋喺邊度\n你嘅嘢", "Cantonese"),
        ("사랑해요 당신을", "Korean"),
        ("Я тебя люблю", "Cyrillic"),
        ("ฉันรักเธอ", "Thai"),
    ],
)
def test_other_languages_are_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_lyrics(text)


@pytest.mark.parametrize(
    "text", ["月の光落在海面上", "月亮代表我的心\n我爱你 아", "I love you Привет"]
)
def test_a_few_such_letters_are_left_out_with_a_note(text: str) -> None:
    assert any("cannot be sung" in note for note in read_lyrics(text).notes)


@pytest.mark.parametrize("text", ["啊" * 600_000, "la la\n" * 2_000_000])
def test_what_is_no_song_is_refused_at_once(text: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match="at most"):
        read_lyrics(text)
    assert time.process_time() - start < 2


def seconds_of(lines: int) -> float:
    text = "[verse]\n" + "我得去找你 because it's 1998 (ooh)，转个圈\n" * lines
    start = time.process_time()
    read_lyrics(text)
    return time.process_time() - start


def test_time_is_linear_in_the_length() -> None:
    seconds_of(10)
    short, long = min(seconds_of(100) for _ in range(3)), min(seconds_of(800) for _ in range(2))
    assert long < 8 * 2.5 * short


def test_normalisation_keeps_the_columns() -> None:
    text = "cafe\u0301 각 ½ ﷺ"
    read = account(text)
    assert unicodedata.is_normalized("NFC", read.lyrics.sections[0].lines[0].text)
    assert by_text(read)["cafe\u0301"].became == "phonemes"
    assert by_text(read)["½"].became == "phonemes"
