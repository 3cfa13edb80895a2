"""How well a song does what was asked for, part by part, from 0 (not at all) to 1 (as asked).

    parts = adherence(audio_cS, rate, asked)        # {"tempo": 0.9, "key": 1.0}
    overall = mean_of(parts)                        # None where nothing that is measured was asked

tempo falls from 1 to 0 as the estimate moves away, half and double allowed, to a sixth; key is the
asked key's place among its twelve transpositions; chords, drums and sections are those of
metrics/chord_following.py, drum_presence.py and structure.py. With an encoder of words and songs
(`telling`), style and voice are the shares at which it takes the song for what was asked. What
nobody asked for is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from mudit_engine.hearing import tempo as tempo_of
from mudit_engine.metrics.chord_following import chords_followed
from mudit_engine.metrics.drum_presence import has_drums
from mudit_engine.metrics.rhythm_and_key import chroma, octave_error, rank_in_chroma
from mudit_engine.metrics.structure import sections_followed
from mudit_engine.text.harmony import parse_chords

if TYPE_CHECKING:
    from mudit_engine.evaluation.systems import Asked
    from mudit_engine.evaluation.telling import Telling

WRONG_TEMPO = 1 / 6  # relative error from which a tempo is as wrong as any


def adherence(
    audio_cS: Tensor, sample_rate: int, asked: Asked, *, telling: Telling | None = None
) -> dict[str, float]:
    """The parts that were asked for, 0 to 1 each, of audio [channels, samples]. telling: says what
    style and voice a song has; None leaves these two out.

    Examples:
        >>> import torch
        >>> from mudit_engine.evaluation.systems import Asked
        >>> adherence(torch.zeros(1, 22050), 22050, Asked("s1", bpm=120.0, key="A minor"))
        {'tempo': 0.0, 'key': 0.0}
    """
    found = {}
    if asked.bpm is not None:
        error = octave_error(tempo_of(audio_cS, sample_rate), asked.bpm)
        found["tempo"] = 0.0 if math.isnan(error) else max(0.0, 1 - error / WRONG_TEMPO)
    if asked.key is not None:
        found["key"] = 1 - (rank_in_chroma(chroma(audio_cS, sample_rate), asked.key) - 1) / 11
    if telling is not None:
        found |= telling.of(audio_cS, sample_rate, style=asked.style, voice=asked.voice)
    return found | further_parts(audio_cS, sample_rate, asked)


def further_parts(
    audio_cS: Tensor, sample_rate: int, asked: Asked, *, tempo: float | None = None
) -> dict[str, float]:
    """Chords, drums and sections alone. tempo: the song's, for chords without an asked one; None
    is found.
    """
    found = {}
    if asked.chords is not None:
        bpm = asked.bpm or (tempo_of(audio_cS, sample_rate) if tempo is None else tempo)
        bars = parse_chords(asked.chords)
        silent = math.isnan(bpm)
        found["chords"] = 0.0 if silent else chords_followed(audio_cS, sample_rate, bars, bpm=bpm)
    if asked.drums is not None:
        found["drums"] = float(has_drums(audio_cS, sample_rate) == asked.drums)
    sections = sections_followed(audio_cS, sample_rate, asked.sections)
    if sections is not None:
        found["sections"] = sections
    return found


def mean_of(parts: Mapping[str, float]) -> float | None:
    """Their mean; None for none."""
    return sum(parts.values()) / len(parts) if parts else None
