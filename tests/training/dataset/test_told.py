"""What a song without labels is taken to be: what its descriptions say, as requests are read."""

from __future__ import annotations

from typing import Any

import pytest

from mudit_engine.training.dataset.told import labels_read, outline_of


@pytest.mark.parametrize(
    ("descriptions", "labels"),
    [
        (["rock, guitar, drums"], {"drums": True, "style": "rock"}),
        (
            ["不要鼓，童声", "a child sings, 84 bpm"],
            {"drums": False, "voice": "child", "bpm": 84.0},
        ),
        (["in Eb major", "降E大调"], {"key": 3, "mode": "major"}),
        # two of them that differ leave it open, and the rest stays
        (["A minor, jazz", "A major, jazz"], {"style": "jazz"}),
        (["with drums", "没有鼓"], {}),
        (["warm and slow"], {}),
        ([], {}),
    ],
)
def test_labels_are_what_a_request_in_these_words_would_be(
    descriptions: list[str], labels: dict[str, Any]
) -> None:
    assert labels_read(descriptions) == labels
    outline = outline_of(labels)
    assert outline.controls.drums == labels.get("drums")
    assert outline.bpm == labels.get("bpm")
    assert outline.key == ("D# major" if "key" in labels else None)
