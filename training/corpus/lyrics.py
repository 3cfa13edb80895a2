"""Lyrics of a whole song: lines per section, their rhymes, their syllables, and the text in the
project's canonical format.

Lines of a section rhyme with each other; both choruses are the same words. A line belongs to the
held-out part of the grammar when a hash of its text says so: songs of the test split are drawn from
that part, songs of the training split never.

    words = write_lyrics(rng, plan, language="zh", held_out=False, most_syllables=7)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

import numpy as np

from mudit_engine.lyric_model import grammar_en, grammar_zh
from mudit_engine.training.corpus.form import Plan
from mudit_engine.training.corpus.labels import HELD_OUT_SHARE


@dataclass(frozen=True, slots=True)
class SyllableText:
    """`text` as written, `phonemes` as in labels.Syllable, `word` counts words of the line."""

    text: str
    phonemes: str
    word: int


@dataclass(frozen=True, slots=True)
class LyricLine:
    id: str
    text: str
    rhyme: str
    syllables: tuple[SyllableText, ...]


def line_id(text: str) -> str:
    """Sixteen hex digits of the words, the same wherever they are sung."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_held_out_line(text: str) -> bool:
    """True for the HELD_OUT_SHARE of all possible lines that only the test split may sing."""
    return int(line_id(text)[:8], 16) < HELD_OUT_SHARE * 2**32


def grammar(language: str) -> ModuleType:
    return {"zh": grammar_zh, "en": grammar_en}[language]


def split_syllables(text: str, language: str) -> tuple[SyllableText, ...]:
    """The sung syllables of a line."""
    if language == "zh":
        from mudit_engine.text.mandarin import read_han

        readings = enumerate(zip(text, read_han(text), strict=True))
        return tuple(
            SyllableText(char, str(reading.syllable), place) for place, (char, reading) in readings
        )
    from mudit_engine.text.english import pronounce, syllabify

    found = []
    for number, word in enumerate(text.split()):
        phones = pronounce(word).phones
        owner = syllabify(phones)
        count = owner[-1] + 1
        for place, letters in enumerate(_share_letters(word, count)):
            sounds = " ".join(
                phone.rstrip("012")
                for phone, syllable in zip(phones, owner, strict=True)
                if syllable == place
            )
            found.append(SyllableText(letters, sounds, number))
    return tuple(found)


def _share_letters(word: str, count: int) -> list[str]:
    """Cuts a word into `count` runs of letters before consonants that open a new vowel group; for
    display only.
    """
    cuts = [
        i
        for i in range(1, len(word))
        if word[i] not in "aeiouy" and i + 1 < len(word) and word[i + 1] in "aeiouy"
    ]
    if len(cuts) < count - 1:
        cuts = [round(len(word) * k / count) for k in range(1, count)]
    edges = [0, *cuts[: count - 1], len(word)]
    return [word[a:b] for a, b in pairwise(edges)]


def write_lyrics(
    rng: np.random.Generator, plan: Plan, *, language: str, held_out: bool, most_syllables: int
) -> list[tuple[LyricLine, ...]]:
    """Lines of every part of the plan (none for intro and outro), none longer than
    `most_syllables`.
    """
    by_name: dict[str, tuple[LyricLine, ...]] = {}
    used: set[str] = set()
    result: list[tuple[LyricLine, ...]] = []
    for part in plan.parts:
        if part.lines == 0:
            result.append(())
            continue
        if not (part.name == "chorus" and part.name in by_name):
            by_name[part.name] = tuple(
                line
                for lines in _stanzas(part.lines)
                for line in _write_section(
                    rng,
                    part.name,
                    lines,
                    language=language,
                    held_out=held_out,
                    most_syllables=most_syllables,
                    used=used,
                )
            )
        result.append(by_name[part.name])
    return result


def _stanzas(lines: int) -> list[int]:
    """Lines of each stanza of a section: one rhyme carries at most four."""
    return [min(4, lines - first) for first in range(0, lines, 4)]


def _write_section(
    rng: np.random.Generator,
    name: str,
    lines: int,
    *,
    language: str,
    held_out: bool,
    most_syllables: int,
    used: set[str],
) -> tuple[LyricLine, ...]:
    """Lines that rhyme with each other on different last words. Adds their texts to `used`."""
    rules = grammar(language)
    allowed = [n for n in rules.lengths(name) if n <= most_syllables]
    # The held-out part of the grammar is small: some rhymes have too few lines of some lengths
    # there, and others are tried.
    for rhyme in (*rng.permutation(rules.rhymes()), *rng.permutation(rules.rhymes())):
        lengths = _line_lengths(rng, allowed, lines)
        texts: list[str] = []
        endings: set[str] = set()

        def accept(text: str, texts: list[str] = texts, endings: set[str] = endings) -> bool:
            fresh = text not in used and text not in texts and rules.last_word(text) not in endings
            return fresh and is_held_out_line(text) == held_out

        try:
            for length in lengths:
                texts.append(
                    rules.draw_line(
                        rng, syllables=length, section=name, rhyme=str(rhyme), accept=accept
                    )
                )
                endings.add(rules.last_word(texts[-1]))
        except ValueError:
            continue
        used.update(texts)
        return tuple(
            LyricLine(line_id(text), text, str(rhyme), split_syllables(text, language))
            for text in texts
        )
    raise ValueError(f"no rhyme has {lines} {language} lines of {allowed} syllables for {name}")


def _line_lengths(rng: np.random.Generator, allowed: Sequence[int], lines: int) -> list[int]:
    """Even lines answer odd ones with the same count half of the time."""
    first = int(rng.choice(allowed))
    second = first if rng.random() < 0.5 else int(rng.choice(allowed))
    return [first if place % 2 == 0 else second for place in range(lines)]


def canonical_text(plan: Plan, lines: list[tuple[LyricLine, ...]]) -> str:
    """Sections as `[verse]`, then their lines; a blank line between sections."""
    return "\n\n".join(
        "\n".join([f"[{part.name}]", *(line.text for line in own)])
        for part, own in zip(plan.parts, lines, strict=True)
    )
