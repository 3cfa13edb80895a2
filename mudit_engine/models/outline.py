"""An outline (text/outline.py) frame by frame: beat, key, chord, and the lyric tokens that sound in
it.

    features of frame i at time t = (i + 1/2) / frame_rate:
        sin, cos of 2 pi t / period for a beat, a bar and four bars; one-hot tonic and mode;
        seconds since and until the syllable's bounds;
        one-hot root of the chord, and which of the twelve pitch classes belong to it;
        what else the model's configuration asks for (models/outline_columns.py)
    tokens of frame i: up to four, weighted by the share of the frame in which they sound

    rows = outline_rows(outline, frames=323, frame_rate=10.77, tokens=97)

Shapes: T frames, F features, L lyric tokens. Everything is fp32 or int64 on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mudit_engine.config import DitConfig
from mudit_engine.errors import InputError
from mudit_engine.models.outline_columns import (
    GAIN,
    arrangement_columns,
    control_columns,
    melody_columns,
    optional_columns,
    spread,
)
from mudit_engine.text.harmony import key_parts
from mudit_engine.text.length import BEATS
from mudit_engine.text.outline import Outline

PERIODS = (1, BEATS, 4 * BEATS)  # beats
# first column of the tonic and the mode, then of the syllable, then of the chord
KEY = 2 * len(PERIODS)
SYLLABLE = KEY + 12 + 2
CHORD = SYLLABLE + 3
FEATURES = CHORD + 12 + 12
TOKENS = 4  # lyric tokens of a frame at most
# the first token of a syllable sounds before its vowel's beat
CONSONANT_SECONDS, CONSONANT_TAIL_SECONDS = (
    0.12,
    0.03,
)


@dataclass(frozen=True)
class OutlineRows:
    """Outlines of the frames of one song, or of several end to end. `tokens_T4` are rows of the
    packed lyric tokens.
    """

    features_TF: Tensor
    tokens_T4: Tensor
    weights_T4: Tensor
    positions_L: Tensor  # where each token stands in its song, as a share

    def to(self, device: torch.device, dtype: torch.dtype) -> OutlineRows:
        return OutlineRows(
            self.features_TF.to(device, dtype),
            self.tokens_T4.to(device),
            self.weights_T4.to(device, dtype),
            self.positions_L.to(device),
        )


def outline_columns(config: DitConfig) -> dict[str, slice]:
    """Where each group of columns lies that a model takes: "first" and those switched on."""
    return {"first": slice(0, FEATURES), **optional_columns(config, FEATURES)}


def edit_columns(config: DitConfig) -> slice | None:
    """Where a model's outline says which frames are given; None for one that takes no edits."""
    return outline_columns(config).get("edits") if config.outline else None


def outline_width(config: DitConfig) -> int:
    """How many columns the outline of a model has."""
    return max(place.stop for place in outline_columns(config).values())


def no_outline(frames: int, tokens: int, config: DitConfig | None = None) -> OutlineRows:
    """Rows of a song of which nothing is known; `tokens` are spread evenly over it."""
    return outline_rows(Outline(), frames=frames, frame_rate=1.0, tokens=tokens, config=config)


def hold(rows: OutlineRows, held_T: np.ndarray | Tensor, config: DitConfig) -> OutlineRows:
    """The rows of a song of which frames are given (bool [T]); as they are for a model that is not
    told.
    """
    place = outline_columns(config).get("edits")
    if place is None:
        return rows
    features_TF = rows.features_TF.clone()
    features_TF[:, place.start] = GAIN * torch.as_tensor(held_T).to(features_TF)
    return OutlineRows(features_TF, rows.tokens_T4, rows.weights_T4, rows.positions_L)


def outline_rows(
    outline: Outline,
    *,
    frames: int,
    frame_rate: float,
    tokens: int,
    config: DitConfig | None = None,
) -> OutlineRows:
    """Rows of one song of `frames` latent frames with `tokens` lyric tokens, with the columns that
    the model of `config` takes (None: the first ones). Raises InputError for a key with an unknown
    name.
    """
    columns = outline_columns(config or DitConfig())
    centre_T = (np.arange(frames) + 0.5) / frame_rate
    features_TF = np.zeros((frames, max(one.stop for one in columns.values())), np.float32)
    if (place := columns.get("melody")) and len(outline.melody):
        features_TF[:, place] = melody_columns(outline.melody, frames, frame_rate)
    if (place := columns.get("arrangement")) and outline.arrangement:
        features_TF[:, place] = arrangement_columns(
            outline.arrangement, frames, frame_rate, outline.bpm
        )
    if place := columns.get("controls"):
        features_TF[:, place] = control_columns(outline.controls)
    if outline.bpm is not None:
        for number, period in enumerate(PERIODS):
            phase = 2 * np.pi * centre_T * outline.bpm / 60 / period
            features_TF[:, 2 * number], features_TF[:, 2 * number + 1] = (
                np.sin(phase),
                np.cos(phase),
            )
    if outline.key is not None:
        tonic, mode = key_parts(outline.key)
        features_TF[:, KEY + tonic] = 1
        features_TF[:, KEY + 12 + int(mode == "minor")] = 1
    for chord in outline.chords:
        sounding = slice(*np.searchsorted(centre_T, (chord.start, chord.end)))
        features_TF[sounding, CHORD + chord.symbol.root] = 1
        for pitch_class in chord.symbol.pitch_classes:
            features_TF[sounding, CHORD + 12 + pitch_class] = 1
    times = outline.token_times if outline.token_times is not None else np.full((tokens, 2), -1.0)
    if len(times) != tokens:
        raise InputError(
            f"the outline has times of {len(times)} lyric tokens, the lyrics have {tokens}: plan "
            f"it from the same lyrics"
        )
    index_T4, weight_T4 = _sounding(_token_spans(times), frames, frame_rate)
    features_TF[:, SYLLABLE:CHORD] = _syllable_progress(times, centre_T)
    return OutlineRows(
        torch.from_numpy(features_TF),
        torch.from_numpy(index_T4),
        torch.from_numpy(weight_T4),
        torch.from_numpy(_positions(times, frames / frame_rate)),
    )


def pack_outlines(rows: Sequence[OutlineRows]) -> OutlineRows:
    """Songs end to end. A frame in which nothing sounds points at row 0: its own song may have no
    tokens.
    """
    starts = itertools.accumulate((len(one.positions_L) for one in rows[:-1]), initial=0)
    return OutlineRows(
        torch.cat([one.features_TF for one in rows]),
        torch.cat(
            [
                torch.where(one.weights_T4 > 0, one.tokens_T4 + start, 0)
                for one, start in zip(rows, starts, strict=True)
            ]
        ),
        torch.cat([one.weights_T4 for one in rows]),
        torch.cat([one.positions_L for one in rows]),
    )


def aligned(lyrics_LE: Tensor, rows: OutlineRows) -> Tensor:
    """The lyric tokens that sound in each frame, averaged: [T, E]. Zero where nothing is sung."""
    if lyrics_LE.shape[0] == 0:
        return lyrics_LE.new_zeros(rows.tokens_T4.shape[0], lyrics_LE.shape[1])
    return (lyrics_LE[rows.tokens_T4] * rows.weights_T4[..., None]).sum(1)


def _token_spans(times_L2: np.ndarray) -> np.ndarray:
    """When each token itself sounds: the first of a syllable around its start, the others one after
    another until its end.
    """
    spans = np.array(times_L2, np.float64)
    if not len(spans):
        return spans
    # a syllable's tokens stand together and have the same times
    follows = (times_L2[1:] == times_L2[:-1]).all(1) & (times_L2[1:, 0] >= 0)
    starts = np.flatnonzero(np.concatenate(([True], ~follows)))
    counts = np.diff(np.append(starts, len(spans)))
    count = np.repeat(counts, counts)
    place = np.arange(len(spans)) - np.repeat(starts, counts)
    begin, end = spans[:, 0].copy(), spans[:, 1].copy()
    several = (count > 1) & (begin >= 0)
    first, later = several & (place == 0), several & (place > 0)
    spans[first, 0] = begin[first] - CONSONANT_SECONDS
    spans[first, 1] = begin[first] + CONSONANT_TAIL_SECONDS
    begin, end, place, last = begin[later], end[later], place[later], count[later] - 1
    step = (end - begin) / last
    spans[later, 0] = (place - 1) * step + begin
    spans[later, 1] = np.where(place == last, end, place * step + begin)
    return spans


def _sounding(
    spans_L2: np.ndarray, frames: int, frame_rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """The TOKENS tokens that fill most of each frame, and the share they fill. Of equal shares the
    earlier token's comes first.

    Only the frames that a token may touch are looked at: all frames by all tokens would be millions
    of pairs for a song of minutes, and nearly all of them 0.
    """
    index = np.zeros((frames, TOKENS), np.int64)
    weight = np.zeros((frames, TOKENS), np.float32)
    sung = np.flatnonzero(spans_L2[:, 1] > 0)
    if not len(sung) or not frames:
        return index, weight
    # a frame more on either side than the span reaches: the shares themselves decide
    first = np.clip(np.floor(spans_L2[sung, 0] * frame_rate) - 1, 0, frames).astype(np.int64)
    last = np.clip(np.ceil(spans_L2[sung, 1] * frame_rate) + 1, 0, frames).astype(np.int64)
    token, frame = spread(first, last)
    left, bounds = frame / frame_rate, spans_L2[sung[token]]
    overlap = np.minimum(left + 1 / frame_rate, bounds[:, 1]) - np.maximum(left, bounds[:, 0])
    share = np.clip(overlap, 0, None) * frame_rate
    heard = share > 0
    token, frame, share = token[heard], frame[heard], share[heard]
    order = np.lexsort((token, -share, frame))
    token, frame, share = token[order], frame[order], share[order]
    place = np.arange(len(frame)) - np.searchsorted(frame, frame)
    kept = place < TOKENS
    weight[frame[kept], place[kept]] = share[kept]
    index[frame[kept], place[kept]] = sung[token[kept]]
    index[weight == 0] = 0
    return index, weight


def _syllable_progress(times_L2: np.ndarray, centre_T: np.ndarray) -> np.ndarray:
    """[T, 3]: whether a syllable is sung, seconds since its start and until its end (at most 1)."""
    out = np.zeros((len(centre_T), 3), np.float32)
    if not len(times_L2):
        return out
    start, end = np.unique(times_L2[times_L2[:, 0] >= 0], axis=0).T
    number, frame = spread(np.searchsorted(centre_T, start), np.searchsorted(centre_T, end))
    sung = np.full(len(centre_T), -1)
    np.maximum.at(sung, frame, number)  # where two overlap, the later one
    inside = np.flatnonzero(sung >= 0)
    out[inside, 0] = 1
    out[inside, 1] = np.minimum(centre_T[inside] - start[sung[inside]], 1)
    out[inside, 2] = np.minimum(end[sung[inside]] - centre_T[inside], 1)
    return out


def _positions(times_L2: np.ndarray, seconds: float) -> np.ndarray:
    """Shares of the song; tokens that are not sung stand between their neighbours. Evenly spread
    when no time is known.
    """
    count = len(times_L2)
    sung = np.flatnonzero(times_L2[:, 0] >= 0) if count else np.empty(0, np.int64)
    if not len(sung):
        return ((np.arange(count) + 0.5) / max(count, 1)).astype(np.float32)
    middle = times_L2[sung].mean(1) / seconds
    return np.interp(np.arange(count), sung, middle).astype(np.float32)
