"""Trains the phoneme recogniser that is embedded in the package (metrics/ctc.py), on corpora of
this project's own.

    mudit data synth --songs 560 --seed 31 --longest 40 --out data/short
    python -m mudit_engine.training.tiny.recogniser data/short --out out/phonemes.safetensors

The corpus knows when each syllable is sung. So the network first learns which phoneme sounds in
each frame, from voices above a band that is hardly heard, which takes it a few epochs where CTC
alone takes hundreds; CTC then takes over, on crops that grow into lines, with bands as loud as in
songs and louder:

    loss = w / F sum_f cross entropy(f) + (1 - w) / phonemes CTC,  w from 1 to 0

Sources: Graves et al. 2006 (CTC), Bengio et al. 2009 (curriculum), Park et al. 2019 (holes in time
and frequency).

Shapes: N crops, F log-mel frames, V symbols.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mudit_engine.errors import MuditError
from mudit_engine.metrics.ctc import FRAME_RATE, LEAD, Recogniser, SungSyllable, symbols
from mudit_engine.training.tiny.recogniser_songs import Crop, Lesson, crops, heard, read_songs

log = logging.getLogger(__name__)

EPOCHS = 34
BATCH_FRAMES = 1800  # of one training step
LONGEST_CROP = 6.0  # seconds, once they are grown
GROWTH = 0.3  # share of the training over which crops grow and bands come up
BY_FRAMES = 0.08, 0.4  # shares of the training: frames alone until, CTC alone from
QUIETER = 20.0  # dB that bands are quieter at first
PEAK_RATE = 3e-3
CONSONANT = 0.07  # seconds of a consonant, as frames are labelled


def train(
    songs: Sequence[Lesson],
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    on_epoch: Callable[[int, float, float], None] = lambda epoch, frames, ctc: None,
) -> Recogniser:
    """Trains from nothing; the same songs and seed give the same weights.

    Args:
        songs: what `read_songs` gave.
        epochs: passes over all syllables.
        seed: of weights, crops, bands and order.
        on_epoch: told (epoch, mean cross entropy a frame, mean CTC loss a phoneme).
    """
    known = symbols()
    ids = {symbol: number for number, symbol in enumerate(known, 1)}
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Recogniser(known)
        voices = [song.voice_FM for song in songs if song.voice_FM is not None]
        frames = torch.cat(voices + [song.band_FM for song in songs]).float()
        net.mean.copy_(frames.mean(0))
        net.scale.copy_(frames.std(0).clamp_min(0.1))
        optimiser = torch.optim.AdamW(
            net.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01
        )
        net.train()
        for epoch in range(epochs):
            progress = epoch / epochs
            grown = min(1.0, progress / GROWTH)
            totals = [0.0, 0.0]
            batches = _batches(
                crops(songs, generator, longest=2.0 + (LONGEST_CROP - 2.0) * grown), generator
            )
            for number, batch in enumerate(batches):
                progress = (epoch + number / len(batches)) / epochs
                optimiser.param_groups[0]["lr"] = PEAK_RATE * _schedule(progress)
                by_frames = _by_frames(progress)
                loss_f, loss_c = _losses(
                    net,
                    batch,
                    songs,
                    ids,
                    generator,
                    quieter=QUIETER * (1 - min(1.0, progress / GROWTH)),
                    ctc=by_frames < 1,
                )
                loss = by_frames * loss_f + (1 - by_frames) * loss_c
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 2.0)
                optimiser.step()
                totals = [
                    t + float(x.detach()) for t, x in zip(totals, (loss_f, loss_c), strict=True)
                ]
            on_epoch(epoch, *(total / len(batches) for total in totals))
    net.trained = {"epochs": str(epochs), "seed": str(seed)}
    return net.eval()


def _schedule(progress: float) -> float:
    """Linear warm-up over a twentieth, then a half cosine."""
    return min(
        (progress + 1e-3) / 0.05, 0.5 + 0.5 * math.cos(math.pi * max(0.0, progress - 0.05) / 0.95)
    )


def _by_frames(progress: float) -> float:
    """Weight of the cross entropy of frames."""
    alone, gone = BY_FRAMES
    return min(1.0, max(0.0, (gone - progress) / (gone - alone)))


def _batches(found: Sequence[Crop], generator: torch.Generator) -> list[list[Crop]]:
    """Crops of like length together, in random order."""
    jitter = torch.rand(len(found), generator=generator).tolist()
    ordered = sorted(
        zip(found, jitter, strict=True),
        key=lambda pair: (pair[0].last - pair[0].first) * (1 + 0.1 * pair[1]),
    )
    batches: list[list[Crop]] = [[]]
    longest = 0
    for crop, _ in ordered:
        longest = max(longest, crop.last - crop.first)
        if batches[-1] and (len(batches[-1]) + 1) * longest > BATCH_FRAMES:
            batches.append([])
            longest = crop.last - crop.first
        batches[-1].append(crop)
    return [batches[int(i)] for i in torch.randperm(len(batches), generator=generator)]


def _losses(
    net: Recogniser,
    batch: Sequence[Crop],
    songs: Sequence[Lesson],
    ids: dict[str, int],
    generator: torch.Generator,
    *,
    quieter: float,
    ctc: bool,
) -> tuple[Tensor, Tensor]:
    """(cross entropy a frame, CTC loss a phoneme or 0 where it is not asked for)."""
    parts = [heard(crop, songs, generator, quieter=quieter) for crop in batch]
    lengths = [len(mel_FM) for mel_FM, _ in parts]
    mel_NFM = net.mean.expand(len(batch), max(lengths), -1).clone()
    labels_NF = torch.full((len(batch), max(lengths)), -100)
    asked: list[list[int]] = []
    for row, (crop, (mel_FM, stretch)) in enumerate(zip(batch, parts, strict=True)):
        mel_NFM[row, : len(mel_FM)] = mel_FM
        labels_NF[row, : len(mel_FM)] = frame_labels(crop, len(mel_FM), ids, stretch=stretch)
        asked.append([ids[sound] for s in crop.syllables for sound in s.phonemes])
    log_probs_NFV = net(mel_NFM)
    by_frame = F.nll_loss(log_probs_NFV.flatten(0, 1), labels_NF.flatten())
    if not ctc:
        return by_frame, torch.zeros(())
    loss: Any = F.ctc_loss(
        log_probs_NFV.transpose(0, 1),
        torch.tensor([symbol for target in asked for symbol in target], dtype=torch.long),
        torch.tensor(lengths),
        torch.tensor([len(target) for target in asked]),
        reduction="sum",
        zero_infinity=True,
    )
    return by_frame, loss / max(1, sum(map(len, asked)))


def frame_labels(crop: Crop, frames: int, ids: dict[str, int], *, stretch: float = 1.0) -> Tensor:
    """Which symbol sounds in each frame, 0 where none does: a vowel from its beat on, consonants
    before it for CONSONANT seconds each and after it at the end of the note, as the corpus sings.

    Args:
        crop: which frames, and what is sung in them.
        frames: how many there are once time is stretched.
        ids: number of each symbol, from 1.
        stretch: by what the crop's times are multiplied.

    Returns:
        int64 [frames].

    Examples:
        >>> crop = Crop(0, 0, 20, (SungSyllable(("l", "iang"), 0.2, 0.4),))
        >>> frame_labels(crop, 20, {"l": 1, "iang": 2}).tolist()
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0]
    """
    labels_F = torch.zeros(frames, dtype=torch.long)
    rate = FRAME_RATE * stretch

    def mark(symbol: str, start: float, end: float) -> None:
        first = round((start - crop.first / FRAME_RATE) * rate)
        last = max(first + 1, round((end - crop.first / FRAME_RATE) * rate))
        labels_F[max(0, first) : max(0, last)] = ids[symbol]

    for syllable in crop.syllables:
        vowel = _vowel(syllable)
        before, after = syllable.phonemes[:vowel], syllable.phonemes[vowel + 1 :]
        lead = min(LEAD, CONSONANT * len(before))
        tail = min(CONSONANT * len(after), (syllable.end - syllable.start) / 2)
        mark(syllable.phonemes[vowel], syllable.start, syllable.end - tail)
        for place, sound in enumerate(before):
            at = syllable.start - lead + lead / len(before) * place
            mark(sound, at, at + lead / len(before))
        for place, sound in enumerate(after):
            at = syllable.end - tail + tail / len(after) * place
            mark(sound, at, at + tail / len(after))
    return labels_F


def _vowel(syllable: SungSyllable) -> int:
    """Place of the vowel among the phonemes: a final of Mandarin is the last one."""
    for place, sound in enumerate(syllable.phonemes):
        if sound.startswith("en:") and sound[3] in "AEIOU":
            return place
    return len(syllable.phonemes) - 1


@click.command()
@click.argument(
    "corpora", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False)
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option(
    "--codec",
    default="tiny",
    show_default=True,
    metavar="NAME|FOLDER",
    help="Model whose VAE copies some of the songs.",
)
@click.option("--copies", type=click.IntRange(0), default=100, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=EPOCHS, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(
    corpora: tuple[Path, ...],
    out: Path,
    codec: str,
    copies: int,
    epochs: int,
    seed: int,
    threads: int,
) -> None:
    """Train the phoneme recogniser on the training songs of CORPORA (mudit data synth)."""
    from mudit_engine.evaluation.codec import Codec
    from mudit_engine.models.folder import model_folder

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    start = time.process_time()
    try:
        songs = read_songs(
            corpora, codec=Codec.load(model_folder(codec)) if copies else None, copies=copies
        )
        log.info("%d songs, %.0f CPU-seconds", len(songs), time.process_time() - start)
        net = train(
            songs,
            epochs=epochs,
            seed=seed,
            on_epoch=lambda epoch, frames, ctc: log.info(
                "epoch %d: %.3f a frame, %.3f a phoneme, %.0f CPU-seconds",
                epoch + 1,
                frames,
                ctc,
                time.process_time() - start,
            ),
        )
        net.save(out)
    except MuditError as error:
        click.echo(f"recogniser: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    click.echo(json.dumps({"out": str(out), "songs": len(songs), **net.trained}))


if __name__ == "__main__":
    main()
