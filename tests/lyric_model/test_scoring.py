"""The paper's score: its parts one by one."""

from __future__ import annotations

import pytest

from mudit_engine.lyric_model.form import parse_form
from mudit_engine.lyric_model.scoring import score_text

FORM = parse_form("verse:4x7,chorus:2x5", rhyme="AABA")
GOOD = (
    "[verse]\n晚风吹过旧时光\n月亮落在河岸上\n有人慢慢走过来\n灯火照着那扇窗\n"
    "[chorus]\n一起去看海\n等着花朵开\n"
)


def test_a_song_as_asked_has_every_point_and_the_bonus():
    score = score_text(GOOD, form=FORM)
    assert score.parts == {
        "structure": 10,
        "section_sequence": 32.5,
        "line_counts": 17.5,
        "characters_per_line": 20,
        "rhyme": 20,
    }
    assert score.rhyme_ratio == pytest.approx(5 / 6, abs=1e-4)
    assert (score.bonus, score.total) == (0, 100)


def test_the_bonus_is_for_a_ratio_between_six_and_eight_tenths():
    score = score_text(GOOD.split("[chorus]")[0], form=parse_form("verse:4x7"))
    assert (score.rhyme_ratio, score.bonus, score.total) == (0.75, 10, 110)


@pytest.mark.parametrize(
    ("change", "part", "points"),
    [
        (("[chorus]", "[bridge]"), "section_sequence", 32.5 * 0.5),
        (("\n等着花朵开", ""), "line_counts", 17.5 * 0.5),
        (("有人慢慢走过来", "有人来"), "characters_per_line", 20 * 5 / 6),
        (("灯火照着那扇窗", "灯火照着那扇门"), "rhyme", 20 * 4 / 5),
    ],
)
def test_each_part_falls_alone(change, part, points):
    score = score_text(GOOD.replace(*change), form=FORM)
    assert score.parts[part] == pytest.approx(points, abs=1e-3)


def test_what_does_not_parse_has_no_points():
    score = score_text("[vorse]\n晚风吹过旧时光", form=FORM)
    assert score.total == 0
    assert "vorse" in score.fault


def test_without_a_form_only_the_words_are_judged():
    score = score_text(GOOD)
    assert score.parts["section_sequence"] is None
    assert score.parts["rhyme"] == pytest.approx(20 * 5 / 6, abs=1e-3)
    assert 0 < score.total <= 110
