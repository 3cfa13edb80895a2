"""Which of several songs for one request does best what was asked for.

    ranked = rank_candidates(songs, chinmu=pipeline.chinmu, description="慢歌，A小调")
    ranked[0].song, ranked[0].parts                 # {"similarity": 0.41, "tempo": 1.0, "key": 1.0}

A candidate is judged as it would be written (mastered), part by part: ChinMu's cosine between the
description and the song, the plan's tempo and key, what the request says of chords, drums, voice
and style (evaluation/adherence.py), and the words that the embedded recogniser hears of the lyrics.
Each part is turned into ranks among the candidates, so that no scale decides, and the mean rank is
the score: the lowest is best. What nobody asked for is left out, and so are words of which the
recogniser understands next to nothing in every candidate: it was made for other voices then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mudit_engine.evaluation.adherence import adherence
from mudit_engine.evaluation.rewards import similarity
from mudit_engine.evaluation.systems import Asked
from mudit_engine.evaluation.telling import Telling
from mudit_engine.loudness import mastered
from mudit_engine.metrics.ctc import Recogniser, log_mel
from mudit_engine.metrics.lyric_error import line_errors, phonemes_by_line
from mudit_engine.models.chinmu import ChinMu
from mudit_engine.pipeline import Song

ASKED_BY = ("words", "request")  # sources of a property that somebody asked for
UNDERSTOOD = 0.2  # of a line's phonemes, in the best candidate, from which words count
# What nobody hears is no difference: a hundredth of a cosine or of a share, 1.7 percent of tempo.
DIGITS = {"tempo": 1}


@dataclass(frozen=True)
class Candidate:
    """A song with its parts, larger is better; `score` is its mean rank, from 0 for the best of
    all.
    """

    song: Song
    seed: int
    score: float
    parts: dict[str, float]


def rank_candidates(songs: Sequence[Song], *, chinmu: ChinMu, description: str) -> list[Candidate]:
    """The songs of one description from the best to the worst; equal ones in their order. Tempo
    and key are those of each song's own plan (its sidecar's outline).

    Args:
        songs: of one request, with seeds of their own.
        chinmu: says how near a song is to words, and what style and voice it has.
        description: of all of them.

    Returns:
        As many candidates, the best first.

    Examples:
        >>> ranked = rank_candidates(songs, chinmu=chinmu, description="piano")  # doctest: +SKIP
        >>> ranked[0].song.save("best.wav")                                      # doctest: +SKIP
    """
    telling, recogniser = Telling(chinmu), Recogniser.load()
    found = [_parts(song, description, chinmu, telling, recogniser) for song in songs]
    if max((parts.get("words", 0.0) for parts in found), default=0.0) < UNDERSTOOD:
        for parts in found:
            parts.pop("words", None)
    names = sorted(set.intersection(*(set(parts) for parts in found)))
    ranks = [
        places([-round(parts[name], DIGITS.get(name, 2)) for parts in found]) for name in names
    ] or [[0.0] * len(songs)]
    scores = [sum(place) / len(ranks) for place in zip(*ranks, strict=True)]
    candidates = [
        Candidate(song, int(song.info["request"]["seed"]), score, parts)
        for song, score, parts in zip(songs, scores, found, strict=True)
    ]
    return sorted(candidates, key=lambda one: one.score)


def _parts(
    song: Song, description: str, chinmu: ChinMu, telling: Telling, recogniser: Recogniser
) -> dict[str, float]:
    audio_cS, _ = mastered(torch.from_numpy(song.audio), song.sample_rate)
    asked = asked_of(song.info, description)
    parts = {}
    if description.strip():
        parts["similarity"] = similarity(chinmu, audio_cS, song.sample_rate, description)
    parts |= adherence(audio_cS, song.sample_rate, asked, telling=telling)
    lyrics = song.info["request"].get("lyrics") or ""
    heard = words_heard(lyrics, audio_cS, song.sample_rate, recogniser)
    return parts if heard is None else {**parts, "words": heard}


def asked_of(info: dict[str, Any], description: str) -> Asked:
    """What a sidecar says was asked: the plan's tempo and key, and the other properties where the
    description or the request named them.

    Examples:
        >>> drums = {"value": False, "source": "words", "words": "no drums"}
        >>> asked_of({"outline": None, "understood": {"properties": {"drums": drums}}}, "").drums
        False
    """
    plan = info.get("outline") or {}
    properties = (info.get("understood") or {}).get("properties", {})
    named = {
        name: one["value"]
        for name in ("chords", "drums", "voice", "style")
        if (one := properties.get(name)) and one["source"] in ASKED_BY
    }
    return Asked("", description, bpm=plan.get("bpm"), key=plan.get("key"), **named)


def words_heard(
    lyrics: str, audio_cS: Tensor, sample_rate: int, recogniser: Recogniser
) -> float | None:
    """The share of phonemes that is heard, a mean over the lines; None without lyrics."""
    lines = phonemes_by_line(lyrics)
    if not lines:
        return None
    heard = recogniser.read(log_mel(audio_cS, sample_rate))
    return 1.0 - float(np.mean(line_errors(lines, heard)))


def places(values: Sequence[float]) -> list[float]:
    """How many are smaller, equal ones counted half."""
    return [
        sum(other < one for other in values) + 0.5 * (sum(other == one for other in values) - 1)
        for one in values
    ]


__all__ = ["Candidate", "asked_of", "places", "rank_candidates", "words_heard"]
