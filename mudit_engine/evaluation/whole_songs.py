"""Whole songs, heard from end to end: are their sections where the plan has them, do tempo and key
hold from window to window, and does the end end?

    rows = judge_whole_songs(pipeline, codec, songs)
    rows["generated"]["tempo"].value     # share of windows of 30 s in the tempo that was asked for

Rows: the corpus' originals, what the codec leaves of them, and songs made for their requests. Of
originals the plan is the corpus' own form; of generated songs, which are heard as their files have
them, it is what the engine planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.evaluation.codec import Codec
from mudit_engine.evaluation.songs import EvalSong, Track, silent_track
from mudit_engine.loudness import ending_level, mastered
from mudit_engine.metrics import figures
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.rhythm_and_key import key_rank, tempo_error
from mudit_engine.metrics.structure import boundaries
from mudit_engine.pipeline import SongPipeline
from mudit_engine.request import SongRequest

WINDOW_SECONDS = 30.0
TEMPO_WITHIN, KEY_WITHIN = 0.04, 2
SECTION_WITHIN = 2.0  # seconds
END_DECIBELS = -30.0


@dataclass(frozen=True)
class WholeSong:
    """A song of the corpus with the starts of its sections in seconds, the first one included."""

    song: EvalSong
    starts: tuple[float, ...]


def windows(audio_cS: Tensor, sample_rate: int) -> Iterator[Tensor]:
    """Windows of 30 s, end to end; what is left over joins the last one."""
    size = round(WINDOW_SECONDS * sample_rate)
    count = max(1, audio_cS.shape[1] // size)
    for number in range(count):
        yield audio_cS[:, number * size : (number + 1) * size if number < count - 1 else None]


def sections_found(audio_cS: Tensor, sample_rate: int, starts: Sequence[float]) -> float | None:
    """Share of the planned boundaries near which the song changes, looking for as many as are
    planned; None for fewer than two sections.
    """
    wanted = [start for start in starts if start > SECTION_WITHIN]
    if not wanted:
        return None
    found = boundaries(audio_cS, sample_rate, count=len(wanted))
    return sum(any(abs(at - start) <= SECTION_WITHIN for at in found) for start in wanted) / len(
        wanted
    )


def judge_whole_songs(
    pipeline: SongPipeline,
    codec: Codec,
    songs: Sequence[WholeSong],
    *,
    seed: int = 0,
    track: Track = silent_track,
) -> dict[str, dict[str, Figure]]:
    """Figures by row and measure: `tempo` and `key` are shares of windows, `sections` of planned
    boundaries, `ends` of songs whose last half second is 30 dB below the song; `end_level` is in
    dB. Raises InputError without songs.
    """
    if not songs:
        raise InputError("no held-out song is long enough: make a corpus of longer songs")
    rows: dict[str, list[dict[str, float]]] = {}
    for number, one in enumerate(track(songs, "whole songs")):
        audio, rate = one.song.load()
        rows.setdefault("original", []).append(_measured(audio, rate, one.song, one.starts))
        decoded, its_rate = codec(audio, rate)
        rows.setdefault("codec", []).append(_measured(decoded, its_rate, one.song, one.starts))
        request = SongRequest(
            description=one.song.prompts["professional"],
            lyrics=one.song.lyrics or None,
            user_type="professional",
            seconds=min(one.song.seconds, pipeline.config.max_seconds),
            seed=seed + number,
        )
        starts = [part.start for part in pipeline.understand(request).outline.arrangement]
        [made] = pipeline.generate([request])
        sound, _ = mastered(torch.from_numpy(made.audio), made.sample_rate)  # as it is written
        rows.setdefault("generated", []).append(
            _measured(sound, made.sample_rate, one.song, starts)
        )
        other = songs[(number + 1) % len(songs)]
        rows.setdefault("another song's request", []).append(
            _measured(sound, made.sample_rate, other.song, other.starts)
        )
    return {
        name: {
            measure: figures.mean([one[measure] for one in found if measure in one])
            for measure in ("tempo", "key", "sections", "ends", "end_level")
        }
        for name, found in rows.items()
    }


def _measured(
    audio_cS: Tensor, sample_rate: int, song: EvalSong, starts: Sequence[float]
) -> dict[str, float]:
    parts = list(windows(audio_cS, sample_rate))
    level = ending_level(audio_cS, sample_rate)
    found = {
        "tempo": sum(tempo_error(part, sample_rate, song.bpm) <= TEMPO_WITHIN for part in parts)
        / len(parts),
        "key": sum(key_rank(part, sample_rate, song.key) <= KEY_WITHIN for part in parts)
        / len(parts),
        "ends": float(level <= END_DECIBELS),
        "end_level": level,
    }
    share = sections_found(audio_cS, sample_rate, starts)
    return found if share is None else {**found, "sections": share}
