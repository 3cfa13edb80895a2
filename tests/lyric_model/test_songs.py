"""Training data: the documented format, conversion, the built-in corpus."""

from __future__ import annotations

import json

import pytest

from mudit_engine.errors import InputError
from mudit_engine.lyric_model.prompts import END, START
from mudit_engine.lyric_model.scoring import score_text
from mudit_engine.lyric_model.songs import (
    built_in_songs,
    own_songs,
    read_songs,
    song_of_lyrics,
    split_of,
    take_theme,
    write_songs,
)

LYRICS = (
    "[verse]\n晚风吹过旧时光\n月亮落在河岸上\n有人慢慢走过来\n灯火照着那扇窗\n"
    "[chorus]\n一起去看海\n等着花朵开\n"
)


@pytest.fixture(scope="module")
def songs():
    return built_in_songs(48)


def test_the_built_in_corpus_keeps_its_forms_and_repeats_itself(songs):
    for song in songs:
        score = score_text(song.answer(), form=song.form)
        own = {name: points for name, points in score.parts.items() if name != "rhyme"}
        assert list(own.values()) == [10, 32.5, 17.5, 20], song.id
        if song.id.startswith("builtin"):
            assert score.parts["rhyme"] == 20
    assert built_in_songs(20) == songs[:20]
    assert {song.language for song in songs} == {"zh", "en"}
    assert {song.id for song in own_songs()} & {song.id for song in songs}


def test_songs_go_through_their_file(songs, tmp_path):
    write_songs(songs, tmp_path / "songs.jsonl")
    assert read_songs(tmp_path / "songs.jsonl") == songs


def test_a_prompt_is_chatml_with_the_papers_notation():
    song = song_of_lyrics(LYRICS, theme="晚风")
    assert song.rhyme == "AABA"
    assert song.prompt().startswith(f"{START}system\n")
    assert (
        "主题：晚风\n韵：AABA\n结构：\n(verse)\nccccccR\nccccccR\nccccccc\nccccccR\n(chorus)\nccccR\n"
        in song.prompt()
    )
    assert song.prompt().endswith(f"{END}\n{START}assistant\n")
    assert song.answer() == LYRICS


def test_a_song_lies_in_one_split_wherever_it_stands():
    assert song_of_lyrics(LYRICS, theme="a").split == song_of_lyrics(LYRICS, theme="b").split
    assert 20 < [split_of(str(n)) for n in range(1000)].count("validation") < 80


def test_a_text_may_say_its_theme():
    assert take_theme("theme: rain and snow\n[verse]\nhello") == ("rain and snow", "[verse]\nhello")
    assert take_theme("主题：雨\n[verse]\n下雨") == ("雨", "[verse]\n下雨")
    assert take_theme("[verse]\nhello") == (None, "[verse]\nhello")


GOOD = {"theme": "雨", "sections": [{"kind": "verse", "lines": ["下雨的时候"]}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"theme": ""}, "field 'theme'"),
        ({"sections": []}, "field 'sections'"),
        ({"sections": [{"kind": "vers"}]}, "'kind'"),
        ({"sections": [{"kind": "verse", "lines": "a"}]}, "'lines'"),
        ({"sections": [{"kind": "intro"}]}, "no section has a line"),
        ({"sections": [{"kind": "verse", "lines": [f"a{END}b"]}]}, "ChatML"),
        ({"language": "fr"}, "zh or en"),
        ({"split": "dev"}, "train or validation"),
        ({"rhyme": "A9"}, "no scheme"),
        ({"tune": 1}, "unknown field 'tune'"),
    ],
)
def test_a_broken_line_is_named_with_its_number(tmp_path, change, said):
    file = tmp_path / "songs.jsonl"
    file.write_text("\n".join(map(json.dumps, (GOOD, GOOD | change))), encoding="utf-8")
    with pytest.raises(InputError, match=f"line 2: .*{said}"):
        read_songs(file)


def test_all_broken_lines_are_named_at_once(tmp_path):
    file = tmp_path / "songs.jsonl"
    file.write_text("{\n[]\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1.*line 2"):
        read_songs(file)
