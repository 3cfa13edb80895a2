"""Does a song play the chords that were asked for? Each beat's pitch classes against all triads.

    chords_followed(audio_cS, 44100, parse_chords("C G Am F"), bpm=96.0)        # 0.92 of the beats

A beat counts when the asked chord's triad fits its pitch classes better than the 24 major and minor
triads. Nobody says where in the song the chords begin, so the beginning that fits best is taken,
among all half beats of one round; they repeat as long as the song lasts. Chance is therefore not 1
of 24 but about 0.2 for four chords over half a minute.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.hearing import RATE, pitch_class_frames
from mudit_engine.text.harmony import ChordSymbol

BEATS = 4  # of a bar


def chords_followed(
    audio_cS: Tensor, sample_rate: int, bars: Sequence[Sequence[ChordSymbol]], *, bpm: float
) -> float:
    """Share of the beats, 0 to 1, of audio [channels, samples]; 0 for silence and for audio of less
    than a beat. The chords of a bar share its four beats evenly.
    """
    energy_F12, hop = pitch_class_frames(audio_cS, sample_rate)
    asked = [bar[beat * len(bar) // BEATS].triad for bar in bars for beat in range(BEATS)]
    known = list(
        dict.fromkeys(
            [ChordSymbol(root, kind) for root in range(12) for kind in ("maj", "min")]
            + [ChordSymbol(one.root, one.quality) for one in asked]
        )
    )
    templates = torch.zeros(len(known), 12)
    for row, chord in zip(templates, known, strict=True):
        row[list(chord.pitch_classes)] = 1.0
    wanted = torch.tensor([known.index(ChordSymbol(one.root, one.quality)) for one in asked])
    beat = 60 / bpm * RATE / hop  # in frames
    best = 0.0
    for shift in (0.0, 0.5):
        edges = ((torch.arange(len(energy_F12)) + shift) * beat).round().long()
        edges = edges[edges <= len(energy_F12)]
        if len(edges) < 2:
            continue
        pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        beats = torch.stack([energy_F12[a:b].mean(0) for a, b in pairs])
        sounds = beats.sum(1) > 0
        # the square root, so that a loud note does not outweigh the rest of its chord
        fit = F.normalize(beats.sqrt(), dim=1) @ F.normalize(templates, dim=1).T
        heard = torch.where(sounds, fit.argmax(1), -1)
        place = torch.arange(len(heard))
        for start in range(len(wanted)):
            hits = heard == wanted[(place + start) % len(wanted)]
            best = max(best, float(hits.float().mean()))
    return best


__all__ = ["chords_followed"]
