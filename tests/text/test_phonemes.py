"""Readings of Mandarin and English, numbers, overrides, and what is reported."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mudit_engine.errors import InputError
from mudit_engine.text import english, mandarin, numbers
from mudit_engine.text.lyrics import LyricLine, Lyrics, Section, parse_lyrics
from mudit_engine.text.phonemes import phonemize
from mudit_engine.text.vocabulary import Vocabulary


def sung(text: str) -> str:
    """Tokens of one line, the section and line marks cut off."""
    tokens = phonemize(Lyrics((Section("verse", None, (LyricLine(text, 7),)),))).tokens
    assert tokens[0] == "<verse>"
    assert tokens[-1] == "<line>"
    return " ".join(tokens[1:-1]).replace("en:", "")


def notes(text: str) -> str:
    return "\n".join(phonemize(Lyrics((Section("verse", None, (LyricLine(text, 7),)),))).notes)


READINGS = [
    ("月亮，落在海面上", "ve4 l iang4 <breath> l uo4 z ai4 h ai3 m ian4 sh ang4"),
    ("啊啊啊啊", "a5 a5 a5 a5"),
    ("有位雨翁", "iou3 uei4 v3 ueng1"),
    ("流轨居绿", "l iou2 g uei3 j v1 l v4"),
    ("知吃诗日资此四", "zh ir1 ch ir1 sh ir1 r ir4 z iz1 c iz3 s iz4"),
    ("嗯，呣", "n2 <breath> m2"),
    ("愛過妳嗎", "ai4 g uo4 n i3 m a5"),
    ("银行行走", "in2 h ang2 x ing2 z ou3"),
    ("长城上长大", "ch ang2 ch eng2 sh ang4 zh ang3 d a4"),
    ("静静地看着你", "j ing4 j ing4 d e5 k an4 zh e5 n i3"),
    ("跑得快", "p ao3 d e5 k uai4"),
    ("得到大地", "d e2 d ao4 d a4 d i4"),
    ("一个不要", "i1 g e4 b u4 iao4"),
    ("每一行", "m ei3 i1 h ang2"),
    ("人々〇", "r en2 r en2 l ing2"),
    ("长{chang2}大", "ch ang2 d a4"),
    ("长大{cháng dà}了", "ch ang2 d a4 l e5"),
    ("绿{lü4}", "l v4"),
    ("一点儿{r}花", "i1 d ian3 r5 h ua1"),
    ("女儿", "n v3 er2"),
    ("don't stop", "D OW1 N T <space> S T AA1 P"),
    ("I don’t, OK", "AY1 <space> D OW1 N T <breath> OW1 K EY1"),
    ("live{L AY1 V} live", "L AY1 V <space> L IH1 V"),
    ("'Cause I'm lovin' it", "K AH0 Z <space> AY1 M <space> L AH1 V IH0 N <space> IH1 T"),
    ("uh-oh la-la", "AH1 OW2 <space> L AA1 <space> L AA1"),
    ("ＬＯＶＥ　café", "L AH1 V <space> K AH0 F EY1"),
    ("sooooo gooood lalala", "S OW1 <space> G UH1 D <space> L AA1 L AA1 L AA1"),
    ("去KTV", "q v4 K EY1 T IY1 V IY1"),
    ("OK啦 baby", "OW1 K EY1 l a5 <space> B EY1 B IY0"),
    ("A面", "EY1 m ian4"),
    ("a day", "AH0 <space> D EY1"),
    ("1998年3月", "i1 j iou3 j iou3 b a1 n ian2 s an1 ve4"),
    ("99 cats", "N AY1 N T IY0 <space> N AY1 N <space> K AE1 T S"),
    ("你&我", "n i3 h e2 uo3"),
    ("you & me", "Y UW1 <space> AH0 N D <space> M IY1"),
    ("(ooh, yeah)", "UW1 <breath> Y AE1"),
    ("长 大", "zh ang3 d a4"),
    ("月亮 重 庆 人", "ve4 l iang4 <space> ch ong2 q ing4 r en2"),
    ("我 爱你", "uo3 <space> ai4 n i3"),
    ("重[chong2]来", "ch ong2 l ai2"),
    ("live[L AY1 V]", "L AY1 V"),
    ("唱5G的歌", "ch ang4 u3 JH IY1 d e5 g e1"),
    ("我们在哪儿玩儿", "uo3 m en5 z ai4 n a3 r5 uan2 r5"),
    ("月儿弯弯", "ve4 er2 uan1 uan1"),
]


@pytest.mark.parametrize(("text", "tokens"), READINGS, ids=[text for text, _ in READINGS])
def test_reading(text: str, tokens: str) -> None:
    assert sung(text) == tokens


def test_sections_lines_and_syllables_are_indexed() -> None:
    song = phonemize(
        parse_lyrics("[intro]\n[pre-chorus]\n月亮\n(chorus)\nbaby oh\n[others]\n(outro)\n啊")
    )
    assert " ".join(song.tokens) == (
        "<intro> <pre-chorus> ve4 l iang4 <line> <chorus> en:B en:EY1 en:B en:IY0 <space> en:OW1 "
        "<line> <others> <outro> a5 <line>"
    )
    assert song.syllable_of == (-1, -1, 0, 1, 1, -1, -1, 2, 2, 3, 3, -1, 4, -1, -1, -1, 5, -1)
    assert song.syllables == 6
    assert [Vocabulary.load().token(number) for number in song.ids] == list(song.tokens)


MANDARIN_NUMBERS = [
    ("1998", "年", "一九九八"), ("1000", "年", "一千"), ("2000", "年", "两千"),
    ("365", "天", "三百六十五"), ("520", "", "五二零"), ("100", "", "一百"), ("10", "", "十"),
    ("2", "个", "两"), ("2", "月", "二"), ("50%", "", "百分之五十"), ("3.14", "", "三点一四"),
    ("12:30", "", "十二点三十"), ("2:05", "", "两点零五"), ("1,000", "", "一千"),
    ("13800138000", "", "一三八零零一三八零零零"), ("138-0013-8000", "", "一三八零零一三八零零零"),
    ("007", "", "零零七"), ("90", "后", "九零"), ("0", "", "零"),
    ("1/2", "", "二分之一"), ("-5°C", "", "零下五摄氏度"), ("-3", "", "负三"),
    ("3-5", "天", "三到五"), ("3-1", "", "三比一"),
    ("100%", "", "百分之百"), ("5km", "", "五公里"), ("10~20", "岁", "十到二十"),
    ("7:30-9:00", "", "七点三十到九点"),
    ("1998-2008", "年", "一九九八到二零零八"), ("24/7", "", "二十四小时"),
    ("7pm", "", "下午七点"), ("1999", "", "一九九九"),
]  # fmt: skip
ENGLISH_NUMBERS = [
    ("1998", "nineteen ninety-eight"), ("99", "ninety-nine"), ("1,000", "one thousand"),
    ("3.14", "three point one four"), ("50%", "fifty percent"), ("21st", "twenty-first"),
    ("90s", "nineties"), ("$5", "five dollars"), ("7:30", "seven thirty"),
    ("7:05", "seven oh five"), ("007", "zero zero seven"),
    ("555-1234", "five five five one two three four"), ("1\u20442", "one half"),
    ("1\u20444S", "one quarter"), ("1,000s", "one thousand"), ("3.5th", "three point five"),
    ("9" * 5000 + ".5", None), ("1" + ",000" * 9, None),
]  # fmt: skip


@pytest.mark.parametrize(("number", "following", "words"), MANDARIN_NUMBERS)
def test_mandarin_number(number: str, following: str, words: str) -> None:
    assert numbers.NUMBER.fullmatch(number)
    assert numbers.in_mandarin(number, following=following) == words


@pytest.mark.parametrize(
    ("number", "words"), ENGLISH_NUMBERS, ids=[number[:12] for number, _ in ENGLISH_NUMBERS]
)
def test_english_number(number: str, words: str | None) -> None:
    assert numbers.NUMBER.fullmatch(number)
    read = numbers.in_english(number)
    assert read == words if words else read.startswith(("nine nine", "one zero"))


BAD = [
    ("长{foo1}", ["line 7", "'foo1'", "长{chang2}"]),
    ("长{chang}", ["line 7", "tone from 1 to 5"]),
    ("长{chang6}", ["line 7"]),
    ("长{chang2 da4}", ["line 7", "2 syllables for the 1 characters"]),
    ("长{}", ["line 7", "0 syllables"]),
    ("花{r}", ["line 7", "儿"]),
    ("儿{r}", ["line 7", "before it"]),
    ("love{XX}", ["line 7", "'XX'", "ARPAbet"]),
    ("love{L AH V}", ["line 7", "'AH'", "stress"]),
    ("长{chang2", ["line 7", "brace"]),
    ("la }", ["line 7", "brace"]),
    ("3{san1}", ["line 7", "brace"]),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[text for text, _ in BAD])
def test_bad_override_names_line_and_form(text: str, said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        phonemize(Lyrics((Section("verse", None, (LyricLine("啊", 6), LyricLine(text, 7))),)))
    for part in said:
        assert part in str(caught.value)


def _one(text: str) -> Lyrics:
    return Lyrics((Section("verse", None, (LyricLine(text, 7),)),))


REPORTED = [
    ("月亮 こんにちは", ["line 7", "こんにちは", "hiragana", "not in Japanese"]),
    ("월광 la", ["line 7", "월광", "hangul"]),
    ("la Привет", ["Привет", "cyrillic"]),
    ("la 🎸", ["🎸", "symbols"]),
    ("𠮷 la", ["𠮷", "no known reading"]),
    ("la ٣", ["٣", "arabic"]),
    ("Zyxqvia", ["'Zyxqvia' is not in the dictionary", "rules of spelling", "Zyxqvia{"]),
    ("KPI", ["spelled out as K EY1 P IY1 AY1"]),
    ("moonglow", ["read from the words it is made of as M UW1 N G L OW2"]),
]


@pytest.mark.parametrize(("text", "said"), REPORTED, ids=[text for text, _ in REPORTED])
def test_what_is_not_sung_as_written_is_reported(text: str, said: list[str]) -> None:
    for part in said:
        assert part in notes(text)


@pytest.mark.parametrize("text", ["Привет", "🎸🔥", "...", "«—»", "𠮷"])
def test_line_with_nothing_to_sing_says_so(text: str) -> None:
    song = phonemize(_one(text))
    assert song.tokens == ("<verse>",)
    assert any(note.startswith("line 7") and "this line is not sung" in note for note in song.notes)


@pytest.mark.parametrize(
    "text", ["月亮，落在海面上", "Oh, it's 3 o'clock", "啊～～ (ooh) “yeah” — 好！", "naïve café"]
)
def test_ordinary_lines_need_no_note(text: str) -> None:
    assert notes(text) == ""


def test_every_reading_of_pypinyin_has_tokens() -> None:
    from pypinyin.contrib.tone_convert import to_finals, to_initials, to_tone3
    from pypinyin.phrases_dict import phrases_dict
    from pypinyin.pinyin_dict import pinyin_dict

    marked = {reading for readings in pinyin_dict.values() for reading in readings.split(",")}
    marked |= {
        reading for phrase in phrases_dict.values() for readings in phrase for reading in readings
    }
    spelled = {to_tone3(reading, neutral_tone_with_five=True) for reading in marked}
    assert {mandarin.parse_syllable(syllable) for syllable in spelled} == spelled
    renamed = {"eh": "ê", "io": "o", "ir": "i", "iz": "i"}
    for syllable, (initial, final) in mandarin.syllables().items():
        # pypinyin calls their parts nothing, n or h
        if syllable not in (
            "m",
            "n",
            "ng",
            "hm",
            "hng",
        ):
            assert (
                to_initials(syllable, strict=True),
                to_finals(syllable, strict=True, v_to_u=False),
            ) == (
                initial,
                renamed.get(final, final),
            )


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("chorus", "dictionary"),
        ("ooooh", "vocable"),
        ("nanana", "vocable"),
        ("stargazin'", "derived"),
        ("skylarkin", "derived"),
        ("BGM", "letters"),
        ("xkcd", "letters"),
        ("qwop", "rules"),
    ],
)
def test_english_source(word: str, source: str) -> None:
    said = english.pronounce(word)
    assert said.source == source
    assert set(said.phones) <= english.PHONES


def test_dictionary_phones_are_all_known() -> None:
    bad = {
        word
        for word in english.dictionary()
        if not set(english._look_up(word) or ["?"]) <= english.PHONES
    }
    assert bad == set()


def test_letter_to_sound_counts_syllables() -> None:
    """The rules need not be right about every vowel; a note of the melody must go to the right
    number of syllables.
    """
    words = [
        word
        for word in sorted(english.dictionary())
        if word.isascii() and word.isalpha() and len(word) > 2
    ][::60]

    def nuclei(phones: tuple[str, ...]) -> int:
        return sum(map(english.is_vowel, phones))

    right = sum(
        nuclei(english.letter_to_sound(word)) == nuclei(english._look_up(word) or ())
        for word in words
    )
    assert len(words) > 1500
    assert right / len(words) > 0.88


@pytest.mark.parametrize(
    ("word", "numbers_"),
    [
        ("harbor", [0, 0, 0, 1, 1]),
        ("astronaut", [0, 1, 1, 1, 1, 2, 2, 2]),
        ("strengths", [0] * 8),
        ("hmm", [0, 0]),
        ("singing", [0, 0, 0, 1, 1]),
    ],
)
def test_syllabify(word: str, numbers_: list[int]) -> None:
    assert english.syllabify(english.pronounce(word).phones) == numbers_


CHARS = st.sampled_from(
    list(
        "月亮落在海面上一不儿地得啊嗯々〇𠮷爱愛aeKTVxyz'-&%$#@.,，。！:：0123456789 "
        "　é½²①ßñのПх월😀…—“”（）~\u0301\u200d"
    )
)


ANY = st.text(CHARS | st.characters(exclude_categories=("Cs",)), max_size=40).filter(
    lambda text: not {"{", "}"} & set(unicodedata.normalize("NFKC", text))
)


@given(ANY)
@settings(max_examples=300)
def test_any_text_is_sung_or_reported_and_no_han_character_is_lost(text: str) -> None:
    song = phonemize(_one(text))
    assert len(song.ids) == len(song.tokens) == len(song.syllable_of)
    held = [number for number in song.syllable_of if number >= 0]
    assert sorted(set(held)) == list(range(song.syllables))
    assert held == sorted(held)
    plain = unicodedata.normalize("NFKC", text)
    han = sum(map(mandarin.is_han, plain))
    numbered = any(char.isdecimal() or char in "&%" for char in plain)
    numbered |= any("name in pinyin" in note for note in song.notes)
    finals = sum(Vocabulary.load().family(number) == "final" for number in song.ids)
    reported = "".join(note.split("'")[1] for note in song.notes if "no known reading" in note)
    missing = sum(map(mandarin.is_han, reported))
    if numbered:
        assert finals + missing >= han or reported.endswith("...")
    else:
        assert finals + missing == han or reported.endswith("...")
    if song.tokens == ("<verse>",) and text:
        assert song.notes


@given(st.text("月亮落在海面上一不儿地得啊长行重", min_size=1, max_size=60))
@settings(max_examples=150)
def test_one_syllable_a_character(text: str) -> None:
    song = phonemize(_one(text))
    assert song.syllables == len(text)
    assert song.notes == ()


def test_no_vowel_and_rhotic_syllables_count_once() -> None:
    assert phonemize(_one("hmm 点儿{r}")).syllables == 2
