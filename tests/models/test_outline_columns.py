"""Columns of melody, arrangement and controls: where they lie, and that a model without them is the
model that it was.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mudit_engine.config import OUTLINE_GROUPS, DitConfig
from mudit_engine.models.dit import DiT
from mudit_engine.models.outline import (
    FEATURES,
    hold,
    no_outline,
    outline_columns,
    outline_rows,
    outline_width,
)
from mudit_engine.models.outline_columns import GAIN, SECTION, melody_columns, widened
from mudit_engine.text.composition.arrangement import SECTION_KINDS, PlannedSection
from mudit_engine.text.outline import Controls, Outline
from tests.helpers.micro_model import MICRO

RATE = 10.0
SECTIONS = (
    PlannedSection("verse", 0.0, 2.0, ("bass",), 0.5, fill=True),
    PlannedSection("hook", 2.0, 4.0, ("drums", "bass"), 0.9, ends=True),
)
OUTLINE = Outline(
    120.0,
    "C major",
    melody=((0.0, 0.25, 60), (1.0, 2.0, 100), (3.95, 5.0, 30)),
    arrangement=SECTIONS,
    controls=Controls(False, "child", "jazz"),
)


def config(*groups: str) -> DitConfig:
    return MICRO.dit.model_copy(update={name: name in groups for name in OUTLINE_GROUPS})


def test_a_model_that_asks_for_nothing_has_the_first_columns() -> None:
    plain = outline_rows(Outline(120.0, "C major"), frames=40, frame_rate=RATE, tokens=0)
    told = outline_rows(OUTLINE, frames=40, frame_rate=RATE, tokens=0, config=config())
    assert (
        torch.equal(plain.features_TF, told.features_TF) and plain.features_TF.shape[1] == FEATURES
    )
    wide = outline_rows(OUTLINE, frames=40, frame_rate=RATE, tokens=0, config=config("controls"))
    assert torch.equal(wide.features_TF[:, :FEATURES], plain.features_TF)


def test_switches_without_an_outline_are_refused() -> None:
    with pytest.raises(ValidationError, match="set outline=true"):
        DitConfig(melody=True)


def test_notes_fill_their_share_of_a_frame_and_are_moved_in_by_octaves() -> None:
    columns = melody_columns(OUTLINE.melody, 40, RATE) / GAIN
    assert columns[0, 0] == 1 and columns[2, 0] == pytest.approx(0.5) and columns[3, 0] == 0
    assert columns[0, 12 + 60 - 40] == 1 and columns[0, -1] == 1 and columns[1, -1] == 0
    assert columns[12, 12 + 76 - 40] == 1  # E7 sounds as E5
    assert columns[39, 12 + 42 - 40] == pytest.approx(0.5) and columns[39, 6] == pytest.approx(0.5)
    assert melody_columns((), 5, RATE).sum() == 0


def test_sections_players_fill_and_end() -> None:
    columns = outline_columns(config("melody", "arrangement"))
    rows = outline_rows(
        OUTLINE, frames=40, frame_rate=RATE, tokens=0, config=config("melody", "arrangement")
    )
    part = rows.features_TF[:, columns["arrangement"]] / GAIN
    assert (
        part[5, SECTION_KINDS.index("verse")] == 1 and part[25, SECTION_KINDS.index("chorus")] == 1
    )
    players = part[:, SECTION : SECTION + 5]
    assert players[5].tolist() == [0, 1, 0, 0, 0] and players[25].tolist() == [1, 1, 0, 0, 0]
    energy, fill, near, end = part[:, SECTION + 5 :].T
    assert energy[5] == pytest.approx(0.5) and fill[:10].sum() == 0 and fill[10:20].all()
    assert near[19] > near[0] and end[:20].sum() == 0 and end[39] > 0.9


def test_controls_and_held_frames_are_the_same_or_single() -> None:
    both = config("controls", "edits")
    columns = outline_columns(both)
    rows = outline_rows(OUTLINE, frames=6, frame_rate=RATE, tokens=0, config=both)
    said = rows.features_TF[:, columns["controls"]] / GAIN
    assert (said == said[0]).all() and said[0].sum() == 3 and said[0, 1] == 1 and said[0, 4] == 1
    held = np.array([1, 0, 0, 1, 1, 0], bool)
    told = hold(rows, held, both).features_TF[:, columns["edits"]]
    assert (told[:, 0] / GAIN).tolist() == held.astype(float).tolist()
    assert hold(rows, held, config("controls")) is rows
    assert no_outline(4, 0, both).features_TF.sum() == 0


def test_a_widened_model_computes_what_it_computed() -> None:
    torch.manual_seed(0)
    narrow, wide = config("controls"), config(*OUTLINE_GROUPS)
    trained, grown = DiT(narrow), DiT(wide)
    torch.nn.init.normal_(trained.outline_in.weight)
    weights = trained.state_dict()
    weights["outline_in.weight"] = widened(
        weights["outline_in.weight"], theirs=outline_columns(narrow), ours=outline_columns(wide)
    )
    grown.load_state_dict(weights)
    before = outline_rows(OUTLINE, frames=40, frame_rate=RATE, tokens=0, config=narrow)
    after = outline_rows(OUTLINE, frames=40, frame_rate=RATE, tokens=0, config=wide)
    lyrics = torch.zeros(0, narrow.lyric_width)
    assert after.features_TF.shape == (40, outline_width(wide))
    assert torch.allclose(
        trained.embed_outline(before, lyrics), grown.embed_outline(after, lyrics), atol=1e-6
    )
