"""Training of the phoneme recogniser: toy words learned from nothing, frames labelled as the corpus
sings, crops that lose no syllable, and songs that must not be read.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import soundfile
import torch

from mudit_engine.errors import InputError
from mudit_engine.metrics import ctc
from mudit_engine.metrics.ctc import (
    FRAME_RATE,
    MELS,
    Recogniser,
    SungSyllable,
    edit_distance,
    syllable_phonemes,
    symbols,
)
from mudit_engine.training.corpus.labels import SCHEMA_VERSION, Song, Syllable
from mudit_engine.training.tiny import recogniser
from mudit_engine.training.tiny.recogniser import frame_labels, train
from mudit_engine.training.tiny.recogniser_songs import (
    FLOOR,
    Crop,
    Lesson,
    crops,
    heard,
    read_songs,
)

TOY = ["yue4", "liang4", "tian1", "kong1", "hai3", "feng1", "shan1", "he2"]
IDS = {symbol: number for number, symbol in enumerate(symbols(), 1)}


def toy_songs(count: int, seed: int) -> list[Lesson]:
    """Log-mel in which every phoneme has a pattern of its own for 0.16 s, in lines of random
    syllables with silence between, over a soft band.
    """
    patterns = torch.randn(len(symbols()), 8, generator=torch.Generator().manual_seed(7))
    patterns = 4 * patterns.repeat_interleave(MELS // 8, 1)  # wide, as formants are
    generator = torch.Generator().manual_seed(seed)
    songs = []
    for _ in range(count):
        frames, sung = [torch.full((60, MELS), -6.0)], []
        for line in range(4):
            for _ in range(6):
                place = int(torch.randint(len(TOY), (), generator=generator))
                phonemes = syllable_phonemes(TOY[place])
                begun = sum(map(len, frames))
                frames += [patterns[symbols().index(sound)].expand(7, -1) for sound in phonemes]
                # a consonant comes before its vowel's beat: the label starts at the last phoneme
                start = begun + 7 * (len(phonemes) - 1)
                end = sum(map(len, frames))
                sung.append(SungSyllable(phonemes, start / FRAME_RATE, end / FRAME_RATE, line))
            frames.append(torch.full((40, MELS), -6.0))
        voice = torch.cat(frames)
        band = -4 + 0.3 * torch.randn(voice.shape, generator=generator)
        songs.append(Lesson(voice.half(), band.half(), None, tuple(sung)))
    return songs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As big as the toy needs."""
    for module, name, value in (
        (ctc, "WIDTH", 64),
        (ctc, "DILATIONS", (1, 2)),
        (recogniser, "BATCH_FRAMES", 300),
        (recogniser, "PEAK_RATE", 5e-3),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small")
def test_toy_words_are_learned_and_other_words_are_told_apart() -> None:
    net = train(toy_songs(8, seed=0), epochs=12)
    songs = toy_songs(4, seed=1)
    truths = [[sound for s in song.syllables for sound in s.phonemes] for song in songs]
    mixes = [torch.logaddexp(song.voice_FM.float(), song.band_FM.float()) for song in songs]  # type: ignore[union-attr]
    read = [net.read(mix_FM) for mix_FM in mixes]
    own = sum(map(edit_distance, truths, read)) / sum(map(len, truths))
    other = sum(map(edit_distance, truths[1:] + truths[:1], read)) / sum(map(len, truths))
    assert own < 0.1, "a whole song is read as its crops were"
    assert other > 0.4
    assert net.read(songs[0].band_FM) == [], "a band alone says nothing"


@pytest.mark.usefixtures("small")
def test_training_repeats_itself() -> None:
    songs = toy_songs(2, seed=0)
    a, b = (train(songs, epochs=2, seed=3).state_dict() for _ in range(2))
    other = train(songs, epochs=2, seed=4).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["out.weight"], other["out.weight"])


def test_frames_are_labelled_as_the_corpus_sings() -> None:
    syllable = SungSyllable(syllable_phonemes("S IY K"), 1.0, 1.5)
    first = round(0.5 * FRAME_RATE)
    labels_F = frame_labels(Crop(0, first, first + 50, (syllable,)), 50, IDS)
    said = [symbols()[label - 1] for label in labels_F.unique_consecutive().tolist() if label]
    assert said == ["en:S", "en:IY", "en:K"]
    at = round(FRAME_RATE) - first
    assert labels_F[at - 1] == IDS["en:S"] and labels_F[at + 1] == IDS["en:IY"]
    assert int((labels_F == IDS["en:IY"]).sum()) > 3 * int((labels_F == IDS["en:S"]).sum()) > 0
    assert labels_F[0] == labels_F[-1] == 0, "nothing is sung there"
    slower_F = frame_labels(Crop(0, first, first + 50, (syllable,)), 60, IDS, stretch=1.2)
    assert int((slower_F > 0).sum()) > int((labels_F > 0).sum())


@pytest.mark.parametrize("longest", [1.0, 2.0, 6.0])
def test_no_syllable_is_lost_or_asked_twice(longest: float) -> None:
    songs = toy_songs(3, seed=0)
    found = crops(songs, torch.Generator().manual_seed(0), longest=longest)
    for number, song in enumerate(songs):
        assert [s for c in found if c.song == number for s in c.syllables] == [*song.syllables]
    assert any(not crop.syllables for crop in found), "some crops have nothing sung"
    for crop in found:
        assert (crop.last - crop.first) / FRAME_RATE <= longest + 1.0
        for syllable in crop.syllables:
            assert crop.first / FRAME_RATE < syllable.start < crop.last / FRAME_RATE


def test_a_band_is_mixed_anew_each_time() -> None:
    voice, band = torch.full((100, MELS), FLOOR).half(), torch.zeros(100, MELS).half()
    songs = [Lesson(voice, band, None, (SungSyllable(("ve",), 0.5, 1.0),))]
    crop, generator = Crop(0, 0, 60, songs[0].syllables), torch.Generator().manual_seed(0)
    levels = [float(heard(crop, songs, generator)[0].mean()) for _ in range(60)]
    assert min(levels) < FLOOR + 2, "some crops have no band"
    assert max(levels) > -1, "and some a loud one"
    quiet = [float(heard(crop, songs, generator, quieter=40.0)[0].mean()) for _ in range(60)]
    assert max(quiet) < -2, "at first it is hardly heard"


def song_of(folder: Path, index: int, **changed: object) -> Song:
    song = Song(
        schema=SCHEMA_VERSION, id=f"0-{index:06d}", seed=0, index=index, held_out=False,
        style="pop", instrument_set="piano", instruments=("piano",), bpm=100, key=0, mode="major",
        seconds=2.0, sample_rate=22050, drums=False, voice="female", timbre="clear",
        language="zh", progressions=(), bars=(0.0,), form=(), chords=(), melody=(),
        arrangement=(), lyrics="月", lines=(),
        syllables=(Syllable(0.5, 1.5, 60, "月", "yue4", 0, 0),), descriptions=(),
        stems=("vocals",),
    )  # fmt: skip
    song = dataclasses.replace(song, **changed)  # type: ignore[arg-type]
    place = folder / "songs" / f"{index:06d}"
    place.mkdir(parents=True)
    (place / "song.json").write_text(song.to_json(), encoding="utf-8")
    return song


def test_a_held_out_song_is_not_read(tmp_path: Path) -> None:
    song_of(tmp_path, 0)
    song_of(tmp_path, 1, held_out=True)  # without audio: reading it would fail
    voice = torch.sin(torch.arange(44100) * 0.1).numpy()
    for name, audio in (("vocals", 0.1 * voice), ("mix", 0.1 * voice + 0.01)):
        soundfile.write(tmp_path / "songs" / "000000" / f"{name}.flac", audio, 22050)
    [lesson] = read_songs([tmp_path], codec=None, copies=0)
    assert [s.phonemes for s in lesson.syllables] == [("ve",)]
    assert lesson.voice_FM is not None and lesson.copy_FM is None
    assert lesson.voice_FM.shape == lesson.band_FM.shape == (87, MELS)
    assert float(lesson.voice_FM.float().max()) > float(lesson.band_FM[20:60].float().max()) + 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"stems": ()}, "no stems"), ({"syllables": (), "voice": "none"}, "needs songs with lyrics")],
    ids=["no-stems", "nothing-sung"],
)
def test_a_corpus_that_teaches_nothing_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    song_of(tmp_path, 0, **changed)
    with pytest.raises(InputError, match=message):
        read_songs([tmp_path], codec=None, copies=0)


def test_the_network_of_the_command_is_the_embedded_one() -> None:
    assert Recogniser(symbols()).state_dict().keys() == Recogniser.load().state_dict().keys()
