"""Columns of an outline that a model may take beside beat, key, syllable and chord: melody,
arrangement, controls, and held frames. Each has a switch in the model's configuration, and they
stand in this order behind the first columns (models/outline.py).

    melody       share of the frame that each of 12 pitch classes and 44 pitches (MIDI 40 to 83)
                 sounds, and whether a note begins in it
    arrangement  one-hot kind of section, who of the band plays, energy, fill, seconds until the
                 section and the song end
    controls     drums on or off, one-hot voice, one-hot style: the same in every frame
    held         whether the frame is given, not made

Values are times GAIN: columns that are added to trained weights start at 0, and the larger the
feature, the sooner Adam's even steps reach a weight that is heard.

    columns = optional_columns(config.dit)        {"melody": slice(43, 100), ...}
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mudit_engine.config import DitConfig
from mudit_engine.names import BAND, STYLE_COLUMNS, STYLES, VOICES
from mudit_engine.text.composition.arrangement import (
    FILL_BEATS,
    SECTION_KINDS,
    PlannedSection,
)
from mudit_engine.text.composition.notes import HIGHEST_PITCH, LOWEST_PITCH
from mudit_engine.text.outline import Controls

GAIN = 2.0
PITCHES = HIGHEST_PITCH - LOWEST_PITCH + 1
SECTION = len(SECTION_KINDS)
WIDTHS = {
    "melody": 12 + PITCHES + 1,
    "arrangement": SECTION + len(BAND) + 4,
    "controls": 2 + len(VOICES) + STYLE_COLUMNS,
    "edits": 1,
}
FAR_SECONDS = 8.0  # an end that is farther away is not told apart


def optional_columns(config: DitConfig, first: int) -> dict[str, slice]:
    """Where each switched-on group of columns lies, behind the `first` ones."""
    found = {}
    for name, width in WIDTHS.items():
        if getattr(config, name):
            found[name] = slice(first, first + width)
            first += width
    return found


def melody_columns(
    notes: Sequence[tuple[float, float, int]], frames: int, frame_rate: float
) -> np.ndarray:
    """fp32 [T, 12 + PITCHES + 1]. Notes outside of the columns are moved in by octaves."""
    out = np.zeros((frames, WIDTHS["melody"]), np.float32)
    start, end, midi = np.asarray(notes, np.float64).reshape(-1, 3).T
    pitch = np.rint(midi).astype(np.int64)
    pitch += 12 * np.maximum(0, -((pitch - LOWEST_PITCH) // 12))
    pitch -= 12 * np.maximum(0, -((HIGHEST_PITCH - pitch) // 12))
    first = np.maximum(0, (start * frame_rate).astype(np.int64))
    last = np.minimum(frames, np.ceil(end * frame_rate).astype(np.int64))
    note, frame = spread(first, last)
    left = frame / frame_rate
    share = np.minimum(left + 1 / frame_rate, end[note]) - np.maximum(left, start[note])
    share = np.clip(share, 0, None) * frame_rate
    # in the order of the notes: two of one frame are added up
    np.add.at(out, (frame, pitch[note] % 12), share)
    np.add.at(out, (frame, 12 + pitch[note] - LOWEST_PITCH), share)
    out[first[first < frames], -1] = 1
    return GAIN * out


def spread(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All places of the ranges [first, last), and which range each is of, in the ranges' order.

    Examples:
        >>> spread(np.array([3, 0]), np.array([5, 1]))
        (array([0, 0, 1]), array([3, 4, 0]))
    """
    counts = np.maximum(last - first, 0)
    places = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts - first, counts)
    return np.repeat(np.arange(len(counts)), counts), places


def arrangement_columns(
    sections: Sequence[PlannedSection], frames: int, frame_rate: float, bpm: float | None
) -> np.ndarray:
    """fp32 [T, kinds + band + 4]; zeros where nothing is planned."""
    out = np.zeros((frames, WIDTHS["arrangement"]), np.float32)
    centre_T = (np.arange(frames) + 0.5) / frame_rate
    for one in sections:
        first, last = np.searchsorted(centre_T, (one.start, one.end))
        inside = slice(first, max(first, last))
        out[inside, SECTION_KINDS.index(one.kind)] = 1
        for player in one.plays:
            out[inside, SECTION + BAND.index(player)] = 1
        left = SECTION + len(BAND)
        out[inside, left] = one.energy
        if one.fill and bpm:
            fill = np.searchsorted(centre_T, one.end - FILL_BEATS * 60 / bpm)
            out[max(first, fill) : inside.stop, left + 1] = 1
        near = np.clip(1 - (one.end - centre_T[inside]) / FAR_SECONDS, 0, 1)
        out[inside, left + 2] = near
        if one.ends:
            out[inside, left + 3] = near
    return GAIN * out


def control_columns(controls: Controls) -> np.ndarray:
    """fp32 [2 + voices + STYLE_COLUMNS]; zeros for what is not said."""
    out = np.zeros(WIDTHS["controls"], np.float32)
    if controls.drums is not None:
        out[0 if controls.drums else 1] = 1
    if controls.voice is not None:
        out[2 + VOICES.index(controls.voice)] = 1
    if controls.style is not None:
        out[2 + len(VOICES) + STYLES.index(controls.style)] = 1
    return GAIN * out


def widened(weight_DF: Tensor, *, theirs: dict[str, slice], ours: dict[str, slice]) -> Tensor:
    """A trained weight with columns of zeros for what it did not know: the network computes what it
    computed, until training moves them.

    Args:
        weight_DF: of a model with the columns `theirs`, the first ones included as "first".
        theirs: where its groups of columns lie.
        ours: where those of the wider model lie.

    Returns:
        The weight [D, F] of the wider model.
    """
    wide = weight_DF.new_zeros(len(weight_DF), max(place.stop for place in ours.values()))
    for name, place in theirs.items():
        wide[:, ours[name]] = weight_DF[:, place]
    return torch.as_tensor(wide)
