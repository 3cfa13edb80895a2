"""Lyric grammars: variety, rhyme, length, and a test split that shares no line with training."""

from __future__ import annotations

import numpy as np
import pytest

from mudit_engine.lyric_model import grammar_en, grammar_zh
from mudit_engine.text.english import pronounce
from mudit_engine.text.lyrics import format_lyrics, parse_lyrics
from mudit_engine.text.mandarin import read_han
from mudit_engine.text.phonemes import phonemize
from mudit_engine.training.corpus import lyrics
from mudit_engine.training.corpus.form import draw_form

LANGUAGES = ("zh", "en")


def songs(language: str, count: int, *, held_out: bool = False, bpm: int = 100):
    for number in range(count):
        rng = np.random.default_rng([number, held_out])
        plan = draw_form(rng, bpm=bpm, target_seconds=float(rng.uniform(14, 36)))
        yield (
            plan,
            lyrics.write_lyrics(rng, plan, language=language, held_out=held_out, most_syllables=9),
        )


def texts(language: str, count: int, *, held_out: bool) -> set[str]:
    return {
        line.text
        for _, words in songs(language, count, held_out=held_out)
        for part in words
        for line in part
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_thousands_of_distinct_lines(language):
    rng = np.random.default_rng(0)
    rules = lyrics.grammar(language)
    drawn = [
        rules.draw_line(
            rng,
            syllables=int(rng.choice((5, 6, 7, 8))),
            section=str(section),
            rhyme=str(rng.choice(rules.rhymes())),
            accept=lambda text: True,
        )
        for section in rng.choice(list(rules.SECTION_KINDS), size=4000)
    ]
    assert len(set(drawn)) > 3000


@pytest.mark.parametrize("language", LANGUAGES)
def test_lines_of_the_splits_are_disjoint(language):
    train, test = texts(language, 150, held_out=False), texts(language, 60, held_out=True)
    assert len(train) > 400 and len(test) > 100
    assert not train & test
    assert all(lyrics.is_held_out_line(text) for text in test)


@pytest.mark.parametrize("language", LANGUAGES)
def test_lines_of_a_section_rhyme_on_different_words(language):
    rules = lyrics.grammar(language)
    for _, words in songs(language, 40):
        for part in filter(None, words):
            assert len({line.rhyme for line in part}) == 1
            assert len({rules.last_word(line.text) for line in part}) == len(part)


def test_mandarin_rhyme_is_heard_in_the_last_final():
    for _, words in songs("zh", 40):
        for line in (line for part in words for line in part):
            assert grammar_zh.rhyme_class(line.text) == line.rhyme


def test_english_rhyme_is_heard_from_the_last_vowel_on():
    for rhyme, kinds in grammar_en.RHYMES.items():
        for phrase in (phrase for phrases in kinds.values() for phrase in phrases):
            phones = pronounce(phrase.split()[-1]).phones
            last_vowel = max(place for place, phone in enumerate(phones) if phone[-1].isdigit())
            assert " ".join(phone.rstrip("012") for phone in phones[last_vowel:]) == rhyme, phrase


def test_every_english_word_is_in_the_dictionary():
    words = {word for line in texts("en", 200, held_out=False) for word in line.split()}
    assert {word for word in words if pronounce(word).source != "dictionary"} == set()


def test_choruses_are_the_same_words():
    repeated = [
        [words[place] for place, part in enumerate(plan.parts) if part.name == "chorus"]
        for plan, words in songs("zh", 60)
        if [part.name for part in plan.parts].count("chorus") > 1
    ]
    assert repeated and all(first == second for first, second in repeated)


@pytest.mark.parametrize("language", LANGUAGES)
def test_syllables_are_those_the_engine_sings(language):
    """The corpus and the text front end count and spell syllables alike."""
    for plan, words in songs(language, 25):
        text = lyrics.canonical_text(plan, words)
        parsed = parse_lyrics(text)
        assert format_lyrics(parsed).strip() == text
        assert [section.kind for section in parsed.sections] == [part.name for part in plan.parts]
        phonemes = phonemize(parsed)
        sung = [syllable for part in words for line in part for syllable in line.syllables]
        assert phonemes.syllables == len(sung) and not phonemes.notes
        for number, syllable in enumerate(sung):
            tokens = [
                token
                for token, owner in zip(phonemes.tokens, phonemes.syllable_of, strict=True)
                if owner == number and token != "<space>"
            ]
            if language == "en":
                assert (
                    " ".join(token.removeprefix("en:").rstrip("012") for token in tokens)
                    == syllable.phonemes
                )
            else:
                assert syllable.phonemes[-1] == tokens[-1][-1]  # the tone


def test_english_letters_are_shared_among_syllables():
    shared = lyrics.split_syllables("remember the golden river", "en")
    assert [(s.text, s.phonemes, s.word) for s in shared[:4]] == [
        ("re", "R IH", 0),
        ("mem", "M EH M", 0),
        ("ber", "B ER", 0),
        ("the", "DH AH", 1),
    ]
    assert "".join(s.text for s in shared) == "rememberthegoldenriver"


def test_readings_are_right_where_characters_have_several():
    assert read_han("我画着故乡的模样")[2].syllable == "zhe5"
    assert read_han("一起放声笑")[0].syllable == "yi1"
    assert read_han("漫长")[1].syllable == "chang2"
    assert read_han("生长")[1].syllable == "zhang3"
