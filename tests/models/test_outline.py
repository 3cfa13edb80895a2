"""The outline: what is sung when, and what each frame is told of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.models.outline import (
    CHORD,
    FEATURES,
    SYLLABLE,
    TOKENS,
    _sounding,
    aligned,
    no_outline,
    outline_rows,
    pack_outlines,
)
from mudit_engine.text.harmony import Bars, ChordSymbol, TimedChord
from mudit_engine.text.lyrics import parse_lyrics
from mudit_engine.text.outline import (
    Outline,
    plan_bars,
    plan_syllables,
    planned_seconds,
    planned_tempo,
    token_times,
)
from mudit_engine.text.phonemes import phonemize
from mudit_engine.text.wishes import read_description

LYRICS = "[intro]\n\n[verse]\n月亮照着窗\n风轻轻唱\n\n[chorus]\n一起飞\n\n[outro]\n"
RATE = 22050 / 2048


@pytest.mark.parametrize("bpm", [62, 88, 89, 100, 144, 180])
def test_plan_is_monotonic_on_the_grid_and_leaves_room_for_breath(bpm: int) -> None:
    song = phonemize(parse_lyrics(LYRICS))
    seconds = planned_seconds(song, bpm=bpm)
    times = plan_syllables(song, bpm=bpm, seconds=seconds)
    assert times.shape == (song.syllables, 2)
    assert (times[:, 1] > times[:, 0]).all() and (times[1:, 0] >= times[:-1, 1] - 1e-4).all()
    assert times.max() < seconds
    eighths = times / (30 / bpm)
    assert np.abs(eighths - eighths.round()).max() < 1e-3


def test_lines_begin_on_bars_behind_the_intro() -> None:
    song = phonemize(parse_lyrics(LYRICS))
    times = plan_syllables(song, bpm=80, seconds=planned_seconds(song, bpm=80))
    # bars of 3 s, one of them played
    assert times[[0, 5, 9], 0] == pytest.approx([3.0, 6.0, 9.0], abs=1e-4)


def test_spare_bars_go_to_played_parts() -> None:
    song = phonemize(parse_lyrics(LYRICS))
    times = plan_syllables(song, bpm=80, seconds=15.8 + 6)
    assert times[0, 0] == pytest.approx(6.0, abs=1e-4)


def test_too_little_time_shrinks_everything() -> None:
    song = phonemize(parse_lyrics(LYRICS))
    times = plan_syllables(song, bpm=80, seconds=7.0)
    assert times.max() <= 7.0 and (np.diff(times[:, 0]) > 0).all()


@pytest.mark.parametrize(
    ("text", "bpm"),
    [
        ("流行, 112 BPM", 112),
        ("慢慢的钢琴曲", 76),
        ("节奏很快", 128),
        ("不快不慢", 100),
        ("fast and loud", 128),
    ],
)
def test_tempo_from_words(text: str, bpm: float) -> None:
    assert planned_tempo(read_description(text), seed=1) == (bpm, "words")


def test_frames_know_beat_key_and_syllable() -> None:
    song = phonemize(parse_lyrics("[verse]\n月亮\n"))
    times = token_times(song, np.array([[1.0, 2.0], [2.0, 3.0]], np.float32))
    rows = outline_rows(
        Outline(60.0, "F# minor", times), frames=40, frame_rate=RATE, tokens=len(song)
    )
    assert rows.features_TF.shape == (40, FEATURES) and rows.tokens_T4.shape == (40, TOKENS)
    centre = (np.arange(40) + 0.5) / RATE
    assert np.allclose(rows.features_TF[:, 0], np.sin(2 * np.pi * centre), atol=1e-5)
    assert rows.features_TF[0, 6:20].nonzero().flatten().tolist() == [6, 13]
    # the syllable in the middle of its second is its last token alone
    middle = int(2.5 * RATE)
    assert song.syllable_of[rows.tokens_T4[middle, 0]] == 1 and rows.weights_T4[
        middle
    ].tolist() == pytest.approx([1, 0, 0, 0])
    assert rows.weights_T4[: int(0.8 * RATE)].sum() == 0 and rows.features_TF[middle, SYLLABLE] == 1
    assert (rows.positions_L.diff() >= 0).all()


def test_packing_shifts_tokens_and_alignment_averages_them() -> None:
    song = phonemize(parse_lyrics("[verse]\n月亮\n"))
    times = token_times(song, np.array([[0.5, 1.0], [1.0, 1.5]], np.float32))
    one = outline_rows(Outline(90.0, None, times), frames=20, frame_rate=RATE, tokens=len(song))
    both = pack_outlines([one, one])
    lyrics_LE = torch.randn(2 * len(song), 5, generator=torch.Generator().manual_seed(0))
    together = aligned(lyrics_LE, both)
    assert torch.equal(together[20:], aligned(lyrics_LE[len(song) :], one)) and not torch.equal(
        together[:20], together[20:]
    )
    # an instrumental behind a song with words has no rows of its own to point at
    assert (
        aligned(lyrics_LE[: len(song)], pack_outlines([one, no_outline(7, 0)]))[20:].abs().sum()
        == 0
    )
    assert aligned(lyrics_LE[:0], no_outline(7, 0)).abs().sum() == 0


def test_nothing_known_is_all_zero_and_evenly_spread() -> None:
    rows = no_outline(11, 4)
    assert rows.features_TF.abs().sum() == 0 and rows.weights_T4.sum() == 0
    assert rows.positions_L.tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])


def test_bars_hold_the_plan_of_the_syllables_and_fill_the_song() -> None:
    song = phonemize(parse_lyrics(LYRICS))
    bars = plan_bars(song, bpm=80, seconds=15.8 + 6)
    assert bars == Bars(3.0, (("intro", 2), ("verse", 2), ("chorus", 1), ("outro", 2)))
    assert plan_bars(song, bpm=80, seconds=15.8 + 7.5) == bars, (
        "half a bar more is for the last chord to ring"
    )
    times = plan_syllables(song, bpm=80, seconds=15.8 + 6)
    # verse and chorus begin where their bars do
    assert times[[0, 9], 0] == pytest.approx([6.0, 12.0], abs=1e-4)
    assert plan_bars(None, bpm=60, seconds=30.0) == Bars(4.0, (("verse", 7),))
    assert plan_bars(None, bpm=20, seconds=5.0).sections == (("verse", 1),)


def test_chords_of_hurried_lyrics_keep_the_tempo() -> None:
    song = phonemize(parse_lyrics(LYRICS))  # needs five bars
    assert plan_bars(song, bpm=80, seconds=9.8) == Bars(
        3.0, (("intro", 1), ("verse", 1), ("outro", 1))
    )
    assert sum(count for _, count in plan_bars(song, bpm=20, seconds=2.0).sections) == 1


def test_bars_of_lyrics_without_played_parts_have_edges() -> None:
    song = phonemize(parse_lyrics("[verse]\n月亮照着窗\n"))
    assert plan_bars(song, bpm=80, seconds=0.8 + 4 * 3).sections == (
        ("intro", 2),
        ("verse", 1),
        ("outro", 1),
    )


def test_frames_know_their_chord() -> None:
    chords = [
        TimedChord(0.0, 1.0, ChordSymbol(9, "min7")),
        TimedChord(1.0, 2.0, ChordSymbol(0, "maj")),
    ]
    features = outline_rows(
        Outline(chords=chords), frames=30, frame_rate=10.0, tokens=0
    ).features_TF.numpy()
    assert features[5].nonzero()[0].tolist() == [CHORD + 9, *(CHORD + 12 + p for p in (0, 4, 7, 9))]
    assert features[15].nonzero()[0].tolist() == [CHORD, *(CHORD + 12 + p for p in (0, 4, 7))]
    assert not features[20:].any() and features.shape[1] == FEATURES


def test_wrong_key_and_wrong_lyrics_are_named() -> None:
    with pytest.raises(InputError, match="H major"):
        outline_rows(Outline(None, "H major"), frames=4, frame_rate=1.0, tokens=0)
    with pytest.raises(InputError, match="3 lyric tokens, the lyrics have 5"):
        outline_rows(Outline(None, None, np.zeros((3, 2))), frames=4, frame_rate=1.0, tokens=5)


def dense_sounding(spans: np.ndarray, frames: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """All frames by all tokens: what the engine's way by touched frames must equal."""
    index, weight = np.zeros((frames, TOKENS), np.int64), np.zeros((frames, TOKENS), np.float32)
    sung = np.flatnonzero(spans[:, 1] > 0)
    if len(sung) and frames:
        left, bounds = np.arange(frames)[:, None] / rate, spans[sung]
        overlap = np.minimum(left + 1 / rate, bounds[:, 1]) - np.maximum(left, bounds[:, 0])
        share = np.clip(overlap, 0, None) * rate
        most = np.argsort(-share, axis=1, kind="stable")[:, :TOKENS]
        kept = most.shape[1]
        weight[:, :kept] = np.take_along_axis(share, most, 1)
        index[:, :kept] = np.where(weight[:, :kept] > 0, sung[most], 0)
    return index, weight


@pytest.mark.parametrize("seed", range(60))
def test_sounding_tokens_equal_those_of_all_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    frames, rate = int(draw.integers(0, 80)), float(draw.choice([1.0, 5.86, 10.77]))
    starts = draw.uniform(-0.2, frames / rate + 2, 40)
    starts[::3] = np.round(starts[::3] * rate) / rate  # bounds on the edges of frames
    spans = np.stack((starts, starts + draw.choice([0.0, 0.05, 0.3, 3 / rate], 40)), 1)
    found, wanted = _sounding(spans, frames, rate), dense_sounding(spans, frames, rate)
    assert np.array_equal(found[0], wanted[0]) and np.array_equal(found[1], wanted[1])
