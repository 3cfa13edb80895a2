"""Audio files: round trips, broken input, atomic writing, resampling against a closed form and
scipy, the spectrogram.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from mudit_engine.audio import (
    check_audio_path,
    load_audio,
    resample,
    save_audio,
    save_spectrogram,
    to_channels,
    to_int16,
)
from mudit_engine.errors import InputError, OutputError


def tone(
    channels: int = 1, *, rate: int = 22050, seconds: float = 0.5, level: float = 0.5
) -> Tensor:
    time = torch.arange(int(rate * seconds)) / rate
    return torch.stack(
        [level * torch.sin(2 * math.pi * (440 + 110 * c) * time) for c in range(channels)]
    )


@pytest.mark.parametrize("channels", [1, 2], ids=["mono", "stereo"])
@pytest.mark.parametrize(
    ("suffix", "tolerance"), [(".wav", 2e-5), (".flac", 2e-5), (".ogg", 0.05), (".mp3", 0.05)]
)
def test_what_is_saved_is_loaded(
    tmp_path: Path, suffix: str, tolerance: float, channels: int
) -> None:
    audio = tone(channels)
    assert save_audio(tmp_path / f"song{suffix}", audio, 22050) == 0
    back, rate = load_audio(tmp_path / f"song{suffix}")
    assert rate == 22050 and back.dtype == torch.float32 and back.shape[0] == channels
    middle = slice(4000, 8000)
    assert (back[:, middle] - audio[:, middle]).abs().max() < tolerance


def test_ogg_of_a_whole_song_is_written(tmp_path: Path) -> None:
    audio = 0.1 * torch.randn(2, 44100 * 60, generator=torch.Generator().manual_seed(0))
    save_audio(tmp_path / "song.ogg", audio, 44100)
    assert soundfile.info(tmp_path / "song.ogg").frames == audio.shape[1]


def test_suffix_in_capitals_and_a_new_folder(tmp_path: Path) -> None:
    save_audio(tmp_path / "new" / "SONG.WAV", tone(), 22050)
    assert load_audio(tmp_path / "new" / "SONG.WAV")[1] == 22050


def test_clipping_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = torch.zeros(1, 100)
    audio[0, :3] = torch.tensor([1.5, -2.0, 1.0])
    with caplog.at_level(logging.WARNING):
        assert save_audio(tmp_path / "loud.wav", audio, 22050) == 2
    assert "2 of 100 samples were beyond full scale" in caplog.text
    samples, _ = soundfile.read(tmp_path / "loud.wav", dtype="int16")
    assert samples[:3].tolist() == [32767, -32768, 32767]


def test_int16_rounds_to_nearest_and_a_load_and_save_changes_nothing(tmp_path: Path) -> None:
    assert to_int16(torch.tensor([[0.6, -0.6, 0.4]]) / 32768)[0][:, 0].tolist() == [1, -1, 0]
    save_audio(
        tmp_path / "a.wav",
        0.3 * torch.randn(2, 999, generator=torch.Generator().manual_seed(0)),
        44100,
    )
    save_audio(tmp_path / "b.flac", load_audio(tmp_path / "a.wav")[0], 44100)
    first, second = (
        soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("a.wav", "b.flac")
    )
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "name",
    ["missing.wav", "folder", "empty.wav", "words.wav", "nothing.mp3", "movie.m4a", "cut.flac"],
)
def test_broken_input_is_an_input_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name == "empty.wav":
        soundfile.write(path, np.zeros((0, 1)), 22050)
    elif name == "words.wav":
        path.write_text("these are words and not sound\n" * 20)
    elif name == "nothing.mp3":
        path.touch()
    elif name == "movie.m4a":
        path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))
    elif name == "cut.flac":
        save_audio(tmp_path / "whole.flac", tone(), 22050)
        path.write_bytes((tmp_path / "whole.flac").read_bytes()[:30])
    with pytest.raises(InputError, match=name):
        load_audio(path)


def test_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.5]), 22050, subtype="FLOAT")
    with pytest.raises(InputError, match="NaN or infinite"):
        load_audio(tmp_path / "nan.wav")


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="NaN or infinite"):
        save_audio(tmp_path / "song.wav", torch.full((1, 10), float("nan")), 22050)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["song", "song.m4a", "song.txt"])
def test_unknown_suffix_lists_what_is_accepted(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.wav, \.flac, \.ogg, \.mp3"):
        check_audio_path(tmp_path / name)


def test_a_folder_and_a_file_in_the_way_are_refused(tmp_path: Path) -> None:
    (tmp_path / "song.wav").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a folder"):
        check_audio_path(tmp_path / "song.wav")
    with pytest.raises(InputError, match="is a file and not a folder"):
        check_audio_path(tmp_path / "file" / "sub" / "song.wav")


def test_mp3_refuses_a_rate_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MP3 has no sample rate 96000"):
        save_audio(tmp_path / "song.mp3", tone(), 96000)


@pytest.mark.parametrize("shape", [(10,), (3, 10), (1, 0), (1, 2, 10)], ids=str)
def test_shapes_that_are_no_song_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cannot be saved"):
        save_audio(tmp_path / "song.wav", torch.zeros(shape), 22050)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_audio(tmp_path / "song.wav", tone(), 22050)
    before = (tmp_path / "song.wav").read_bytes()

    def interrupt(self: soundfile.SoundFile, data: np.ndarray) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(soundfile.SoundFile, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_audio(tmp_path / "song.wav", tone(2), 44100)
    assert [path.name for path in tmp_path.iterdir()] == ["song.wav"]
    assert (tmp_path / "song.wav").read_bytes() == before


RATES = [
    (44100, 22050),
    (48000, 44100),
    (22050, 44100),
    (16000, 22050),
    (44100, 16000),
    (11025, 48000),
]


@pytest.mark.parametrize(("source", "target"), [*RATES, (4410, 4409)], ids=str)
def test_resampled_partials_lie_on_their_closed_form(source: int, target: int) -> None:
    top = 0.42 * min(source, target)
    pitches = torch.tensor([0.0, 0.01, 0.2, 0.6, 1.0], dtype=torch.float64) * top

    def partials(rate: int, samples: int) -> Tensor:
        time = torch.arange(samples, dtype=torch.float64) / rate
        return torch.sin(2 * math.pi * pitches[:, None] * time + 1).mean(0).float()

    samples = source // 2
    result = resample(partials(source, samples)[None], source, target)[0]
    assert len(result) == -(-samples * target // source)
    edge = len(result) // 8
    torch.testing.assert_close(
        result[edge:-edge], partials(target, len(result))[edge:-edge], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("source", "target"), [(44100, 22050), (48000, 16000)], ids=str)
def test_what_would_alias_is_removed(source: int, target: int) -> None:
    time = torch.arange(source, dtype=torch.float64) / source
    audio = torch.sin(2 * math.pi * 0.56 * target * time).float()[None]
    assert resample(audio, source, target)[:, 500:-500].abs().max() < 1e-4


@pytest.mark.parametrize(("source", "target"), RATES, ids=str)
def test_resample_agrees_with_scipy_on_band_limited_noise(source: int, target: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    noise = np.random.default_rng(0).standard_normal(source // 2)
    low = min(1.0, target / source) * 0.7
    audio = signal.sosfiltfilt(signal.butter(10, low, output="sos"), noise) * 0.1
    divisor = math.gcd(source, target)
    expected = signal.resample_poly(
        audio, target // divisor, source // divisor, window=("kaiser", 12.0)
    )
    got = resample(torch.from_numpy(audio).float()[None], source, target)[0].numpy()
    assert len(got) == len(expected)
    middle = slice(len(got) // 8, -len(got) // 8)
    assert np.sqrt(np.mean((got - expected)[middle] ** 2)) < 0.01 * np.std(expected)


def test_resample_keeps_batch_shape_gradients_and_the_same_rate() -> None:
    audio = torch.randn(2, 3, 101, requires_grad=True)
    assert resample(audio, 8000, 8000) is audio
    result = resample(audio, 8000, 6000)
    assert result.shape == (2, 3, 76)
    result.sum().backward()
    assert audio.grad is not None and audio.grad.abs().min() > 0


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_resample_of_a_few_samples(samples: int) -> None:
    assert resample(torch.ones(1, samples), 44100, 16000).isfinite().all()
    assert resample(torch.ones(1, samples), 16000, 44100).shape[1] == -(-samples * 44100 // 16000)


def test_channels() -> None:
    stereo = torch.stack((torch.ones(4), torch.zeros(4)))
    assert torch.equal(to_channels(stereo, 1), torch.full((1, 4), 0.5))
    assert torch.equal(to_channels(torch.ones(1, 4), 2), torch.ones(2, 4))
    assert torch.equal(to_channels(torch.arange(24.0).view(6, 4), 2), torch.arange(8.0).view(2, 4))


@pytest.mark.parametrize("title", ["a song", "月亮 (song)"])
def test_spectrogram_is_a_picture_that_shows_the_pitch(tmp_path: Path, title: str) -> None:
    image_module = pytest.importorskip("matplotlib.image")
    save_spectrogram(tmp_path / "low.png", tone(2, seconds=2), 22050, title)
    save_spectrogram(tmp_path / "silent.png", torch.zeros(1, 44100), 22050, title)
    low, silent = (image_module.imread(tmp_path / name) for name in ("low.png", "silent.png"))
    assert low.shape[0] > 300 and low.shape[1] > 800
    assert np.abs(low - silent).mean() > 0.005
    assert sorted(path.name for path in tmp_path.iterdir()) == ["low.png", "silent.png"]
