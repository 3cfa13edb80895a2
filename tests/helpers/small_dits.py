"""Song transformers of a few thousand weights, and mixed batches for them."""

from __future__ import annotations

import torch
from torch import nn

from mudit_engine.config import DitConfig
from mudit_engine.models.dit import DiT, DitBatch

SMALL = DitConfig(
    latent_channels=8,
    width=128,
    blocks=2,
    heads=2,
    lyric_width=64,
    lyric_blocks=1,
    description_width=16,
    max_fragments=4,
    vocabulary_size=50,
)


def make_model(**changes: object) -> DiT:
    torch.manual_seed(0)
    model = DiT(SMALL.model_copy(update=changes))
    # adaLN-Zero starts as the identity, which would hide any mistake
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


def make_batch(
    frames: list[int],
    lyrics: list[int],
    fragments: list[int],
    references: list[int],
    *,
    seed: int = 1,
) -> DitBatch:
    g = torch.Generator().manual_seed(seed)
    n = len(frames)
    return DitBatch(
        latents_TC=torch.randn(sum(frames), 8, generator=g),
        frames=frames,
        times_B=torch.rand(n, generator=g),
        seconds_B=torch.tensor([f / 10.77 for f in frames]),
        user_B=torch.arange(n) % 3,
        descriptions=torch.randn(sum(fragments), 16, generator=g),
        fragments=fragments,
        lyric_ids=torch.randint(0, 50, (sum(lyrics),), generator=g),
        lyrics=lyrics,
        references=torch.randn(sum(references), 8, generator=g),
        reference_frames=references,
        reference_kinds=[i % 5 for i in range(n)],
    )


def song_of(batch: DitBatch, i: int) -> DitBatch:
    def part(values: torch.Tensor, counts: object) -> torch.Tensor:
        return values.split(list(counts))[i]  # type: ignore[call-overload]

    return DitBatch(
        part(batch.latents_TC, batch.frames), [batch.frames[i]], batch.times_B[i : i + 1],
        batch.seconds_B[i : i + 1], batch.user_B[i : i + 1],
        part(batch.descriptions, batch.fragments), [batch.fragments[i]],
        part(batch.lyric_ids, batch.lyrics), [batch.lyrics[i]],
        part(batch.references, batch.reference_frames), [batch.reference_frames[i]],
        [batch.reference_kinds[i]],
    )  # fmt: skip


MIXED = make_batch([1, 63, 17, 40], [5, 0, 12, 7], [0, 3, 1, 4], [0, 10, 17, 3])
