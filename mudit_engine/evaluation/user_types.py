"""Does the label of who wrote a description change the song, and for the better?

    report = swap_user_types(pipeline, chinmu, asked, seconds=10.0, seed=0)
    report.change, report.gain, report.p

Every description is sung with the label of its writer, with the other label, and with none, from
the same noise, so that the label alone differs. `change` is the mean absolute difference of the
log-mel spectra of the two labels' songs, in natural logarithms (0: the label does nothing; `floor`
is that of the same request twice). `gain` is how much nearer the song of the right label is to its
description than that of the wrong one, as ChinMu's cosine; with songs that the descriptions are of
(`reference`), to those. p is of a paired permutation over requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.audio import load_audio, resample
from mudit_engine.errors import InputError
from mudit_engine.evaluation.retrieval import Encoder
from mudit_engine.evaluation.songs import USERS, Track, silent_track
from mudit_engine.evaluation.systems import Asked
from mudit_engine.metrics import figures
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.significance import paired_permutation
from mudit_engine.models.spectral import LogMel
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest

RATE, FFT, HOP, MELS = 22050, 2048, 512, 80
LABELS = (*USERS, "none")


@dataclass(frozen=True)
class Swap:
    """One request: cosine of its song to what it is held against, by label, and the change."""

    id: str
    user: str
    cosine: dict[str, float]
    change: float


@dataclass(frozen=True)
class UserTypeReport:
    """Over all requests; see the module's docstring."""

    swaps: list[Swap]
    change: Figure
    floor: float
    gain: Figure
    p: float


def swap_user_types(
    pipeline: SongPipeline,
    chinmu: Encoder,
    asked: Mapping[str, Asked],
    *,
    seconds: float,
    seed: int = 0,
    steps: int | None = None,
    track: Track = silent_track,
) -> UserTypeReport:
    """Sings every request three times. Raises InputError for fewer than two requests of a
    professional or amateur with a description.
    """
    wishes = [one for one in asked.values() if one.user_type in USERS and one.description.strip()]
    if len(wishes) < 2:
        raise InputError(
            f"{len(wishes)} requests have a description and the user_type "
            f"{' or '.join(USERS)}: at least 2 are needed"
        )
    mel = LogMel(RATE, FFT, HOP, MELS)
    swaps, floor = [], 0.0
    for number, wish in enumerate(track(wishes, "swapping user types")):

        def sing(label: str, wish: Asked = wish, number: int = number) -> tuple[Tensor, int]:
            request = SongRequest(
                description=wish.description,
                lyrics=wish.lyrics,
                seconds=seconds,
                seed=seed + number,
                user_type=label,
                sampler={} if steps is None else {"steps": steps},
            )
            [song] = pipeline.generate([request])
            return torch.as_tensor(song.audio).float(), song.sample_rate

        made = {label: sing(label) for label in LABELS}
        if number == 0:
            floor = _distance(mel, made[LABELS[0]], sing(LABELS[0]))
        with torch.inference_mode():
            target = (
                chinmu.encode_audio([loaded[0]], loaded[1])
                if wish.reference and (loaded := load_audio(wish.reference))
                else chinmu.encode_text([wish.description])
            )
            cosine = {
                label: float(F.cosine_similarity(target, chinmu.encode_audio([audio], rate)))
                for label, (audio, rate) in made.items()
            }
        swaps.append(
            Swap(wish.id, wish.user_type, cosine, _distance(mel, made[USERS[0]], made[USERS[1]]))
        )
    right = [swap.cosine[swap.user] for swap in swaps]
    wrong = [swap.cosine[_other(swap.user)] for swap in swaps]
    return UserTypeReport(
        swaps,
        figures.mean([swap.change for swap in swaps]),
        floor,
        figures.mean([a - b for a, b in zip(right, wrong, strict=True)]),
        paired_permutation(right, wrong),
    )


def _other(user: str) -> str:
    return USERS[1 - USERS.index(user)]


@torch.inference_mode()
def _distance(mel: LogMel, a: tuple[Tensor, int], b: tuple[Tensor, int]) -> float:
    """Mean absolute difference of log-mel spectra."""

    def spectrum(audio: Tensor, rate: int) -> Tensor:
        mono = resample(audio.mean(0, keepdim=True), rate, RATE)
        return mel(F.pad(mono, (0, -mono.shape[1] % HOP)))[0]

    return float((spectrum(*a) - spectrum(*b)).abs().mean())


def lines(report: UserTypeReport) -> Sequence[Sequence[str]]:
    """Rows of a table: request, user, cosine by label, change."""
    return [
        [swap.id, swap.user, *(f"{swap.cosine[label]:.3f}" for label in LABELS)]
        + [f"{swap.change:.3f}"]
        for swap in report.swaps
    ]
