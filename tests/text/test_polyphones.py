"""Readings of Chinese characters in context, traditional ones through simplified ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mudit_engine.text import mandarin, polyphones
from mudit_engine.text.traditional import SAYS_MORE, to_simplified

DEVELOPMENT_SET = Path(__file__).parents[2] / "benchmarks" / "readings_zh.txt"


def said(text: str) -> str:
    return " ".join(str(reading.syllable) for reading in mandarin.read_han(text))


def rows() -> Iterator[tuple[str, dict[int, str]]]:
    for line in DEVELOPMENT_SET.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            text, answers = "", {}
            for char, answer in re.findall(r"([^{}])(?:\{([^}]*)\})?", line):
                text += char
                if answer:
                    answers[len(text) - 1] = answer
            yield text, answers


def test_ambiguous_characters_of_the_development_set() -> None:
    """At least 97 % right; what is wrong is mostly said to be unsure."""
    right = total = unsure = 0
    for text, answers in rows():
        readings = mandarin.read_han(text)
        for place, answer in answers.items():
            total += 1
            right += readings[place].syllable == answer
            unsure += readings[place].confidence < mandarin.SURE
    assert total > 2500
    assert right / total > 0.97
    assert unsure / total < 0.1


def test_development_set_is_legal() -> None:
    texts = []
    for text, answers in rows():
        texts.append(text)
        for answer in answers.values():
            assert mandarin.parse_syllable(answer) == answer, text
    assert len(texts) == len(set(texts))
    assert sum(len(text) >= 5 for text in texts) >= 400


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("我得去找你", "wo3 dei3 qu4 zhao3 ni3"),
        ("温柔地说", "wen1 rou2 de5 shuo1"),
        ("睡不着", "shui4 bu4 zhao2"),
        ("受不了", "shou4 bu4 liao3"),
        ("都会老", "dou1 hui4 lao3"),
        ("看著你的頭髮很長", "kan4 zhe5 ni3 de5 tou2 fa5 hen3 chang2"),
        ("乾杯乾坤", "gan1 bei1 qian2 kun1"),
        ("重慶銀行還錢", "chong2 qing4 yin2 hang2 huan2 qian2"),
        ("著名音樂", "zhu4 ming2 yin1 yue4"),
        ("人人", "ren2 ren2"),
        ("在哪儿", "zai4 na3 r5"),
        ("女儿", "nv3 er2"),
        ("重々", "zhong4 zhong4"),
    ],
)
def test_reading_in_context(text: str, reading: str) -> None:
    assert said(text) == reading


def test_every_rule_is_legal_and_every_character_is_its_own() -> None:
    table = polyphones._table()
    assert len(table) > 300
    for char, entry in table.items():
        assert len(char) == 1 and mandarin.is_han(char)
        assert 0 < entry.confidence <= 1
        for syllable in entry.syllables:
            assert mandarin.parse_syllable(syllable) == syllable, char
    for readings in SAYS_MORE.values():
        assert all(mandarin.parse_syllable(one) == one for one in readings)


@pytest.mark.parametrize(
    ("traditional", "simplified"),
    [
        ("看著你", "看着你"),
        ("著作", "著作"),
        ("乾坤", "乾坤"),
        ("後來", "后来"),
        ("妳們", "你们"),
        ("月亮", "月亮"),
        ("", ""),
    ],
)
def test_to_simplified(traditional: str, simplified: str) -> None:
    assert to_simplified(traditional) == simplified


def test_a_guess_says_what_else_it_could_be() -> None:
    (reading,) = mandarin.read_han("转")[:1]
    assert reading.others
    assert mandarin.read_han("你")[0].confidence == 1.0
    assert mandarin.read_han("𠮷")[0] == polyphones.Reading(None, 0.0, "none")
