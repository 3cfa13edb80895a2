"""SST and ASOA: does a song sound as its description says, and how near is it to another recording?
With models the user names.

    SST   = cosine of CLAP's text and audio embeddings
    ASOA  = cosine of MERT's hidden states, each layer averaged over time

    sst = TextSimilarity.load("laion/larger_clap_music")          # a folder or a hub id
    sst(["a slow piano ballad"], [audio], 44100)                  # [cosine, ...]
    asoa = AudioSimilarity.load("m-a-p/MERT-v1-95M", variant="fixed", trust_remote_code=True)
    asoa(audio, 44100, other, 22050)

ASOA has two variants. `fixed` resamples to the model's rate, hears the whole audio and compares
each layer with itself. `paper` does what the paper's published script does, for figures that can be
set beside its own: the first 80,000 samples at whatever rate they have, and the mean over every
layer of one against every layer of the other, which stays below 1 for equal audio. Say which one a
figure is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.availability import require
from mudit_engine.errors import InputError
from mudit_engine.metrics.embeddings import CLAP_SECONDS, loaded, mono

CHUNK_SECONDS = 30.0  # of MERT: its attention is quadratic in time
PAPER_SAMPLES = 80_000

Variant = Literal["paper", "fixed"]
VARIANTS: tuple[Variant, ...] = ("paper", "fixed")


class TextSimilarity:
    """SST with a CLAP model."""

    def __init__(self, model: Any, tokenizer: Any, extractor: Any) -> None:
        self.model, self.tokenizer, self.extractor = model.eval(), tokenizer, extractor

    @classmethod
    def load(cls, source: str) -> TextSimilarity:
        """Raises MissingError without transformers, ModelError when `source` cannot be loaded."""
        require("transformers", "SST")
        from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

        return cls(
            *(loaded(kind, source) for kind in (ClapModel, AutoTokenizer, AutoFeatureExtractor))
        )

    @torch.inference_mode()
    def __call__(
        self, texts: Sequence[str], songs: Sequence[Tensor], sample_rate: int
    ) -> list[float]:
        """Cosine of each text and its song [channels, samples] or [samples]. Audio longer than 10 s
        is the mean of its windows.
        """
        if len(texts) != len(songs):
            raise InputError(f"{len(texts)} texts and {len(songs)} songs: give one text a song")
        rows = zip(self.encode_text(texts), self.encode_audio(songs, sample_rate), strict=True)
        return [float(asked @ heard) for asked, heard in rows]

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, embedding] of texts, each by itself: padding changes nothing."""
        found = []
        for text in texts:
            words = self.tokenizer([text], padding=True, truncation=True, return_tensors="pt")
            found.append(
                self.model.get_text_features(
                    input_ids=words["input_ids"], attention_mask=words["attention_mask"]
                ).pooler_output
            )
        return F.normalize(torch.cat(found), dim=-1)

    @torch.inference_mode()
    def encode_audio(self, songs: Sequence[Tensor], sample_rate: int) -> Tensor:
        """Unit vectors [N, embedding] of songs [channels, samples] or [samples], the mean over
        windows of 10 s.
        """
        found, rate = [], self.extractor.sampling_rate
        for song in songs:
            windows = [
                window.numpy()
                for window in mono(song, sample_rate, rate).split(round(CLAP_SECONDS * rate))
            ]
            heard = self.extractor(windows, sampling_rate=rate, return_tensors="pt")
            audio = self.model.get_audio_features(
                **{k: heard[k] for k in ("input_features", "is_longer") if k in heard}
            ).pooler_output
            found.append(audio.mean(0, keepdim=True))
        return F.normalize(torch.cat(found), dim=-1)


class AudioSimilarity:
    """ASOA with MERT, or any speech or music encoder of transformers that gives hidden states for a
    waveform.
    """

    def __init__(self, model: Any, extractor: Any, *, variant: Variant) -> None:
        if variant not in VARIANTS:
            raise InputError(f"variant '{variant}' is unknown: use one of {', '.join(VARIANTS)}")
        self.model, self.extractor, self.variant = model.eval(), extractor, variant

    @classmethod
    def load(
        cls, source: str, *, variant: Variant = "fixed", trust_remote_code: bool = False
    ) -> AudioSimilarity:
        """MERT's own code comes with its weights and runs only with trust_remote_code. Raises
        MissingError and ModelError.
        """
        require("transformers", "ASOA")
        from transformers import AutoFeatureExtractor, AutoModel

        trust = {"trust_remote_code": trust_remote_code}
        return cls(
            loaded(AutoModel, source, **trust),
            loaded(AutoFeatureExtractor, source, **trust),
            variant=variant,
        )

    @torch.inference_mode()
    def layers(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Hidden states [layers, D], averaged over time, of audio [channels,
        samples] or [samples].
        """
        rate = int(self.extractor.sampling_rate)
        if self.variant == "paper":
            chunks: Sequence[Tensor] = [mono(audio, rate, rate)[:PAPER_SAMPLES]]
        else:
            whole = mono(audio, sample_rate, rate)
            chunks = whole.split(round(CHUNK_SECONDS * rate))
            # too short a rest for the encoder's strides, and of no weight
            if len(chunks) > 1 and len(chunks[-1]) < rate:
                chunks = chunks[:-1]
        total, frames = torch.zeros(()), 0
        for chunk in chunks:
            inputs = self.extractor(chunk.numpy(), sampling_rate=rate, return_tensors="pt")
            states = torch.stack(
                self.model(inputs["input_values"], output_hidden_states=True).hidden_states
            )[:, 0]
            total, frames = total + states.sum(1), frames + states.shape[1]
        return total / frames

    def __call__(self, a: Tensor, a_rate: int, b: Tensor, b_rate: int) -> float:
        """Cosine in [-1, 1]."""
        ours, theirs = (
            F.normalize(self.layers(a, a_rate), dim=-1),
            F.normalize(self.layers(b, b_rate), dim=-1),
        )
        matrix = ours @ theirs.T
        return float(matrix.mean() if self.variant == "paper" else matrix.diagonal().mean())
