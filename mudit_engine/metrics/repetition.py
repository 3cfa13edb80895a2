"""Does a song come back to what it played? Each window of its harmony against all others far enough
away.

    repetition(audio_cS, 44100)             # 1: all of it returns; noise and drift stay lower

Pitch-class energies of half seconds, less their mean over the song, are joined to windows of four
seconds; a window's match is the highest cosine with a window that begins eight seconds or more
away, and the figure is the mean over windows. It says nothing of whether repeating was asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.metrics.rhythm_and_key import chroma

STEP_SECONDS, WINDOW_SECONDS, APART_SECONDS = 0.5, 4.0, 8.0


def repetition(audio_cS: Tensor, sample_rate: int) -> float | None:
    """Mean best match, -1 to 1, of audio [channels, samples]; None below 14 seconds, where no two
    windows are far enough apart, and for silence.
    """
    step = round(STEP_SECONDS * sample_rate)
    window, apart = (round(s / STEP_SECONDS) for s in (WINDOW_SECONDS, APART_SECONDS))
    frames = audio_cS.shape[1] // step
    if frames < window + apart + 4:
        return None
    mono_S = audio_cS.mean(0)
    energy_F12 = torch.stack(
        [chroma(mono_S[None, n * step : (n + 1) * step], sample_rate) for n in range(frames)]
    )
    if float(energy_F12.abs().max()) == 0:
        return None
    joined_WD = (energy_F12 - energy_F12.mean(0)).unfold(0, window, 1).flatten(1)
    match_WW = F.normalize(joined_WD, dim=-1) @ F.normalize(joined_WD, dim=-1).T
    place = torch.arange(len(match_WW))
    near = (place[:, None] - place[None]).abs() < apart
    return float(match_WW.masked_fill(near, -1.0).max(1).values.mean())
