"""Rows of the tables: what is judged against what, what is kept, and the controls; the baseline
codec; the bars.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from torch import Tensor

from mudit_engine.errors import InputError
from mudit_engine.evaluation import bars
from mudit_engine.evaluation.codec import mel_griffin_lim, spectral_distance
from mudit_engine.evaluation.codec_gate import own_pairs
from mudit_engine.evaluation.listening import Heard, Listener
from mudit_engine.evaluation.song_tables import lyric_position, planned_windows, twins
from mudit_engine.evaluation.songs import EvalSong, noise_like, parted, shuffled
from mudit_engine.evaluation.tables import Judge, Pair, Row, fit_probes, permuted
from mudit_engine.metrics.ctc import MELS, SungSyllable, Window, edit_distance
from mudit_engine.metrics.fad import FrechetReference
from mudit_engine.metrics.figures import Figure
from mudit_engine.metrics.rhythm_and_key import SCALES, key_rank
from mudit_engine.text.lyrics import parse_lyrics
from mudit_engine.text.outline import Outline, plan_song
from mudit_engine.text.phonemes import phonemize
from mudit_engine.text.wishes import read_description

RATE = 22050


def song(number: int, **labels: object) -> EvalSong:
    sung = number % 2 == 1
    base = EvalSong(
        id=str(number),
        audio=Path(f"{number}.flac"),
        held_out=number % 4 == 0,
        seconds=4.0,
        style=("pop", "rock")[number % 2],
        bpm=(80.0, 100.0, 130.0)[number % 3],
        key=("C major", "F# major")[number % 2],
        drums=number % 3 == 0,
        voice="female" if sung else "none",
        language="zh" if sung else "none",
        lyrics="",
        syllables=(SungSyllable(("l", "iang") if number % 4 == 1 else ("k", "ong"), 1.0, 2.0),)
        if sung
        else (),
        prompts={"professional": "pop at 100 BPM in C major", "amateur": "something slow"},
    )
    return dataclasses.replace(base, **labels)  # type: ignore[arg-type]


def heard(wanted: EvalSong, *, tempo: float | None = None, seed: int = 0) -> Heard:
    """What a perfect song for the request sounds like."""
    generator = torch.Generator().manual_seed(seed)
    timbre = 0.1 * torch.randn(12, generator=generator)
    timbre[0] += wanted.drums
    timbre[1] += wanted.sung
    timbre[2] += wanted.style == "pop"
    shares = torch.zeros(12)
    shares[
        [(step + (6 if wanted.key.startswith("F#") else 0)) % 12 for step in SCALES["major"]]
    ] = 1 / 7
    return Heard(
        torch.randn(6, 5, generator=generator),
        timbre,
        tempo or wanted.bpm,
        shares,
        torch.zeros(50, MELS),
    )


@pytest.fixture
def judge() -> Judge:
    training = [song(n) for n in range(24)]
    probes = fit_probes(training, [heard(s, seed=n) for n, s in enumerate(training)])
    assert set(probes) == {"drums", "vocals", "style"}, (
        "one voice only: that probe cannot be trained"
    )
    return Judge(FrechetReference(torch.randn(200, 5)), probes)


def pairs(songs: list[EvalSong], text: str | None = None) -> list[Pair]:
    return [Pair(n, heard(s, seed=100 + n), s, s.syllables, text) for n, s in enumerate(songs)]


def test_own_requests_are_met_and_permuted_ones_are_not(judge: Judge) -> None:
    songs = [song(n) for n in range(12)]
    own, other = (
        judge.row("own", pairs(songs)),
        judge.row("permuted", permuted(pairs(songs), songs)),
    )
    for column in ("tempo", "key", "drums", "vocals", "style", "instrumental"):
        assert own.value(column) == 1.0
        assert 0.1 < other.value(column) < 0.8, column  # type: ignore[operator]
    assert own.songs == other.songs == 12
    assert other.figures["fad"] == own.figures["fad"], (
        "the same sounds, whatever they are held against"
    )


def test_what_the_words_do_not_name_is_not_judged(judge: Judge) -> None:
    songs = [song(n) for n in range(6)]
    named = judge.row("named", pairs(songs, "pop at 100 BPM in C major"))
    assert named.figures["tempo"].n == named.figures["key"].n == 6
    vague = judge.row("vague", pairs(songs, "something slow"))
    assert (
        vague.value("tempo") is None
        and vague.value("key") is None
        and vague.value("drums") is not None
    )


@pytest.mark.parametrize(
    ("tempo", "share"),
    [(103.9, 1.0), (104.1, 0.0), (50.0, 1.0), (200.0, 1.0), (75.0, 0.0), (float("nan"), 0.0)],
)
def test_tempo_tolerance(judge: Judge, tempo: float, share: float) -> None:
    wanted = song(1, bpm=100.0)
    assert (
        judge.row("x", [Pair(n, heard(wanted, tempo=tempo), wanted, ()) for n in range(2)]).value(
            "tempo"
        )
        == share
    )


def test_phoneme_errors_use_the_lyrics_held_against(judge: Judge) -> None:
    class Parrot:
        def read(self, mel_FM: Tensor) -> list[str]:
            return ["l", "iang"]

    songs = [song(n) for n in range(8)]
    judge.recogniser = Parrot()  # type: ignore[assignment]
    right = [
        pair
        for pair in pairs(songs)
        if pair.syllables and pair.syllables[0].phonemes == ("l", "iang")
    ]
    assert judge.row("x", right).value("per") == 0.0
    wrong = permuted([pair for pair in pairs(songs) if pair.song == 1], songs)
    assert {pair.syllables[0].phonemes[0] for pair in wrong} == {"l", "k"} and all(
        pair.wanted.id != "1" for pair in wrong
    )
    assert 0.3 < judge.row("x", wrong).value("per") < 1.0  # type: ignore[operator]


class Reader:
    """Hears in each second of a song what it is told."""

    def __init__(self, *lines: str) -> None:
        self.lines = [line.split() for line in lines]

    def read(self, mel_FM: Tensor) -> list[str]:
        return [sound for line in self.lines for sound in line]

    def read_lines(self, mel_FM: Tensor, windows: Sequence[Window]) -> list[list[str]]:
        return [
            [s for second, line in enumerate(self.lines) if a <= second < b for s in line]
            for a, b in windows
        ]


@pytest.mark.parametrize(
    ("said", "edits"),
    [
        (("l iang", "ve"), 0),
        (("l iang", ""), 1),
        (("", "l iang"), 4),  # the right words in another line
        (("l iang ve", ""), 2),
        (("k", "ve", "ve ve"), 2),  # what is heard where nobody sings is no error
    ],
)
def test_each_line_is_heard_in_its_own_window(
    judge: Judge, said: tuple[str, ...], edits: int
) -> None:
    judge.recogniser = Reader(*said)  # type: ignore[assignment]
    lines = (SungSyllable(("l", "iang"), 0.2, 0.9, 0), SungSyllable(("ve",), 1.2, 1.9, 1))
    wanted = song(1, syllables=lines)
    pair = Pair(0, heard(wanted), wanted, lines, windows=((0.0, 1.0), (1.0, 2.0)))
    assert judge.row("x", [pair]).value("per") == pytest.approx(edits / 3)
    more = dataclasses.replace(pair, syllables=(*lines, SungSyllable(("k",), 2.2, 2.9, 2)))
    assert judge.row("x", [more]).value("per") == pytest.approx((edits + 1) / 4), (
        "a line without a window is lost"
    )
    whole = dataclasses.replace(pair, windows=None)
    asked, heard_all = ["l", "iang", "ve"], " ".join(said).split()
    assert judge.row("x", [whole]).value("per") == pytest.approx(
        edit_distance(asked, heard_all) / 3
    )


def test_own_windows_stay_when_words_are_permuted() -> None:
    songs = [song(n) for n in range(8)]
    own = own_pairs([heard(s) for s in songs], songs)
    assert own[1].windows == ((0.85, 2.15),) and own[0].windows == ()
    for pair in permuted(own, songs):
        assert pair.windows == own[pair.song].windows


def test_windows_follow_the_plan_of_a_request() -> None:
    def planned(seconds: float) -> tuple[tuple[float, float], ...] | None:
        lyrics = phonemize(parse_lyrics("[verse]\n[00:02.00]月亮升起来\n[00:06.00]照亮窗台"))
        plan = plan_song(
            read_description("钢琴，BPM 120"), lyrics, longest=60.0, seed=1, seconds=seconds
        )
        understood = SimpleNamespace(outline=plan.outline, phonemes=lyrics)
        return planned_windows(understood)  # type: ignore[arg-type]

    found = planned(12.0)
    assert found is not None and [start for start, _ in found] == pytest.approx([1.85, 5.85])
    assert all(start + 1 < end < start + 5 for start, end in found)
    cut = planned(5.0)
    assert cut is not None and cut[1] == (0.0, 0.0), "what is not sung has no window"
    untold = SimpleNamespace(outline=Outline(), phonemes=None)
    assert planned_windows(untold) is None  # type: ignore[arg-type]


def test_measurements_are_kept_by_content(tmp_path: Path) -> None:
    listener, path = Listener(tmp_path / "work"), tmp_path / "a.wav"
    soundfile.write(path, torch.randn(RATE).numpy() * 0.1, RATE)
    first = listener.hear(path)
    (tmp_path / "b.wav").write_bytes(path.read_bytes())
    files = list((tmp_path / "work" / "cache").iterdir())
    assert (
        torch.equal(listener.hear(tmp_path / "b.wav").mel_FM, first.mel_FM)
        and list((tmp_path / "work" / "cache").iterdir()) == files
    )
    calls: list[int] = []

    def make() -> tuple[Tensor, int]:
        calls.append(1)
        return torch.zeros(1, RATE), RATE

    for _ in range(2):
        again = listener.hear_made(("made", "x"), make)
    assert (
        calls == [1]
        and math.isnan(again.tempo)
        and torch.equal(again.mel_FM, listener.measure(*make()).mel_FM)
    )
    for file in (tmp_path / "work" / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(listener.hear(path).mel_FM, first.mel_FM), "a file cut short is made again"


def test_shuffling_keeps_the_samples_and_noise_keeps_the_level() -> None:
    audio = torch.randn(2, RATE) * 0.1
    mixed = shuffled(audio, RATE)
    assert not torch.equal(mixed, audio) and torch.equal(mixed.sort(1).values, audio.sort(1).values)
    assert torch.equal(mixed, shuffled(audio, RATE))
    noise = noise_like(audio)
    assert noise.shape == audio.shape and float(noise.square().mean()) == pytest.approx(
        float(audio.square().mean()), rel=0.05
    )


def test_parted_draws_evenly_and_refuses_a_small_corpus() -> None:
    test, train = parted([song(n) for n in range(80)], held_out=5, training=10)
    assert (
        [s.id for s in test] == ["0", "16", "32", "48", "64"]
        and len(train) == 10
        and not any(s.held_out for s in train)
    )
    with pytest.raises(InputError, match="2 held-out and 6 training"):
        parted([song(n) for n in range(8)], held_out=5, training=10)


@pytest.mark.parametrize("frame_rate", [43.0, 21.5])
def test_griffin_lim_from_enough_mel_bands_keeps_a_melody(frame_rate: float) -> None:
    time = torch.arange(round(0.35 * RATE)) / RATE
    tones = [440 * 2 ** ((48 + step - 69) / 12) for step in (*SCALES["major"], 12, 7, 4, 0)]
    plucked = [
        sum(torch.sin(2 * math.pi * f * h * time) / h**2 for h in (1, 2, 3)) * torch.exp(-2 * time)
        for f in tones
    ]
    audio = 0.2 * torch.cat(plucked)[None]
    rich, rate = mel_griffin_lim(audio, RATE, values_per_second=12000, frame_rate=frame_rate)
    poor, _ = mel_griffin_lim(audio, RATE, values_per_second=200, frame_rate=frame_rate)
    assert rate == RATE and rich.shape == poor.shape == audio.shape
    assert spectral_distance(audio, audio) == 0
    assert spectral_distance(audio, rich) < 0.7 * spectral_distance(audio, poor)
    assert key_rank(rich, RATE, "C major") <= 2


def test_spectral_distance_of_a_gain() -> None:
    loud = 0.5 * torch.randn(1, RATE)
    quiet = spectral_distance(loud, 0.5 * loud)
    assert 0.5 * math.log(2) < quiet < math.log(2), "log 2 where the floor is far below"


def test_twins() -> None:
    a = torch.eye(6).unbind()
    share, same, other = twins({"professional": list(a), "amateur": list(a)})
    assert share.value == 1.0 and same == 1.0 and other == 0.0
    share, _, _ = twins({"professional": [torch.ones(3)] * 6, "amateur": [torch.ones(3)] * 6})
    assert share.value == 0.5, "songs that are all the same are at chance"


def test_lyrics_count_only_when_the_recogniser_can_read_the_codec() -> None:
    def rows(codec: float, generated: Figure, other: float) -> dict[str, Row]:
        figures = {
            "codec": Figure(codec),
            "generated": generated,
            "permuted requests": Figure(other),
        }
        return {name: Row(name, 4, {"per": figure}) for name, figure in figures.items()}

    assert lyric_position(rows(0.2, Figure(0.3, 0.25, 0.4, 4), 0.8)) == pytest.approx(1 / 3)
    assert lyric_position(rows(0.78, Figure(0.78, 0.7, 0.8, 4), 0.8)) is None


@pytest.mark.parametrize(
    "table", [bars.CODEC, bars.TINY, bars.RETRIEVAL], ids=["codec", "tiny", "retrieval"]
)
def test_bars(table: tuple[bars.Bar, ...]) -> None:
    def at(off: float) -> dict[str, float | None]:
        return {b.name: b.limit + (off if b.at_least else -off) for b in table}

    assert bars.missed(bars.verdicts(table, at(0.0))) == [], "the limit itself passes"
    assert bars.missed(bars.verdicts(table, at(-0.01))) == [b.name for b in table]
    for absent in (None, float("nan")):
        assert bars.missed(bars.verdicts(table, {b.name: absent for b in table})) == [
            b.name for b in table
        ], "not measured is missed"
