"""English words of two sounds, corrections with endings, names in pinyin, further words."""

from __future__ import annotations

import pytest

from mudit_engine.text import english
from mudit_engine.text.heteronyms import _RULES, _STRESS, pronounce_here
from mudit_engine.text.phonemes import read_lyrics

CASES = [
    ("we play *live* tonight", "L AY1 V"),
    ("I *live* in a dream", "L IH1 V"),
    ("*lives* in my heart", "L IH1 V Z"),
    ("our *lives* are short", "L AY1 V Z"),
    ("I have *read* your letters", "R EH1 D"),
    ("I *read* your mind", "R IY1 D"),
    ("I'd *read* it all before", "R EH1 D"),
    ("*live* from the studio", "L AY1 V"),
    ("don't *close* the door", "K L OW1 Z"),
    ("hold me *close*", "K L OW1 S"),
    ("*close* your eyes", "K L OW1 Z"),
    ("so *close* to me", "K L OW1 S"),
    ("*tear* me apart", "T EH1 R"),
    ("a *tear* in my eye", "T IH1 R"),
    ("my *tears* fall", "T IH1 R Z"),
    ("love *tears* us apart", "T EH1 R Z"),
    ("the *wind* blows", "W IH1 N D"),
    ("*wind* it up", "W AY1 N D"),
    ("the *winds* of change", "W IH1 N D Z"),
    ("take a *bow*", "B AW1"),
    ("a *bow* and arrow", "B OW1"),
    ("I *used* to know", "Y UW1 S T"),
    ("what's the *use*", "Y UW1 S"),
    ("heavy like *lead*", "L EH1 D"),
    ("*lead* me home", "L IY1 D"),
    ("don't *desert* me", "D IH0 Z ER1 T"),
    ("to *record* a song", "R IH0 K AO1 R D"),
    ("the *record* plays", "R EH1 K ER0 D"),
    ("you are my *present*", "P R EH1 Z AH0 N T"),
    ("an open *wound*", "W UW1 N D"),
]


@pytest.mark.parametrize(("line", "phones"), CASES, ids=[line for line, _ in CASES])
def test_the_words_around_decide(line: str, phones: str) -> None:
    before, word, after = line.split("*")
    here = pronounce_here(word, before=before, after=after)
    assert " ".join(here or english.pronounce(word).phones) == phones


def test_all_phones_are_known() -> None:
    for rules in _RULES.values():
        assert all(set(phones.split()) <= english.PHONES for _, _, phones in rules)
    for pair in _STRESS.values():
        assert all(set(phones.split()) <= english.PHONES for phones in pair)
    assert set(" ".join(english.further_dictionary().values()).split()) <= english.PHONES
    assert not set(english.further_dictionary()) & set(english.dictionary())


@pytest.mark.parametrize(
    ("name", "syllables"),
    [
        ("Zhangsan", "zhang1 san1"),
        ("Xiaoming", "xiao1 ming1"),
        ("xiexie", "xie1 xie1"),
        ("Lihua", "li1 hua1"),
        ("Xi'an", "xi1 an1"),
    ],
)
def test_names_in_pinyin(name: str, syllables: str) -> None:
    said = english.pronounce(name)
    assert (" ".join(said.phones), said.source) == (syllables, "pinyin")
    read = read_lyrics(f"[verse]\n{name}{{{syllables[:-1]}4}}")
    assert read.phonemes.syllables == 2 and read.phonemes.tokens[-2].endswith("4")


@pytest.mark.parametrize("word", ["chorus", "mixtape", "stargazin", "banana", "Manhattan", "qwop"])
def test_english_words_are_no_names(word: str) -> None:
    assert english.pronounce(word).source != "pinyin"
