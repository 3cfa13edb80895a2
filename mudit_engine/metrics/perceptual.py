"""How near decoded audio comes to its original for a listener: PESQ for voices, ViSQOL for music.
Both compare with the original and answer on a scale of mean opinions, about 1 (bad) to 5.

    pesq_wideband(voice_S, decoded_S, 22050)     # 2.3
    visqol(mix_S, decoded_S, 22050)              # 4.1

Source: ITU-T P.862.2 (the package pesq); Chinen et al. 2020, ViSQOL v3, audio mode (the package
visqol-python).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from mudit_engine.audio import resample
from mudit_engine.availability import require

PESQ_RATE, VISQOL_RATE = 16000, 48000


def pesq_wideband(original_S: Tensor, decoded_S: Tensor, rate: int) -> float:
    """PESQ (MOS-LQO, 1.04 to 4.64) of a voice.

    Args:
        original_S: fp32 samples of the original, at least a quarter of a second with speech in it.
        decoded_S: as long, at the same rate.
        rate: Hz.

    Raises:
        MissingError: without the package pesq.
    """
    require("pesq", "PESQ of decoded voices")
    from pesq import pesq

    pair = _at(PESQ_RATE, original_S, decoded_S, rate)
    return float(pesq(PESQ_RATE, *pair, "wb"))


def visqol(original_S: Tensor, decoded_S: Tensor, rate: int) -> float:
    """ViSQOL (MOS-LQO, 1 to 4.73) of music, arguments as in `pesq_wideband`. Takes seconds of
    computing for each second of sound.

    Raises:
        MissingError: without the package visqol-python.
    """
    require("visqol", "ViSQOL of decoded songs")
    pair = _at(VISQOL_RATE, original_S, decoded_S, rate)
    return float(_judge().measure_from_arrays(*pair, VISQOL_RATE).moslqo)


@lru_cache(maxsize=1)
def _judge() -> Any:
    from visqol import VisqolApi

    judge = VisqolApi()
    judge.create(mode="audio")
    return judge


def _at(
    target: int, original_S: Tensor, decoded_S: Tensor, rate: int
) -> tuple[np.ndarray, np.ndarray]:
    samples = min(len(original_S), len(decoded_S))
    original, decoded = (
        resample(audio_S[None, :samples], rate, target)[0].double().numpy()
        for audio_S in (original_S, decoded_S)
    )
    return original, decoded
