"""Phoneme error rates: edit distances that are known, phonemes of lyrics, and a recogniser that
learns toy words from nothing.
"""

from __future__ import annotations

import pytest
import torch

from mudit_engine.errors import InputError
from mudit_engine.metrics import ctc
from mudit_engine.metrics.ctc import (
    FRAME_RATE,
    MELS,
    Example,
    SungSyllable,
    edit_distance,
    syllable_phonemes,
    symbols,
    train,
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


TOY = ["yue4", "liang4", "tian1", "kong1", "hai3", "feng1", "shan1", "he2"]


def toy_songs(count: int, seed: int) -> tuple[list[Example], list[list[str]]]:
    """Log-mel in which every phoneme has a pattern of its own for 0.14 s, in lines of random
    syllables with silence between.
    """
    patterns = torch.randn(len(symbols()), MELS, generator=torch.Generator().manual_seed(7)) * 2
    generator = torch.Generator().manual_seed(seed)
    songs, truths = [], []
    for _ in range(count):
        frames, sung, truth = [torch.zeros(100, MELS)], [], []
        for _ in range(4):
            for _ in range(6):
                phonemes = syllable_phonemes(
                    TOY[int(torch.randint(len(TOY), (), generator=generator))]
                )
                start = sum(map(len, frames))
                for phoneme in phonemes:
                    truth.append(phoneme)
                    frames += [
                        patterns[symbols().index(phoneme)].expand(5, -1),
                        torch.zeros(1, MELS),
                    ]
                # a consonant comes before its vowel's beat: the label starts at the last phoneme
                onset = start + 6 * (len(phonemes) - 1)
                sung.append(
                    SungSyllable(phonemes, onset / FRAME_RATE, sum(map(len, frames)) / FRAME_RATE)
                )
            frames.append(torch.zeros(40, MELS))
        mel = torch.cat(frames) - 5
        songs.append(
            Example((mel + 0.3 * torch.randn(mel.shape, generator=generator)).half(), tuple(sung))
        )
        truths.append(truth)
    return songs, truths


@pytest.fixture(scope="module")
def recogniser() -> ctc.Recogniser:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "BATCH_FRAMES": 1200,
            "WIDTH": 96,
            "BLOCKS": 2,
        }.items():  # as big as the toy needs
            patch.setattr(ctc, name, value)
        return train(toy_songs(12, seed=0)[0], epochs=16)


def test_toy_words_are_learned_and_other_words_are_told_apart(recogniser: ctc.Recogniser) -> None:
    songs, truths = toy_songs(6, seed=1)
    read = [recogniser.read(song.mel_FM) for song in songs]
    own = sum(edit_distance(truth, heard) for truth, heard in zip(truths, read, strict=True)) / sum(
        map(len, truths)
    )
    other = sum(
        edit_distance(truth, heard)
        for truth, heard in zip(truths[1:] + truths[:1], read, strict=True)
    ) / sum(map(len, truths))
    assert own < 0.1, "a whole song is read as its crops were"
    assert other > 0.4


def test_silence_says_nothing(recogniser: ctc.Recogniser) -> None:
    assert recogniser.read(torch.full((300, MELS), -5.0)) == []


def test_training_repeats_itself() -> None:
    songs, _ = toy_songs(2, seed=0)
    a, b = (train(songs, epochs=2, seed=3) for _ in range(2))
    assert all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_nothing_sung_is_refused() -> None:
    with pytest.raises(InputError, match="lyrics"):
        train([Example(torch.zeros(100, MELS), ())], epochs=1)


def test_crops_grow_from_single_syllables_to_lines() -> None:
    songs, truths = toy_songs(3, seed=0)
    ids = {symbol: number for number, symbol in enumerate(symbols(), 1)}
    sizes = []
    for progress in (0.0, 0.2, 1.0):
        crops = ctc._crops(
            songs, ids, torch.Generator().manual_seed(0), longest=ctc._longest(progress)
        )
        asked = [target for _, target in crops if target]
        # nothing sung is lost or asked twice
        assert sum(map(len, asked)) == sum(map(len, truths))
        sizes.append(sum(map(len, asked)) / len(asked))
    assert sizes[0] < 5 < sizes[1] < sizes[2]
