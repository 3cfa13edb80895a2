"""What descriptions ask for: every property in many wordings, taken back, contradicted, unread."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mudit_engine.text.outline import drawn_key, planned_tempo
from mudit_engine.text.wish_tables import ANY_STYLE_BPM, STYLE_BPM
from mudit_engine.text.wishes import read_description

READ: list[tuple[str, dict[str, Any]]] = [
    ("BPM 84", {"bpm": 84}),
    ("84bpm", {"bpm": 84}),
    ("一百二十拍每分钟", {"bpm": 120}),
    ("每分钟九十二拍", {"bpm": 92}),
    ("66bmp piano", {"bpm": 66, "instruments": ("piano",)}),
    ("allegro", {"bpm": 132}),
    ("行板，钢琴", {"bpm": 84, "instruments": ("piano",)}),
    ("小快板", {"bpm": 116}),
    ("not slow", {"tempo": "medium"}),
    ("not too fast", {"tempo": "medium"}),
    ("不要太快", {"tempo": "medium"}),
    ("别太慢", {"tempo": "medium"}),
    ("节奏很快", {"tempo": "fast"}),
    ("慢慢的", {"tempo": "slow"}),
    ("fast and lively", {"tempo": "fast"}),
    ("快乐的孩子", {"tempo": None, "mood": "major"}),
    ("快递小哥的歌", {"tempo": None}),
    ("凉快的夏天", {"tempo": None}),
    ("傲慢与偏见", {"tempo": None}),
    ("slow but energetic", {"tempo": "medium"}),
    ("in A", {"key": "A major"}),
    ("降E大调", {"key": "Eb major"}),
    ("A小调的情歌", {"key": "A minor", "style": "ballad"}),
    ("F# minor, rock", {"key": "F# minor", "style": "rock"}),
    ("without drums", {"drums": False}),
    ("no loud drums please", {"drums": False}),
    ("不要鼓，有钢琴", {"drums": False, "instruments": ("piano",)}),
    ("鼓点清楚", {"drums": True}),
    ("鼓励大家", {"drums": None}),
    ("no piano but strings", {"without": ("piano",), "instruments": ("strings",)}),
    ("electric guitar", {"instruments": ("electric guitar",)}),
    ("大提琴和小提琴", {"instruments": ("violin", "cello")}),
    ("女声", {"voice": "female"}),
    ("a woman sings", {"voice": "female"}),
    ("a man sings", {"voice": "male"}),
    ("male vocals", {"voice": "male"}),
    ("童声", {"voice": "child"}),
    ("a little girl from a children's choir", {"voice": "child"}),
    ("小女孩唱的", {"voice": "child"}),
    ("no one singing", {"voice": "none"}),
    ("纯音乐", {"voice": "none"}),
    ("没有人唱歌", {"voice": "none"}),
    ("不要女声，男声", {"voice": "male"}),
    ("not a female voice", {"voice": None}),
    ("9 minutes", {"seconds": 540}),
    ("三分钟的慢歌", {"seconds": 180, "tempo": "slow"}),
    ("两分半", {"seconds": 150}),
    ("1分30秒", {"seconds": 90}),
    ("90 seconds", {"seconds": 90}),
    ("半分钟", {"seconds": 30}),
    ("4:20 long", {"seconds": 260}),
    ("bossa nova", {"style": "bossa nova"}),
    ("lo-fi beats", {"style": "hip-hop"}),
    ("迪斯科舞步", {"style": "funk"}),
    ("rap over a jazz piano loop", {"style": "hip-hop"}),
    ("guzheng in a tea house", {"style": "folk"}),
    ("deep house", {"style": "electronic"}),
    ("a children's song, a man sings", {"style": "children", "voice": "male"}),
    ("kids' music", {"style": "children", "voice": None}),
    ("sung by children", {"voice": "child"}),
    ("儿童歌曲，女声", {"style": "children", "voice": "female"}),
    ("别加鼓", {"drums": False}),
    ("别放鼓点，牛仔的感觉", {"drums": False, "style": "country"}),
    ("cowboys around a fire", {"style": "country"}),
    ("巴西的午后", {"style": "bossa nova"}),
    ("牙买加海边", {"style": "reggae"}),
    ("an epic film score", {"style": "orchestral"}),
    ("for preschool, clap along", {"style": "children"}),
    ("重金属", {"style": "metal"}),
    ("古风", {"style": "folk"}),
    ("不要摇滚，要爵士", {"style": "jazz"}),
    ("像在音乐节台下一样热血沸腾", {"style": "rock"}),
    ("雨夜的咖啡店，有点慵懒", {"style": "jazz"}),
    ("江南小桥流水的感觉", {"style": "folk"}),
    ("lights of a dance floor, neon everywhere", {"style": "electronic"}),
    ("a song everyone knows by heart, catchy", {"style": "pop"}),
    ("分手以后一个人走路", {"style": "ballad"}),
    ("浪漫的摇滚", {"style": "rock"}),
    ("not a party song, a man sings", {"style": None}),
    ("not sad", {"mood": "major"}),
    ("伤感", {"mood": "minor"}),
    ("waltz", {"metre": "3/4"}),
    ("", {"bpm": None, "key": None, "voice": None, "instruments": ()}),
]


@pytest.mark.parametrize(("text", "expected"), READ, ids=[text for text, _ in READ])
def test_what_is_read(text: str, expected: dict[str, Any]) -> None:
    wishes = read_description(text)
    assert {name: getattr(wishes, name) for name in expected} == expected
    assert set(wishes.words) >= {name for name, value in expected.items() if value}


NOTES = [
    ("12 bpm", "12 beats a minute cannot be played"),
    ("3/4 waltz", "the metre 3/4 is not played"),
    ("key of H", "is no key"),
    ("66bmp", "read as 66 BPM"),
    ("纯音乐，女声", "contradict each other"),
    ("男声和女声", "more than one voice"),
    ("男女对唱", "one voice sings"),
    ("techno", "nearest"),
    ("slow and fast", "both asked for"),
    ("piano, no piano", "asked for and ruled out"),
]


@pytest.mark.parametrize(("text", "note"), NOTES, ids=[text for text, _ in NOTES])
def test_what_cannot_be_followed_is_said(text: str, note: str) -> None:
    assert any(note in one for one in read_description(text).notes)


def test_nothing_is_said_of_a_plain_wish() -> None:
    assert read_description("流行，钢琴，女声，BPM 84，4/4").notes == ()


def test_words_that_no_table_knows_are_named() -> None:
    wishes = read_description("钢琴 with rain on a window，小猫")
    assert wishes.instruments == ("piano",)
    assert wishes.unread == ("rain", "window", "小猫")


def test_keys_are_drawn_from_all_and_follow_the_mood() -> None:
    drawn = {
        mood: [drawn_key(mood, seed=n) for n in range(600)] for mood in (None, "major", "minor")
    }
    assert len(set(drawn[None])) == 24
    shares = {mood: sum("major" in key for key in keys) / 600 for mood, keys in drawn.items()}
    assert shares["minor"] < 0.25 < shares[None] < 0.75 < shares["major"]
    assert drawn_key(None, seed=7) == drawn_key(None, seed=7)
    assert len({drawn_key(None, seed=n) for n in range(100)}) >= 16


@pytest.mark.parametrize("style", [None, *STYLE_BPM])
def test_tempi_are_drawn_from_the_range_of_the_style(style: str | None) -> None:
    low, high = STYLE_BPM.get(style or "", ANY_STYLE_BPM)
    wishes = read_description(f"{style} song" if style else "something")
    found = {planned_tempo(wishes, seed=n) for n in range(200)}
    assert {source for _, source in found} == {"drawn"}
    assert all(low <= bpm <= high for bpm, _ in found) and len(found) > 10


@given(st.text(max_size=80))
@settings(max_examples=300)
def test_any_text_is_read(text: str) -> None:
    wishes = read_description(text)
    assert wishes == read_description(text)
    assert wishes.bpm is None or 20 <= wishes.bpm <= 400
