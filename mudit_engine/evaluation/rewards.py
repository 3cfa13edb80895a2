"""What songs are ranked by when a model learns from them: how near a song is to its description,
and how well it does what was asked.

    reward = Reward("both", chinmu)
    parts = reward.parts(audio_cS, rate, asked)     # {"similarity": 0.41, "adherence": 0.83}
    spread = spreads([[parts, ...], ...])           # of the songs of one request, by part
    merits = standing([parts, ...], spread)
    pairs = ranked_pairs(merits, each=2, least=1.0)

A part in units of its spread (the standard deviation among the songs of one request, over all
requests) is comparable with another part; a song's merit is the mean of its parts in these units,
above the mean of its request. What differs by less than the spread of many songs is mostly noise of
the measures, so a pair whose merits are less than `least` apart teaches little and is left out.
Parts that no request names are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from mudit_engine.evaluation.adherence import adherence, mean_of
from mudit_engine.evaluation.retrieval import Encoder
from mudit_engine.evaluation.systems import Asked
from mudit_engine.evaluation.telling import Telling

RewardName = Literal["similarity", "adherence", "both"]
REWARDS: tuple[str, ...] = get_args(RewardName)
Parts = Mapping[str, float]


@dataclass(frozen=True)
class Reward:
    """A reward, by name, with the ChinMu that says how near a song is to words and what style,
    voice and drums it has.
    """

    name: RewardName
    chinmu: Encoder
    telling: Telling = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "telling", Telling(self.chinmu))

    def parts(self, audio_cS: Tensor, sample_rate: int, asked: Asked) -> dict[str, float]:
        """The reward's parts of a song, larger is better."""
        found = {}
        if self.name != "adherence" and asked.description.strip():
            found["similarity"] = similarity(self.chinmu, audio_cS, sample_rate, asked.description)
        if self.name != "similarity":
            done = mean_of(adherence(audio_cS, sample_rate, asked, telling=self.telling))
            if done is not None:
                found["adherence"] = done
        return found


@torch.inference_mode()
def similarity(chinmu: Encoder, audio_cS: Tensor, sample_rate: int, description: str) -> float:
    """Cosine of a song and a text."""
    audio_1E = chinmu.encode_audio([audio_cS], sample_rate)
    return float(torch.nn.functional.cosine_similarity(audio_1E, chinmu.encode_text([description])))


def spreads(requests: Sequence[Sequence[Parts]]) -> dict[str, float]:
    """The standard deviation of each part among the songs of one request, over all requests; a part
    that no request's songs differ in is left out.

    Args:
        requests: of each request the parts of its songs; a part must be in all of them to count.

    Examples:
        >>> spreads([[{"similarity": 0.1}, {"similarity": 0.3}], [{"similarity": 0.5}]])
        {'similarity': 0.1414213562373095}
    """
    squares: dict[str, float] = {}
    freedom: dict[str, int] = {}
    for songs in requests:
        for name in _common(songs):
            values = [one[name] for one in songs]
            centre = sum(values) / len(values)
            squares[name] = squares.get(name, 0.0) + sum((v - centre) ** 2 for v in values)
            freedom[name] = freedom.get(name, 0) + len(values) - 1
    found = {n: math.sqrt(squares[n] / freedom[n]) for n in sorted(squares) if freedom[n]}
    return {name: value for name, value in found.items() if value > 1e-9}


def standing(songs: Sequence[Parts], spread: Mapping[str, float]) -> list[float]:
    """The merit of each song of one request: the mean of its parts in units of their spreads, above
    the mean of all. Zeros where there is nothing to compare.

    Examples:
        >>> standing([{"similarity": 0.1}, {"similarity": 0.3}], {"similarity": 0.1})
        [-1.0, 1.0]
    """
    names = [name for name in _common(songs) if name in spread]
    if not names:
        return [0.0] * len(songs)
    merits = [sum(one[name] / spread[name] for name in names) / len(names) for one in songs]
    centre = sum(merits) / len(merits)
    return [round(one - centre, 9) for one in merits]


def ranked_pairs(
    merits: Sequence[float], *, each: int = 1, least: float = 0.0
) -> list[tuple[int, int, float]]:
    """(better song, worse song, how far apart) of the pairs to learn from: the best with the worst,
    the second best with the second worst, and so on.

    Args:
        merits: of the songs of one request (`standing`).
        each: pairs of a request at most; no song is in two.
        least: pairs less apart are left out; songs that are equal are never a pair.

    Examples:
        >>> ranked_pairs([0.0, 1.5, -1.5, 0.1], each=2, least=0.5)
        [(1, 2, 3.0)]
    """
    order = sorted(range(len(merits)), key=lambda place: -merits[place])
    found = []
    for best, worst in list(zip(order, reversed(order), strict=True))[: min(each, len(order) // 2)]:
        gap = merits[best] - merits[worst]
        if gap > 0 and gap >= least:
            found.append((best, worst, gap))
    return found


def _common(songs: Sequence[Parts]) -> list[str]:
    """Names of the parts that all songs have."""
    return sorted(set.intersection(*(set(one) for one in songs))) if songs else []


__all__ = [
    "REWARDS",
    "Parts",
    "Reward",
    "RewardName",
    "ranked_pairs",
    "similarity",
    "spreads",
    "standing",
]
