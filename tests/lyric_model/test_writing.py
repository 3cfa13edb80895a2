"""Whoever writes, the form holds: an untrained model, the shipped one, the embedded grammar."""

from __future__ import annotations

from pathlib import Path

import pytest

from mudit_engine.errors import InputError
from mudit_engine.lyric_model.author import Sampling
from mudit_engine.lyric_model.fill import loops, reads_back
from mudit_engine.lyric_model.form import parse_form
from mudit_engine.lyric_model.rhymes import line_syllables, rhyme_of
from mudit_engine.lyric_model.small import SHIPPED
from mudit_engine.lyric_model.writer import draft_of, open_writer, write_candidates, write_lyrics
from mudit_engine.text.lyrics import parse_lyrics
from tiny_qwen import make_base

# (structure, rhyme, language)
FORMS = [
    ("verse:4x7,chorus:4x5,bridge:2x9", "AABA", "zh"),
    ("verse:4x5", "AABB", "zh"),
    ("intro,verse:4x7/5,chorus:4x6-8,outro", "ABAB", "zh"),
    ("verse:2x3,chorus:2x10", "AA", "zh"),
    ("rap:6x8,hook:2x4", "one", "zh"),
    ("verse:4x7,verse:4x7", "free", "zh"),
    ("verse:4x7,pre-chorus:2x6,chorus:4x7,chorus:4x7", "AABA", "zh"),
    ("chorus:4x12", "AABA", "zh"),
    ("verse:3x1,chorus:2x2", "one", "zh"),
    ("verse:8x7,interlude,chorus:4x5", "AABBCCDD", "zh"),
    ("verse:4x8,chorus:4x7", "AABA", "en"),
    ("verse:4x6", "AABB", "en"),
    ("intro,verse:4x8/6,chorus:4x5-7,outro", "ABAB", "en"),
    ("verse:2x4,chorus:2x10", "AA", "en"),
    ("rap:4x9,hook:2x5", "one", "en"),
    ("verse:4x7", "free", "en"),
    ("verse:4x7,chorus:2x6,chorus:2x6", "AABA", "en"),
    ("bridge:2x12", "AA", "en"),
    ("verse:3x3", "AAA", "en"),
    ("verse:4x8,pre-chorus:2x7,chorus:4x7", "one", "en"),
]
# of both languages, of four rhymes, with and without instrumental sections
FEW = FORMS[::3]
THEMES = {"zh": "夏夜，海边的思念", "en": "a long road home under the moon"}


def check(text, structure, rhyme, language):
    """Holds a text to its form with nothing but the parser, syllables and rhymes: (ends that rhyme,
    ends that were to).
    """
    form = parse_form(structure, rhyme=rhyme, language=language)
    lyrics = parse_lyrics(text)
    assert not lyrics.notes
    assert [s.kind for s in lyrics.sections] == [s.kind for s in form.sections]
    groups = {}
    seen = set()
    for number, (section, asked) in enumerate(zip(lyrics.sections, form.sections, strict=True)):
        assert len(section.lines) == len(asked.lines)
        for row, (line, (low, high)) in enumerate(zip(section.lines, asked.lines, strict=True)):
            assert low <= line_syllables(line.text) <= high, line.text
            assert not loops(line.text)
            if form.copies()[number] is None:
                assert line.text not in seen
                seen.add(line.text)
                if name := form.groups()[number][row]:
                    groups.setdefault(name, []).append(rhyme_of(line.text))
    rhyming = [own for own in groups.values() if len(own) > 1]
    return sum(max(map(own.count, own)) for own in rhyming), sum(map(len, rhyming))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    pytest.importorskip("transformers")
    return open_writer(str(make_base(tmp_path_factory.mktemp("base"))))


def many(model, rounds, sampling, forms=FORMS):
    hits = total = 0
    for number in range(rounds):
        for structure, rhyme, language in forms:
            form = parse_form(structure, rhyme=rhyme, language=language)
            written = write_lyrics(
                THEMES[language], form, model=model, seed=number, sampling=sampling
            )
            one, of = check(written.text, structure, rhyme, language)
            hits, total = hits + one, total + of
            assert written.score.parts["characters_per_line"] == 20
    return hits / total


def test_an_untrained_model_keeps_every_form(untrained):
    assert many(untrained, 1, Sampling(candidates=2)) == 1


def test_the_embedded_grammar_keeps_every_form():
    assert many(None, 2, None) == 1


@pytest.mark.skipif(not (SHIPPED / "model.safetensors").is_file(), reason="the model is not built")
def test_the_shipped_model_keeps_forms_of_every_kind():
    assert many(open_writer("small"), 1, Sampling(candidates=2), FEW) == 1


@pytest.mark.slow
@pytest.mark.parametrize("source", ["untrained", "small"])
def test_five_hundred_lyrics_over_twenty_structures(source, request):
    model = request.getfixturevalue("untrained") if source == "untrained" else open_writer("small")
    assert many(model, 25, Sampling(candidates=3)) >= 0.97


def test_a_seed_gives_the_same_words_and_another_gives_others(untrained):
    form = parse_form("verse:2x5", rhyme="AA")
    first, again, other = (
        write_lyrics("月亮", form, model=untrained, seed=seed).text for seed in (3, 3, 4)
    )
    assert first == again != other


def test_lines_come_as_they_are_written(untrained):
    form = parse_form("verse:2x5,chorus:2x4,chorus:2x4", rhyme="AA")
    told = []
    written = write_lyrics(
        "月亮", form, model=untrained, on_line=lambda s, n, text: told.append((s, n, text))
    )
    assert [(s, n) for s, n, _ in told] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [text for _, _, text in told] == [
        line.text for section in written.lyrics.sections for line in section.lines
    ]


def test_the_rhyme_class_can_be_asked_for(untrained):
    form = parse_form("verse:4x6", rhyme="AABA")
    lines = write_lyrics("月亮", form, model=untrained, rhyme_class="ang").lyrics.sections[0].lines
    assert [rhyme_of(line.text) == "ang" for line in lines] == [True, True, False, True]


@pytest.mark.parametrize("author", ["grammar", "untrained"])
def test_one_line_is_written_anew_and_the_rest_stays(author, request):
    model = None if author == "grammar" else request.getfixturevalue("untrained")
    form = parse_form("verse:4x7,chorus:2x5,chorus:2x5", rhyme="AABA")
    before = write_lyrics("月亮", form, model=model, seed=1)
    draft = draft_of(before.lyrics, form, ["1.2", "chorus"])
    after = write_lyrics("月亮", form, model=model, seed=9, draft=draft)
    old, new = (
        [[line.text for line in section.lines] for section in one.lyrics.sections]
        for one in (before, after)
    )
    assert [a == b for a, b in zip(old[0], new[0], strict=True)] == [True, False, True, True]
    assert old[1] != new[1] == new[2]
    check(after.text, "verse:4x7,chorus:2x5,chorus:2x5", "AABA", "zh")


def test_what_is_kept_must_fit_the_form():
    form = parse_form("verse:2x7", rhyme="AA")
    with pytest.raises(InputError, match="it has 3 syllables"):
        write_lyrics("月亮", form, draft=[["太短了", None]])


def test_candidates_are_ranked(untrained):
    form = parse_form("verse:3x5,chorus:2x5", rhyme="AAB")
    found = write_candidates("月亮", form, count=3, model=untrained)
    keys = [(one.score.total, one.log_probability) for one in found]
    assert keys == sorted(keys, reverse=True)
    assert len({one.text for one in found}) == 3


@pytest.mark.parametrize("line", ["副歌", "间奏", "作词：某人", "[verse]", "chorus", "(x2)", ""])
def test_a_line_that_would_be_read_as_something_else_is_refused(line):
    assert not reads_back(line)


@pytest.mark.parametrize(
    ("line", "loop"),
    [("啊啊啊天空", True), ("来吧来吧看看海", False), ("爱你爱你爱你", True), ("go go go", True)],
)
def test_loops_are_heard(line, loop):
    assert loops(line) is loop


def test_a_missing_model_is_named(tmp_path: Path):
    with pytest.raises(Exception, match="no model folder"):
        open_writer(str(tmp_path / "nothing"))
