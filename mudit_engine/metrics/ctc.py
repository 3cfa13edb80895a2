"""A small phoneme recogniser for singing over a band, so that sung words can be counted:
convolutions over log-mel, trained by CTC.

    PER = edits between the phonemes asked and those recognised / phonemes asked
    edits: insertions, deletions and substitutions

    recogniser = train(examples)
    recogniser.read(mel_FM)                                       # ['l', 'iang', 'y', 've', ...]
    edit_distance(syllable_phonemes("yue4"), recogniser.read(mel_FM))

Phonemes are the vocabulary's without tones and stress, which the melody overrides: initials,
finals, ARPAbet. It is trained on crops between syllables, whose times the corpus knows: single
syllables first, since CTC on whole lines takes long to find any alignment, then ever longer ones;
and on crops of nothing sung, of which it must say nothing. Sources: Graves et al. 2006 (CTC),
Bengio et al. 2009 (curriculum).

Shapes: N crops, F log-mel frames (43 a second), M bands, D width, V symbols (0 is CTC's blank).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudit_engine.errors import InputError
from mudit_engine.text.mandarin import split_syllable
from mudit_engine.text.vocabulary import Vocabulary

MEL_RATE, MEL_FFT, MEL_HOP, MELS = 22050, 1024, 512, 80  # of the log-mel it reads
FRAME_RATE = MEL_RATE / MEL_HOP
WIDTH, BLOCKS, KERNEL = 192, 6, 9
BATCH_FRAMES = 2500  # of one training step
SHORTEST_CROP, LONGEST_CROP = 0.5, 9.0  # seconds
GROWTH = 0.4  # share of the training over which crops grow
LEAD = 0.15  # seconds by which a consonant may come before its vowel's beat
PAUSE = 0.5  # seconds between syllables that part crops
SILENT_SHARE = 0.1  # of the crops with nothing sung
EPOCHS = 24
PEAK_RATE = 2e-3


@functools.cache
def symbols() -> tuple[str, ...]:
    """Every phoneme the recogniser can say, without the blank."""
    vocabulary = Vocabulary.load()
    return tuple(
        sorted(
            {
                _plain(token)
                for family in ("initial", "final", "arpabet")
                for token in vocabulary.tokens(family)
            }
        )
    )


@functools.lru_cache(maxsize=4096)
def syllable_phonemes(written: str) -> tuple[str, ...]:
    """Phonemes of one syllable, given as pinyin ("yue4") or as ARPAbet in capitals ("M EH M"),
    without tones and stress.
    """
    if written[:1].isupper():
        return tuple(f"en:{_plain(phone)}" for phone in written.split())
    return tuple(_plain(token) for token in split_syllable(written))


def _plain(token: str) -> str:
    return token.rstrip("0123456789")


def edit_distance(asked: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn one into the other (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, symbol in enumerate(asked, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (symbol != other))
    return row[-1]


@dataclass(frozen=True)
class SungSyllable:
    """Phonemes of one syllable, without tones and stress, and when its vowel sounds, in seconds."""

    phonemes: tuple[str, ...]
    start: float
    end: float


@dataclass(frozen=True)
class Example:
    """A song to learn from."""

    mel_FM: Tensor
    syllables: tuple[SungSyllable, ...]


class _Block(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Conv1d(
            WIDTH, WIDTH, KERNEL, padding=KERNEL // 2 * dilation, dilation=dilation, groups=WIDTH
        )
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x_NFD: Tensor) -> Tensor:
        h_NFD = self.mix(self.norm(x_NFD).transpose(1, 2)).transpose(1, 2)
        return x_NFD + self.down(F.gelu(self.up(h_NFD)))


class Recogniser(nn.Module):
    """log-mel -> log probabilities of symbols. Its reach is a few seconds, so that it reads songs
    of any length as it reads lines.
    """

    def __init__(self, known: Sequence[str]) -> None:
        super().__init__()
        self.known = tuple(known)
        self.stem = nn.Conv1d(MELS, WIDTH, 5, padding=2)
        self.blocks = nn.ModuleList(_Block(2 ** (i % 3)) for i in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, len(known) + 1)
        self.register_buffer("mean", torch.zeros(MELS))
        self.register_buffer("scale", torch.ones(MELS))
        self.mean: Tensor
        self.scale: Tensor

    def forward(self, mel_NFM: Tensor) -> Tensor:
        x_NFD = self.stem(((mel_NFM - self.mean) / self.scale).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x_NFD = block(x_NFD)
        return self.out(self.norm(x_NFD)).log_softmax(-1)

    @torch.inference_mode()
    def read(self, mel_FM: Tensor) -> list[str]:
        """Phonemes of a song by best path: the likeliest symbol of each frame, repeats and blanks
        dropped.
        """
        best = self(mel_FM.float()[None])[0].argmax(-1).tolist()
        return [
            self.known[symbol - 1]
            for before, symbol in zip([0, *best], best, strict=False)
            if symbol and symbol != before
        ]


def train(
    examples: Sequence[Example],
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Recogniser:
    """Trains from nothing; the same examples and seed give the same weights. Raises InputError when
    nothing is sung.

    on_epoch(epoch, mean CTC loss a phoneme).
    """
    known = symbols()
    ids = {symbol: number for number, symbol in enumerate(known, 1)}
    if not any(example.syllables for example in examples):
        raise InputError(
            "none of the training songs is sung: the phoneme recogniser needs songs with lyrics"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Recogniser(known)
    frames = torch.cat([example.mel_FM.float() for example in examples])
    net.mean.copy_(frames.mean(0))
    net.scale.copy_(frames.std(0).clamp_min(0.1))
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    net.train()
    for epoch in range(epochs):
        total, count = 0.0, 0
        batches = _batches(
            _crops(examples, ids, generator, longest=_longest(epoch / epochs)), generator
        )
        for number, batch in enumerate(batches):
            optimiser.param_groups[0]["lr"] = PEAK_RATE * _schedule(
                (epoch + number / len(batches)) / epochs
            )
            loss, asked = _loss(net, batch, generator)
            optimiser.zero_grad()
            (loss / max(asked, 1)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
            total, count = total + float(loss.detach()), count + asked
        on_epoch(epoch, total / max(count, 1))
    return net.eval()


def _schedule(progress: float) -> float:
    """Linear warm-up over a tenth, then a half cosine."""
    return min(
        (progress + 1e-3) / 0.1, 0.5 + 0.5 * math.cos(math.pi * max(0.0, progress - 0.1) / 0.9)
    )


Crop = tuple[Tensor, list[int]]


def _longest(progress: float) -> float:
    """Seconds of the longest crop, growing geometrically."""
    return float(SHORTEST_CROP * (LONGEST_CROP / SHORTEST_CROP) ** min(1.0, progress / GROWTH))


def _crops(
    examples: Sequence[Example], ids: dict[str, int], generator: torch.Generator, *, longest: float
) -> list[Crop]:
    """Runs of syllables, cut anew each epoch, and stretches where nothing is sung."""
    found: list[Crop] = []
    silent: list[Crop] = []
    for example in examples:
        sung, first = example.syllables, 0

        def pause(after: int, sung: tuple[SungSyllable, ...] = sung) -> float:
            return sung[after + 1].start - sung[after].end

        while first < len(sung):
            length = SHORTEST_CROP + (longest - SHORTEST_CROP) * float(
                torch.rand((), generator=generator)
            )
            last = first
            while (
                last + 1 < len(sung)
                and sung[last + 1].end - sung[first].start <= length
                and pause(last) < PAUSE
            ):
                last += 1
            asked = [
                ids[phoneme] for syllable in sung[first : last + 1] for phoneme in syllable.phonemes
            ]
            # the next syllable's consonant stays outside
            joined = last + 1 < len(sung) and pause(last) < LEAD
            found.append(
                (
                    _cut(
                        example,
                        sung[first].start - LEAD,
                        sung[last].end - (LEAD / 2 if joined else 0.0),
                    ),
                    asked,
                )
            )
            first = last + 1
        edges = [
            0.0,
            *(t for syllable in sung for t in (syllable.start, syllable.end)),
            len(example.mel_FM) / FRAME_RATE,
        ]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if end - start > 4 * LEAD:
                silent.append(
                    (_cut(example, start + LEAD, min(end - LEAD, start + LEAD + longest)), [])
                )
    some = torch.randperm(len(silent), generator=generator)[
        : max(1, round(SILENT_SHARE * len(found)))
    ]
    return found + [silent[int(i)] for i in some]


def _cut(example: Example, start: float, end: float) -> Tensor:
    return example.mel_FM[max(0, round(start * FRAME_RATE)) : max(round(end * FRAME_RATE), 8)]


def _batches(crops: list[Crop], generator: torch.Generator) -> list[list[Crop]]:
    """Crops of like length together, in random order."""
    jitter = torch.rand(len(crops), generator=generator).tolist()
    ordered = sorted(
        zip(crops, jitter, strict=True), key=lambda pair: len(pair[0][0]) * (1 + 0.2 * pair[1])
    )
    batches: list[list[Crop]] = [[]]
    for crop, _ in ordered:
        if (
            batches[-1]
            and (len(batches[-1]) + 1) * max(len(crop[0]), len(batches[-1][-1][0])) > BATCH_FRAMES
        ):
            batches.append([])
        batches[-1].append(crop)
    return [batches[int(i)] for i in torch.randperm(len(batches), generator=generator)]


def _loss(net: Recogniser, batch: list[Crop], generator: torch.Generator) -> tuple[Tensor, int]:
    lengths = [len(mel) for mel, _ in batch]
    mel_NFM = net.mean.expand(len(batch), max(lengths), -1).clone()
    for row, (mel, _) in zip(mel_NFM, batch, strict=True):
        # level and colour of a recording say nothing of its words
        row[: len(mel)] = mel.float() + 0.3 * torch.randn((), generator=generator)
        low = int(torch.randint(0, MELS - 8, (), generator=generator))
        high = low + int(torch.randint(0, 9, (), generator=generator))
        row[: len(mel), low:high] = net.mean[low:high]
    asked = [symbol for _, target in batch for symbol in target]
    log_probs = net(mel_NFM).transpose(0, 1)
    targets, target_lengths = (
        torch.tensor(asked, dtype=torch.long),
        torch.tensor([len(target) for _, target in batch]),
    )
    loss: Any = F.ctc_loss(
        log_probs,
        targets,
        torch.tensor(lengths),
        target_lengths,
        reduction="sum",
        zero_infinity=True,
    )
    return loss, len(asked)
