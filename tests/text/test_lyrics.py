"""Section tags in every usual spelling, LRC, and messages that name the line."""

from __future__ import annotations

from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mudit_engine.errors import InputError
from mudit_engine.text.lyrics import LyricLine, Lyrics, Section, format_lyrics, parse_lyrics
from mudit_engine.text.sections import KINDS, read_tag

TAGS = [
    ("[verse]", "verse", None),
    ("<verse 2>", "verse", 2),
    ("(pre-chorus)", "pre-chorus", None),
    ("{Chorus}", "chorus", None),
    ("【主歌】", "verse", None),
    ("副歌：", "chorus", None),
    ("Verse 1:", "verse", 1),
    ("[Verse 1: Anna]", "verse", 1),
    ("［副歌］", "chorus", None),
    ("（尾奏）", "outro", None),
    ("＜Verse １＞", "verse", 1),
    ("【間奏】", "interlude", None),
    ("【導歌】", "pre-chorus", None),
    ("[prechorus]", "pre-chorus", None),
    ("[pre chorus 2]", "pre-chorus", 2),
    ("PRE-CHORUS", "pre-chorus", None),
    ("[Pre_Chorus]", "pre-chorus", None),
    ("Pre-Chorus 2:", "pre-chorus", 2),
    ("前奏", "intro", None),
    ("[桥段]", "bridge", None),
    ("[過渡段]", "bridge", None),
    ("**Verse 2**", "verse", 2),
    ("### Bridge", "bridge", None),
    ("**[Chorus]**", "chorus", None),
    ("--- Outro ---", "outro", None),
    ("[Verse II]", "verse", 2),
    ("[主歌A]", "verse", 1),
    ("[主歌二]", "verse", 2),
    ("[第二段主歌]", "verse", 2),
    ("[最后副歌]", "chorus", None),
    ("[Final Chorus]", "chorus", None),
    ("[Guitar Solo]", "solo", None),
    ("[吉他独奏]", "solo", None),
    ("[Instrumental Break]", "break", None),
    ("[intro-short]", "intro", None),
    ("[inst]", "inst", None),
    ("[Chorus 副歌]", "chorus", None),
    ("[副歌/Chorus 2]", "chorus", 2),
    ("(outro)", "outro", None),
    ("(others)", "others", None),
    ("[Refrain]", "chorus", None),
    ("[Rap]", "rap", None),
    ("《间奏》", "interlude", None),
    ("Hook:", "hook", None),
    ("[00:12.00][verse]", "verse", None),
]


@pytest.mark.parametrize(("tag", "kind", "index"), TAGS, ids=[tag for tag, _, _ in TAGS])
def test_tag_spellings(tag: str, kind: str, index: int | None) -> None:
    lyrics = parse_lyrics(f"[intro]\n{tag}\n  sing me home \t\r\n")
    assert lyrics.sections == (Section("intro"), Section(kind, index, (LyricLine("sing me home"),)))
    assert lyrics.sections[1].lines[0].number == 3


@pytest.mark.parametrize("kind", KINDS)
def test_canonical_kind_is_its_own_tag(kind: str) -> None:
    tag = read_tag(kind)
    assert tag is not None
    assert (tag.kind, tag.index, tag.extras) == (kind, None, ())


@pytest.mark.parametrize(
    "line",
    [
        "(ooh yeah)",
        "(rise)",
        "Bridge over the water",
        "solo",
        "drop",
        "I sing a chorus",
        "副歌唱给你听",
        "<3 you",
        "《月亮》",
        "end",
        "verse after verse",
        "(end)",
    ],
)
def test_words_are_not_tags(line: str) -> None:
    assert parse_lyrics(f"[verse]\n{line}").sections == (
        Section("verse", None, (LyricLine(line),)),
    )


@pytest.mark.parametrize(
    "line",
    [
        "Verse 1: I walk alone",
        "[verse 1] I walk alone",
        "[Verse 1]: I walk alone",
        "【主歌1】I walk alone",
    ],
)
def test_words_behind_a_tag_are_sung(line: str) -> None:
    assert parse_lyrics(line).sections == (Section("verse", 1, (LyricLine("I walk alone"),)),)


def test_lrc_is_read_and_reported() -> None:
    source = (
        "\ufeff[ti:月亮]\r\n[ar:无名]\r\n[offset:+500]\r\n作词：某人\r\n[00:00.50]编曲：某人\r\n[00:12.34]【主歌】\r\n"
        "[00:13.00]月亮 落下\r\n[00:20.00][01:20.00]<00:20.00>落在<00:20.80>海面\r\n[00:30.00]\r\n"
        "[1:02:03.4]Hello <00:31.2> world\r\n[1234,500]男：<0,200,0>我爱你"
    )
    lyrics = parse_lyrics(source, ignore_times=True)
    assert [line.text for line in lyrics.sections[0].lines] == [
        "月亮 落下",
        "落在海面",
        "Hello world",
        "我爱你",
    ]
    assert [line.number for line in lyrics.sections[0].lines] == [7, 8, 10, 11]
    notes = "\n".join(lyrics.notes)
    for said in (
        "time stamps are dropped",
        "LRC headers are dropped (lines 1, 2, 3)",
        "credits are dropped (lines 4, 5)",
        "singer labels",
        "line 8: several",
    ):
        assert said in notes


def test_a_line_starts_at_its_time() -> None:
    lyrics = parse_lyrics(
        "[offset:+500]\n[verse]\n[00:10.50]first\n[00:20.00][01:00.5]twice\n[00:30]<00:30.5>third\n"
        "[chorus]\n[00:50,250]fourth [00:51.00]word\n[90000,300]fifth\nno time\n[00:99.00]"
    )
    verse, chorus = lyrics.sections
    assert [(line.text, line.start) for line in verse.lines] == [
        ("first", 10.0),
        ("twice", 19.5),
        ("third", 29.5),
    ]
    assert [(line.text, line.start) for line in chorus.lines] == [
        ("fourth word", 49.75),
        ("twice", 60.0),
        ("fifth", 89.5),
        ("no time", None),
    ]
    assert lyrics.timed
    notes = "\n".join(lyrics.notes)
    assert "times of words are dropped (lines 5, 7)" in notes
    assert "time stamps without words are dropped (line 10)" in notes
    assert parse_lyrics(format_lyrics(lyrics)) == lyrics


DIRECTIONS = [
    "[soft harmonica at dawn]",
    "[whispered]",
    "<laughs>",
    "{soft}",
    "[applause]",
    "【掌声】",
]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_stage_direction_is_dropped_with_a_note(direction: str) -> None:
    for text in (f"[verse]\n{direction}\nla", f"[verse]\n{direction} la"):
        lyrics = parse_lyrics(text)
        assert lyrics.sections == (Section("verse", None, (LyricLine("la"),)),)
        assert f"line 2: '{direction}' is taken for a stage direction" in "\n".join(lyrics.notes)


def test_brackets_among_words() -> None:
    lyrics = parse_lyrics("[verse]\n重[chong2]来 live[L AY1 V] [softly] on [chorus] my love [sigh]")
    assert lyrics.sections == (
        Section("verse", None, (LyricLine("重[chong2]来 live[L AY1 V] on"),)),
        Section("chorus", None, (LyricLine("my love"),)),
    )
    described = parse_lyrics("[Energetic Chorus]\nla\n[verse with strings]\nla")
    assert [section.kind for section in described.sections] == ["chorus", "verse"]
    assert "'energetic' in the tag [chorus] is dropped" in described.notes[0]


def test_repeat_marks() -> None:
    lyrics = parse_lyrics("[chorus x2]\nna na na (x2)\n啦啦啦 ×3\n[bridge] x2\nI have 2 x")
    assert [line.text for line in lyrics.sections[0].lines] == ["na na na"] * 2 + ["啦啦啦"] * 3
    assert lyrics.sections[1].lines == (LyricLine("I have 2 x"),)
    assert any("line 1" in note and "x2" in note for note in lyrics.notes)
    assert any(note.startswith("line 2") and "2 times" in note for note in lyrics.notes)
    assert any(
        note.startswith("line 4") and "not repeated by its tag" in note for note in lyrics.notes
    )


def test_words_before_any_tag_are_an_implicit_verse() -> None:
    lyrics = parse_lyrics("\n月亮\n\n落下\n[chorus]\n啊")
    assert lyrics.sections[0] == Section("verse", None, (LyricLine("月亮"), LyricLine("落下")))
    assert "line 2: words before any tag are sung as a [verse]" in lyrics.notes


def test_wordless_chorus_is_told_and_wordless_interlude_is_not() -> None:
    notes = parse_lyrics("[verse]\na\n[interlude]\n[chorus]\n").notes
    assert notes == (
        "line 4: [chorus] has no words, so it is played, not sung: write them out if they should "
        "be sung",
    )


@pytest.mark.parametrize("text", ["[inst]", "[intro]\n[verse]\n[outro]"])
def test_tags_alone_are_an_instrumental(text: str) -> None:
    assert parse_lyrics(text).instrumental
    assert not parse_lyrics(text + "\nla").instrumental


BAD = [
    ("", ["song.txt is empty", "[inst]"]),
    (" \n\ufeff\t\n", ["song.txt is empty", "[inst]"]),
    ("[ti:x]\n[00:01.00]\n", ["nothing to sing besides", "[inst]"]),
    (
        "la\n[chrous]\nla",
        ["song.txt, line 2", "'[chrous]'", "did you mean [chorus]?", "[pre-chorus]", "【副歌】"],
    ),
    ("[verse]\r\n\r\n【副格】", ["line 3", "did you mean [chorus]?"]),
    ("[verze] la", ["line 1", "unknown section tag '[verze]'", "Accepted are [intro], [verse]"]),
    ("<brigde>", ["line 1", "unknown section tag"]),
    ("{intrp}", ["line 1", "unknown section tag"]),
    ("[]", ["nothing to sing besides stage directions"]),
    ("[chrous]\nla\n[verse\nla", ["line 1", "'[chrous]'", "line 3", "does not close it"]),
    ("la" * 2_000, ["line 1", "4,000 characters", "at most 2,000"]),
    ("la\n" * 50_000, ["150,000 characters", "at most 50,000"]),
    ("la\n[verse\nla", ["line 2", "does not close it"]),
    ("la\0la", ["NUL", "UTF-8"]),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[repr(text) for text, _ in BAD])
def test_bad_input_says_what_and_where(text: str, said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_lyrics(text, source="song.txt")
    for part in said:
        assert part in str(caught.value)


def test_section_refuses_an_unknown_kind() -> None:
    with pytest.raises(InputError, match="'stanza' is unknown"):
        Section("stanza")


@pytest.mark.parametrize("name", ["yueliang", "harbor", "mixed"])
def test_examples_are_canonical_songs(name: str) -> None:
    text = (files("mudit_engine") / "assets" / "examples" / f"{name}.txt").read_text(
        encoding="utf-8"
    )
    lyrics = parse_lyrics(text, source=name)
    assert len(lyrics.sections) >= 8
    assert parse_lyrics(format_lyrics(lyrics)) == lyrics


PIECES = st.sampled_from(
    [*(tag for tag, _, _ in TAGS), "(x2)", "×3", "[", "]", "(", "：", "**", "# ", "男：", "合："]
    + ["词：", "[00:12.00]", "<00:01>", "verse", "Chorus", " x2", "长{chang2}", "\n", "\ufeff"]
    + ["\u200d", "\u0301", "\x1c", "\u2028", "é", "月亮", "la", " ", "1"]
    + ["-", "=", "<", "{", "}", "😀"]
)  # fmt: skip


@given(st.lists(PIECES | st.text(max_size=4), max_size=14).map("".join))
@settings(max_examples=300)
def test_parse_of_format_is_identity(text: str) -> None:
    try:
        lyrics = parse_lyrics(text)
    except InputError:
        return
    canonical = format_lyrics(lyrics)
    again = parse_lyrics(canonical)
    assert again == lyrics
    assert format_lyrics(again) == canonical


LINES = (
    st.text("月亮落在海面上abc你我 ，。'", min_size=1)
    .map(lambda text: " ".join(text.split()))
    .filter(bool)
    .map(lambda text: LyricLine("啊" + text))
)
SECTIONS = st.builds(
    Section,
    st.sampled_from(KINDS),
    st.none() | st.integers(0, 99),
    st.lists(LINES, max_size=3).map(tuple),
)


@given(st.lists(SECTIONS, min_size=1, max_size=5).map(lambda sections: Lyrics(tuple(sections))))
@settings(max_examples=100)
def test_built_lyrics_survive_formatting(lyrics: Lyrics) -> None:
    assert parse_lyrics(format_lyrics(lyrics)) == lyrics
