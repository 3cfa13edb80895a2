"""ChinMu: fragments of descriptions and audio of the same song drawn together, those of other songs
pushed apart.

    loss = mean over `texts` rounds of symmetric InfoNCE over the songs of the batch
         + sum over labels of weight (CE(head(text), label) + CE(head(audio), label)) / 2
         where songs are labelled (`attributes`)

Each step takes a crop of every song and `texts` fragments of its descriptions, of any level,
language and user type. Songs that drew the same words are not negatives of each other. The pairs of
a batch are one pack, so a pack's size is the number of songs; ranks share the songs of a pack, and
gather its vectors, so that the negatives are the same on any number of them.

    batch = ChinMuTask(recipe, shards).load([4, 17], moment)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mudit_engine.audio import resample
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.models.chinmu import ChinMu, info_nce
from mudit_engine.training.dataset.shards import LEVELS, SongRecord
from mudit_engine.training.parallel.strategy import Logs, Strategy
from mudit_engine.training.ranks import Ranks, gather_rows
from mudit_engine.training.recipe import ChinMuStage
from mudit_engine.training.seeding import seed64
from mudit_engine.training.tasks.task import Batch, Moment, Task

HEAD_SCALE = 10.0  # the heads read unit vectors


@dataclass(frozen=True)
class ChinMuInputs:
    """`texts[r]` are the fragments of round r, one a song; songs that drew the same words share a
    number in `groups[r]`.
    """

    texts: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    songs: list[Tensor]  # mono, at the tower's sample rate
    labels: dict[str, Tensor]  # class of each song by attribute, -1 where it has none
    real: int  # songs that count: 0 on a rank that keeps others company


@dataclass(frozen=True)
class Others:
    """Vectors of the whole batch, of which a rank's own songs begin at `first`."""

    text_NE: Tensor
    audio_NE: Tensor
    first: int


def info_nce_share(
    text_nE: Tensor, audio_nE: Tensor, scale: Tensor, *, groups: Tensor, others: Others
) -> Tensor:
    """A rank's part of models.chinmu.info_nce: its texts against the audio of all ranks, its audio
    against their texts.
    """
    mine = torch.arange(len(text_nE), device=text_nE.device)
    own = mine + others.first
    same = groups[own][:, None] == groups[None]
    same[mine, own] = False
    to_audio = (scale * text_nE @ others.audio_NE.T).masked_fill(same, float("-inf"))
    to_text = (scale * audio_nE @ others.text_NE.T).masked_fill(same, float("-inf"))
    return (
        F.cross_entropy(to_audio, own, reduction="sum")
        + F.cross_entropy(to_text, own, reduction="sum")
    ) / 2


class ChinMuLoss(nn.Module):
    """Both towers and their loss as one module."""

    def __init__(
        self, chinmu: ChinMu, classes: Mapping[str, int], weights: Mapping[str, float]
    ) -> None:
        """`classes` counts the values of each attribute. The heads serve the loss alone: they are
        no part of the model.
        """
        super().__init__()
        self.chinmu, self.weights = chinmu, dict(weights)
        self.ranks = Ranks()  # that hold the other songs of the batch
        self.heads = nn.ModuleDict(
            {name: nn.Linear(chinmu.config.embedding, count) for name, count in classes.items()}
        )

    def forward(self, inputs: ChinMuInputs) -> tuple[Tensor, Logs]:
        """(sum over songs, logs) of a batch; `recall_at_1` is how often the right song is the
        nearest to a text.
        """
        rounds, songs, scale = len(inputs.texts), inputs.real, self.chinmu.scale.reshape(())
        audio_NE = self.chinmu.audio(inputs.songs)[:songs]
        text_RNE = self.chinmu.encode_text(
            [text for texts in inputs.texts for text in texts]
        ).unflatten(0, (rounds, -1))[:, :songs]
        text_E = text_RNE.flatten(0, 1)
        labels = {name: numbers[:songs] for name, numbers in inputs.labels.items()}
        losses, hits = [], []
        logs: Logs = {}
        numbered, held = self._others(text_RNE, audio_NE, inputs)
        for text_NE, numbers, others in zip(text_RNE, numbered, held, strict=True):
            groups = torch.tensor(numbers, dtype=torch.int64).to(text_NE.device, non_blocking=True)
            if others is None:
                losses.append(info_nce(text_NE, audio_NE, scale, groups=groups))
            else:
                losses.append(
                    info_nce_share(text_NE, audio_NE, scale, groups=groups, others=others)
                )
            with torch.no_grad():
                all_audio, first = (
                    (audio_NE, 0) if others is None else (others.audio_NE, others.first)
                )
                nearest = (text_NE @ all_audio.T).argmax(1)
                hits.append((groups[nearest] == groups[first : first + songs]).sum())
        loss = torch.stack(losses).mean()
        for name, weight in self.weights.items():
            told, correct = self._told(name, text_E, audio_NE, labels[name])
            loss = loss + weight * told
            logs[f"told_{name}"] = (correct, (labels[name] >= 0).sum())
        recall = torch.stack(hits).float().mean()
        return loss, {"recall_at_1": (recall, float(songs)), "scale": (scale.detach(), 1.0), **logs}

    def _others(
        self, text_RNE: Tensor, audio_NE: Tensor, inputs: ChinMuInputs
    ) -> tuple[Sequence[Sequence[int]], Sequence[Others | None]]:
        """Groups of all songs of the batch and what other ranks hold of it, for each round."""
        if self.ranks.world == 1:
            return inputs.groups, [None] * len(inputs.groups)
        held = self.ranks.gather([groups[: inputs.real] for groups in inputs.groups])
        counts = [len(groups[0]) for groups in held]
        first = sum(counts[: self.ranks.rank])
        all_audio = gather_rows(audio_NE, counts)
        all_text = gather_rows(text_RNE.transpose(0, 1).contiguous(), counts).transpose(0, 1)
        groups = [[n for own in held for n in own[r]] for r in range(len(text_RNE))]
        return groups, [Others(text, all_audio, first) for text in all_text]

    def _told(
        self, name: str, text_E: Tensor, audio_NE: Tensor, labels_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of an attribute, summed over the songs,
        and how many songs' audio tells it.
        """
        audio_NK = HEAD_SCALE * self.heads[name](audio_NE)
        text_NK = HEAD_SCALE * self.heads[name](text_E)
        rounds = len(text_E) // max(len(audio_NE), 1)
        by_audio = F.cross_entropy(audio_NK, labels_N, ignore_index=-1, reduction="sum")
        by_text = F.cross_entropy(
            text_NK, labels_N.repeat(rounds), ignore_index=-1, reduction="sum"
        ) / max(rounds, 1)
        return (by_audio + by_text) / 2, (audio_NK.detach().argmax(1) == labels_N).sum()


class ChinMuTask(Task):
    """Needs audio, and descriptions in the songs' metadata (songs without any are left out of the
    index's use by an error).
    """

    part = "chinmu"
    needs = ("audio",)
    splits_packs = True  # the negatives of a song are all others of the global batch

    def build(self) -> dict[str, nn.Module]:
        self.stage: ChinMuStage = self.recipe.chinmu
        if self.recipe.data.packs_per_step != 1:
            raise ConfigError(
                f"data.packs_per_step={self.recipe.data.packs_per_step}: InfoNCE compares the "
                f"songs of one pack: use 1 and a larger pack"
            )
        chinmu = ChinMu(self.config.chinmu)
        self.initialise(chinmu)
        weights = {name: weight for name, weight in self.stage.attributes.items() if weight > 0}
        self.classes = {name: self._values(name) for name in weights}
        return {
            "model": ChinMuLoss(
                chinmu, {name: len(values) for name, values in self.classes.items()}, weights
            )
        }

    def _values(self, name: str) -> dict[str, int]:
        """Number of each value that an attribute takes in the training split. Raises InputError
        when it has none.
        """
        found = {
            str(m[name])
            for number in self.shards.numbers("train")
            if name in (m := self.shards.read(number, ()).metadata)
        }
        if not found:
            raise InputError(
                f"chinmu.attributes names '{name}', which no song of '{self.shards.folder}' has in "
                f"its metadata"
            )
        return {value: number for number, value in enumerate(sorted(found))}

    def join_ranks(self, strategy: Strategy) -> None:
        module = self.modules["model"]
        assert isinstance(module, ChinMuLoss)
        module.ranks = strategy.ranks

    def stand_in(self, songs: Sequence[int] | np.ndarray, moment: Moment) -> Batch:
        batch = self.load(songs[:1], moment)
        return replace(batch, inputs=replace(batch.inputs, real=0))

    def costs(self) -> np.ndarray:
        return np.ones(len(self.shards), np.int64)

    def load(self, songs: Sequence[int] | np.ndarray, moment: Moment) -> Batch:
        records = [self.shards.read(number) for number in songs]
        texts = [self._texts(record, moment.chooser("texts", record.id)) for record in records]
        rounds = tuple(zip(*texts, strict=True))
        # the same words have the same number on every rank
        groups = tuple(tuple(seed64(text) for text in drawn) for drawn in rounds)
        audio = [self._crop(record, moment) for record in records]
        labels = {
            name: torch.tensor(
                [values.get(str(record.metadata.get(name)), -1) for record in records]
            )
            for name, values in self.classes.items()
        }
        inputs = ChinMuInputs(rounds, groups, audio, labels, len(records))
        seconds = sum(len(mono) for mono in audio) / self.config.chinmu.sample_rate
        return Batch(
            tuple(record.id for record in records),
            float(len(records)),
            inputs,
            tokens=len(records),
            seconds=seconds,
        )

    def _texts(self, record: SongRecord, choose: random.Random) -> list[str]:
        described: list[dict[str, Any]] = record.metadata.get("descriptions", [])
        odds = dict(zip(LEVELS, self.stage.levels, strict=True))
        drawn = []
        for _ in range(self.stage.texts):
            if not described:
                raise InputError(
                    f"song '{record.id}' has no description: ChinMu learns from described songs "
                    f"only, leave it out of this data set"
                )
            description = choose.choice(described)
            levels = [level for level in LEVELS if description[level] and odds[level] > 0]
            if not levels:
                raise InputError(
                    f"song '{record.id}' has no fragment of the levels in "
                    f"chinmu.levels={self.stage.levels}"
                )
            level = choose.choices(levels, weights=[odds[one] for one in levels])[0]
            drawn.append(choose.choice(description[level]))
        return drawn

    def _crop(self, record: SongRecord, moment: Moment) -> Tensor:
        """A crop of the mix; the middle of the song in evaluation."""
        rate = int(record.metadata["sample_rate"])
        audio = crop(
            record["audio"],
            round(self.stage.crop_seconds * rate),
            moment.chooser("crop", record.id) if moment.training else None,
        )
        mono = torch.from_numpy(audio.astype(np.float32)).mean(1) / 32767.0
        target = self.config.chinmu.sample_rate
        return mono if rate == target else resample(mono[None], rate, target)[0]


def crop(audio_Sc: np.ndarray, samples: int, choose: random.Random | None) -> np.ndarray:
    """At most `samples` of [S, channels], from a random place, or from the middle when `choose` is
    None.
    """
    spare = max(0, len(audio_Sc) - samples)
    start = spare // 2 if choose is None else choose.randint(0, spare)
    return audio_Sc[start : start + samples]
