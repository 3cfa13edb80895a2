"""ChinMu: fragments of descriptions and audio of the same song drawn together, those of other songs
pushed apart.

    loss = mean over `texts` rounds of symmetric InfoNCE over the songs of the batch
         + registers * InfoNCE between a song's professional and amateur words (see `register_loss`)
         + sum over labels of weight (CE(head(text), label) + CE(head(audio), label)) / 2
         where songs are labelled (`attributes`)

Each step takes a crop of every song and `texts` fragments of its descriptions, of any level,
language and user type. The level is drawn for each song (`mixing: minibatch`) or once for the whole
batch (`mixing: batch`), so that all negatives are as long as the positive. With `encode_at_once`
towers run on so many songs or texts at a time and once more in the backward pass, as GradCache
does: the memory is that of a few songs, the batch and its gradients those of all. Songs that drew
the same words are not negatives of each other. The pairs of a batch are one pack, so a pack's size
is the number of songs; ranks share the songs of a pack, and gather its vectors, so that the
negatives are the same on any number of them.

    batch = ChinMuTask(recipe, shards).load([4, 17], moment)

Source: Gao et al. 2021 (GradCache, arXiv 2101.06983); Oord et al. 2018 (InfoNCE).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mudit_engine.audio import resample
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.models.chinmu import ChinMu, info_nce
from mudit_engine.training.dataset.shards import LEVELS, SongRecord
from mudit_engine.training.parallel.strategy import Logs, Strategy
from mudit_engine.training.ranks import Ranks, gather_rows
from mudit_engine.training.recipe_stages import ChinMuStage
from mudit_engine.training.seeding import seed64
from mudit_engine.training.tasks.task import Batch, Moment, Task

HEAD_SCALE = 10.0  # the heads read unit vectors
REGISTERS = ("professional", "amateur")  # of the first and second round, where both are compared

T = TypeVar("T")


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
    # songs whose first text is a professional's and whose second an amateur's (empty: not asked)
    both: tuple[bool, ...] = ()


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


def register_loss(
    mine: tuple[Tensor, Tensor],
    everyone: tuple[Tensor, Tensor],
    groups: tuple[Tensor, Tensor],
    scale: Tensor,
    *,
    first: int,
    both_n: Tensor,
) -> Tensor:
    """Symmetric InfoNCE between the two registers of a song, summed over the songs that have both.

    A professional's text has one positive, the amateur's text of the same song, and its negatives
    are the texts of all other songs in both registers: those of its own register are the hard ones,
    since they share the manner and not the song. Texts of the same words are no negatives.

    Args:
        mine: [n, E] unit vectors of this rank's songs in each register.
        everyone: [N, E] of all ranks'.
        groups: [N] numbers of the words of each register; equal words have equal numbers.
        first: place of this rank's first song among all.
        both_n: whether a song has both.
    """
    own = torch.arange(len(mine[0]), device=scale.device) + first
    total = scale.new_zeros(())
    for here, there in ((0, 1), (1, 0)):
        other = scale * mine[here] @ everyone[there].T
        same = scale * mine[here] @ everyone[here].T
        not_other = groups[here][own][:, None] == groups[there][None]
        not_other |= groups[there][own][:, None] == groups[there][None]
        not_other[torch.arange(len(own), device=own.device), own] = False
        not_same = groups[here][own][:, None] == groups[here][None]
        logits = torch.cat(
            [
                other.masked_fill(not_other, float("-inf")),
                same.masked_fill(not_same, float("-inf")),
            ],
            1,
        )
        losses = F.cross_entropy(logits, own, reduction="none")
        total = total + torch.where(both_n, losses, 0.0).sum() / 2
    return total


def in_parts(
    encode: Callable[[Sequence[T]], Tensor], items: Sequence[T], at_once: int, *, most: int
) -> Tensor:
    """encode(items), `at_once` of them at a time (0: all), each part computed again in the backward
    pass instead of kept.

    `most` items are there on some rank. Ranks with fewer compute as many parts, at weight 0: where
    weights are sharded, each part is a collective.
    """
    if not at_once or not torch.is_grad_enabled() or most <= at_once:
        return encode(items)
    parts = [items[start : start + at_once] for start in range(0, len(items), at_once)]
    encoded = [cast(Tensor, checkpoint(encode, part, use_reentrant=False)) for part in parts]
    for _ in range(len(parts), -(-most // at_once)):
        company = cast(Tensor, checkpoint(encode, items[:1], use_reentrant=False))
        encoded[0] = encoded[0] + 0 * company.sum()
    return torch.cat(encoded)


class ChinMuLoss(nn.Module):
    """Both towers and their loss as one module."""

    def __init__(
        self,
        chinmu: ChinMu,
        classes: Mapping[str, int],
        weights: Mapping[str, float],
        *,
        registers: float = 0.0,
        encode_at_once: int = 0,
    ) -> None:
        """`classes` counts the values of each attribute. The heads serve the loss alone: they are
        no part of the model.
        """
        super().__init__()
        self.chinmu, self.weights = chinmu, dict(weights)
        self.registers, self.encode_at_once = registers, encode_at_once
        self.ranks = Ranks()  # that hold the other songs of the batch
        self.heads = nn.ModuleDict(
            {name: nn.Linear(chinmu.config.embedding, count) for name, count in classes.items()}
        )

    def forward(self, inputs: ChinMuInputs) -> tuple[Tensor, Logs]:
        """(sum over songs, logs) of a batch; `recall_at_1` is how often the right song is the
        nearest to a text.
        """
        rounds, songs, scale = len(inputs.texts), inputs.real, self.chinmu.scale.reshape(())
        everyone = self._everyone(inputs)
        most = max([held for held, _ in everyone])
        at_once = self.encode_at_once
        audio_NE = in_parts(self.chinmu.audio, inputs.songs, at_once, most=most)[:songs]
        text_RNE = in_parts(
            self.chinmu.encode_text,
            [text for texts in inputs.texts for text in texts],
            at_once,
            most=rounds * most,
        ).unflatten(0, (rounds, -1))[:, :songs]
        text_E = text_RNE.flatten(0, 1)
        labels = {name: numbers[:songs] for name, numbers in inputs.labels.items()}
        losses, hits = [], []
        logs: Logs = {}
        numbered, held = self._others(text_RNE, audio_NE, [groups for _, groups in everyone])
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
        if self.registers:
            apart = self._registers(text_RNE, numbered, held, inputs)
            loss = loss + self.registers * apart
            logs["registers"] = (apart.detach(), float(sum(inputs.both[:songs])))
        for name, weight in self.weights.items():
            told, correct = self._told(name, text_E, audio_NE, labels[name])
            loss = loss + weight * told
            logs[f"told_{name}"] = (correct, (labels[name] >= 0).sum())
        recall = torch.stack(hits).float().mean()
        return loss, {"recall_at_1": (recall, float(songs)), "scale": (scale.detach(), 1.0), **logs}

    def _everyone(self, inputs: ChinMuInputs) -> list[tuple[int, list[Sequence[int]]]]:
        """Of each rank: how many songs it encodes, and the groups of those that count, by round."""
        own: list[Sequence[int]] = [groups[: inputs.real] for groups in inputs.groups]
        return self.ranks.gather((len(inputs.songs), own))

    def _others(
        self, text_RNE: Tensor, audio_NE: Tensor, held: Sequence[Sequence[Sequence[int]]]
    ) -> tuple[Sequence[Sequence[int]], Sequence[Others | None]]:
        """Groups of all songs of the batch and what other ranks hold of it, for each round."""
        if self.ranks.world == 1:
            return held[0], [None] * len(held[0])
        counts = [len(groups[0]) for groups in held]
        first = sum(counts[: self.ranks.rank])
        all_audio = gather_rows(audio_NE, counts)
        all_text = gather_rows(text_RNE.transpose(0, 1).contiguous(), counts).transpose(0, 1)
        groups = [[n for own in held for n in own[r]] for r in range(len(text_RNE))]
        return groups, [Others(text, all_audio, first) for text in all_text]

    def _registers(
        self,
        text_RNE: Tensor,
        numbered: Sequence[Sequence[int]],
        held: Sequence[Others | None],
        inputs: ChinMuInputs,
    ) -> Tensor:
        device, mine = text_RNE.device, (text_RNE[0], text_RNE[1])
        one, other = held[0], held[1]
        everyone = mine if one is None or other is None else (one.text_NE, other.text_NE)
        return register_loss(
            mine,
            everyone,
            (torch.tensor(numbered[0], device=device), torch.tensor(numbered[1], device=device)),
            self.chinmu.scale.reshape(()),
            first=0 if one is None else one.first,
            both_n=torch.tensor(inputs.both[: inputs.real], dtype=torch.bool, device=device),
        )

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
                chinmu,
                {name: len(values) for name, values in self.classes.items()},
                weights,
                registers=self.stage.registers,
                encode_at_once=self.stage.encode_at_once,
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
        odds = self._odds(moment)
        drawn = [
            self._texts(record, moment.chooser("texts", record.id), odds) for record in records
        ]
        texts = [one for one, _ in drawn]
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
        both = tuple(two for _, two in drawn) if self.stage.registers else ()
        inputs = ChinMuInputs(rounds, groups, audio, labels, len(records), both)
        seconds = sum(len(mono) for mono in audio) / self.config.chinmu.sample_rate
        return Batch(
            tuple(record.id for record in records),
            float(len(records)),
            inputs,
            tokens=len(records),
            seconds=seconds,
        )

    def _odds(self, moment: Moment) -> dict[str, float]:
        """Of each level; of one level alone where the batch shares it."""
        odds = dict(zip(LEVELS, self.stage.levels, strict=True))
        if self.stage.mixing == "minibatch":
            return odds
        # one choice for the batch, the same on every rank
        chosen = moment.chooser("level", "").choices(LEVELS, weights=list(odds.values()))[0]
        return {level: float(level == chosen) for level in LEVELS}

    def _texts(
        self, record: SongRecord, choose: random.Random, odds: Mapping[str, float]
    ) -> tuple[list[str], bool]:
        """The song's texts, and whether the first two are a professional's and an amateur's."""
        described: list[dict[str, Any]] = record.metadata.get("descriptions", [])
        if not described:
            raise InputError(
                f"song '{record.id}' has no description: ChinMu learns from described songs "
                f"only, leave it out of this data set"
            )
        allowed = [level for level, odd in odds.items() if odd > 0]
        having = [one for one in described if any(one[level] for level in allowed)]
        if not having and self.stage.mixing == "batch":  # a song without this level keeps company
            allowed = [n for n, odd in zip(LEVELS, self.stage.levels, strict=True) if odd > 0]
            having = [one for one in described if any(one[level] for level in allowed)]
        if not having:
            raise InputError(
                f"song '{record.id}' has no fragment of the levels in "
                f"chinmu.levels={self.stage.levels}"
            )
        by_user = {user: [one for one in having if one["user"] == user] for user in REGISTERS}
        both = bool(self.stage.registers) and all(by_user.values())
        drawn = []
        for number in range(self.stage.texts):
            description = choose.choice(by_user[REGISTERS[number % 2]] if both else having)
            levels = [level for level in allowed if description[level]]
            weights = [odds[one] or 1.0 for one in levels]
            level = choose.choices(levels, weights=weights)[0]
            drawn.append(choose.choice(description[level]))
        return drawn, both

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
