"""Descriptions to fragments, and the tempo and key they ask for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mudit_engine.errors import InputError
from mudit_engine.text.descriptions import (
    LEVELS,
    description_fragments,
    fragments,
    requested_bpm,
    requested_key,
    words,
)


def level(description: str, name: str) -> list[str]:
    return [fragment.text for fragment in fragments(description) if fragment.level == name]


def test_chinese_description() -> None:
    description = "温暖的女声，钢琴和弦乐，缓慢的节奏。BPM 92，A小调。"
    assert level(description, "sentence") == ["温暖的女声，钢琴和弦乐，缓慢的节奏", "BPM 92，A小调"]
    assert level(description, "phrase") == [
        "温暖的女声",
        "钢琴",
        "弦乐",
        "缓慢的节奏",
        "BPM 92",
        "A小调",
    ]
    assert level(description, "word") == ["温暖", "女声", "缓慢", "节奏"]


def test_english_description() -> None:
    description = (
        "Warm female vocals with piano and soft strings, 92.5 bpm. Lo-fi hip-hop; R&B, in A minor"
    )
    assert level(description, "sentence") == [
        "Warm female vocals with piano and soft strings, 92.5 bpm",
        "Lo-fi hip-hop",
        "R&B, in A minor",
    ]
    assert level(description, "phrase") == [
        "Warm female vocals",
        "piano",
        "soft strings",
        "92.5 bpm",
        "R&B",
        "in A minor",
    ]
    assert level(description, "word") == [
        "Warm",
        "female",
        "vocals",
        "soft",
        "strings",
        "Lo-fi",
        "hip-hop",
        "A minor",
    ]


def test_mixed_description() -> None:
    description = "带有中国风的电子舞曲 with heavy bass，节奏感强 but 不要太吵"
    assert level(description, "phrase") == [
        "带有中国风的电子舞曲",
        "heavy bass",
        "节奏感强",
        "不要太吵",
    ]
    assert {"中国风", "电子", "舞曲", "heavy", "bass", "节奏感"} <= set(level(description, "word"))


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("钢琴和弦", ["钢琴", "和弦"]),
        ("钢琴和鼓", ["钢琴", "和", "鼓"]),
        ("木吉他与口琴", ["木吉他", "与", "口琴"]),
        ("80年代复古合成器", ["80年代", "复古", "合成器"]),
        ("A小调的钢琴", ["A小调", "的", "钢琴"]),
        ("120bpm的舞曲", ["120bpm", "的", "舞曲"]),
    ],
)
def test_chinese_words(text: str, split: list[str]) -> None:
    assert words(text) == split


def test_conditioning_fragments_are_sentences_then_phrases_capped_without_doubles() -> None:
    description = "悲伤，钢琴。悲伤！钢琴，女声"
    assert description_fragments(description, 9) == (
        "悲伤，钢琴",
        "悲伤",
        "钢琴，女声",
        "钢琴",
        "女声",
    )
    assert description_fragments(description, 2) == ("悲伤，钢琴", "悲伤")
    assert description_fragments("Piano", 3) == ("Piano",)
    assert description_fragments("🎸🔥", 3) == ("🎸🔥",)


def test_empty_description_and_impossible_cap_are_input_errors() -> None:
    with pytest.raises(InputError, match="description is empty"):
        description_fragments(" \n\u3000", 4)
    with pytest.raises(InputError, match="max_fragments=0"):
        description_fragments("piano", 0)
    assert fragments("  ") == ()


@given(
    st.text(
        st.sampled_from(list("温暖的女声和弦乐钢琴，。！a bpmBPMand92.5;-–(#b♭大调😀\n"))
        | st.characters(),
        max_size=40,
    ),
    st.integers(1, 6),
)
@settings(max_examples=300)
def test_any_description_is_handled(description: str, cap: int) -> None:
    found = fragments(description)
    assert found == fragments(description)
    assert len({fragment.text.casefold() for fragment in found}) == len(found)
    assert all(
        fragment.level in LEVELS and fragment.text == fragment.text.strip() != ""
        for fragment in found
    )
    if description.strip():
        assert 1 <= len(description_fragments(description, cap)) <= cap
    key, bpm = requested_key(description), requested_bpm(description)
    assert key is None or key.split()[1] in ("major", "minor")
    assert bpm is None or 20 <= bpm <= 400


BPM = [
    ("BPM 92", 92), ("92 bpm", 92), ("92BPM", 92), ("BPM: 92", 92), ("bpm=92.5", 92.5),
    ("９２ＢＰＭ", 92), ("每分钟92拍", 92), ("每分鐘 120 拍", 120), ("92拍/分", 92),
    ("tempo of 120", 120), ("速度92", 92), ("♩=92", 92), ("90-100 bpm", 95), ("80到90BPM", 85),
    ("每分钟九十二拍", 92), ("速度一百二十", 120), ("BPM约为92", 92), ("at 120bpm的舞曲", 120),
    ("a 92-bpm ballad", 92), ("120 beats per minute", 120), ("1998 song", None), ("5 bpm", None),
    ("2000 bpm", None), ("slow", None), ("3拍子", None), ("80年代", None),
]  # fmt: skip


@pytest.mark.parametrize(("description", "bpm"), BPM, ids=[text for text, _ in BPM])
def test_requested_bpm(description: str, bpm: float | None) -> None:
    assert requested_bpm(description) == bpm


KEY = [
    ("C大调", "C major"), ("A小调", "A minor"), ("降E大调", "Eb major"), ("升F小调", "F# minor"),
    ("#F小调", "F# minor"), ("bB大调", "Bb major"), ("Bb小调", "Bb minor"), ("e小调", "E minor"),
    ("D调", "D major"), ("1=bE", "Eb major"), ("G自然小调", "G minor"), ("C major", "C major"),
    ("a slow song in A minor", "A minor"), ("in a minor, slow", "A minor"),
    ("F# minor", "F# minor"), ("bB major", "Bb major"), ("Bb Major", "Bb major"),
    ("B♭ major", "Bb major"), ("E-flat major", "Eb major"), ("C sharp minor", "C# minor"),
    ("Am", "A minor"), ("F#m", "F# minor"), ("key of G", "G major"),
    ("in the key of Bb", "Bb major"), ("Cmaj", "C major"), ("G min", "G minor"),
    ("It's a major hit", None), ("a minor change", None), ("A major hit song", None),
    ("in a minor key", None), ("A minor的情歌", "A minor"), ("I am happy", None), ("卡拉调", None),
    ("low-key beats", None), ("big band", None), ("Dm7 chords", None),
]  # fmt: skip


@pytest.mark.parametrize(("description", "key"), KEY, ids=[text for text, _ in KEY])
def test_requested_key(description: str, key: str | None) -> None:
    assert requested_key(description) == key
