"""Which of several songs for one request does best what was asked for.

    ranked = rank_candidates(songs, chinmu=pipeline.chinmu, description="慢歌，A小调")
    ranked[0].song, ranked[0].score

A candidate is scored by ChinMu's cosine between the description and its audio, by how far its tempo
is from the plan's, and by the rank of the plan's key among the twelve transpositions. The three are
turned into ranks among the candidates, so that no scale decides, and their mean is the score: the
lowest is best. What the plan does not say is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mudit_engine.hearing import tempo as tempo_of
from mudit_engine.metrics.rhythm_and_key import chroma as chroma_of
from mudit_engine.metrics.rhythm_and_key import octave_error, rank_in_chroma
from mudit_engine.models.chinmu import ChinMu
from mudit_engine.pipeline import Song

WORST_TEMPO_ERROR = 1.0  # of a song in which nothing begins


@dataclass(frozen=True)
class Candidate:
    """A song with what was measured of it; `score` is its mean rank, from 0 for the best of all."""

    song: Song
    seed: int
    score: float
    similarity: float | None
    tempo_error: float | None
    key_rank: int | None


@torch.inference_mode()
def rank_candidates(songs: Sequence[Song], *, chinmu: ChinMu, description: str) -> list[Candidate]:
    """The songs of one description from the best to the worst; equal ones in their order. Tempo
    and key are those of each song's own plan (its sidecar's outline).
    """
    words = chinmu.encode_text([description]) if description.strip() else None
    measured: list[tuple[float | None, float | None, int | None]] = []
    for song in songs:
        audio = torch.from_numpy(song.audio)
        similarity = error = rank = None
        if words is not None:
            similarity = float((chinmu.encode_audio([audio], song.sample_rate) @ words.T)[0, 0])
        plan = song.info["outline"] or {}
        bpm, key = plan.get("bpm"), plan.get("key")
        if bpm is not None:
            found = octave_error(tempo_of(audio, song.sample_rate), bpm)
            error = WORST_TEMPO_ERROR if math.isnan(found) else found
        if key is not None:
            rank = rank_in_chroma(chroma_of(audio, song.sample_rate), key)
        measured.append((similarity, error, rank))
    similarities, errors, ranks = zip(*measured, strict=True)
    parts = [
        # what nobody hears is no difference: a hundredth of a cosine, a percent of tempo
        places([-round(one, 2) for one in similarities if one is not None]),
        places([round(one, 2) for one in errors if one is not None]),
        places([float(one) for one in ranks if one is not None]),
    ]
    parts = [part for part in parts if part] or [[0.0] * len(songs)]
    scores = [sum(place) / len(parts) for place in zip(*parts, strict=True)]
    candidates = [
        Candidate(song, int(song.info["request"]["seed"]), score, *figures)
        for song, score, figures in zip(songs, scores, measured, strict=True)
    ]
    return sorted(candidates, key=lambda one: one.score)


def places(values: Sequence[float]) -> list[float]:
    """How many are smaller, equal ones counted half."""
    return [
        sum(other < one for other in values) + 0.5 * (sum(other == one for other in values) - 1)
        for one in values
    ]
