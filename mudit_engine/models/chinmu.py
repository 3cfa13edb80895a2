"""ChinMu: descriptions and audio in one space, so that words can condition a song and songs can be
found by words.

    text:  fragment -> characters or a transformers encoder -> masked mean -> projection
           -> unit vector
    audio: log-mel -> folded frames -> transformer with RoPE -> mean -> projection -> unit vector
    loss:  symmetric InfoNCE, logits = exp(s) <text, audio>

    vectors = chinmu.encode_text(["流行抒情", "a slow piano ballad"])        # [2, 512]
    vectors = chinmu.encode_audio([song], 44100)                            # [1, 512]

Sources: Oord et al. 2018 (InfoNCE); Radford et al. 2021 (symmetric form, learned temperature).

Shapes: N fragments or songs, T packed tokens, D tower width, M mel bands, F frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mudit_engine.availability import require
from mudit_engine.config import ChinMuConfig
from mudit_engine.errors import InputError, ModelError
from mudit_engine.kernels.rotary import rope_table
from mudit_engine.kernels.worklist import Segments
from mudit_engine.models.layers import EncoderBlock
from mudit_engine.models.spectral import mel_filters

CHARACTERS = "characters"
BUCKETS = 4096  # rows of the character and of the pair table
LOG_FLOOR = 1e-4
# a sharper temperature lets a single pair rule the batch (Radford et al. 2021, section 2.5)
MAX_LOG_SCALE = math.log(100.0)


class _Tower(nn.Module):
    """Transformer blocks on packed sequences, then the mean of each sequence."""

    def __init__(self, width: int, blocks: int, head_dim: int, embedding: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.blocks = nn.ModuleList(EncoderBlock(width, head_dim=head_dim) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embedding)

    def forward(self, x_TD: Tensor, lengths: Sequence[int]) -> Tensor:
        position = torch.cat(
            [torch.arange(n, dtype=torch.float32, device=x_TD.device) for n in lengths]
        )
        cos, sin = rope_table(position, self.head_dim)
        segments = Segments.self_attention(lengths)
        for block in self.blocks:
            x_TD = block(x_TD, segments, cos, sin)
        pooled = torch.stack([rows.mean(0) for rows in self.norm(x_TD).split(list(lengths))])
        return F.normalize(self.project(pooled), dim=-1)


def character_ids(text: str, limit: int) -> list[int]:
    """Table rows of a text's characters: code point modulo the table's rows, so that any script has
    an id and nothing is fitted.
    """
    return [ord(c) % BUCKETS for c in text.lower()[:limit]]


def character_rows(text: str, limit: int) -> tuple[list[int], list[int]]:
    """Table rows of a text's characters, and of its pairs of neighbours."""
    ids = character_ids(text, limit)
    # a pair's row: a fixed multiplicative hash of both characters
    return ids, [
        (a * 1_000_003 + b * 7919 + 17) % BUCKETS for a, b in zip(ids, [0, *ids[:-1]], strict=True)
    ]


def check_texts(texts: Sequence[str]) -> None:
    """Raises InputError for an empty text."""
    if not all(text.strip() for text in texts):
        raise InputError(
            "a description fragment is empty: leave it out, or write at least one word"
        )


class CharacterEncoder(nn.Module):
    """A small text tower over characters and character pairs: no vocabulary file, any script."""

    def __init__(self, config: ChinMuConfig) -> None:
        super().__init__()
        self.limit = config.max_characters
        self.single = nn.Embedding(BUCKETS, config.text_width)
        self.pair = nn.Embedding(BUCKETS, config.text_width)
        self.tower = _Tower(
            config.text_width, config.text_blocks, config.head_dim, config.embedding
        )

    def forward(self, texts: Sequence[str]) -> Tensor:
        device = self.single.weight.device
        ids, pairs = zip(*(character_rows(text, self.limit) for text in texts), strict=True)
        single, pair = (
            torch.tensor(list(chain.from_iterable(rows))).to(device, non_blocking=True)
            for rows in (ids, pairs)
        )
        x_TD = self.single(single) + self.pair(pair)
        return self.tower(x_TD, [len(row) for row in ids])


class PretrainedTextEncoder(nn.Module):
    """A transformers encoder (a folder or a hub id the user gives), masked mean of its last states,
    and a projection.
    """

    def __init__(self, config: ChinMuConfig, *, folder: Path | None = None) -> None:
        super().__init__()
        require("transformers", f"the text encoder '{config.text_encoder}'")
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        # a model folder holds the encoder's configuration and tokenizer, so that it opens with no
        # network
        source = str(folder) if folder is not None and folder.is_dir() else config.text_encoder
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
            self.encoder: Any = (
                AutoModel.from_config(AutoConfig.from_pretrained(source))
                if folder
                else AutoModel.from_pretrained(source)
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"text encoder '{source}' cannot be loaded: {str(error).splitlines()[0]}. Give a "
                f"folder or a hub id that is reachable"
            ) from error
        self.limit = config.max_characters
        self.project = nn.Linear(self.encoder.config.hidden_size, config.embedding)

    def forward(self, texts: Sequence[str]) -> Tensor:
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        ).to(self.project.weight.device)
        states = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        return F.normalize(self.project((states * mask).sum(1) / mask.sum(1)), dim=-1)

    def save_assets(self, folder: Path) -> None:
        """Writes the tokenizer and the encoder's configuration beside a model's weights."""
        self.tokenizer.save_pretrained(folder)
        self.encoder.config.save_pretrained(folder)


class AudioTower(nn.Module):
    """Log-mel, folded into tokens, through a transformer."""

    def __init__(self, config: ChinMuConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer(
            "filters", mel_filters(config.sample_rate, config.n_fft, config.mels), persistent=False
        )
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.embed = nn.Linear(config.mels * config.mel_fold, config.audio_width)
        self.tower = _Tower(
            config.audio_width, config.audio_blocks, config.head_dim, config.embedding
        )

    def tokens(self, audio_S: Tensor) -> Tensor:
        """Log-mel tokens [F, mels * fold] of mono audio at the tower's sample rate."""
        c = self.config
        samples = max(len(audio_S), c.n_fft)
        tokens = -(-samples // (c.mel_hop * c.mel_fold))
        x = F.pad(
            audio_S, (c.n_fft // 2, tokens * c.mel_fold * c.mel_hop - len(audio_S) + c.n_fft // 2)
        )
        magnitude = torch.stft(
            x, c.n_fft, c.mel_hop, window=self.window, center=False, return_complex=True
        ).abs()
        mel = torch.log((magnitude.T @ self.filters).clamp_min(LOG_FLOOR))
        return ((mel[: tokens * c.mel_fold] + 4.0) / 2.5).reshape(tokens, -1)

    def forward(self, songs: Sequence[Tensor]) -> Tensor:
        tokens = [self.tokens(song) for song in songs]
        return self.tower(self.embed(torch.cat(tokens)), [len(t) for t in tokens])


class ChinMu(nn.Module):
    """Both towers and the temperature."""

    def __init__(self, config: ChinMuConfig, *, folder: Path | None = None) -> None:
        """`folder` is where a saved model keeps its text encoder's configuration and tokenizer
        (None: the configured source).
        """
        super().__init__()
        self.config = config
        self.text: nn.Module = (
            CharacterEncoder(config)
            if config.text_encoder == CHARACTERS
            else PretrainedTextEncoder(config, folder=folder)
        )
        self.audio = AudioTower(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, embedding]. Raises InputError for an empty text."""
        check_texts(texts)
        if not texts:
            return torch.zeros(0, self.config.embedding, device=self.log_scale.device)
        return cast(Tensor, self.text(texts))

    def encode_audio(self, songs: Sequence[Tensor], sample_rate: int) -> Tensor:
        """Unit vectors [N, embedding] of songs [channels, samples] or [samples], each at its own
        length.
        """
        from mudit_engine.audio import resample

        mono = [song.mean(0) if song.dim() == 2 else song for song in songs]
        return cast(
            Tensor,
            self.audio(
                [resample(song[None], sample_rate, self.config.sample_rate)[0] for song in mono]
            ),
        )

    def forward(self, texts: Sequence[str], songs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Text and audio vectors of N pairs; songs are mono at the tower's sample rate."""
        return self.encode_text(texts), cast(Tensor, self.audio(songs))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.clamp_max(MAX_LOG_SCALE).exp()


def info_nce(
    text_NE: Tensor, audio_NE: Tensor, scale: Tensor, *, groups: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE, summed over the N pairs (divide by the global N). Pairs of one group (the
    same song twice) are not negatives.
    """
    logits = scale * text_NE @ audio_NE.T
    if groups is not None:
        same = groups[:, None] == groups[None]
        logits = logits.masked_fill(
            same & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device), float("-inf")
        )
    target = torch.arange(len(logits), device=logits.device)
    return (
        F.cross_entropy(logits, target, reduction="sum")
        + F.cross_entropy(logits.T, target, reduction="sum")
    ) / 2
