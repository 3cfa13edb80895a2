"""What an encoder of words and songs takes a song for: its style, and who sings.

    p(value) = softmax over the values of cos(song, words of the value) / TEMPERATURE

    told = Telling(chinmu)
    told.of(audio_cS, rate, style="jazz", voice="female")       # {"style": 0.93, "voice": 0.99}

A value's vector is the mean of those of its Chinese and its English words, the ones that every
model of this engine was trained on (text/composition/typed.py). Of 110 songs of the synthetic
corpus, eight seconds of each, the embedded ChinMu told the style of 0.98 and the voice of all; most
of those songs it had learned from.

Source: zero-shot classification as in Radford et al. 2021 (arXiv 2103.00020), section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.evaluation.retrieval import Encoder
from mudit_engine.names import STYLES, VOICES
from mudit_engine.text.composition.typed import control_words

VALUES: dict[str, tuple[str, ...]] = {"style": STYLES, "voice": VOICES}
TEMPERATURE = 0.07  # at which CLIP and ChinMu begin to train


class Telling:
    """Words and songs compared by an encoder, whose words are read once.

    Args:
        chinmu: the encoder: ChinMu or another of words and songs in one space.
    """

    def __init__(self, chinmu: Encoder) -> None:
        self.chinmu = chinmu
        self._words: dict[str, Tensor] = {}

    @torch.inference_mode()
    def of(
        self,
        audio_cS: Tensor,
        sample_rate: int,
        *,
        style: str | None = None,
        voice: str | None = None,
    ) -> dict[str, float]:
        """The share, 0 to 1, at which the song is taken for what was asked; None is not asked, and
        so is a value that is none of VALUES.

        Args:
            audio_cS: fp32 [channels, samples].
            sample_rate: of the audio, in Hz.
            style: one of `names.STYLES`.
            voice: one of `names.VOICES`; "none" is an instrumental.
        """
        asked = {
            name: value
            for name, value in (("style", style), ("voice", voice))
            if value is not None and value in VALUES[name]
        }
        if not asked:
            return {}
        [song_E] = self.chinmu.encode_audio([audio_cS], sample_rate)
        found: dict[str, float] = {}
        for name, value in asked.items():
            share_N = torch.softmax(self._vectors(name) @ song_E / TEMPERATURE, 0)
            found[name] = float(share_N[VALUES[name].index(value)])
        return found

    def _vectors(self, name: str) -> Tensor:
        """Unit vectors [values, embedding] of a property's values."""
        if name not in self._words:
            vectors = [
                self.chinmu.encode_text(list(control_words(name, value))).mean(0)
                for value in VALUES[name]
            ]
            self._words[name] = F.normalize(torch.stack(vectors), dim=1)
        return self._words[name]


__all__ = ["TEMPERATURE", "VALUES", "Telling"]
