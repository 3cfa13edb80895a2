"""Does a song follow its reference? And what of a song that is edited or goes on?

    report = judge_references(pipeline, songs)
    report.rows["drums"].own - report.rows["drums"].without

A stem of a held-out song is the reference of a request that names neither tempo nor key. What is
heard of the reference in the song is a correlation: of onsets (spectral flux in frames of 23 ms,
the best of shifts up to 70 ms) where drums are the reference, of pitch classes (in half seconds)
where bass or chords are. The same request is made without a reference, and with another song's.
Chance is what those two rows show.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mudit_engine.audio import load_audio
from mudit_engine.errors import InputError
from mudit_engine.evaluation.songs import EvalSong, Track, silent_track
from mudit_engine.hearing import RATE, onsets, pitch_class_frames
from mudit_engine.metrics import figures
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.rhythm_and_key import key_rank, tempo_error
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest

KINDS = ("drums", "bass", "chords")
FLUX_HOP = 512
LARGEST_SHIFT = 3  # frames of onsets
CHROMA_SECONDS = 0.5
SHORTEST = 8.0  # seconds of song that are judged
SEAM_SECONDS = 0.07


@dataclass(frozen=True)
class Stems:
    """A song of a corpus and its stems, by kind."""

    song: EvalSong
    files: dict[str, Path]


@dataclass(frozen=True)
class Followed:
    """Correlations with the reference: of the song made with it, without one, with another's; and
    the differences, song by song.
    """

    own: Figure
    without: Figure
    another: Figure
    above_without: Figure
    above_another: Figure


def onset_correlation(a_cS: Tensor, a_rate: int, b_cS: Tensor, b_rate: int) -> float:
    """Pearson correlation of the onsets of two songs, at the best of a few frames' shift; 0 where
    one of them has none.

    Examples:
        >>> clicks = torch.zeros(1, 22050).index_fill_(1, torch.arange(0, 22050, 5000), 1.0)
        >>> round(onset_correlation(clicks, 22050, clicks, 22050), 3)
        1.0
    """
    a, b = (onsets(x, rate, hop=FLUX_HOP) for x, rate in ((a_cS, a_rate), (b_cS, b_rate)))
    length = min(len(a), len(b))
    a, b = a[:length], b[:length]
    found = []
    for shift in range(-LARGEST_SHIFT, LARGEST_SHIFT + 1):
        x = a[max(0, shift) : length + min(0, shift)]
        y = b[max(0, -shift) : length + min(0, -shift)]
        found.append(_pearson(x, y))
    return max(found)


def chroma_correlation(a_cS: Tensor, a_rate: int, b_cS: Tensor, b_rate: int) -> float:
    """Mean Pearson correlation of the pitch classes of two songs over the half seconds in which
    both sound.
    """
    a, b = _half_seconds(a_cS, a_rate), _half_seconds(b_cS, b_rate)
    length = min(len(a), len(b))
    both = (a[:length].sum(1) > 0) & (b[:length].sum(1) > 0)
    if not bool(both.any()):
        return 0.0
    return float(
        torch.stack(
            [
                torch.tensor(_pearson(x, y))
                for x, y in zip(a[:length][both], b[:length][both], strict=True)
            ]
        ).mean()
    )


def _half_seconds(audio_cS: Tensor, sample_rate: int) -> Tensor:
    energy_F12, hop = pitch_class_frames(audio_cS, sample_rate)
    frames = max(1, round(CHROMA_SECONDS * RATE / hop))
    whole = energy_F12[: len(energy_F12) // frames * frames].unflatten(0, (-1, frames)).mean(1)
    loud = whole.sum(1)
    whole[loud < 0.05 * loud.mean()] = 0  # a rest holds no chord
    return whole


def _pearson(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    spread = x.norm() * y.norm()
    return float(x @ y / spread) if spread > 1e-9 else 0.0


def judge_references(
    pipeline: SongPipeline,
    songs: Sequence[Stems],
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    track: Track = silent_track,
) -> dict[str, Followed]:
    """How far songs follow a drum, bass or chord reference, by kind. Raises InputError where fewer
    than two songs have a stem of a kind.
    """
    found = {}
    for kind in kinds:
        have = [one for one in songs if kind in one.files and one.song.seconds >= SHORTEST]
        if len(have) < 2:
            raise InputError(
                f"{len(have)} of the held-out songs have a stem of {kind}: at least 2 are needed, "
                "make a corpus with stems"
            )
        alike = onset_correlation if kind == "drums" else chroma_correlation
        rows: list[tuple[float, float, float]] = []
        for number, one in enumerate(track(have, f"songs with {kind} as reference")):
            reference, rate = load_audio(one.files[kind])
            asked = _asked(pipeline, one.song, seed=seed + number)
            other = have[(number + 1) % len(have)].files[kind]
            rows.append(
                tuple(  # type: ignore[arg-type]
                    alike(*_made(pipeline, request), reference, rate)
                    for request in (
                        replace(asked, reference=str(one.files[kind]), reference_kind=kind),
                        asked,
                        replace(asked, reference=str(other), reference_kind=kind),
                    )
                )
            )
        own, without, another = (list(column) for column in zip(*rows, strict=True))
        found[kind] = Followed(
            figures.mean(own),
            figures.mean(without),
            figures.mean(another),
            figures.mean([a - b for a, b in zip(own, without, strict=True)]),
            figures.mean([a - b for a, b in zip(own, another, strict=True)]),
        )
    return found


@dataclass(frozen=True)
class Edited:
    """What editing keeps: `outside` is the largest difference of latents outside a repainted span,
    `seams` the share of seams no more abrupt than the song's own 95 %, `tempo` and `key` the share
    of continued songs whose new part keeps them.
    """

    outside: float
    seams: Figure
    tempo: Figure
    key: Figure


def judge_edits(
    pipeline: SongPipeline,
    songs: Sequence[EvalSong],
    *,
    seed: int = 0,
    track: Track = silent_track,
) -> Edited:
    """Repaints the middle third of songs, and lets them go on for as long again. Raises InputError
    for a model that was not trained on edits.
    """
    if not pipeline.config.dit.edits:
        raise InputError(f"model '{pipeline.config.name}' was not trained on edits (dit.edits)")
    outside, seams, tempi, keys = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(track(songs, "editing")):
            seconds = min(one.seconds, pipeline.config.max_seconds / 2 - 1)
            request = SongRequest(
                description=one.prompts["professional"],
                lyrics=one.lyrics or None,
                seconds=seconds,
                user_type="professional",
                seed=seed + number,
            )
            [first] = pipeline.generate([request])
            path = Path(folder) / f"{number}.wav"
            first.save(path, latents=True, loudness=None)
            start, end = round(seconds / 3, 1), round(2 * seconds / 3, 1)
            change = SongRequest(edit=str(path), repaint=f"{start}-{end}", seed=seed + number + 1)
            [second] = pipeline.generate([change])
            rate = pipeline.config.vae.frame_rate
            away = torch.ones(len(first.latents), dtype=torch.bool)
            away[int(start * rate) - 1 : int(end * rate) + 2] = False
            difference = torch.from_numpy(second.latents) - torch.from_numpy(first.latents)
            outside.append(float(difference[away].abs().max()))
            audio = torch.from_numpy(second.audio)
            seams += [smooth_at(audio, second.sample_rate, at) for at in (start, end)]

            on = SongRequest(edit=str(path), extend=seconds, seed=seed + number + 1)
            [longer] = pipeline.generate([on])
            part = torch.from_numpy(longer.audio)[:, round(seconds * longer.sample_rate) :]
            if one.bpm:
                tempi.append(float(tempo_error(part, longer.sample_rate, one.bpm) <= 0.04))
            keys.append(float(key_rank(part, longer.sample_rate, one.key) <= 2))
    return Edited(max(outside), figures.mean(seams), figures.mean(tempi), figures.mean(keys))


def smooth_at(audio_cS: Tensor, sample_rate: int, seconds: float) -> float:
    """1 where the flux around a place is within the song's own 95 %, else 0."""
    flux = onsets(audio_cS, sample_rate, hop=FLUX_HOP)
    centre, reach = round(seconds * RATE / FLUX_HOP), round(SEAM_SECONDS * RATE / FLUX_HOP)
    near = flux[max(0, centre - reach) : centre + reach + 1]
    # as many frames are looked at everywhere as at the seam
    peaks = F.max_pool1d(flux[None, None], 2 * reach + 1, 1)[0, 0]
    return float(near.max() <= peaks.quantile(0.95)) if len(near) else 1.0


def _asked(pipeline: SongPipeline, song: EvalSong, *, seed: int) -> SongRequest:
    """A request that leaves tempo and key to the reference."""
    return SongRequest(
        description=song.style,
        lyrics=song.lyrics or None,
        seconds=min(song.seconds, pipeline.config.max_seconds),
        user_type="amateur",
        voice=song.voice,
        drums=song.drums,
        seed=seed,
    )


def _made(pipeline: SongPipeline, request: SongRequest) -> tuple[Tensor, int]:
    [song] = pipeline.generate([request])
    return torch.from_numpy(song.audio), song.sample_rate
