"""What songs are ranked by when a model learns from them: how near a song is to its description,
and how well it does what was asked.

    reward = Reward("both", chinmu)
    parts = reward.parts(audio_cS, rate, asked)     # {"similarity": 0.41, "adherence": 0.83}
    best, worst = extremes([parts, ...])            # places; None where no song is better

Songs of one request are ranked by each part, ties sharing their places, and the mean of the places
decides, so that no part's scale does. Parts that no request names are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mudit_engine.evaluation.adherence import adherence, mean_of
from mudit_engine.evaluation.candidates import places
from mudit_engine.evaluation.retrieval import Encoder
from mudit_engine.evaluation.systems import Asked

RewardName = Literal["similarity", "adherence", "both"]
REWARDS: tuple[str, ...] = get_args(RewardName)
HEARD = 2  # decimals of a part that make a difference


@dataclass(frozen=True)
class Reward:
    """A reward, by name, with the ChinMu that says how near a song is to words."""

    name: RewardName
    chinmu: Encoder

    def parts(self, audio_cS: Tensor, sample_rate: int, asked: Asked) -> dict[str, float]:
        """The reward's parts of a song, larger is better."""
        found = {}
        if self.name != "adherence" and asked.description.strip():
            found["similarity"] = similarity(self.chinmu, audio_cS, sample_rate, asked.description)
        if self.name != "similarity":
            done = mean_of(adherence(audio_cS, sample_rate, asked))
            if done is not None:
                found["adherence"] = done
        return found


@torch.inference_mode()
def similarity(chinmu: Encoder, audio_cS: Tensor, sample_rate: int, description: str) -> float:
    """Cosine of a song and a text."""
    audio_1E = chinmu.encode_audio([audio_cS], sample_rate)
    return float(torch.nn.functional.cosine_similarity(audio_1E, chinmu.encode_text([description])))


def extremes(parts: Sequence[Mapping[str, float]]) -> tuple[int, int] | None:
    """Places of the best and the worst of some songs for one request; None where all are equal.

    Examples:
        >>> extremes([{"similarity": 0.1}, {"similarity": 0.4}, {"similarity": 0.2}])
        (1, 0)
        >>> extremes([{"similarity": 0.401}, {"similarity": 0.402}]) is None
        True
    """
    names = sorted(set.intersection(*(set(one) for one in parts)))
    ranked = [places([-round(one[name], HEARD) for one in parts]) for name in names]
    totals = [sum(place) for place in zip(*ranked, strict=True)]
    if not totals or min(totals) == max(totals):
        return None
    return totals.index(min(totals)), totals.index(max(totals))


__all__ = ["REWARDS", "Reward", "extremes", "similarity"]
