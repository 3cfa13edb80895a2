"""Phoneme error rates: edit distances that are known, phonemes of lyrics, windows of lines, and the
embedded recogniser on a song that it has never heard.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mudit_engine.errors import ModelError
from mudit_engine.metrics.ctc import (
    FRAME_RATE,
    LEAD,
    MELS,
    WEIGHTS,
    Recogniser,
    SungSyllable,
    edit_distance,
    line_windows,
    lines_of,
    log_mel,
    syllable_phonemes,
    symbols,
)


@pytest.mark.parametrize(
    ("asked", "heard", "edits"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "", 3),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("abcdef", "bcdef", 1),
        ("abc", "axbxc", 2),
        ("intention", "execution", 5),
    ],
)
def test_edit_distance(asked: str, heard: str, edits: int) -> None:
    assert edit_distance(asked, heard) == edit_distance(heard, asked) == edits


def test_phonemes_have_neither_tone_nor_stress() -> None:
    assert syllable_phonemes("yue4") == ("ve",)
    assert syllable_phonemes("liang4") == syllable_phonemes("liang") == ("l", "iang")
    assert syllable_phonemes("M EH M") == ("en:M", "en:EH", "en:M")
    assert {
        *syllable_phonemes("yue4"),
        *syllable_phonemes("hua1"),
        *syllable_phonemes("HH OW L D"),
    } <= set(symbols())


def test_lines_keep_their_syllables_and_order() -> None:
    sung = [SungSyllable(("a",), t, t + 1.0, line) for t, line in ((0.0, 0), (1.0, 0), (2.0, 1))]
    assert lines_of(sung) == [sung[:2], sung[2:]] and lines_of([]) == []


@pytest.mark.parametrize("gap", [0.0, LEAD, 2 * LEAD, 3.0])
def test_windows_of_lines_neither_overlap_nor_lose_a_consonant(gap: float) -> None:
    (a, b), (c, d) = line_windows([(1.0, 3.0), (3.0 + gap, 5.0)])
    assert a == 1.0 - LEAD and d == 5.0 + LEAD
    assert b <= c, "what is sung between two lines belongs to one of them"
    assert 3.0 + gap - LEAD <= c + 1e-6 < 3.0 + gap or (gap < LEAD and c == b < 3.0 + gap)
    assert b > 3.0 - LEAD


def network(seed: int = 0) -> Recogniser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Recogniser(("l", "iang", "ve"), {"epochs": "1"}).eval()


@pytest.mark.parametrize("frames", [1, 2, 63, 100])
def test_a_symbol_a_frame(frames: int) -> None:
    log_probs_FV = network()(torch.randn(2, frames, MELS))
    assert log_probs_FV.shape == (2, frames, 4)
    assert torch.allclose(log_probs_FV.exp().sum(-1), torch.ones(2, frames), atol=1e-5)


def test_lines_are_read_as_parts_of_the_song() -> None:
    net, mel_FM = network(), 3 * torch.randn(400, MELS)
    net.out.weight.data *= 20  # so that it says something
    seconds = 400 / FRAME_RATE
    whole = net.read(mel_FM)
    assert len(whole) > 10 and net.read_lines(mel_FM, [(0.0, seconds)]) == [whole]
    first, second, nothing = net.read_lines(
        mel_FM, [(0.0, seconds / 2), (seconds / 2, seconds + 1), (0.0, 0.0)]
    )
    assert first and second and nothing == []
    assert first == whole[: len(first)] and second == whole[-len(second) :]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    net = network()
    net.save(tmp_path / "there" / "a.safetensors")
    again = Recogniser.load(tmp_path / "there" / "a.safetensors")
    assert again.known == net.known and again.trained == {"epochs": "1"} and not again.training
    mel_NFM = torch.randn(1, 50, MELS)
    assert torch.allclose(again(mel_NFM), net(mel_NFM), atol=0.02), "half precision"


@pytest.mark.parametrize("content", [None, b"no weights", "cut"], ids=["absent", "other", "cut"])
def test_a_file_that_holds_no_recogniser_is_named(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "a.safetensors"
    if content == "cut":
        network().save(path)
        content = path.read_bytes()[:-100]
    if content is not None:
        path.write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"a\.safetensors.*training\.tiny\.recogniser"):
        Recogniser.load(path)


def test_the_mel_of_any_rate_has_as_many_frames() -> None:
    second = torch.sin(torch.arange(44100) * 0.05)[None]
    mel_FM = log_mel(second, 44100)
    assert mel_FM.shape == (44, MELS) and mel_FM.dtype == torch.float16
    stereo = torch.cat([second, second])
    assert torch.allclose(log_mel(stereo, 44100), mel_FM, atol=0.02)


def test_the_embedded_recogniser_is_small_and_says_nothing_to_silence() -> None:
    assert WEIGHTS.stat().st_size <= 2_000_000
    net = Recogniser.load()
    assert net.known == symbols() and int(net.trained["epochs"]) > 0
    assert net.read(log_mel(torch.zeros(1, 66150), 22050)) == []


@pytest.mark.corpus
@pytest.mark.parametrize(("language", "index"), [("zh", 0), ("en", 33)], ids=["zh", "en"])
def test_the_embedded_recogniser_reads_lines_that_it_has_never_heard(
    language: str, index: int
) -> None:
    from mudit_engine.training.corpus.compose import compose
    from mudit_engine.training.corpus.voice import ANALYSIS_RATE, Singer

    song = compose(seed=977, index=index, sample_rate=22050, longest=30.0).song
    assert song.held_out and song.language == language
    sung = [
        SungSyllable(syllable_phonemes(s.phonemes), s.start, s.end, s.line) for s in song.syllables
    ]
    voice = torch.from_numpy(Singer().sing(song)).float()[None]
    lines = lines_of(sung)
    said = Recogniser.load().read_lines(
        log_mel(voice, ANALYSIS_RATE),
        line_windows([(line[0].start, line[-1].end) for line in lines]),
    )
    asked = [[sound for s in line for sound in s.phonemes] for line in lines]
    edits = sum(map(edit_distance, asked, said))
    assert edits <= 0.4 * sum(map(len, asked))
    turned = sum(map(edit_distance, asked[1:] + asked[:1], said))
    assert turned > 2 * edits, "other lines are told apart"
