"""What the phoneme recogniser learns from: songs of corpora as log-mel of voice, band and codec's
copy, and crops of them that are mixed anew whenever they are heard.

    songs = read_songs([Path("data/short")], codec=Codec.load(folder), seed=0)
    rows, kept_alone = crops(songs, generator, longest=4.0), mixed(crop, songs, generator)

Voice and band are added as power in every band of the log-mel,

    mix = 1/2 log(exp(2 voice) + exp(2 (band + gain)))

with a gain and a band that are drawn for every crop: the song's own, another song's, or none. A
voice is moved along the mel axis, which makes another size of it, and a little in time. Nothing
held out is read.

Shapes: F log-mel frames (43 a second), M bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mudit_engine.audio import load_audio
from mudit_engine.errors import InputError
from mudit_engine.evaluation.codec import Codec
from mudit_engine.evaluation.songs import Track, silent_track
from mudit_engine.metrics.ctc import (
    FRAME_RATE,
    LEAD,
    MELS,
    SungSyllable,
    log_mel,
    syllable_phonemes,
)
from mudit_engine.training.corpus.labels import Song, song_folders

SHORTEST_CROP = 0.5  # seconds
PAUSE = 0.5  # seconds between syllables that part crops
SILENT_SHARE = 0.08  # of the crops with nothing sung
COPIED = 0.35  # of the crops of songs that have a codec's copy are heard in it
ALONE, OTHERS = 0.15, 0.4  # shares of the others that have no band, and another song's
QUIETEST, LOUDEST = -10.0, 4.0  # dB by which the band is changed
FAST = 0.12  # a voice is at most so much faster or slower
BANDS_UP = 2.0  # mel bands by which a voice is moved at most
FLOOR = -11.5  # log-mel of silence


@dataclass(frozen=True)
class Lesson:
    """A song to learn from. Log-mel [F, M] in half precision: `voice` and `copy` are None where
    nobody sings and where there is no copy.
    """

    voice_FM: Tensor | None
    band_FM: Tensor
    copy_FM: Tensor | None
    syllables: tuple[SungSyllable, ...]


@dataclass(frozen=True)
class Crop:
    """Frames [first, last) of song number `song`, and the syllables sung in them."""

    song: int
    first: int
    last: int
    syllables: tuple[SungSyllable, ...]


def read_songs(
    corpora: Sequence[Path], *, codec: Codec | None, copies: int, track: Track = silent_track
) -> list[Lesson]:
    """Training songs of corpora that were made with stems.

    Args:
        corpora: folders of `mudit data synth`.
        codec: whose copies are learned too.
        copies: how many songs are copied, at most; they are drawn evenly.
        track: shows the progress.

    Raises:
        InputError: for a corpus without stems, or in which nobody sings.
    """
    folders = [folder for corpus in corpora for folder in song_folders(corpus)]
    songs = [(song, folder) for folder in folders if not (song := Song.load(folder)).held_out]
    sung = [song.id for song, _ in songs if song.syllables]
    if not sung:
        raise InputError(
            "none of the training songs is sung: the phoneme recogniser needs songs with lyrics"
        )
    copied = {sung[i * len(sung) // copies] for i in range(min(copies, len(sung)))} if codec else ()
    lessons = []
    for song, folder in track(songs, "listening to the songs"):
        if not song.stems:
            raise InputError(
                f"song {song.id} in '{folder}' has no stems: make the corpus with them"
            )
        mix, rate = load_audio(folder / "mix.flac")
        voice, copy = torch.zeros_like(mix), None
        if song.syllables:
            voice, _ = load_audio(folder / "vocals.flac")
        if codec is not None and song.id in copied:
            copy = log_mel(*codec(mix, rate))
        lessons.append(
            Lesson(
                log_mel(voice, rate) if song.syllables else None,
                log_mel(mix - voice, rate),
                copy,
                tuple(
                    SungSyllable(syllable_phonemes(s.phonemes), s.start, s.end, s.line)
                    for s in song.syllables
                ),
            )
        )
    return lessons


def crops(songs: Sequence[Lesson], generator: torch.Generator, *, longest: float) -> list[Crop]:
    """Runs of syllables of at most `longest` seconds, cut anew each time, and stretches where
    nothing is sung.
    """
    found, silent = [], []
    for number, song in enumerate(songs):
        found += _runs(number, song.syllables, generator, longest)
        edges = [
            0.0,
            *(t for syllable in song.syllables for t in (syllable.start, syllable.end)),
            len(song.band_FM) / FRAME_RATE,
        ]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if end - start > 4 * LEAD:
                last = min(end - LEAD, start + LEAD + longest)
                silent.append(_crop(number, start + LEAD, last, ()))
    count = max(1, round(SILENT_SHARE * len(found)))
    return found + [
        silent[int(i)] for i in torch.randperm(len(silent), generator=generator)[:count]
    ]


def _runs(
    number: int, sung: Sequence[SungSyllable], generator: torch.Generator, longest: float
) -> list[Crop]:
    found, first = [], 0
    while first < len(sung):
        length = SHORTEST_CROP + (longest - SHORTEST_CROP) * _draw(generator)
        last = first
        while (
            last + 1 < len(sung)
            and sung[last + 1].end - sung[first].start <= length
            and sung[last + 1].start - sung[last].end < PAUSE
        ):
            last += 1
        # the next syllable's consonant stays outside
        joined = last + 1 < len(sung) and sung[last + 1].start - sung[last].end < LEAD
        end = sung[last].end - (LEAD / 2 if joined else -LEAD / 2)
        found.append(_crop(number, sung[first].start - LEAD, end, tuple(sung[first : last + 1])))
        first = last + 1
    return found


def _crop(song: int, start: float, end: float, syllables: tuple[SungSyllable, ...]) -> Crop:
    first = max(0, round(start * FRAME_RATE))
    return Crop(song, first, max(round(end * FRAME_RATE), first + 8), syllables)


def _draw(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def heard(
    crop: Crop, songs: Sequence[Lesson], generator: torch.Generator, *, quieter: float = 0.0
) -> tuple[Tensor, float]:
    """(log-mel [F, M] of a crop as it is heard this time, by what its times are multiplied).

    Args:
        crop: what is cut out.
        songs: those that the crop's number counts.
        generator: draws band, gain, and how the voice is changed.
        quieter: dB that the band is quieter at the beginning of the training.
    """
    song, rows = songs[crop.song], slice(crop.first, crop.last)
    if song.copy_FM is not None and not quieter and _draw(generator) < COPIED:
        mel_FM, stretch = _warped(song.copy_FM[rows].float(), generator, bands=BANDS_UP / 4)
    else:
        mel_FM, stretch = song.band_FM[rows].float(), 1.0
        if song.voice_FM is not None:
            mel_FM, stretch = _warped(song.voice_FM[rows].float(), generator, bands=BANDS_UP)
        if song.voice_FM is None or _draw(generator) >= ALONE:
            gain = QUIETEST + (LOUDEST - QUIETEST) * _draw(generator) - quieter
            band_FM = _band(crop, songs, generator, frames=len(mel_FM))
            change = gain * math.log(10) / 20
            mel_FM = torch.logaddexp(2 * mel_FM, 2 * (band_FM + change)) / 2
    return _coloured(mel_FM, generator), stretch


def _band(
    crop: Crop, songs: Sequence[Lesson], generator: torch.Generator, *, frames: int
) -> Tensor:
    """The band of the song itself, or a stretch of another song's, as long as is asked for."""
    first, band_FM = crop.first, songs[crop.song].band_FM
    if _draw(generator) < OTHERS:
        band_FM = songs[int(_draw(generator) * len(songs))].band_FM
        first = int(_draw(generator) * max(1, len(band_FM) - frames))
    part_FM = band_FM[first : first + frames].float()
    return F.pad(part_FM, (0, 0, 0, frames - len(part_FM)), value=FLOOR)


def _warped(mel_FM: Tensor, generator: torch.Generator, *, bands: float) -> tuple[Tensor, float]:
    """Moved along the mel axis by up to `bands` and stretched in time, with the factor of time."""
    stretch = 1 + FAST * (2 * _draw(generator) - 1)
    frames = max(8, round(len(mel_FM) * stretch))
    mel_FM = F.interpolate(mel_FM.T[None], size=frames, mode="linear", align_corners=False)[0].T
    up = bands * (2 * _draw(generator) - 1)
    place_M = (torch.arange(MELS) - up).clamp(0, MELS - 1)
    low_M = place_M.floor().long().clamp_max(MELS - 2)
    return torch.lerp(mel_FM[:, low_M], mel_FM[:, low_M + 1], place_M - low_M), stretch


def _coloured(mel_FM: Tensor, generator: torch.Generator) -> Tensor:
    """Another level and colour, a little noise and a blur, and a hole of some bands and of some
    frames: none of them says anything of the words.
    """
    tilt, level = (0.5 * torch.randn((), generator=generator) for _ in range(2))
    mel_FM = mel_FM + level + tilt * torch.linspace(-1, 1, MELS)
    mel_FM = mel_FM + 0.1 * torch.randn(mel_FM.shape, generator=generator)
    if _draw(generator) < 0.25:
        padded = F.pad(mel_FM.T[None], (1, 1), mode="replicate")[0].T
        mel_FM = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    low, wide = int(_draw(generator) * (MELS - 10)), int(_draw(generator) * 11)
    mel_FM[:, low : low + wide] = mel_FM.mean()
    if _draw(generator) < 0.3:
        at = int(_draw(generator) * len(mel_FM))
        mel_FM[at : at + 3] = mel_FM.mean(0)
    return mel_FM
