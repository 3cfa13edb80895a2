"""What stems say of a song: whether somebody sings, and how loud against the accompaniment.

    levels = stem_levels({"vocals": vocals_cS, ...}, mix_cS, 44100)
    levels["voice"], levels["vocal_balance"]        # 1.0, +3.2 LU

Stems lie beside a song (s1.vocals.wav beside s1.wav) or come from a separation. The accompaniment
is the sum of the other stems, or the mix less the voice. A voice counts as heard when it is at most
25 LU below the mix, where the rest of an instrumental's separation should lie. Who sings is not
judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.loudness import loudness

STEM_KINDS = ("vocals", "drums", "bass", "chords")
VOICE_HEARD = -25.0  # LU to the mix


def stem_of(path: Path) -> tuple[str, str] | None:
    """(song's id, kind) of a stem's file; None for a song.

    Examples:
        >>> stem_of(Path("a/s1.vocals.wav")), stem_of(Path("a/s1.wav"))
        (('s1', 'vocals'), None)
    """
    name, dot, kind = path.stem.rpartition(".")
    return (name, kind) if dot and name and kind in STEM_KINDS else None


def stem_levels(stems: Mapping[str, Tensor], mix_cS: Tensor, sample_rate: int) -> dict[str, float]:
    """voice (1 where one is heard, else 0), vocal_balance in LU where one is heard and something
    else sounds. Raises InputError for a voice that is not as long as the mix.
    """
    if "vocals" not in stems:
        return {}
    vocals = stems["vocals"]
    if abs(vocals.shape[1] - mix_cS.shape[1]) > sample_rate / 10:
        raise InputError(
            f"the vocals last {vocals.shape[1] / sample_rate:.2f} s, the mix "
            f"{mix_cS.shape[1] / sample_rate:.2f} s: give the stems of this song"
        )
    length = min(vocals.shape[1], mix_cS.shape[1], *(one.shape[1] for one in stems.values()))
    others = [one[:, :length].mean(0) for kind, one in stems.items() if kind != "vocals"]
    voice = vocals[:, :length].mean(0)
    mix = mix_cS[:, :length].mean(0)
    rest = sum(others[1:], others[0]) if others else mix - voice
    sung, whole, other = (loudness(one[None], sample_rate) for one in (voice, mix, rest))
    heard = math.isfinite(sung) and sung >= whole + VOICE_HEARD
    found = {"voice": float(heard)}
    if heard and math.isfinite(other):
        found["vocal_balance"] = sung - other
    return found


__all__ = ["STEM_KINDS", "stem_levels", "stem_of"]
